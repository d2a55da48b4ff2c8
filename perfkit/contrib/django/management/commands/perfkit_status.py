"""Show the status of the trees of the settings."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from perfkit.config import parse_seconds
from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import Outcome, TreesCommand
from perfkit.progress.text import printable


class Command(TreesCommand):
    help = "Show what is installed in the trees of the settings, without the network."
    names = "*"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        about = "fail if the last successful sync is older than this, such as 30m, 12h or 2d"
        parser.add_argument("--max-age", metavar="TIME", help=about)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        status = trees.status(name)
        max_age = options["max_age"]
        old = max_age is not None and status.age_s() > parse_seconds(max_age)
        return Outcome(_record(status), self._lines(status), f"no sync has succeeded for {max_age}" if old else "")

    def _lines(self, status: trees.Status) -> list[tuple[int, str]]:
        name, warning = self.style.MIGRATE_LABEL(status.name), self.style.WARNING
        if status.state == "absent":
            lines = [(0, f"{name}: {warning('not installed')}")]
        else:
            what = f"generation {status.generation}, {_local(status.changed_s)}"
            lines = [(0, f"{name}: {printable(status.version or '-')} ({what})")]
            if not status.receivers_notified:
                text = "  some receivers of tree_updated have not processed this generation; the next sync calls them"
                lines.append((0, warning(text)))
        if status.failed_s is not None:
            text = f"  failed {_local(status.failed_s)}: {printable(status.error or '')}"
            lines.append((0, self.style.ERROR(text)))
        if status.not_before_s is not None:
            lines.append((0, f"  not before {_local(status.not_before_s)}, as the source asks"))
        if status.interrupted:
            lines.append((0, warning("  a change was interrupted; the next sync or rollback completes it")))
        if status.held is not None:
            lines.append((0, warning(f"  on hold: {printable(status.held.version)} ({status.held.reason})")))
        lines.append((1, f"  from {printable(status.source)}\n  in   {status.dest}"))
        for each in status.generations:
            mark, version = "*" if each.current else " ", printable(each.label.get("version", "-"))
            counts = f"+{each.added} ~{each.changed} -{each.removed}"
            lines.append((1, f"  {mark} {each.number}  {version}  {_local(each.created_s or None)}  {counts}"))
        return lines


def _record(status: trees.Status) -> dict[str, Any]:
    """The status as JSON: times in ISO 8601, UTC."""
    record = dataclasses.asdict(status)
    for each in ("changed", "checked", "failed", "not_before"):
        record[each] = _iso(record.pop(f"{each}_s"))
    for each in record["generations"]:
        each["created"] = _iso(each.pop("created_s"))
    if status.state != "installed":
        record |= {"generation": None, "receivers_notified": None}
    return record


def _iso(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None


def _local(seconds: float | None) -> str:
    """The time in the project's time zone."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.get_current_timezone()).strftime("%Y-%m-%d %H:%M:%S")
