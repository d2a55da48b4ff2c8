"""`perfkit publish`, `sync`, `rollback`, `history` and `verify`: releases, and the trees that follow them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import socket
from time import sleep
from typing import TYPE_CHECKING, Any

from perfkit.cli.keys import add_public_key, add_sign_key
from perfkit.cli.output import INTERRUPTED, errors_as_json, print_error, print_result, print_text, progress_for
from perfkit.cli.parser import Parser, add_output, add_progress
from perfkit.cli.settings import add_rates, add_wait, config_for
from perfkit.config import parse_seconds
from perfkit.errors import UpdateError
from perfkit.progress.text import amount, counted, printable

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.releases.publish.publisher import Release
    from perfkit.toolkit import Toolkit
    from perfkit.transactions.history import Generation
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport

__all__ = ["add_history", "add_publish", "add_rollback", "add_sync", "add_verify"]

_ON_CHANGE_FAILED, _CHANGED = 3, 10  # exit codes
_ONE_OBJECT = "print one JSON object on standard output"

_PUBLISH_EXAMPLES = """\
examples:
  perfkit publish rules site --version 2026.11
  perfkit publish rules site --version 2026.12 --exclude '*.bak' --exclude .git
  perfkit publish rules site --version 'r{n}' --watch    again whenever files change
to upload it, the pointer last:
  rsync -a --exclude perfkit.json site/ web:/srv/rules/
  rsync -a site/perfkit.json web:/srv/rules/
"""
_SYNC_EXAMPLES = """\
examples:
  perfkit sync https://example.org/rules rules
  perfkit sync https://example.org/rules rules --dry-run
  perfkit sync https://example.org/rules rules --quiet --json    for programs
  perfkit sync https://example.org/rules rules --check 'suricata -T -S {}/all.rules'
  perfkit sync https://example.org/rules rules --on-change 'systemctl reload suricata'
  perfkit sync https://example.org/pack-2.tar.gz pack --strip-components 1
  perfkit sync https://example.org/disk.img.zsync images
  perfkit sync urls.txt mirror
  PERFKIT_LOCAL_CHANGES=refuse perfkit sync https://example.org/rules rules
"""
_ROLLBACK_EXAMPLES = """\
examples:
  perfkit rollback rules             to the previous generation
  perfkit rollback rules --to 3      to one that `perfkit history rules` lists
"""
_HISTORY_EXAMPLES = """\
examples:
  perfkit history rules
  perfkit history rules --json
"""
_VERIFY_EXAMPLES = """\
examples:
  perfkit verify rules               lists missing, changed and extra files
  perfkit verify rules --repair      and fetches those missing or changed
