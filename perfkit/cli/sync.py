"""`perfkit sync`: trees that follow a source."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from perfkit.cli.frame import add_all, define
from perfkit.cli.keys import add_public_key
from perfkit.cli.output import CHANGED, Outcome, print_error
from perfkit.cli.parser import Parser, add_progress
from perfkit.cli.settings import add_credentials, add_rates, add_wait
from perfkit.config import parse_seconds
from perfkit.errors import CommandFailedError, LockedError, PerfkitError, UpdateError
from perfkit.progress.text import amount, counted

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.cli.hooks import OnChange
    from perfkit.toolkit import Toolkit
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport

_ON_CHANGE_FAILED = 3  # exit code

_EXAMPLES = """\
  perfkit sync https://example.org/rules rules
  perfkit sync https://example.org/rules rules --dry-run
  perfkit sync https://example.org/rules rules --quiet --json    for programs
  perfkit sync https://example.org/rules rules --check 'suricata -T -S {}/all.rules'
  perfkit sync https://example.org/rules rules --on-change 'systemctl reload suricata'
  perfkit sync https://example.org/rules rules --include '*.rules' --exclude old/
  perfkit sync https://example.org/pack-2.tar.gz pack --strip-components 1
  perfkit sync https://example.org/disk.img.zsync images
  perfkit sync https://example.org/feed.csv.gz feed --decompress
  perfkit sync urls.txt mirror
  perfkit sync rules geoip           trees that perfkit.toml lists; all: --all
  PERFKIT_LOCAL_CHANGES=refuse perfkit sync https://example.org/rules rules
"""


def add_sync(sync: Parser) -> None:
    where = "the URL of a site or file, or the path of a list of URLs; and the tree. Or names of trees in perfkit.toml"
    sync.add_argument("places", nargs="*", metavar="SOURCE DEST | NAME", help=where)
    add_all(sync)
    types = "release, zip, tar, zsync, file, urls or metalink (default: detected)"
    sync.add_argument("--type", metavar="TYPE", help=types)
    what = "another URL of the same site, or of a plain file with --checksums (can be repeated)"
    sync.add_argument("--mirror", dest="mirrors", action="append", default=[], metavar="URL", help=what)
    what = "a file with the checksum of a plain file, such as SHA256SUMS; it is read first"
    sync.add_argument("--checksums", metavar="FILE|URL", help=what)
    what = "decompress a plain file (gz, bz2, xz, zst); later syncs do so too"
    sync.add_argument("--decompress", action=argparse.BooleanOptionalAction, help=what)
    what = "how many leading directories to remove from the names in an archive (default 0)"
    sync.add_argument("--strip-components", type=int, default=0, metavar="N", help=what)
    what = "only files of a release or archive that match, as in a .gitignore (can be repeated)"
    sync.add_argument("--include", action="append", default=[], metavar="PATTERN", help=what)
    what = "leave out files of a release or archive that match (can be repeated)"
    sync.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=what)
    what = "symbolic links in an archive: refuse them (default), skip them, or copy what they point to"
    sync.add_argument("--links", choices=("refuse", "skip", "follow"), default="refuse", help=what)
    sync.add_argument("--channel", metavar="NAME", help="install the release that this channel of the site offers")
    add_once(sync)
    what = "hash every file of the tree, even if its size and times are unchanged"
    sync.add_argument("--check-contents", action="store_true", help=what)
    what = "run before anything changes, with the changed names on standard input; {} is the tree as it will be"
    sync.add_argument("--check", metavar="CMD", help=what)
    sync.add_argument("--check-timeout", metavar="TIME", default="10m", help="time limit for --check (default 10m)")
    add_public_key(sync)
    sync.add_argument(
        "--threshold", type=int, default=1, metavar="N", help="how many of the keys have to sign (default 1)"
    )
    sync.add_argument("--allow-expired", action="store_true", help="accept a release whose expiry has passed")
    sync.add_argument("--on-change", metavar="CMD", help="run after a change, with the changed names on standard input")
    sync.add_argument("--null", action="store_true", help="end each name with NUL instead of a line feed")
    interval = (
        "do nothing if a sync succeeded within this time, such as 15m, or failed less than 1, 2, 4, ... minutes ago"
    )
    sync.add_argument("--min-interval", metavar="TIME", default="0", help=interval)
    sync.add_argument("--splay", metavar="TIME", help="first wait up to this long, such as 10m; the same on each run")
    add_credentials(sync)
    add_rates(sync)
    add_progress(sync)
    about = "Update a tree from a release, an archive or a list; only differences are fetched."
    define(sync, _sync, about, _EXAMPLES)


def add_once(sync: argparse.ArgumentParser) -> None:
    """Add the options that are about one run, not about the tree."""
    sync.add_argument("--release", metavar="V", help="install this version, even if it is older or on hold")
    sync.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    sync.add_argument("--retry-rejected", action="store_true", help="check a version again that --check has refused")
    sync.add_argument("--allow-older", action="store_true", help="accept an older release than was installed before")
    what = "ignore the minimum interval between syncs, and a pause that a server asked for"
    sync.add_argument("--now", action="store_true", help=what)
    sync.add_argument("--exit-code", action="store_true", help="exit with 10 if something changed")
    add_wait(sync)


def _sync(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    if arguments.dry_run:
        return outcome_of_plan(kit.plan(arguments.source, arguments.dest, **_chosen(arguments)))
    synced = sync_tree(kit, arguments)
    report, outcome = synced.report, outcome_of_sync(synced.report)
    note = synced.not_due or "; ".join([outcome.note, *_selected(report, arguments)])
    code = CHANGED if arguments.exit_code and report.generation_is_new else 0
    if synced.failure is not None:
        print_error(f"{synced.failure}; the next sync runs it again")
        code = _ON_CHANGE_FAILED
    return outcome._replace(note=note, code=code)


def outcome_of_sync(report: SyncReport) -> Outcome:
    done = (
        f"{report.version or 'nothing is installed'}, generation {report.generation}: {report.added} "
        f"added, {report.changed} changed, {report.removed} removed; {report.unchanged} unchanged; "
        f"{amount(report.bytes_received)} received in {report.seconds:.1f} s, by {report.route}"
    )
    return Outcome(dataclasses.asdict(report), "; ".join([done, *report.edits(), *_held(report.held, report.version)]))


class Synced(NamedTuple):
    """The outcome of a sync."""

    report: SyncReport  # of the sync, or of a tree that was left as it is
    not_due: str  # why it was left so, if it was too early for a sync; else empty
    failure: PerfkitError | None  # why the command of `--on-change` has to be run again; None if it does not have to


def sync_tree(kit: Toolkit, arguments: argparse.Namespace) -> Synced:
    """Sync a tree as the options say, if a sync is due.

    Raises:
        as `Toolkit.sync`.
    """
    from perfkit.downloads.http.dial import connect_early
    from perfkit.updates.status import splay_s

    chosen, on_change = _chosen(arguments), None
    if arguments.check is not None:
        from perfkit.cli.hooks import check_command

        chosen["check"] = check_command(arguments.check, parse_seconds(arguments.check_timeout), null=arguments.null)
    if arguments.on_change is not None:
        from perfkit.cli.hooks import OnChange

        on_change = OnChange(arguments.on_change, arguments.dest, null=arguments.null)
    if (left := _not_due(kit, arguments)) is not None:
        return Synced(*left, _announce(on_change, kit))
    if arguments.splay is not None:
        sleep(splay_s(arguments.dest, parse_seconds(arguments.splay)))
    connect_early([arguments.source], kit.config)
    try:
        report = kit.sync(
            arguments.source,
            arguments.dest,
            retry_rejected=arguments.retry_rejected,
            allow_older=arguments.allow_older,
            wait_s=parse_seconds(arguments.wait),
            **chosen,
        )
    except (PerfkitError, OSError):
        with contextlib.suppress(PerfkitError, OSError):  # what matters is why the sync failed
            _announce(on_change, kit)
        raise
    return Synced(report, "", _announce(on_change, kit))


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that say what to install, for `Toolkit.sync` and `Toolkit.plan`."""
    names = ("type", "release", "channel", "mirrors", "checksums", "decompress", "public_keys", "threshold")
    chosen = {name: getattr(arguments, name) for name in names}
    return {**chosen, "selection": _selection(arguments), "allow_expired": arguments.allow_expired}


