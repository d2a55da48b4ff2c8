"""`perfkit status`, `pin` and `unhold`: how a tree stands, and what it is to pass over."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
from typing import TYPE_CHECKING

from perfkit.cli.output import errors_as_json, print_result, print_text
from perfkit.cli.parser import Parser, add_output
from perfkit.cli.settings import config_for
from perfkit.config import parse_seconds
from perfkit.progress.text import printable

if TYPE_CHECKING:
    from perfkit.updates.status import TreeStatus

__all__ = ["add_pin", "add_status", "add_unhold"]

_ONE_OBJECT = "print one JSON object on standard output"

_STATUS_EXAMPLES = """\
examples:
  perfkit status rules
  perfkit status rules --max-age 2d     exits with 1 if no sync succeeded for two days
  perfkit status rules --metrics /var/lib/node_exporter/rules.prom
"""
_PIN_EXAMPLES = """\
examples:
  perfkit pin rules
"""
_UNHOLD_EXAMPLES = """\
examples:
  perfkit unhold rules
"""


def add_status(status: Parser) -> None:
    """Add the options of `perfkit status`."""
    status.description = "Show how a tree stands, without the network and without its lock."
    status.epilog = _STATUS_EXAMPLES
    status.add_argument("dest", metavar="DEST", help="the tree")
    age = "exit with 1 if the last sync that succeeded is older, such as 30m, 12h or 2d"
    status.add_argument("--max-age", metavar="TIME", help=age)
    status.add_argument("--metrics", metavar="FILE", help="write it in the text format of Prometheus, too")
    add_output(status, _ONE_OBJECT)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    max_age_s = None if arguments.max_age is None else parse_seconds(arguments.max_age)
    with errors_as_json(arguments), Toolkit(config_for(arguments)) as kit:
        found = kit.status(arguments.dest)
    if arguments.metrics:
        _write_metrics(arguments.metrics, arguments.dest, found)
    if not (arguments.json or arguments.quiet):
        print_text("".join(f"{name:<11} {printable(value)}\n" for name, value in _rows(found)))
    else:
        print_result(arguments, dataclasses.asdict(found), "")
    return 1 if max_age_s is not None and found.age_s() > max_age_s else 0


def _rows(found: TreeStatus) -> list[tuple[str, str]]:
    rows = [
        ("version", found.version or "nothing is installed"),
        ("generation", f"{found.generation}, since {_local(found.changed_s)}"),
        ("source", found.source or "-"),
        ("checked", _local(found.checked_s)),
    ]
    if found.failed_s is not None:
        rows.append(("failed", f"{_local(found.failed_s)}: {found.error}"))
    if found.held is not None:
        said = f": {found.held.message}" if found.held.message else ""
        rows.append(("held", f"{found.held.version}, {found.held.reason}, since {_local(found.held.since_s)}{said}"))
    if found.interrupted:
        rows.append(("interrupted", "a change; the next use of the tree completes it"))
    return rows


def _local(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _write_metrics(path: str, dest: str, found: TreeStatus) -> None:
    """In the text format of node_exporter's textfile collector, which may read the file at any time."""
    label = os.path.abspath(dest).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    values = {
        "perfkit_tree_checked_timestamp_seconds": found.checked_s or 0,
        "perfkit_tree_changed_timestamp_seconds": found.changed_s or 0,
        "perfkit_tree_failed": int(found.failed_s is not None),
        "perfkit_tree_held": int(found.held is not None),
        "perfkit_tree_generation": found.generation,
        "perfkit_tree_files": found.files,
    }
    text = "".join(f'# TYPE {name} gauge\n{name}{{dest="{label}"}} {value}\n' for name, value in values.items())
    with open(f"{path}~", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}~", path)


def add_pin(pin: Parser) -> None:
    """Add the options of `perfkit pin`."""
    pin.description = "Keep the installed version of a tree: sync passes over all others until unhold."
    pin.epilog = _PIN_EXAMPLES
    pin.add_argument("dest", metavar="DEST", help="the tree")
    add_output(pin, _ONE_OBJECT)
    pin.set_defaults(run=_pin)


def _pin(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments)) as kit:
        kit.pin(arguments.dest)
        version = kit.status(arguments.dest).version
    print_result(arguments, {"pinned": version}, f"{arguments.dest} stays at version {version} until unhold")
    return 0


def add_unhold(unhold: Parser) -> None:
    """Add the options of `perfkit unhold`."""
    unhold.description = "Have syncs install new versions again, after a rollback, a failed check or pin."
    unhold.epilog = _UNHOLD_EXAMPLES
    unhold.add_argument("dest", metavar="DEST", help="the tree")
    add_output(unhold, _ONE_OBJECT)
    unhold.set_defaults(run=_unhold)


def _unhold(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments)) as kit:
        held = kit.unhold(arguments.dest)
    note = f"version {held.version} is not held any more" if held else "nothing was held"
    print_result(arguments, {"released": held.version if held else None}, note)
    return 0
