"""The `perfkit` command: arguments in, Toolkit calls, text or JSON out.

Exit codes: 0 success, 1 the work failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

    about = "Bring DEST to the release that SOURCE serves, all or nothing, moving only what changed."
    sync = commands.add_parser("sync", help="bring a directory to the newest release", description=about)
    sync.add_argument("source", metavar="SOURCE", help="URL of a published site, or of its perfkit.json")
    sync.add_argument("dest", metavar="DEST", help="the directory to keep; made if need be")
    sync.add_argument("--dry-run", action="store_true", help="print the plan; fetch only what it is made from")
    edited = "what becomes of files that were edited here: kept beside their place as NAME.perfkit-local (default), …"
    sync.add_argument("--local-changes", choices=("keep", "overwrite", "refuse"), help=edited)
    _add_transfer_options(sync)
    sync.set_defaults(run=_sync)

    about = "Restore a generation that DEST had before, without the network."
    rollback = commands.add_parser("rollback", help="go back to an earlier generation", description=about)
    rollback.add_argument("dest", metavar="DEST")
    rollback.add_argument("--to", type=int, metavar="N", help="the generation (default: the one before this one)")
    _add_output_options(rollback)
    rollback.set_defaults(run=_rollback)

    about = "List the generations of DEST that can be restored."
    history = commands.add_parser("history", help="list the generations of a directory", description=about)
    history.add_argument("dest", metavar="DEST")
    _add_output_options(history)
    history.set_defaults(run=_history)

    about = "Read every file of DEST and compare it with the release. Exit code 1 if something is missing or changed."
    verify = commands.add_parser("verify", help="check every file of a directory", description=about)
    verify.add_argument("dest", metavar="DEST")
    verify.add_argument("--repair", action="store_true", help="fetch what is missing or changed")
    _add_transfer_options(verify)
    verify.set_defaults(run=_verify)

    about = "A small Range-capable HTTP server on loopback, for development."
    serve = commands.add_parser("serve", help="serve a directory on loopback", description=about)
    serve.add_argument("site", metavar="SITE", help="the directory to serve")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0 picks a free one (default 8000)")
    serve.add_argument("--quiet", action="store_true", help="don't print the address")
    serve.add_argument("--json", action="store_true", help="print the address as a JSON object")
    serve.set_defaults(run=_serve)
    return parser


def _add_transfer_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-j", "--workers", type=int, metavar="N", help="transfers at once (default 8)")
    command.add_argument("--limit-rate", metavar="RATE", help="bytes per second for all together, such as 500K or 5M")
    _add_output_options(command)


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="no bars and notes; errors are still shown")
    command.add_argument("--json", action="store_true", help="print one JSON object on standard output")


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
    given = vars(arguments)
    chosen = {name: given.get(name) for name in ("workers", "segments", "retries", "local_changes")}
    chosen["connections_per_host"] = given.get("workers")
    chosen["rate_limit"] = parse_size(given["limit_rate"]) if given.get("limit_rate") is not None else None
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


def _sync(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(_config(arguments), progress=_progress(arguments)) as kit:
        if arguments.dry_run:
            _tell(arguments, kit.plan(arguments.source, arguments.dest), _plan_lines)
        else:
            _tell(arguments, kit.sync(arguments.source, arguments.dest), _report_lines)
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(_config(arguments), progress=_progress(arguments)) as kit:
        _tell(arguments, kit.rollback(arguments.dest, to=arguments.to), _report_lines)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(_config(arguments), progress=_progress(arguments)) as kit:
        report = kit.verify(arguments.dest, repair=arguments.repair)
    _tell(arguments, report, _verify_lines)
    return 0 if report.intact else 1


def _tell(arguments: argparse.Namespace, result: _Result, lines: Callable[[_Result], Iterable[str]]) -> None:
    """The result as one JSON object on standard output, or as text for people on standard error."""
    if arguments.json:
        record = {name: value for name, value in dataclasses.asdict(result).items() if name not in _NOT_IN_JSON}
        print(json.dumps(record, default=sorted), flush=True)
    elif not arguments.quiet:
        for line in lines(result):
            _say(line)


def _report_lines(report: SyncReport) -> Iterator[str]:
    if report.route == "none":
        yield f"{report.version} is installed already, generation {report.generation}; {report.unchanged} files"
        return
    yield (f"{report.version} installed as generation {report.generation}: {report.added} files added, "
           f"{report.changed} changed, {report.removed} removed, {report.unchanged} unchanged")  # fmt: skip
    came = f"{amount(report.bytes_received)} received in {report.requests} requests"
    yield f"by {report.route}: {came}, {amount(report.bytes_written)} written, in {report.seconds:.2f} s"
    yield from (f"{name} was edited here; it is kept as {aside}" for name, aside in report.aside.items())
    yield from (f"{name} was edited here; it was overwritten" for name in report.overwritten)


def _plan_lines(plan: Plan) -> Iterator[str]:
    if plan.empty:
        yield f"{plan.version} is installed already; nothing to do"
        return
    yield f"from {plan.installed_version or 'nothing'} to {plan.version}, by {plan.route}"
    yield (f"{len(plan.added)} files to add, {len(plan.changed)} to change, {len(plan.remove)} to remove, "
           f"{len(plan.keep)} stay; about {amount(plan.bytes)} in {plan.requests} requests")  # fmt: skip
    yield from (f"  could come by {offer.route}: {amount(offer.bytes)}, {offer.requests} requests, {seconds:.2f} s"
                for offer, seconds in plan.alternatives)  # fmt: skip
    yield from (f"  add     {name}" for name in plan.added)
    yield from (f"  change  {name}" for name in plan.changed)
    yield from (f"  remove  {name}" for name in plan.remove)
    yield from (f"  keep    {name} as {aside}" for name, aside in plan.aside.items())


def _verify_lines(report: VerifyReport) -> Iterator[str]:
    for what in ("missing", "changed", "extra"):
        yield from (f"{what:8} {name}" for name in getattr(report, what))
    found = f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra"
    yield f"{report.version}, generation {report.generation}: {report.files} files; {found}"
    if report.repaired is not None:
        yield f"repaired: {amount(report.repaired.bytes_received)} received in {report.repaired.requests} requests"


def _history(arguments: argparse.Namespace) -> int:
    from perfkit.toolkit import Toolkit

    with Toolkit(_config(arguments)) as kit:
        generations = kit.history(arguments.dest)
    if arguments.json:
        print(json.dumps({"generations": [dataclasses.asdict(each) for each in generations]}), flush=True)
    elif not arguments.quiet:
        for each in generations:
            _say(str(each))
    return 0


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
