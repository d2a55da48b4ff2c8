"""The commands for a tree: `rollback`, `history`, `verify`, `status`, `hold`, `pin` and `unhold`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perfkit.cli.frame import add_all, add_tree, define, outcome_of_check
from perfkit.cli.output import Outcome
from perfkit.cli.parser import Parser, add_progress
from perfkit.cli.settings import add_credentials, add_wait
from perfkit.config import parse_optional_seconds, parse_seconds
from perfkit.filesystem.own_files import replace_own
from perfkit.progress.text import amount, counted, printable

if TYPE_CHECKING:
    from perfkit.toolkit import Toolkit
    from perfkit.transactions.history import Generation
    from perfkit.updates.report import SyncReport, VerifyReport
    from perfkit.updates.status import TreeStatus

_ROLLBACK_EXAMPLES = """\
  perfkit rollback rules             to the previous generation
  perfkit rollback rules --to 3      to one that `perfkit history rules` lists
"""
_VERIFY_EXAMPLES = """\
  perfkit verify rules               lists missing, changed and extra files
  perfkit verify rules --repair      and fetches those missing or changed
"""
_STATUS_EXAMPLES = """\
  perfkit status rules
  perfkit status rules --max-age 2d     exits with 1 if no sync succeeded for two days
  perfkit status rules --metrics /var/lib/node_exporter/rules.prom
  perfkit status --all                  the trees that perfkit.toml lists
"""


def add_rollback(rollback: Parser) -> None:
    add_tree(rollback)
    rollback.add_argument("--to", type=int, metavar="N", help="the generation (default: the previous one)")
    rollback.add_argument("--no-hold", action="store_true", help="have the next sync install the newest version again")
    add_wait(rollback)
    about = "Return a tree to an earlier generation, or to a later one, without the network."
    define(rollback, _rollback, about, _ROLLBACK_EXAMPLES)


def _rollback(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    wait_s = parse_seconds(arguments.wait)
    return outcome_of_rollback(kit.rollback(arguments.dest, to=arguments.to, hold=not arguments.no_hold, wait_s=wait_s))


def outcome_of_rollback(report: SyncReport) -> Outcome:
    tree = report.version or ("a tree without a version" if report.generation else "the tree before the first change")
    note = (
        f"{tree}, generation {report.generation}: {report.added} added, "
        f"{report.changed} changed, {report.removed} removed"
    )
    return Outcome(dataclasses.asdict(report), "; ".join([note, *report.edits()]))


def add_history(history: Parser) -> None:
    add_tree(history)
    about = "List the generations that rollback can restore; a star marks the current one."
    define(history, _history, about, "  perfkit history rules")


def _history(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    found = kit.history(arguments.dest)
    record = {"generations": [dataclasses.asdict(each) for each in found]}
    return Outcome(record, "", text="".join(map(generation_line, found)))


def generation_line(each: Generation) -> str:
    mark = "*" if each.current else " "
    if each.number == 0:
        return f"{mark} {each.number:>4}  before the first change\n"
    made = datetime.datetime.fromtimestamp(each.created_s).strftime("%Y-%m-%d %H:%M")
    version, kept = printable(each.label.get("version", "-")), amount(each.bytes_kept)
    return f"{mark} {each.number:>4}  {made}  {version}  +{each.added} ~{each.changed} -{each.removed}  {kept} kept\n"


def add_verify(verify: Parser) -> None:
    verify.add_argument("dests", nargs="*", metavar="DEST", help="the tree, or the name of one in perfkit.toml")
    add_all(verify)
    verify.add_argument("--repair", action="store_true", help="fetch missing and changed files again")
    what = "another URL of the tree's source, for --repair (can be repeated)"
    verify.add_argument("--mirror", dest="mirrors", action="append", default=[], metavar="URL", help=what)
    add_credentials(verify)
    add_wait(verify)
    add_progress(verify)
    about = "Hash every file of a tree again; exits with 1 unless all are as installed."
    define(verify, _verify, about, _VERIFY_EXAMPLES)


def _verify(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    wait_s = parse_seconds(arguments.wait)
    return outcome_of_verify(
        kit.verify(arguments.dest, repair=arguments.repair, mirrors=arguments.mirrors, wait_s=wait_s)
    )


def outcome_of_verify(report: VerifyReport) -> Outcome:
    note = (
        f"{counted(report.files, 'file')}: "
        f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra"
        f"{'; repaired' if report.repaired else ''}; {amount(report.bytes)} read in {report.seconds:.1f} s"
    )
    return outcome_of_check(report, note, "missing", "changed", "extra")


def add_status(status: Parser) -> None:
    status.add_argument("dests", nargs="*", metavar="DEST", help="the tree, or the name of one in perfkit.toml")
    add_all(status)
    age = "exit with 1 if the last successful sync is older than this, such as 30m, 12h or 2d"
    status.add_argument("--max-age", metavar="TIME", help=age)
    status.add_argument("--metrics", metavar="FILE", help="also write the status to FILE, in Prometheus's text format")
    about = "Show the status of a tree, without the network and without its lock."
    define(status, _status, about, _STATUS_EXAMPLES, after=_write_metrics)


def _status(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    max_age_s = parse_optional_seconds(arguments.max_age)
    found = kit.status(arguments.dest)
    return Outcome(
        dataclasses.asdict(found),
        "",
        text=status_text(found),
        code=1 if max_age_s is not None and found.age_s() > max_age_s else 0,
    )


def status_text(found: TreeStatus) -> str:
    rows = [
        ("version", found.version or "nothing is installed"),
        ("generation", f"{found.generation}, since {_local(found.changed_s)}"),
        ("source", found.source or "-"),
        ("checked", _local(found.checked_s)),
    ]
    if found.failed_s is not None:
        rows.append(("failed", f"{_local(found.failed_s)}: {found.error}"))
    if found.on_change_error is not None:
        rows.append(("on change", f"failed, and the next sync runs it again: {found.on_change_error}"))
    if found.not_before_s is not None:
        rows.append(("not before", f"{_local(found.not_before_s)}, as the source asks"))
    for held in found.holds:
        said = f": {held.message}" if held.message else ""
        rows.append(("held", f"{held.version}, {held.reason}, since {_local(held.since_s)}{said}"))
    if found.interrupted:
        rows.append(("interrupted", "a change; the next sync or rollback completes it"))
    return "".join(f"{name:<11} {printable(value)}\n" for name, value in rows)


def _local(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _write_metrics(arguments: argparse.Namespace, trees: list[tuple[argparse.Namespace, Outcome]]) -> None:
    """Write the text format of node_exporter's textfile collector, which may read the file at any time."""
    if not arguments.metrics:
        return
    values: dict[str, Callable[[Any], object]] = {
        "perfkit_tree_checked_timestamp_seconds": lambda found: found["checked_s"] or 0,
        "perfkit_tree_changed_timestamp_seconds": lambda found: found["changed_s"] or 0,
        "perfkit_tree_failed": lambda found: int(found["failed_s"] is not None),
        "perfkit_tree_failures": lambda found: found["failures"],
        "perfkit_tree_on_change_failed": lambda found: int(found["on_change_error"] is not None),
        "perfkit_tree_held": lambda found: int(found["held"] is not None),
        "perfkit_tree_generation": lambda found: found["generation"],
        "perfkit_tree_files": lambda found: found["files"],
    }
    with replace_own(arguments.metrics, 0o644) as file:
        for name, value in values.items():
            file.write(f"# TYPE {name} gauge\n".encode())
            for tree, outcome in trees:
                label = os.path.abspath(tree.dest).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
                file.write(f'{name}{{dest="{label}"}} {value(outcome.record)}\n'.encode(errors="replace"))


