"""The `perfkit` command: arguments in, Toolkit calls, text or JSON out.

Each command is two functions: one adds its parser, one runs it and returns the exit code. Exit codes: 0 success, 1 the
work failed, 2 bad usage, 130 interrupted. Results go to standard output, all else to standard error, an error a line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from perfkit import __version__
from perfkit.config import Config, parse_size
from perfkit.errors import ConfigError, PerfkitError
from perfkit.progress.lines import say

if TYPE_CHECKING:
    from perfkit.downloads.request import Download, Request
    from perfkit.progress.meter import Progress
    from perfkit.toolkit import Toolkit

    Commands = argparse._SubParsersAction["_Parser"]

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, `sys.argv[1:]` by default; returns the exit code.

    Raises:
        SystemExit: arguments that can't be parsed (code 2), `--help` and `--version` (code 0).
    """
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
        return code
    except ConfigError as error:
        _complain(str(error))
        return 2
    except (PerfkitError, OSError) as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        say("perfkit: interrupted; the same command again goes on from here")
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Shows the examples as they are written, and complains in one line."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]

    def _print_message(self, message: str, file: object = None) -> None:
        _print(message)  # of --help and --version

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} ({self.prog} --help tells more)")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="perfkit", description="Fast parallel downloads that are whole or absent.")
    parser.add_argument("--version", action="version", version=f"perfkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_get, _add_publish, _add_sync, _add_rollback, _add_history, _add_verify, _add_serve):
        add(commands)
    return parser


def _complain(message: str) -> None:
    say(f"perfkit: error: {message}")


def _print(text: str) -> None:
    """Write to standard output and flush, so that a failure is an error of the command, told of in a line.

    Raises:
        OSError: it is closed, or full.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # what is left in the buffer would fail again when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


# -- get --------------------------------------------------------------------------------------------------------------

_GET_EXAMPLES = """\
examples:
  perfkit get https://example.org/a.iso          into the current directory
  perfkit get -o b.iso --checksum sha256:... URL under another name, verified
  perfkit get -d out -j 4 --limit-rate 5M URL URL
  producer | perfkit get -i - -d out --json      a list still being written
"""


def _add_get(commands: Commands) -> None:
    about = "Download files, in parallel and in parts; go on with what an earlier run left."
    get = commands.add_parser("get", help="download files", description=about, epilog=_GET_EXAMPLES)
    get.add_argument("urls", nargs="*", metavar="URL")
    listed = "read more from FILE, or - for standard input; a line each: URL[<TAB>NAME[<TAB>CHECKSUM]]"
    get.add_argument("-i", "--input", metavar="FILE", help=listed)
    where = get.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="FILE", help="the file to write, for a single URL")
    where.add_argument("-d", "--directory", metavar="DIR", help="the directory to write into (default: here)")
    get.add_argument("-j", "--workers", type=int, metavar="N", help="transfers at once (default 8)")
    get.add_argument("--segments", type=int, metavar="N", help="connections for one file (default 8)")
    get.add_argument("--limit-rate", metavar="RATE", help="bytes per second for all together, such as 500K or 5M")
    get.add_argument("--checksum", metavar="ALGORITHM:HEX", help="such as sha256:..., for a single URL")
    get.add_argument("--mirror", action="append", default=[], metavar="URL", help="another URL of the same file")
    get.add_argument("--header", action="append", default=[], metavar="'K: V'", help="sent to the URLs' own origins")
    get.add_argument("--retries", type=int, metavar="N", help="failures in a row before giving up (default 5)")
    get.add_argument("--no-resume", action="store_true", help="ignore what is there already and fetch everything")
    get.add_argument("--quiet", action="store_true", help="no bars and notes; errors are still shown")
    get.add_argument("--json", action="store_true", help="print one JSON object with the results on standard output")
    get.set_defaults(run=_get)


def _get(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    # Whatever is wrong with the arguments is found before the first byte is asked for, or written.
    if not arguments.urls and arguments.input is None:
        raise ConfigError("no URL given, and no -i FILE with URLs")
    for name in ("output", "checksum", "mirror"):
        if getattr(arguments, name) and (len(arguments.urls) != 1 or arguments.input is not None):
            raise ConfigError(f"--{name} goes with a single URL")
    headers, config = _headers(arguments.header), _config(arguments)
    with (
        _listed(arguments, headers) as listed,
        _Results(as_json=arguments.json) as results,
        Toolkit(config, progress=_progress(arguments)) as kit,
        contextlib.closing(_downloads(kit, arguments, headers, listed)) as downloads,
    ):
        for download in downloads:
            results.add(download)
    return 1 if results.failed else 0


def _listed(
    arguments: argparse.Namespace, headers: dict[str, str]
) -> contextlib.AbstractContextManager[Iterable[Request | Download | None]]:
    """What `-i` gives; the URLs on the command line come before it."""
    from perfkit.downloads.listing import RequestList

    if arguments.input is None:
        return contextlib.nullcontext(())
    return RequestList(arguments.input, headers=headers, resume=not arguments.no_resume)


def _downloads(
    kit: Toolkit,
    arguments: argparse.Namespace,
    headers: dict[str, str],
    listed: Iterable[Request | Download | None],
) -> Generator[Download, None, None]:
    """The results, as they end; failures are results too."""
    from perfkit.downloads.request import Download, Request

    options = {"checksum": arguments.checksum, "mirrors": tuple(arguments.mirror), "headers": headers,
               "resume": not arguments.no_resume}  # fmt: skip
    requests = [Request(url, **options) for url in arguments.urls]
    if arguments.output is not None:
        try:
            yield kit.download(arguments.urls[0], arguments.output, **options)
        except ConfigError:
            raise
        except (PerfkitError, OSError) as error:
            yield Download(url=arguments.urls[0], path=arguments.output, error=error)
        return

    refused: deque[Download] = deque()

    def accepted() -> Iterator[Request | None]:
        yield from requests
        for item in listed:
            if isinstance(item, Download):
                refused.append(item)  # one bad line is not the end of the others
            else:
                yield item

    for _, download in kit.iter_downloads(accepted(), arguments.directory):
        yield download
        while refused:
            yield refused.popleft()
    yield from refused


class _Results:
    """What came of each file: errors on standard error and, if asked for, one JSON object on standard output.

    The object is written as the results come, and is whole however the run ends; `error` tells what ended it early.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._began_s = time.monotonic()
        self._received = 0
        self._separator = ""
        self.failed = 0

    def __enter__(self) -> _Results:
        if self._as_json:
            _print('{"files":[')
        return self

    def add(self, download: Download) -> None:
        self._received += download.bytes_received
        error = download.error
        if error is not None:
            self.failed += 1
            _complain(str(error) if isinstance(error, PerfkitError) else f"{download.url}: {error}")
        if self._as_json:
            _print(self._separator + json.dumps(_as_json(download)))
            self._separator = ","

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if not self._as_json:
            return
        end: dict[str, object] = {
            "bytes_received": self._received,
            "seconds": round(time.monotonic() - self._began_s, 3),
        }
        if value is not None:
            end["error"] = _error_as_json(value)
        with contextlib.nullcontext() if value is None else contextlib.suppress(OSError):
            _print(f"],{json.dumps(end)[1:]}\n")


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
        record["error"] = _error_as_json(download.error)
    return record


def _error_as_json(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or not name.strip():
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

    return for_stream()


# -- publish ----------------------------------------------------------------------------------------------------------

_PUBLISH_EXAMPLES = """\
examples:
  perfkit publish rules site --version 2026.11
"""


def _add_publish(commands: Commands) -> None:
    about = "Make a directory the release that a static site offers."
    publish = commands.add_parser("publish", help="publish a directory", description=about, epilog=_PUBLISH_EXAMPLES)
    publish.add_argument("src", metavar="SRC", help="the tree to publish")
    publish.add_argument("site", metavar="SITE", help="the directory that a static file server serves")
    publish.add_argument("--version", required=True, metavar="V", help="what to call the release")
    publish.add_argument("--keep-deltas", type=int, default=3, metavar="N", help="direct deltas (default 3)")
    publish.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="names to leave out")
    publish.add_argument("--quiet", action="store_true", help="no notes; errors are still shown")
    publish.add_argument("--json", action="store_true", help="print one JSON object about the release")
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit() as kit:
        release = kit.publish(arguments.src, arguments.site, version=arguments.version,
                              keep_deltas=arguments.keep_deltas, exclude=arguments.exclude)  # fmt: skip
    if arguments.json:
        _print(json.dumps({**dataclasses.asdict(release), "seconds": round(release.seconds, 3)}) + "\n")
    elif not arguments.quiet and release.unchanged:
        say(f"perfkit: {release.version} is what {arguments.site} offers already")
    elif not arguments.quiet:
        say(f"perfkit: {release.version} (serial {release.serial}): {release.files} files, {release.bytes} bytes; "
             f"{release.objects_written} objects with {release.bytes_written} bytes written")  # fmt: skip
    return 0


# -- sync, rollback, history, verify ----------------------------------------------------------------------------------


def _add_sync(commands: Commands) -> None:
    about = "Bring a tree to the release that a site offers, fetching only what differs."
    sync = commands.add_parser("sync", help="update a tree", description=about,
                               epilog="examples:\n  perfkit sync https://example.org/rules rules\n")  # fmt: skip
    sync.add_argument("source", metavar="SOURCE", help="the URL of a site or a file, or the path of a list of URLs")
    sync.add_argument("dest", metavar="DEST", help="the tree; made if need be")
    sync.add_argument("--type", metavar="KIND", help="what SOURCE is, such as release (default: recognised)")
    sync.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    sync.add_argument("-j", "--workers", type=int, metavar="N", help="transfers at once (default 8)")
    sync.add_argument("--limit-rate", metavar="RATE", help="bytes per second for all together, such as 500K or 5M")
    _finish(sync, _sync)


def _add_rollback(commands: Commands) -> None:
    rollback = commands.add_parser("rollback", help="go back to an earlier generation, without the network",
                                   epilog="examples:\n  perfkit rollback rules --to 3\n")  # fmt: skip
    rollback.add_argument("dest", metavar="DEST", help="the tree")
    rollback.add_argument("--to", type=int, metavar="N", help="the generation (default: the one before)")
    _finish(rollback, _rollback)


def _add_history(commands: Commands) -> None:
    history = commands.add_parser("history", help="list the generations of a tree",
                                  epilog="examples:\n  perfkit history rules\n")  # fmt: skip
    history.add_argument("dest", metavar="DEST", help="the tree")
    _finish(history, _history)


def _add_verify(commands: Commands) -> None:
    verify = commands.add_parser("verify", help="hash every file of a tree again",
                                 epilog="examples:\n  perfkit verify rules --repair\n")  # fmt: skip
    verify.add_argument("dest", metavar="DEST", help="the tree")
    verify.add_argument("--repair", action="store_true", help="fetch what is missing or changed")
    _finish(verify, _verify)


def _finish(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    command.add_argument("--quiet", action="store_true", help="no bars and notes; errors are still shown")
    command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    command.set_defaults(run=run)


def _sync(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    chosen = {"workers": arguments.workers, "connections_per_host": arguments.workers,
              "rate_limit": parse_size(arguments.limit_rate) if arguments.limit_rate is not None else None}  # fmt: skip
    config = Config.from_env(**{name: value for name, value in chosen.items() if value is not None})
    with Toolkit(config, progress=_progress(arguments)) as kit:
        if arguments.dry_run:
            plan = kit.plan(arguments.source, arguments.dest, type=arguments.type)
            record: dict[str, object] = {"version": plan.version, "route": plan.route,
                      "installed_version": plan.installed_version,
                      "missing_bytes": plan.missing_bytes, "fetch": plan.fetch, "remove": plan.remove,
                      "added": plan.added, "changed": plan.changed, "aside": plan.aside}  # fmt: skip
            return _tell(arguments, record, f"{plan.version}: {len(plan.fetch)} files to fetch, "
                         f"{len(plan.local) + len(plan.stored)} from here, {len(plan.remove)} to remove")  # fmt: skip
        report = kit.sync(arguments.source, arguments.dest, type=arguments.type)
    return _tell(arguments, dataclasses.asdict(report), f"{report.version}: {report.added} added, {report.changed} "
                 f"changed, {report.removed} removed; {report.bytes_received} bytes received")  # fmt: skip


def _rollback(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(Config.from_env()) as kit:
        report = kit.rollback(arguments.dest, to=arguments.to)
    return _tell(arguments, dataclasses.asdict(report), f"generation {report.generation}, {report.version}")


def _history(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit() as kit:
        found = [dataclasses.asdict(each) for each in kit.history(arguments.dest)]
    lines = "".join(f"{'*' if each['current'] else ' '} {each['number']} {each['label'].get('version', '')} "
                    f"+{each['added']} ~{each['changed']} -{each['removed']}\n" for each in found)  # fmt: skip
    _print(json.dumps({"generations": found}) + "\n" if arguments.json else lines)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(Config.from_env(), progress=_progress(arguments)) as kit:
        report = kit.verify(arguments.dest, repair=arguments.repair)
    _tell(arguments, {**dataclasses.asdict(report), "intact": report.intact}, f"{report.files} files: "
          f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra")  # fmt: skip
    return 0 if report.intact else 1


def _tell(arguments: argparse.Namespace, record: dict[str, object], note: str) -> int:
    if arguments.json:
        _print(json.dumps(record) + "\n")
    elif not arguments.quiet:
        say(f"perfkit: {note}")
    return 0


# -- serve ------------------------------------------------------------------------------------------------------------

_SERVE_EXAMPLES = """\
examples:
  perfkit serve public                 at http://127.0.0.1:8000/
  perfkit serve public --port 0        at a free port, which is told
"""


def _add_serve(commands: Commands) -> None:
    about = "A small Range-capable HTTP server on loopback, for development. Ctrl-C ends it."
    serve = commands.add_parser("serve", help="serve a directory", description=about, epilog=_SERVE_EXAMPLES)
    serve.add_argument("site", metavar="SITE", help="the directory to serve")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0 picks a free one (default 8000)")
    serve.add_argument("--quiet", action="store_true", help="don't tell the address")
    serve.add_argument("--json", action="store_true", help="print the address as a JSON object")
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from perfkit.serve import Server

    try:
        with Server(arguments.site, port=arguments.port) as server:
            if arguments.json:
                _print(json.dumps({"url": server.url}) + "\n")
            elif not arguments.quiet:
                say(f"perfkit: serving {arguments.site} at {server.url}; Ctrl-C ends it")
            server.wait()
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0
