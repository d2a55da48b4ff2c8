"""`perfkit publish`, `sync`, `rollback`, `history`, `verify`: releases, and the trees that follow them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
from typing import TYPE_CHECKING, Any

from perfkit.cli.output import INTERRUPTED, error_told, print_text, progress_for, tell
from perfkit.cli.parser import Parser, add_output
from perfkit.cli.settings import add_rates, config_for
from perfkit.progress.text import amount, printable

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.releases.publish.publisher import Release
    from perfkit.transactions.history import Generation
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport

__all__ = ["add_history", "add_publish", "add_rollback", "add_sync", "add_verify"]

_ONE_OBJECT = "print one JSON object on standard output"

_PUBLISH_EXAMPLES = """\
examples:
  perfkit publish rules site --version 2026.11
  perfkit publish rules site --version 2026.12 --exclude '*.bak' --exclude .git
  perfkit publish rules site --version 'r{n}' --watch    again whenever files change
uploading it, the pointer last:
  rsync -a --exclude perfkit.json site/ web:/srv/rules/
  rsync -a site/perfkit.json web:/srv/rules/
"""
_SYNC_EXAMPLES = """\
examples:
  perfkit sync https://example.org/rules rules
  perfkit sync https://example.org/rules rules --dry-run
  perfkit sync https://example.org/rules rules --quiet --json    for programs
  perfkit sync https://example.org/pack-2.tar.gz pack --strip-components 1
  perfkit sync https://example.org/disk.img.zsync images
  perfkit sync urls.txt mirror
  PERFKIT_LOCAL_CHANGES=refuse perfkit sync https://example.org/rules rules
"""
_ROLLBACK_EXAMPLES = """\
examples:
  perfkit rollback rules             to the generation before
  perfkit rollback rules --to 3      to one that `perfkit history rules` lists
"""
_HISTORY_EXAMPLES = """\
examples:
  perfkit history rules
  perfkit history rules --json
"""
_VERIFY_EXAMPLES = """\
examples:
  perfkit verify rules               tells what is missing, changed or extra
  perfkit verify rules --repair      and fetches what is missing or changed