def _announce(on_change: OnChange | None, kit: Toolkit) -> PerfkitError | None:
    """Run the command of `--on-change` if the tree has changed since its last run; returns why it failed, or None."""
    try:
        if on_change is not None:
            on_change.run(kit)
    except (CommandFailedError, LockedError) as error:
        return error
    return None


def _not_due(kit: Toolkit, arguments: argparse.Namespace) -> tuple[SyncReport, str] | None:
    """If no sync is due, a report and why nothing was done; None if one is due, or there is no tree yet."""
    from perfkit.updates.report import SyncReport

    with contextlib.suppress(UpdateError):
        status = kit.status(arguments.dest)
        due_in_s = status.due_in_s(parse_seconds(arguments.min_interval))
        if due_in_s > 0 and not arguments.now:
            note = f"{status.version}: the last sync succeeded {status.age_s():.0f} s ago; nothing to do"
            if status.failed_s is not None:
                note = (
                    f"the last sync failed: {status.error}; the next is due in {due_in_s:.0f} s, or with --now at once"
                )
            held = None if status.held is None else status.held.version
            report = SyncReport(
                version=status.version or "",
                generation=status.generation,
                previous_version=status.version,
                held=held,
                unchanged=status.files,
            )
            return report, note
    return None


def _selected(report: SyncReport, arguments: argparse.Namespace) -> list[str]:
    """Which part of the source the tree has, if no option selects one."""
    kept = report.selection and _selection(arguments) is None
    return [f"selected as before: {report.selection} (--include '*' selects all)"] if kept else []


def _selection(arguments: argparse.Namespace) -> Selection | None:
    """The files of a release or members of an archive to install; None if no option selects any."""
    if not (arguments.strip_components or arguments.include or arguments.exclude or arguments.links != "refuse"):
        return None
    from perfkit.archives.members import Selection

    return Selection(
        strip_components=arguments.strip_components,
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        links=arguments.links,
    )


def outcome_of_plan(plan: Plan) -> Outcome:
    values = ("version", "held", "route", "installed_version", "missing_bytes", "bytes", "requests", "seconds")
    names = ("fetch", "remove", "added", "changed")
    offers = [{"route": offer.route, "bytes": offer.bytes, "requests": offer.requests} for offer in plan.offers]
    here = len(plan.local) + len(plan.stored)
    record = {each: getattr(plan, each) for each in (*values, *names)}
    version = plan.version or "nothing is installed"
    work = (
        f"{version}: {len(plan.added)} added, {len(plan.changed)} changed, {len(plan.remove)} removed; "
        f"{counted(len(plan.fetch), 'file')} to fetch, {here} available locally; "
        f"by {plan.route}: {amount(plan.bytes)} in {counted(plan.requests, 'request')}, "
        f"about {plan.seconds:.1f} s"
    )
    note = "; ".join([work, *_held(plan.held, plan.version)])
    return Outcome({**record, "saved_as": plan.saved_as, "offers": offers}, note)


def _held(held: str | None, installed: str) -> list[str]:
    if held is None:
        return []
    return ["the tree is pinned" if held == installed else f"{held} is on hold"]
