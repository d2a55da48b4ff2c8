"""Download files, with the settings of the project."""

from __future__ import annotations

import json
import os
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django.management import ToolkitCommand
from perfkit.downloads.checksum_files import with_checksums
from perfkit.downloads.request import Download, Request
from perfkit.errors import BatchError, ConfigError
from perfkit.progress.text import described, printable
from perfkit.redact import redacted
from perfkit.toolkit import Toolkit


class Command(ToolkitCommand):
    help = "Download files in parallel and in segments, and resume interrupted downloads."
    requires_system_checks = ("perfkit",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("urls", nargs="+", metavar="URL")
        what = "the directory to write into (default: the current one)"
        parser.add_argument("-d", "--directory", default=os.curdir, metavar="DIR", help=what)
        what = "the expected checksum, such as sha256:..., for a single URL"
        parser.add_argument("--checksum", metavar="ALGORITHM:HEX", help=what)
        what = "a file with the checksums of all files, such as SHA256SUMS"
        parser.add_argument("--checksums", metavar="FILE|URL", help=what)
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def run(self, kit: Toolkit, **options: Any) -> None:
        if options["checksum"] and (options["checksums"] or len(options["urls"]) > 1):
            raise ConfigError("--checksum is for a single URL, without --checksums")
        add_checksum = with_checksums(options["checksums"])
        requests = [add_checksum(Request(url, checksum=options["checksum"])) for url in options["urls"]]
        found = dict(kit.iter_downloads(requests, options["directory"]))
        downloads = [found[index] for index in sorted(found)]
        if options["json"]:
            self.stdout.write(json.dumps({"files": [_as_json(each) for each in downloads]}))
        elif options["verbosity"] >= 1:
            for download in downloads:
                if download.error is None:
                    what = "unchanged" if download.unchanged else f"{download.bytes} bytes"
                    self.stdout.write(f"{self.style.SUCCESS(printable(download.path))}  {what}")
        if any(download.error is not None for download in downloads):
            raise BatchError(downloads)


def _as_json(download: Download) -> dict[str, object]:
    fields = ("path", "bytes", "bytes_received", "checksum", "unchanged")
    record: dict[str, object] = {"url": redacted(download.url), **{name: getattr(download, name) for name in fields}}
    return record if download.error is None else {**record, "error": described(download.error)}