"""

# -- publish ----------------------------------------------------------------------------------------------------------


def add_publish(publish: Parser) -> None:
    """The options of `perfkit publish`."""
    publish.description = "Make a directory the release that a static site offers."
    publish.epilog = _PUBLISH_EXAMPLES
    publish.add_argument("src", metavar="SRC", help="the tree to publish")
    publish.add_argument("site", metavar="SITE", help="the directory that a static file server serves")
    what = "what to call the release; {n} in it is its number, {time} its time"
    publish.add_argument("--version", required=True, metavar="V", help=what)
    publish.add_argument("--watch", action="store_true", help="publish again whenever files change, until Ctrl-C")
    publish.add_argument("--keep-deltas", type=int, default=3, metavar="N", help="direct deltas (default 3)")
    publish.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="names to leave out")
    add_output(publish, "print one JSON object about each release", quiet="no notes; errors are still shown")
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    options: dict[str, Any] = {"version": arguments.version, "keep_deltas": arguments.keep_deltas,
                               "exclude": arguments.exclude}  # fmt: skip
    with error_told(arguments), Toolkit(config_for(arguments)) as kit:
        if arguments.watch:
            with contextlib.closing(kit.publish_on_change(arguments.src, arguments.site, **options)) as releases:
                try:
                    for release in releases:
                        _tell_release(arguments, release)
                except KeyboardInterrupt:  # the way to end it
                    return INTERRUPTED
        release = kit.publish(arguments.src, arguments.site, **options)
    _tell_release(arguments, release)
    return 0


def _tell_release(arguments: argparse.Namespace, release: Release) -> None:
    if release.unchanged:
        note = f"{release.version} is what {arguments.site} offers already"
    else:
        note = (f"{release.version} (serial {release.serial}): {release.files} files, {release.bytes} bytes; "
                f"{release.objects_written} objects with {release.bytes_written} bytes written")  # fmt: skip
    tell(arguments, {**dataclasses.asdict(release), "seconds": round(release.seconds, 3)}, note)


# -- sync -------------------------------------------------------------------------------------------------------------


def add_sync(sync: Parser) -> None:
    """The options of `perfkit sync`."""
    sync.description = "Bring a tree to what a release, an archive or a list offers; moves what differs."
    sync.epilog = _SYNC_EXAMPLES
    sync.add_argument("source", metavar="SOURCE", help="the URL of a site or a file, or the path of a list of URLs")
    sync.add_argument("dest", metavar="DEST", help="the tree; made if need be")
    sync.add_argument("--type", metavar="KIND", help="release, zip, tar, zsync, urls, metalink (default: recognised)")
    sync.add_argument("--strip-components", type=int, default=0, metavar="N", help="directories to cut off the names")
    sync.add_argument("--include", action="append", default=[], metavar="PATTERN", help="only these members")
    sync.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="not these members")
    sync.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    add_rates(sync)
    add_output(sync, _ONE_OBJECT)
    sync.set_defaults(run=_sync)


def _sync(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with error_told(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        chosen: dict[str, Any] = {"type": arguments.type, "selection": _selection(arguments)}
        if arguments.dry_run:
            plan = kit.plan(arguments.source, arguments.dest, **chosen)
        else:
            report = kit.sync(arguments.source, arguments.dest, **chosen)
    if arguments.dry_run:
        _tell_plan(arguments, plan)
        return 0
    tell(arguments, dataclasses.asdict(report), f"{report.version}, generation {report.generation}: {report.added} "
         f"added, {report.changed} changed, {report.removed} removed; {report.bytes_received} bytes received, by "
         f"{report.route}{_edits(report)}")  # fmt: skip
    return 0


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
    """Which members of an archive are asked for; None if the options say nothing of that."""
    if not (arguments.strip_components or arguments.include or arguments.exclude):
        return None
    from perfkit.archives.members import Selection

    return Selection(strip_components=arguments.strip_components, include=tuple(arguments.include),
                     exclude=tuple(arguments.exclude))  # fmt: skip


def _tell_plan(arguments: argparse.Namespace, plan: Plan) -> None:
    values = ("version", "route", "installed_version", "missing_bytes", "bytes", "requests", "seconds", "saved_as")
    names = ("fetch", "remove", "added", "changed")
    offers = [{"route": offer.route, "bytes": offer.bytes, "requests": offer.requests} for offer in plan.offers]
    here = len(plan.local) + len(plan.stored)
    record = {value: getattr(plan, value) for value in values} | {each: list(getattr(plan, each)) for each in names}
    tell(arguments, {**record, "offers": offers},
         f"{plan.version}: {len(plan.fetch)} files to fetch, {here} from here, {len(plan.remove)} to remove; by "
         f"{plan.route}: {plan.bytes} bytes in {plan.requests} requests, some {plan.seconds:.1f} s")  # fmt: skip


# -- rollback, history, verify ----------------------------------------------------------------------------------------


def add_rollback(rollback: Parser) -> None:
    """The options of `perfkit rollback`."""
    rollback.description = "Go back to an earlier generation of a tree, or forward again, without the network."
    rollback.epilog = _ROLLBACK_EXAMPLES
    rollback.add_argument("dest", metavar="DEST", help="the tree")
    rollback.add_argument("--to", type=int, metavar="N", help="the generation (default: the one before)")
    add_output(rollback, _ONE_OBJECT)
    rollback.set_defaults(run=_rollback)


def _rollback(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with error_told(arguments), Toolkit(config_for(arguments)) as kit:
        report = kit.rollback(arguments.dest, to=arguments.to)
    version = report.version or "as it was before the first one"
    tell(arguments, dataclasses.asdict(report), f"{version}, generation {report.generation}: {report.added} added, "
         f"{report.changed} changed, {report.removed} removed{_edits(report)}")  # fmt: skip
    return 0


def add_history(history: Parser) -> None:
    """The options of `perfkit history`."""
    history.description = "List the generations that rollback can reach; a star marks the current one."
    history.epilog = _HISTORY_EXAMPLES
    history.add_argument("dest", metavar="DEST", help="the tree")
    add_output(history, _ONE_OBJECT)
    history.set_defaults(run=_history)


def _history(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with error_told(arguments), Toolkit(config_for(arguments)) as kit:
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
    """The options of `perfkit verify`."""
    verify.description = "Hash every file of a tree again; the exit code is 1 unless all is as installed."
    verify.epilog = _VERIFY_EXAMPLES
    verify.add_argument("dest", metavar="DEST", help="the tree")
    verify.add_argument("--repair", action="store_true", help="fetch what is missing or changed")
    add_output(verify, _ONE_OBJECT)
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with error_told(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        report = kit.verify(arguments.dest, repair=arguments.repair)
    if not (arguments.json or arguments.quiet):
        for what, names in (("missing", report.missing), ("changed", report.changed), ("extra", report.extra)):
            print_text("".join(f"{what} {printable(name)}\n" for name in names))
    tell(arguments, {**dataclasses.asdict(report), "intact": report.intact}, f"{report.files} files: "
         f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra"
         f"{'; repaired' if report.repaired else ''}")  # fmt: skip
    return 0 if report.intact else 1
