"""A server that runs, with files that a check puts there, and a relay before it that counts."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.servers.catalogue import ORIGIN, Server
from tests.servers.relay import Relay
from tests.support.tools import need, unavailable
from tests.support.warm import WarmPython

MODULES = Path(os.environ.get("PERFKIT_TEST_NODE_MODULES", "/nowhere"))
LONG_AGO_S = 30 * 86_400
_PORTS = itertools.count(20_000)


@dataclass
class Bench:
    """A server and the directory that it serves.

    Attributes:
        warm: starts clients.
        relay: what clients are to ask.
        sent_log: where the server behind a cache notes what it has sent; None: this is no cache.
    """

    server: Server
    warm: WarmPython
    home: Path
    www: Path
    host: str
    port: int
    relay: Relay
    sent_log: Path | None
    _names: Iterator[int] = field(default_factory=itertools.count)

    def url(self, name: str) -> str:
        host, port = self.relay.address
        return f"http://{host}:{port}/{self.server.prefix}{quote(name)}"

    def put(self, name: str, data: bytes, *, mtime_ns: int | None = None, seen: bool = True) -> None:
        """Give a file of the server this content, by a rename.

        Args:
            mtime_ns: when it was modified; None: long ago.
            seen: wait until the server answers with it.
        """
        if self.server.prefix:
            public = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
            assert self.fetch(name, public, "PUT", data)[0] == 200
            return
        path = self.www / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.parent / f"fresh-{next(self._names)}~"
        fresh.write_bytes(data)
        when_ns = time.time_ns() - LONG_AGO_S * 10**9 if mtime_ns is None else mtime_ns
        os.utime(fresh, ns=(when_ns, when_ns))
        fresh.replace(path)
        if seen:
            self.wait_until_served(name, data)

    def put_tree(self, root: Path, below: str) -> None:
        """Copy a directory with its dates to the server, its pointer last."""
        paths = sorted(
            (path for path in root.rglob("*") if path.is_file()), key=lambda path: path.name == "perfkit.json"
        )
        for path in paths:
            if path.name != ".lock":
                name, when_ns = path.relative_to(root).as_posix(), path.stat().st_mtime_ns
                self.put(f"{below}/{name}", path.read_bytes(), mtime_ns=when_ns, seen=False)

    def wait_until_served(self, name: str, data: bytes) -> None:
        """Some servers remember for a second or two what a file was; caches do for as long as they were told."""
        deadline_s = time.monotonic() + 20
        while self.fetch(name)[2] != data:
            assert time.monotonic() < deadline_s, f"{self.server.name} does not serve the new {name}"
            time.sleep(0.1)

    def fetch(
        self, name: str, headers: dict[str, str] | None = None, method: str = "GET", body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (by name in lower case) and body of an answer, not through the relay."""
        path = f"/{self.server.prefix}{quote(name)}"
        common = {"Accept-Encoding": "identity", "Host": "{}:{}".format(*self.relay.address)}  # as clients, for caches
        while True:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
            with contextlib.closing(connection):
                connection.request(method, path, body, {**common, **(headers or {})})
                answer = connection.getresponse()
                fields, data = {name.lower(): value for name, value in answer.getheaders()}, answer.read()
                if answer.status not in (301, 302, 307, 308):
                    return answer.status, fields, data
                path = fields["location"]

    def sent_by_origin(self, name: str) -> int:
        """What the server behind a cache has sent of a file, in bytes."""
        assert self.sent_log is not None
        lines = (line.split() for line in self.sent_log.read_text().splitlines())
        return sum(int(size) for size, path in lines if path == f"/{quote(name)}")


@contextlib.contextmanager
def running(server: Server, warm: WarmPython, home: Path) -> Iterator[Bench]:
    """The server, and the one behind it if it is a cache, with a directory that is empty."""
    www = home / "www"
    www.mkdir()
    www.chmod(0o755)
    with contextlib.ExitStack() as stack:
        origin, sent_log = ("", 0), None
        if server.cache:
            origin = stack.enter_context(_started(ORIGIN, home / "origin", www, origin))
            sent_log = home / "origin" / "sent.log"
        host, port = stack.enter_context(_started(server, home / "server", www, origin))
        relay = stack.enter_context(Relay(host, port))
        yield Bench(server, warm, home, www, host, port, relay, sent_log)


