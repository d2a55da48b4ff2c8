"""The `perfkit` command: arguments in, Toolkit calls, text or JSON out.

Exit codes: 0 success, 1 the work failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from perfkit import __version__
from perfkit.config import Config, parse_size
from perfkit.errors import ConfigError, PerfkitError

if TYPE_CHECKING:
    from perfkit.downloads.request import Download, Request
    from perfkit.progress.meter import Progress
    from perfkit.toolkit import Toolkit

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, `sys.argv[1:]` by default; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except ConfigError as error:
        parser.error(str(error))
    except (PerfkitError, OSError) as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        _say("interrupted; the same command again goes on from here")
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perfkit", description="Fast parallel downloads that are whole or absent.")
    parser.add_argument("--version", action="version", version=f"perfkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    get = commands.add_parser("get", help="download files", description="Download files, in parallel and in parts.")
    get.add_argument("urls", nargs="*", metavar="URL")
    listed = "read more from FILE, or - for standard input; a line each: URL[<TAB>NAME[<TAB>CHECKSUM]]"
    get.add_argument("-i", "--input", metavar="FILE", help=listed)
    where = get.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="FILE", help="the file to write, for a single URL")
    where.add_argument("-d", "--directory", metavar="DIR", help="the directory to write into (default: here)")
    get.add_argument("-j", "--workers", type=int, metavar="N", help="transfers at once (default 8)")
    get.add_argument("--segments", type=int, metavar="N", help="connections for one file (default 8)")
    get.add_argument("--limit-rate", metavar="RATE", help="bytes per second for all together, such as 500K or 5M")
    get.add_argument("--checksum", metavar="ALGORITHM:HEX", help="such as sha256:…, for a single URL")
    get.add_argument("--mirror", action="append", default=[], metavar="URL", help="another URL of the same file")
    get.add_argument("--header", action="append", default=[], metavar="'K: V'", help="sent to the URLs' own origins")
    get.add_argument("--retries", type=int, metavar="N", help="failures in a row before giving up (default 5)")
    get.add_argument("--no-resume", action="store_true", help="ignore what is there already and fetch everything")
    get.add_argument("--quiet", action="store_true", help="no bars and notes; errors are still shown")
    get.add_argument("--json", action="store_true", help="print one JSON object with the results on standard output")
    get.set_defaults(run=_get)

    about = "A small Range-capable HTTP server on loopback, for development."
    serve = commands.add_parser("serve", help="serve a directory on loopback", description=about)
    serve.add_argument("site", metavar="SITE", help="the directory to serve")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0 picks a free one (default 8000)")
    serve.add_argument("--quiet", action="store_true", help="don't print the address")
    serve.add_argument("--json", action="store_true", help="print the address as a JSON object")
    serve.set_defaults(run=_serve)
    return parser


def _get(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    single = len(arguments.urls) == 1 and arguments.input is None
    if not arguments.urls and arguments.input is None:
        raise ConfigError("no URL given, and no -i FILE with URLs")
    for name in ("output", "checksum", "mirror"):
        if getattr(arguments, name) and not single:
            raise ConfigError(f"--{name} goes with a single URL")
    began = time.monotonic()
    failed = received = 0
    with Toolkit(_config(arguments), progress=_progress(arguments)) as kit:
        if arguments.json:
            sys.stdout.write('{"files":[')
        separator = ""
        for download in _downloads(kit, arguments):
            received += download.bytes_received
            if download.error is not None:
                failed += 1
                _complain(download.error)
            if arguments.json:
                sys.stdout.write(separator + json.dumps(_as_json(download)))
                separator = ","
    if arguments.json:
        seconds = round(time.monotonic() - began, 3)
        sys.stdout.write(f'],"bytes_received":{received},"seconds":{seconds}}}\n')
    return 1 if failed else 0


def _downloads(kit: Toolkit, arguments: argparse.Namespace) -> Iterator[Download]:
    """The results, as they end; failures are results too."""
    from perfkit.downloads.request import Download

    headers = _headers(arguments.header)
    if arguments.output is None:
        refused: deque[Download] = deque()
        for _, download in kit.iter_downloads(_requests(arguments, headers, refused), arguments.directory):
            yield download
            while refused:
                yield refused.popleft()
        yield from refused
        return
    try:
        yield kit.download(arguments.urls[0], arguments.output, checksum=arguments.checksum, mirrors=arguments.mirror,
                           headers=headers, resume=not arguments.no_resume)  # fmt: skip
    except (PerfkitError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        yield Download(url=arguments.urls[0], path=arguments.output, error=error)


def _requests(
    arguments: argparse.Namespace, headers: dict[str, str], refused: deque[Download]
) -> Iterator[Request]:
    """The URLs of the command line, then those of the input file, a line at a time; what is none goes to `refused`."""
    from perfkit.downloads.request import Download, Request

    resume = not arguments.no_resume
    for url in arguments.urls:
        yield Request(url, checksum=arguments.checksum, mirrors=tuple(arguments.mirror), headers=headers, resume=resume)
    if arguments.input is not None:
        with _open_input(arguments.input) as lines:
            for number, line in enumerate(lines, 1):
                url, name, checksum, *rest = [*(part.strip() for part in line.split("\t")), "", "", ""][:4]
                if rest[0]:
                    raise ConfigError(f"{arguments.input}, line {number}: more than URL, name and checksum")
                if not url or url.startswith("#"):
                    continue
                try:
                    request = Request(url, name or None, checksum=checksum or None, headers=headers, resume=resume)
                except ConfigError as error:
                    refused.append(Download(url=url, path=name, error=error))  # and not the end of the others
                    continue
                yield request


def _open_input(path: str) -> IO[str]:
    if path == "-":
        return open(sys.stdin.fileno(), encoding="utf-8", closefd=False)
    try:
        return open(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"-i {path}: {error.strerror}") from error


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or not name.strip() or any(character in line for character in "\r\n"):
            raise ConfigError(f"--header {line!r} is not of the form 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def _config(arguments: argparse.Namespace) -> Config:
    chosen = {
        "workers": arguments.workers,
        "connections_per_host": arguments.workers,
        "segments": arguments.segments,
        "retries": arguments.retries,
        "rate_limit": parse_size(arguments.limit_rate) if arguments.limit_rate is not None else None,
    }
    return Config.from_env(**{name: value for name, value in chosen.items() if value is not None})


def _progress(arguments: argparse.Namespace) -> Progress | None:
    if arguments.quiet:
        return None
    from perfkit.progress.bars import for_stream

    return for_stream(sys.stderr)


def _as_json(download: Download) -> dict[str, object]:
    record: dict[str, object] = {
        "url": download.url,
        "path": download.path,
        "bytes": download.bytes,
        "bytes_received": download.bytes_received,
        "resumed_from": download.resumed_from,
        "segments": download.segments,
        "retries": download.retries,
        "checksum": download.checksum,
        "seconds": round(download.seconds, 3),
        "unchanged": download.unchanged,
    }
    if download.error is not None:
        record["error"] = {"type": type(download.error).__name__, "message": str(download.error)}
    return record


def _serve(arguments: argparse.Namespace) -> int:
    from perfkit.serve import Server

    with Server(arguments.site, port=arguments.port) as server:
        if arguments.json:
            print(json.dumps({"url": server.url}), flush=True)
        elif not arguments.quiet:
            _say(f"serving {arguments.site} at {server.url}; Ctrl-C ends it")
        server.wait()
    return 0


def _say(text: str) -> None:
    print(f"perfkit: {text}", file=sys.stderr, flush=True)


def _complain(error: BaseException) -> None:
    _say(f"error: {error}")
