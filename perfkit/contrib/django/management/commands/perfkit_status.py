"""Show the status of the trees of the settings."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser

from perfkit.cli.output import Outcome
from perfkit.cli.tree_commands import generation_line, status_text
from perfkit.config import parse_seconds
from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import TreesCommand


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
        text = status_text(status) + f"{'directory':<11} {status.dest}\n"
        if status.state == "installed" and not status.receivers_notified:
            text += "some receivers of tree_updated have not processed this generation; the next sync calls them\n"
        text += "".join(map(generation_line, status.generations))
        note = f"no sync has succeeded for {max_age}" if old else ""
        return Outcome(_record(status), note, text, code=1 if old else 0)


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
