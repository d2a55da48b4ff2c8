"""Test code that uses perfkit without a network: an origin in memory, with files, releases and failures on demand.

    origin = FakeOrigin()
    origin.add("https://example.org/a.rules", b"alert")
    origin.fail("https://example.org/a.rules", status=503, times=1)
    with Toolkit(Config(backoff_base_s=0), transport=origin) as kit:
        assert kit.download("https://example.org/a.rules", "out/").retries == 1

Everything above the wire is perfkit's own: resumption, retries, checksums, transactions. With pytest, the fixture
`perfkit_origin` gives a FakeOrigin that every Toolkit made during the test talks to, also those deep in your code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from unittest import mock
from urllib.parse import quote, unquote, urlsplit

from perfkit.config import Config
from perfkit.downloads.cancel import Cancel
from perfkit.errors import CancelledError, TransferError, TransferTimeoutError
from perfkit.releases.publish.publisher import Release, publish
from perfkit.server.conditional import Representation, failed_condition, select_part
from perfkit.toolkit import Toolkit

__all__ = ["Asked", "FakeOrigin"]


@dataclass(frozen=True)
class Asked:
    """A request that a FakeOrigin got, and what it answered."""

    url: str
    headers: Mapping[str, str]  # by lower-case name, secrets included
    status: int | None  # None: no answer at all


@dataclass(frozen=True)
class _Failure:
    status: int | None = None
    after_bytes: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeOrigin:
    """Every host of a web without wires. A context manager: `publish` keeps a directory until it is closed.

    It is what `Toolkit(transport=...)` takes. URLs that were never added answer 404. One FakeOrigin may serve many
    Toolkits and threads at once.

    Attributes:
        requests: all that was asked, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self._files: dict[str, bytes] = {}
        self._mounts: dict[str, Path] = {}
        self._failures: dict[str, deque[_Failure]] = {}
        self._lock = threading.Lock()
        self._scratch: Path | None = None

    def __call__(self, config: Config) -> _Transport:
        return _Transport(self)

    def __enter__(self) -> FakeOrigin:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove what `publish` made. Idempotent."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch)
            self._scratch, self._mounts = None, {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[FakeOrigin]:
        """While the block runs, every new Toolkit of this process talks to this origin, unless told otherwise."""
        with mock.patch.object(Toolkit, "default_transport", self):
            yield self

    def add(self, url: str, content: bytes | str) -> None:
        """Have this at `url`, instead of what was there; text is sent as UTF-8."""
        self._files[url] = content.encode() if isinstance(content, str) else content

    def remove(self, url: str) -> None:
        """From now on `url` answers 404."""
        self._files.pop(url, None)

    def mount(self, url: str, directory: str | os.PathLike[str]) -> None:
        """Have the files of a directory below `url`, as they are when they are asked for."""
        self._mounts[url.rstrip("/") + "/"] = Path(directory)

    def publish(self, url: str, files: Mapping[str, bytes | str], *, version: str) -> Release:
        """Have a release with these files at `url`, for `Toolkit.sync`; the next one there has a delta from it.

        Raises:
            ConfigError, UnsafePathError: as `Toolkit.publish`.
        """
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="perfkit-fake-"))
        site = self._scratch / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
        with tempfile.TemporaryDirectory(dir=self._scratch) as src:
            for name, content in files.items():
                path = Path(src, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            release = publish(src, os.fspath(site), version=version)
        self.mount(url, site)
        return release

    def fail(
        self,
        url: str,
        *,
        times: int = 1,
        status: int | None = None,
        after_bytes: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Let the next requests for `url` fail: with a status, by a broken connection, or else by a timeout.

        Args:
            times: how many requests; then those of earlier calls that are still to come, then none.
            status: answered instead of the file, with `headers`, such as `{"Retry-After": "1"}`.
            after_bytes: the connection breaks when this much of the body has been read.
        """
        failures = self._failures.setdefault(url, deque())
        failures.extend([_Failure(status, after_bytes, headers or {})] * times)

    def mend(self, url: str) -> None:
        """Failures of `url` that are still to come don't."""
        self._failures.pop(url, None)

    def _answer(self, url: str, headers: Mapping[str, str]) -> _Response:
        with self._lock:
            failure = failures.popleft() if (failures := self._failures.get(url)) else None
        asked = {name.lower(): value for name, value in headers.items()}
        if failure is not None and failure.status is None and failure.after_bytes is None:
            self.requests.append(Asked(url, asked, None))
            raise TransferTimeoutError(url, "no answer in time, as the test wants it", transient=True)
        if failure is not None and failure.status is not None:
            given = {name.lower(): value for name, value in failure.headers.items()}
            response = _Response(url, failure.status, {"content-length": "0", **given}, b"")
        else:
            response = _answer(url, asked, self._content(url))
        if failure is not None and failure.after_bytes is not None:
            response = dataclasses.replace(response, breaks_at=failure.after_bytes)
        self.requests.append(Asked(url, asked, response.status))
        return response

    def _content(self, url: str) -> bytes | None:
        content = self._files.get(url)
        if content is None:
            for prefix, directory in self._mounts.items():
                path = directory / unquote(url.removeprefix(prefix))
                if url.startswith(prefix) and path.is_file() and path.resolve().is_relative_to(directory.resolve()):
                    return path.read_bytes()
        return content


def _answer(url: str, asked: Mapping[str, str], content: bytes | None) -> _Response:
    if content is None:
        return _Response(url, 404, {"content-length": "0"}, b"")
    file = Representation(len(content), f'"{hashlib.sha256(content).hexdigest()[:16]}"', 0.0)
    common = {name.lower(): value for name, value in file.headers.items()}
    refusal = failed_condition(asked, file)
    if refusal is not None:
        return _Response(url, refusal, {**common, "content-length": "0"}, b"")
    part = select_part(asked, file)
    headers = {name.lower(): value for name, value in part.headers.items()}
    return _Response(url, part.status, {**common, **headers}, content[part.start : part.end])


@dataclass
class _Response:
    url: str
    status: int
    headers: dict[str, str]
    body: bytes
    breaks_at: int | None = None
    cancel: Cancel = field(default_factory=Cancel)
    _at: int = 0

    def read_into(self, view: memoryview) -> int:
        if self.cancel.cancelled:
            raise CancelledError(self.url, "cancelled")
        if self.breaks_at is not None and self._at >= self.breaks_at:
            raise TransferError(self.url, "the connection broke, as the test wants it", transient=True)
        end = len(self.body) if self.breaks_at is None else min(len(self.body), self.breaks_at)
        piece = self.body[self._at : min(end, self._at + len(view))]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def __enter__(self) -> _Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None: ...


class _Transport:
    """A Transport that opens what a FakeOrigin has."""

    def __init__(self, origin: FakeOrigin) -> None:
        self._origin = origin

    def open(
        self,
        url: str,
        *,
        at: str | None = None,
        headers: Mapping[str, str],
        private_headers: Mapping[str, str],
        auth: tuple[str, str] | None,
        cancel: Cancel,
    ) -> _Response:
        if cancel.cancelled:
            raise CancelledError(url, "cancelled")
        if urlsplit(url).scheme not in ("http", "https"):
            raise TransferError(url, "is neither http nor https")
        response = self._origin._answer(quote(url, safe=":/?#[]@!$&'()*+,;=%~"), {**private_headers, **headers})
        return dataclasses.replace(response, cancel=cancel)

    def expire(self) -> None: ...
    def limit_changed(self, bytes_per_second: int | None) -> None: ...
    def close(self) -> None: ...
