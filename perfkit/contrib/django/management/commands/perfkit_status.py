"""Show what is installed in the trees of the settings."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import as_command_errors, returncode_of
from perfkit.errors import PerfkitError
from perfkit.progress.text import printable


class Command(BaseCommand):
    help = "Show what is installed in the trees of the settings, without the network."
    requires_system_checks = ("perfkit",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="the name of a tree in the settings (default: all)"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        with as_command_errors():
            names = options["names"] or list(conf.load().trees)
            for name in names:
                conf.tree_settings(name)
        records: list[dict[str, Any]] = []
        failed: list[Exception] = []
        for name in names:
            try:
                records.append(_record(trees.status(name)))
            except (PerfkitError, OSError) as error:
                failed.append(error)
                records.append({"name": name, "state": "failed", "error": str(error)})
        if options["json"]:
            self.stdout.write(json.dumps({"trees": records}))
        else:
            for record in records:
                self._print(record, verbosity=options["verbosity"])
        if failed:
            raise CommandError(f"{len(failed)} of {len(names)} trees failed", returncode=returncode_of(failed[0]))

    def _print(self, record: dict[str, Any], *, verbosity: int) -> None:
        name = self.style.MIGRATE_LABEL(record["name"])
        match record["state"]:
            case "installed":
                version, changed = printable(record["version"] or "-"), _local(record["changed"])
                self.stdout.write(f"{name}: {version} (generation {record['generation']}, {changed})")
            case "absent":
                self.stdout.write(f"{name}: {self.style.WARNING('not installed')}")
            case _:
                self.stdout.write(f"{name}: {self.style.ERROR(printable(record['error']))}")
        if record.get("receivers_notified") is False:
            warning = "  some receivers of tree_updated have not processed this generation; the next sync calls them"
            self.stdout.write(self.style.WARNING(warning))
        if verbosity < 1 or "source" not in record:
            return
        self.stdout.write(f"  from {printable(record['source'])}\n  in   {record['dest']}")
        for each in record["generations"]:
            mark = "*" if each["current"] else " "
            version, created = printable(each["label"].get("version", "-")), _local(each["created"])
            counts = f"+{each['added']} ~{each['changed']} -{each['removed']}"
            self.stdout.write(f"  {mark} {each['number']}  {version}  {created}  {counts}")


def _record(status: trees.Status) -> dict[str, Any]:
    """The status as JSON: times in ISO 8601, UTC."""
    record = dataclasses.asdict(status)
    record["changed"] = _iso(record.pop("changed_s"))
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
