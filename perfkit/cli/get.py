"""`perfkit get`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perfkit.cli.keys import add_public_key
from perfkit.cli.output import error_as_json, print_error, print_text, progress_for
from perfkit.cli.parser import Parser, add_output, add_progress
from perfkit.cli.settings import add_credentials, add_rates, config_for
from perfkit.errors import ConfigError, PerfkitError
from perfkit.minisign.public_keys import read_public_keys
from perfkit.progress.text import described
from perfkit.redact import redacted

if TYPE_CHECKING:
    from perfkit.cli.request_list import RequestList
    from perfkit.downloads.request import Download, Request
    from perfkit.toolkit import Toolkit

_PEEKED_CHARACTERS = 64 << 10  # of a list

_EXAMPLES = """\
  perfkit get https://example.org/a.iso             into the current directory
  perfkit get -o b.iso --checksum sha256:... URL    under another name, verified
  perfkit get --checksums https://example.org/SHA256SUMS https://example.org/a.iso
  perfkit get -i SHA256SUMS --base https://example.org/
  perfkit get -d out -j 4 --limit-rate 5M URL URL
  producer | perfkit get -i - -d out --json         a list that is still being written
"""


def add_get(get: Parser) -> None:
    get.add_argument("urls", nargs="*", metavar="URL", help="the files to download")
    listed = "read more URLs from FILE, or - for standard input; one per line: URL[<TAB>NAME[<TAB>CHECKSUM]]"
    get.add_argument("-i", "--input", metavar="FILE", help=listed)
    get.add_argument("--base", metavar="URL", help="the base URL of the list, which may then be a SHA256SUMS file")
    where = get.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="FILE", help="the file to write, for a single URL")
    what = "the directory to write into (default: the current one)"
    where.add_argument("-d", "--directory", metavar="DIR", help=what)
    add_rates(get)
    get.add_argument("--segments", type=int, metavar="N", help="connections for one file (default 16)")
    what = "the expected checksum, such as sha256:..., for a single URL"
    get.add_argument("--checksum", metavar="ALGORITHM:HEX", help=what)
    what = "a file with the checksums of all files, such as SHA256SUMS or a.iso.md5"
    get.add_argument("--checksums", metavar="FILE|URL", help=what)
    what = "another URL of the same file (can be repeated)"
    get.add_argument("--mirror", action="append", default=[], metavar="URL", help=what)
    what = "a name that identifies the file when its URL changes, for a single URL"
    get.add_argument("--key", metavar="TEXT", help=what)
    add_credentials(get)
    add_public_key(get)
    get.add_argument("--retries", type=int, metavar="N", help="how many failures in a row to retry (default 5)")
    what = "ignore existing and partial files, and fetch everything again"
    get.add_argument("--no-resume", action="store_true", help=what)
    add_progress(get)
    add_output(get, "print one JSON object with all results on standard output")
    get.describe("Download files in parallel and in segments, and resume interrupted downloads.", _EXAMPLES, _get)


def _get(arguments: argparse.Namespace) -> int:
    from perfkit.downloads.http.dial import connect_early

    with _Results(arguments) as results:
        # Invalid arguments are found before anything is requested or written.
        if not arguments.urls and arguments.input is None:
            raise ConfigError("no URLs: give at least one, or -i FILE with a list")
        for name in ("output", "checksum", "mirror", "key"):
            if getattr(arguments, name) and (len(arguments.urls) != 1 or arguments.input is not None):
                raise ConfigError(f"--{name} needs exactly one URL and no -i FILE")
        if arguments.output == "-":
            raise ConfigError("-o needs a file, not standard output; give ./- for a file of this name")
        if arguments.checksum and arguments.checksums:
            raise ConfigError("--checksum or --checksums, not both")
        if arguments.base is not None and arguments.input is None:
            raise ConfigError("--base needs -i FILE: it is the base URL of the list")
        options = {"resume": not arguments.no_resume, "public_keys": read_public_keys(arguments.public_keys)}
        config = config_for(arguments)
        connect_early(arguments.urls or _first_listed(arguments), config)
        from perfkit.toolkit import Toolkit  # while it connects

        with (
            _listed(arguments, options) as listed,
            Toolkit(config, progress=progress_for(arguments)) as kit,
            contextlib.closing(_downloads(kit, arguments, options, listed)) as downloads,
        ):
            for download in downloads:
                results.add(download)
    return 1 if results.failed else 0


def _first_listed(arguments: argparse.Namespace) -> list[str]:
    """URLs of the first requests of a list, if it is a file. To parse it takes modules that load slowly."""
    if arguments.base is not None or arguments.input == "-" or not os.path.isfile(arguments.input):
        return [arguments.base or ""]
    with contextlib.suppress(OSError, UnicodeError), open(arguments.input, encoding="utf-8-sig") as listed:
        lines = [line for line in listed.read(_PEEKED_CHARACTERS).splitlines() if line and not line.startswith("#")]
        # Files with checksums may be there already, and are not requested then.
        return [line.partition("\t")[0].strip() for line in lines if line.count("\t") < 2]
    return []


def _listed(
    arguments: argparse.Namespace, options: dict[str, Any]
) -> contextlib.AbstractContextManager[RequestList | None]:
    """The requests that `-i` lists; they follow the URLs on the command line."""
    if arguments.input is None:
        return contextlib.nullcontext()
    from perfkit.cli.request_list import RequestList

    return RequestList(arguments.input, base=arguments.base, **options)


def _downloads(
    kit: Toolkit, arguments: argparse.Namespace, shared: dict[str, Any], listed: RequestList | None
) -> Generator[Download, None, None]:
    """The results in the order of completion, failures included."""
    from perfkit.downloads.checksum_files import with_checksums
    from perfkit.downloads.request import Download, Request

    options = {"checksum": arguments.checksum, "mirrors": tuple(arguments.mirror), "key": arguments.key, **shared}
    add_checksum = with_checksums(arguments.checksums)
    requests = [add_checksum(Request(url, **options)) for url in arguments.urls]
    if arguments.output is not None:
        try:
            yield kit.download(requests[0], arguments.output)
        except ConfigError:
            raise
        except (PerfkitError, OSError) as error:
            came = getattr(error, "download", Download(url=arguments.urls[0], path=arguments.output))
            yield replace(came, error=error)
        return

    refused: deque[Download] = deque()

    def accepted() -> Iterator[Request | None]:
        yield from requests
        for item in listed or ():
            if item is None:
                yield None
            elif isinstance(item, Download):
                refused.append(item)  # an invalid line does not stop the others
            else:
                try:
                    request = add_checksum(item)
                except ConfigError as error:
                    refused.append(Download(url=item.url, path="", error=error))
                else:
                    yield request

    count = listed.count() if listed is not None else 0
    items = accepted() if count is None else _Counted(accepted(), len(requests) + count)
    for _, download in kit.iter_downloads(items, arguments.directory):
        yield download
        while refused:
            yield refused.popleft()
    yield from refused


@dataclass(frozen=True, slots=True)
class _Counted:
    """Requests that are created one by one, though their number is known."""

    items: Iterator[Request | None]
    count: int

    def __iter__(self) -> Iterator[Request | None]:
        return self.items

    def __len__(self) -> int:
        return self.count


class _Results:
    """Reports each file: errors on standard error and, with `--json`, one JSON object on standard output.

    The object is written as results arrive and is complete however the run ends; `error` says what ended it early.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._began_s = time.monotonic()
        self._received = 0
        self._separator = ""
        self.failed = 0

    def __enter__(self) -> _Results:
        if self._arguments.json:
            print_text('{"files":[')
        return self

    def add(self, download: Download) -> None:
        self._received += download.bytes_received
        error = download.error
        if error is not None:
            self.failed += 1
            where = "" if isinstance(error, PerfkitError) else f"{redacted(download.url)}: "
            print_error(where + described(error))
        if self._arguments.json:
            print_text(self._separator + json.dumps(_as_json(download)))
            self._separator = ","

    def __exit__(self, kind: object, value: BaseException | None, at: object) -> None:
        if not self._arguments.json:
            return
        self._arguments.json = False  # so that an error is not printed again
        end: dict[str, object] = {
            "bytes_received": self._received,
            "seconds": round(time.monotonic() - self._began_s, 3),
        }
        if value is not None:
            end["error"] = error_as_json(value)
        with contextlib.nullcontext() if value is None else contextlib.suppress(OSError, SystemExit):
            print_text(f"],{json.dumps(end)[1:]}\n")


def _as_json(download: Download) -> dict[str, object]:
    names = ("path", "bytes", "bytes_received", "resumed_from", "segments", "retries", "checksum", "unchanged")
    record: dict[str, object] = {"url": redacted(download.url), **{name: getattr(download, name) for name in names}}
    record["seconds"] = round(download.seconds, 3)
    if download.error is not None:
        record["error"] = error_as_json(download.error)
    return record
