"""Download files, with the settings of the project."""

from __future__ import annotations

import json
import os
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django.management import ToolkitCommand
from perfkit.progress.text import printable
from perfkit.redact import redacted
from perfkit.toolkit import Toolkit


class Command(ToolkitCommand):
    help = "Download files in parallel and in segments, and resume interrupted downloads."
    requires_system_checks = ("perfkit",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("urls", nargs="+", metavar="URL")
        parser.add_argument(
            "-d",
            "--directory",
            default=os.curdir,
            metavar="DIR",
            help="the directory to write into (default: the current one)",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def run(self, kit: Toolkit, **options: Any) -> None:
        downloads = kit.download_many(options["urls"], options["directory"])
        if options["json"]:
            fields = ("path", "bytes", "bytes_received", "checksum", "unchanged")
            files = [{"url": redacted(each.url)} | {name: getattr(each, name) for name in fields} for each in downloads]
            self.stdout.write(json.dumps({"files": files}))
            return
        for download in downloads:
            what = "unchanged" if download.unchanged else f"{download.bytes} bytes"
            self.note(f"{self.style.SUCCESS(printable(download.path))}  {what}", options)
