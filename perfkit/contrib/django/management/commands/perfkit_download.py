"""Download files, with the settings of the project."""

from __future__ import annotations

import json
import os
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django.management import ToolkitCommand
from perfkit.downloads.checksum_files import with_checksums
from perfkit.downloads.request import Request
from perfkit.errors import ConfigError
from perfkit.progress.text import printable
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
        downloads = kit.download_many(requests, options["directory"])
        if options["json"]:
            fields = ("path", "bytes", "bytes_received", "checksum", "unchanged")
            files = [{"url": redacted(each.url)} | {name: getattr(each, name) for name in fields} for each in downloads]
            self.stdout.write(json.dumps({"files": files}))
        elif options["verbosity"] >= 1:
            for download in downloads:
                what = "unchanged" if download.unchanged else f"{download.bytes} bytes"
                self.stdout.write(f"{self.style.SUCCESS(printable(download.path))}  {what}")