"""

# -- publish ----------------------------------------------------------------------------------------------------------


def add_publish(publish: Parser) -> None:
    """Add the options of `perfkit publish`."""
    publish.description = "Publish a directory as the current release of a static site."
    publish.epilog = _PUBLISH_EXAMPLES
    publish.add_argument("src", metavar="SRC", help="the directory to publish")
    publish.add_argument("site", metavar="SITE", help="the site: a directory for any static file server")
    what = "the name of the release; {n} is replaced by its number, {time} by its time"
    publish.add_argument("--version", required=True, metavar="V", help=what)
    publish.add_argument("--watch", action="store_true", help="publish again whenever files change, until Ctrl-C")
    publish.add_argument(
        "--keep-deltas", type=int, default=3, metavar="N", help="earlier releases with a direct delta (default 3)"
    )
    publish.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="names to leave out (can be repeated)"
    )
    add_sign_key(publish)
    add_progress(publish)
    add_output(publish, "print one JSON object for each release")
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    options: dict[str, Any] = {
        "version": arguments.version,
        "keep_deltas": arguments.keep_deltas,
        "exclude": arguments.exclude,
        "sign_key": arguments.sign_key,
        "expires_s": None if arguments.expires is None else parse_seconds(arguments.expires),
    }
    with errors_as_json(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        if arguments.watch:
            with contextlib.closing(kit.publish_on_change(arguments.src, arguments.site, **options)) as releases:
                try:
                    for release in releases:
                        _print_release(arguments, release)
                except KeyboardInterrupt:  # this is how to stop it
                    return INTERRUPTED
        release = kit.publish(arguments.src, arguments.site, **options)
    _print_release(arguments, release)
    return 0


def _print_release(arguments: argparse.Namespace, release: Release) -> None:
    if release.unchanged:
        done = "nothing to do" if arguments.expires is None else "its expiry is renewed"
        note = f"{arguments.site} offers {release.version} already; {done}"
    else:
        note = (
            f"{release.version} (release {release.number}): {counted(release.files, 'file')}, "
            f"{amount(release.bytes)}; {counted(release.objects_written, 'object')} with "
            f"{amount(release.bytes_written)} written in {release.seconds:.1f} s"
        )
    print_result(arguments, {**dataclasses.asdict(release), "seconds": round(release.seconds, 3)}, note)


# -- sync -------------------------------------------------------------------------------------------------------------


def add_sync(sync: Parser) -> None:
    """Add the options of `perfkit sync`."""
    sync.description = "Update a tree from a release, an archive or a list; only differences are fetched."
    sync.epilog = _SYNC_EXAMPLES
    sync.add_argument("source", metavar="SOURCE", help="the URL of a site or a file, or the path of a list of URLs")
    sync.add_argument("dest", metavar="DEST", help="the tree; created if it does not exist")
    sync.add_argument("--type", metavar="TYPE", help="release, zip, tar, zsync, urls or metalink (default: detected)")
    sync.add_argument(
        "--strip-components", type=int, default=0, metavar="N", help="leading directories to remove from names"
    )
    sync.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only these members (can be repeated)"
    )
    sync.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="all but these members (can be repeated)"
    )
    sync.add_argument(
        "--links",
        choices=("refuse", "skip", "follow"),
        default="refuse",
        help="symbolic links in an archive: refuse it (default), skip them, or copy the files that they lead to",
    )
    sync.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    what = "hash every file of the tree, even if its size and times are unchanged"
    sync.add_argument("--check-contents", action="store_true", help=what)
    sync.add_argument("--check", metavar="CMD", help="run before anything changes; {} is the tree as it will be")
    sync.add_argument("--check-timeout", metavar="TIME", default="10m", help="for --check (10m)")
    sync.add_argument("--retry-rejected", action="store_true", help="check a version again that was refused before")
    sync.add_argument("--allow-older", action="store_true", help="accept an older release than was installed before")
    add_public_key(sync)
    sync.add_argument("--threshold", type=int, default=1, metavar="N", help="how many of the keys (default 1)")
    sync.add_argument("--allow-expired", action="store_true", help="accept a release whose expiry has passed")
    sync.add_argument("--on-change", metavar="CMD", help="run after a change; has the changed names on standard input")
    sync.add_argument("--null", action="store_true", help="end these names with NUL instead of a line feed")
    sync.add_argument("--min-interval", metavar="TIME", help="do nothing if a sync succeeded less than this ago")
    sync.add_argument("--splay", metavar="TIME", help="first wait up to this long, always the same for a host and tree")
    sync.add_argument("--exit-code", action="store_true", help="exit with 10 if something changed")
    add_wait(sync)
    add_rates(sync)
    add_progress(sync)
    add_output(sync, _ONE_OBJECT)
    sync.set_defaults(run=_sync)


def _sync(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        if not arguments.dry_run and not _is_due(kit, arguments):
            return 0
        chosen: dict[str, Any] = {
            "type": arguments.type,
            "selection": _selection(arguments),
            "public_keys": arguments.public_key,
            "threshold": arguments.threshold,
            "allow_expired": arguments.allow_expired,
        }
        if arguments.dry_run:
            _print_plan(arguments, kit.plan(arguments.source, arguments.dest, **chosen))
            return 0
        from perfkit.cli.hooks import CommandError, OnChange, check_command

        if arguments.check is not None:
            chosen["check"] = check_command(arguments.check, parse_seconds(arguments.check_timeout))
        on_change = OnChange(arguments.on_change, arguments.dest, null=arguments.null) if arguments.on_change else None
        chosen.update(
            retry_rejected=arguments.retry_rejected,
            allow_older=arguments.allow_older,
            wait_s=parse_seconds(arguments.wait),
        )
        report = kit.sync(arguments.source, arguments.dest, **chosen)
        held = f"; {report.held} is on hold" if report.held else ""
        print_result(
            arguments,
            dataclasses.asdict(report),
            f"{report.version}, generation {report.generation}: {report.added} "
            f"added, {report.changed} changed, {report.removed} removed; {report.unchanged} unchanged; "
            f"{amount(report.bytes_received)} received in {report.seconds:.1f} s, by {report.route}"
            f"{_edits(report)}{held}",
        )
        try:
            if on_change is not None:
                on_change.run(kit)
        except CommandError as error:
            print_error(f"{error}; the next sync runs it again")
            return _ON_CHANGE_FAILED
    return _CHANGED if arguments.exit_code and report.generation_is_new else 0


def _is_due(kit: Toolkit, arguments: argparse.Namespace) -> bool:
    """Whether it is time for this sync, after waiting for the splay."""
    if arguments.min_interval is not None:
        least_s = parse_seconds(arguments.min_interval)
        with contextlib.suppress(UpdateError):  # there is no tree yet
            status = kit.status(arguments.dest)
            if status.failed_s is None and status.age_s() < least_s:
                note = f"{status.version}: the last sync succeeded {status.age_s():.0f} s ago; nothing to do"
                print_result(arguments, dataclasses.asdict(status), note)
                return False
    if arguments.splay is not None:
        # Every host has its own moment in the interval, so that a fleet does not ask at once.
        digest = hashlib.sha256(f"{socket.gethostname()}\0{os.path.abspath(arguments.dest)}".encode()).digest()
        sleep(parse_seconds(arguments.splay) * int.from_bytes(digest[:4]) / 2**32)
    return True


def _edits(report: SyncReport) -> str:
    """What happened to locally edited files."""
    kept = "".join(f"; {name} had local edits, which are kept as {fresh}" for name, fresh in report.saved_as.items())
    lost = "".join(f"; {name} had local edits, which were overwritten" for name in report.overwritten)
    back = "".join(
        f"; {name} was restored with local edits, since the released content is not kept"
        for name in report.restored_with_edits
    )
    return kept + lost + back


def _selection(arguments: argparse.Namespace) -> Selection | None:
    """The members of an archive to extract; None if no option selects any."""
    if not (arguments.strip_components or arguments.include or arguments.exclude or arguments.links != "refuse"):
        return None
    from perfkit.archives.members import Selection

    return Selection(
        strip_components=arguments.strip_components,
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        links=arguments.links,
    )


def _print_plan(arguments: argparse.Namespace, plan: Plan) -> None:
    values = ("version", "route", "installed_version", "missing_bytes", "bytes", "requests", "seconds", "saved_as")
    names = ("fetch", "remove", "added", "changed")
    offers = [{"route": offer.route, "bytes": offer.bytes, "requests": offer.requests} for offer in plan.offers]
    here = len(plan.local) + len(plan.stored)
    record = {value: getattr(plan, value) for value in values} | {each: list(getattr(plan, each)) for each in names}
    print_result(
        arguments,
        {**record, "offers": offers},
        f"{plan.version}: {counted(len(plan.fetch), 'file')} to fetch, {here} available locally, {len(plan.remove)} to "
        f"remove; by {plan.route}: {amount(plan.bytes)} in {counted(plan.requests, 'request')}, "
        f"about {plan.seconds:.1f} s",
    )


# -- rollback, history, verify ----------------------------------------------------------------------------------------


def add_rollback(rollback: Parser) -> None:
    """Add the options of `perfkit rollback`."""
    rollback.description = "Return a tree to an earlier generation, or to a later one, without the network."
    rollback.epilog = _ROLLBACK_EXAMPLES
    rollback.add_argument("dest", metavar="DEST", help="the tree")
    rollback.add_argument("--to", type=int, metavar="N", help="the generation (default: the previous one)")
    rollback.add_argument("--no-hold", action="store_true", help="have the next sync install the newest version again")
    add_wait(rollback)
    add_output(rollback, _ONE_OBJECT)
    rollback.set_defaults(run=_rollback)


def _rollback(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments)) as kit:
        hold, wait_s = not arguments.no_hold, parse_seconds(arguments.wait)
        report = kit.rollback(arguments.dest, to=arguments.to, hold=hold, wait_s=wait_s)
    version = report.version or "the tree before the first change"
    print_result(
        arguments,
        dataclasses.asdict(report),
        f"{version}, generation {report.generation}: {report.added} added, "
        f"{report.changed} changed, {report.removed} removed{_edits(report)}",
    )
    return 0


def add_history(history: Parser) -> None:
    """Add the options of `perfkit history`."""
    history.description = "List the generations that rollback can restore; a star marks the current one."
    history.epilog = _HISTORY_EXAMPLES
    history.add_argument("dest", metavar="DEST", help="the tree")
    add_output(history, _ONE_OBJECT)
    history.set_defaults(run=_history)


def _history(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments)) as kit:
        found = kit.history(arguments.dest)
    if arguments.json:
        print_text(json.dumps({"generations": [dataclasses.asdict(each) for each in found]}) + "\n")
    else:
        print_text("".join(map(_generation_line, found)))
    return 0


def _generation_line(each: Generation) -> str:
    mark = "*" if each.current else " "
    if each.number == 0:
        return f"{mark} {each.number:>4}  before the first change\n"
    made = datetime.datetime.fromtimestamp(each.created_s).strftime("%Y-%m-%d %H:%M")
    version, kept = printable(each.label.get("version", "-")), amount(each.bytes_kept)
    return f"{mark} {each.number:>4}  {made}  {version}  +{each.added} ~{each.changed} -{each.removed}  {kept} kept\n"


def add_verify(verify: Parser) -> None:
    """Add the options of `perfkit verify`."""
    verify.description = "Hash every file of a tree again; exits with 1 unless all are as installed."
    verify.epilog = _VERIFY_EXAMPLES
    verify.add_argument("dest", metavar="DEST", help="the tree")
    verify.add_argument("--repair", action="store_true", help="fetch missing and changed files again")
    add_progress(verify)
    add_output(verify, _ONE_OBJECT)
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        report = kit.verify(arguments.dest, repair=arguments.repair)
    if not (arguments.json or arguments.quiet):
        for what, names in (("missing", report.missing), ("changed", report.changed), ("extra", report.extra)):
            print_text("".join(f"{what} {printable(name)}\n" for name in names))
    print_result(
        arguments,
        {**dataclasses.asdict(report), "intact": report.intact},
        f"{counted(report.files, 'file')}: "
        f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra"
        f"{'; repaired' if report.repaired else ''}; {amount(report.bytes)} read in {report.seconds:.1f} s",
    )
    return 0 if report.intact else 1
