"""Show how the trees of the settings stand."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from perfkit.config import parse_seconds
from perfkit.contrib.django import trees
from perfkit.contrib.django.management.trees_command import Outcome, TreesCommand
from perfkit.progress.text import printable
from perfkit.updates.status import TreeStatus

_TIMES = ("changed", "checked", "failed", "not_before")


class Command(TreesCommand):
    help = "Show what is installed in the trees of the settings, without the network."
    names = "*"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        about = "fail if the last successful sync is older than this, such as 30m, 12h or 2d"
        parser.add_argument("--max-age", metavar="TIME", help=about)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        status = trees.status(name)
        record, age_s = _record(status), TreeStatus(checked_s=status.checked_s).age_s()
        old = options["max_age"] is not None and age_s > parse_seconds(options["max_age"])
        return Outcome(record, self._lines(record), f"no sync has succeeded for {options['max_age']}" if old else "")

    def _lines(self, record: dict[str, Any]) -> list[tuple[int, str]]:
        name = self.style.MIGRATE_LABEL(record["name"])
        if record["state"] == "absent":
            lines = [(0, f"{name}: {self.style.WARNING('not installed')}")]
        else:
            version, changed = printable(record["version"] or "-"), _local(record["changed"])
            lines = [(0, f"{name}: {version} (generation {record['generation']}, {changed})")]
        if record["receivers_notified"] is False:
            warning = "  some receivers of tree_updated have not processed this generation; the next sync calls them"
            lines.append((0, self.style.WARNING(warning)))
        if record["failed"] is not None:
            lines.append((0, self.style.ERROR(f"  failed {_local(record['failed'])}: {printable(record['error'])}")))
        if record["not_before"] is not None:
            lines.append((0, f"  not before {_local(record['not_before'])}, as the source asks"))
        if record["interrupted"]:
            lines.append((0, self.style.WARNING("  a change was interrupted; the next use of the tree completes it")))
        if (held := record["held"]) is not None:
            lines.append((0, self.style.WARNING(f"  on hold: {printable(held['version'])} ({held['reason']})")))
        lines.append((1, f"  from {printable(record['source'])}\n  in   {record['dest']}"))
        for each in record["generations"]:
            mark = "*" if each["current"] else " "
            version, created = printable(each["label"].get("version", "-")), _local(each["created"])
            counts = f"+{each['added']} ~{each['changed']} -{each['removed']}"
            lines.append((1, f"  {mark} {each['number']}  {version}  {created}  {counts}"))
        return lines


def _record(status: trees.Status) -> dict[str, Any]:
    """The status as JSON: times in ISO 8601, UTC."""
    record = dataclasses.asdict(status)
    for each in _TIMES:
        record[each] = _iso(record.pop(f"{each}_s"))
    for each in record["generations"]:
        each["created"] = _iso(each.pop("created_s"))
    if status.state != "installed":
        record["receivers_notified"] = None
    return record


def _iso(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None


def _local(iso: str | None) -> str:
    """In the project's time zone."""
    if iso is None:
        return "-"
    return datetime.fromisoformat(iso).astimezone(timezone.get_current_timezone()).strftime("%Y-%m-%d %H:%M:%S")
