"""A site with a server that counts what it sends and can be made to stall."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from perfkit import Release, SyncReport, Toolkit
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.trees import Tree, write_tree


@dataclass
class Origin:
    """A site at `root / "site"`, published from dictionaries and served by a server that counts; in a `with` block.

    Attributes:
        sent: for each request its path and the body bytes that were handed to the network.
        stall_at: as soon as so many body bytes of objects have been sent, nothing more is, and `stalled` is set.
        connections: the client's ports.
        before: called with the path of a request before it is answered.
    """

    root: Path
    sent: list[tuple[str, int]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    stall_at: int | None = None
    before: Callable[[str], None] = lambda path: None

    def __post_init__(self) -> None:
        self.site = self.root / "site"
        self.stalled = threading.Event()
        self._guard = threading.Lock()
        self._server = MisbehavingServer(self._answer)

    def __enter__(self) -> Origin:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def bytes(self) -> int:
        """All body bytes sent so far."""
        return sum(size for _, size in self.sent)

    def publish(self, tree: Tree, version: str, *, executable: tuple[str, ...] = (), **options: Any) -> Release:
        source = write_tree(self.root / "src", tree)
        for name in executable:
            (source / name).chmod(0o755)
        with Toolkit() as kit:
            return kit.publish(source, self.site, version=version, **options)

    def counted(self, work: Callable[[], SyncReport]) -> tuple[SyncReport, int]:
        """What came of a sync, and the body bytes that it cost."""
        before = self.bytes
        report = work()
        return report, self.bytes - before

    def _answer(self, exchange: Exchange) -> None:
        path = exchange.asked.path.lstrip("/")
        self.connections.add(exchange.connection.getpeername()[1])
        self.before(path)
        try:
            body = (self.site / path).read_bytes()
        except OSError:
            return exchange.respond("404 Not Found")
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if exchange.asked.headers.get("if-none-match") == etag:
            self._note(path, 0)
            return exchange.respond("304 Not Modified", ETag=etag)
        start, end = 0, len(body)
        wanted = exchange.asked.range
        if wanted is not None and exchange.asked.headers.get("if-range", etag) == etag:
            start, end = wanted[0], min(wanted[1] or len(body), len(body))
            exchange.head(
                "206 Partial Content",
                Content_Length=str(end - start),
                ETag=etag,
                Content_Range=f"bytes {start}-{end - 1}/{len(body)}",
            )
        else:
            exchange.head("200 OK", Content_Length=str(len(body)), ETag=etag)
        allowed = self._allowed(path, end - start)
        exchange.send(body[start : start + allowed])
        self._note(path, allowed)
        if allowed < end - start:
            self.stalled.set()
            exchange.stall()
        return None

    def _allowed(self, path: str, size: int) -> int:
        with self._guard:
            if self.stall_at is None or not path.startswith("objects/"):
                return size
            allowed = min(size, self.stall_at)
            self.stall_at -= allowed
            return allowed

    def _note(self, path: str, size: int) -> None:
        with self._guard:
            self.sent.append((path, size))


def publish(kit: Toolkit, tmp_path: Path, tree: Tree, version: str) -> Path:
    """Publish a tree; returns its site."""
    kit.publish(write_tree(tmp_path / "src", tree), tmp_path / "site", version=version)
    return tmp_path / "site"


def replace(path: Path, data: bytes) -> None:
    """Another version of a file on the server, as a new file: its ETag differs whatever the clock says."""
    path.with_suffix(".tmp").write_bytes(data)
    path.with_suffix(".tmp").replace(path)


class Counting(Server):
    """A server that remembers what it was asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, str]] = []  # path and range
        asked = self.asked
        handler = self._server.RequestHandlerClass

        class Handler(handler):  # type: ignore[misc, valid-type]
            def do_GET(self) -> None:
                asked.append((self.path, self.headers.get("Range", "")))
                super().do_GET()

        self._server.RequestHandlerClass = Handler