@contextlib.contextmanager
def _started(server: Server, home: Path, www: Path, origin: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """A process of the server, listening at an address that no other process takes."""
    home.mkdir()
    pid = os.getpid()
    host, port = f"127.{64 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255}", next(_PORTS)
    values = {
        "home": home,
        "www": www,
        "host": host,
        "port": port,
        "modules": MODULES,
        "origin": "{}:{}".format(*origin),
        "origin_host": origin[0],
        "origin_port": origin[1],
        "user": os.geteuid(),
    }
    (home / "config").write_text(_filled(server.config, values))
    command = shlex.split(_filled(server.command, values))
    need(command[0])
    if server.package.startswith("npm:") and not MODULES.is_dir():
        unavailable("needs npm's packages; `tox -e servers` installs them")
    options: dict[str, object] = {"cwd": www, "stdin": subprocess.DEVNULL, "start_new_session": True}
    if server.unprivileged and os.geteuid() == 0:
        shutil.chown(home, "nobody")
        options |= {"user": "nobody", "group": "nogroup"}
    environment = {**os.environ, "NODE_MODULES": str(MODULES), "PYTHONUNBUFFERED": "1"}
    with (home / "output").open("wb") as output:
        options |= {"stdout": output, "stderr": subprocess.STDOUT, "env": environment}
        if server.prepare:
            subprocess.run(shlex.split(_filled(server.prepare, values)), check=True, **options)  # type: ignore[call-overload]
        process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        _wait_until_it_answers(server, process, home, (host, port))
        yield host, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _filled(template: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        template = template.replace(f"<{name}>", str(value))
    return template


def _wait_until_it_answers(server: Server, process: subprocess.Popen[bytes], home: Path, at: tuple[str, int]) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        if process.poll() is not None or time.monotonic() > deadline_s:
            text = (home / "output").read_text(errors="replace")[-2000:]
            pytest.fail(f"{server.name} does not start: {text}")
        connection = http.client.HTTPConnection(*at, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/{server.prefix}absent")
            connection.getresponse()
            return
        time.sleep(0.05)


@functools.cache
def package_version(package: str) -> str:
    """The version of a `Server.package`, as its package manager reports it."""
    source, _, name = package.partition(":")
    if source == "apt":
        command = ["dpkg-query", "--show", "--showformat", "${Version}", name]
        version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return version.rpartition(":")[2] or "?"  # without the epoch
    if source == "npm":
        return str(json.loads((MODULES / name / "package.json").read_text())["version"])
    if source == "python":
        return platform.python_version()
    return metadata.version(name)


@dataclass(frozen=True)
class Ability:
    """What a server gives a client, as plain requests show it.

    Attributes:
        ranges: a 206 with the bytes and the fields that were asked for, and with a validator that proves the version
            (RFC 9110 section 8.8: a strong ETag, or a date that is a second older than the answer).
        version: something tells one version of a file from the next.
        conditions: a 304 where a file did not change.
    """

    ranges: bool
    version: bool
    conditions: bool


def ability_of(bench: Bench) -> Ability:
    """Ask the server itself."""
    data = os.urandom(200_000)
    bench.put("ability.bin", data)
    status, fields, body = bench.fetch("ability.bin")
    assert (status, body) == (200, data)
    etag, date = fields.get("etag"), fields.get("last-modified")
    strong = etag is not None and etag.startswith('"')
    condition = {"If-Range": etag if strong else date} if strong or date else {}
    status, part, body = bench.fetch("ability.bin", {"Range": "bytes=70000-", **condition})
    right = body == data[70_000:] and part.get("content-range") == "bytes 70000-199999/200000"
    shown = (
        part["etag"] == etag if strong and "etag" in part else date is not None and part.get("last-modified") == date
    )
    conditions = [{"If-None-Match": etag}] if etag else []
    conditions += [{"If-Modified-Since": date}] if date else []
    return Ability(
        ranges=status == 206 and right and shown,
        version=bool(etag or date),
        conditions=any(bench.fetch("ability.bin", each)[0] == 304 for each in conditions),
    )