def add_hold(hold: Parser) -> None:
    add_tree(hold)
    hold.add_argument("version", metavar="VERSION", help="the version to pass over")
    add_wait(hold)
    about = "Have syncs pass over a version until the source offers another one."
    define(hold, _hold, about, "  perfkit hold rules 2026.12")


def _hold(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    kit.hold(arguments.dest, arguments.version, wait_s=parse_seconds(arguments.wait))
    note = f"{arguments.dest} passes over version {arguments.version}, until another one is offered"
    return Outcome({"held": arguments.version}, note)


def add_pin(pin: Parser) -> None:
    add_tree(pin)
    add_wait(pin)
    about = "Keep the installed version of a tree: sync passes over all others until unhold."
    define(pin, _pin, about, "  perfkit pin rules")


def _pin(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    kit.pin(arguments.dest, wait_s=parse_seconds(arguments.wait))
    version = kit.status(arguments.dest).version
    return Outcome({"pinned": version}, f"{arguments.dest} stays at version {version} until unhold")


def add_unhold(unhold: Parser) -> None:
    add_tree(unhold)
    add_wait(unhold)
    about = "Have syncs install new versions again, after a rollback, a failed check or a pin."
    define(unhold, _unhold, about, "  perfkit unhold rules")


def _unhold(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    held = kit.unhold(arguments.dest, wait_s=parse_seconds(arguments.wait))
    note = "nothing was on hold"
    if held:
        pinned = held.reason == "pin"
        note = f"{arguments.dest} is no longer pinned" if pinned else f"version {held.version} is no longer on hold"
    return Outcome({"released": held.version if held else None}, note)
