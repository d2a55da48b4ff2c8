"""Test code that uses perfkit without a network: an in-memory origin with files, releases and simulated failures.

    origin = FakeOrigin()
    origin.add("https://example.org/a.rules", b"alert")
    origin.fail("https://example.org/a.rules", status=503, times=1)
    with Toolkit(Config(backoff_base_s=0), transport=origin) as kit:
        assert kit.download("https://example.org/a.rules", "out/").retries == 1

Only the transport is replaced: resumption, retries, checksums and transactions are the real ones. With pytest, the
fixture `perfkit_origin` is a FakeOrigin that serves every Toolkit created during the test, however deep in your code.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock
from urllib.parse import quote, unquote, urlsplit

from perfkit.config import Config, checks_arguments
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.transport import Get
from perfkit.errors import CancelledError, TransferError, TransferTimeoutError
from perfkit.releases.publish.publisher import Release, publish
from perfkit.server.conditional import Representation, failed_condition, select_part
from perfkit.toolkit import Toolkit

__all__ = ["FakeOrigin", "RecordedRequest"]


@dataclass(frozen=True)
class RecordedRequest:
    """A request that a FakeOrigin received, and the status of its response."""

    url: str
    headers: Mapping[str, str]  # by lower-case name, secrets included
    status: int | None  # None: no response


@dataclass(frozen=True)
class _Failure:
    status: int | None = None
    after_bytes: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@checks_arguments
class FakeOrigin:
    """An in-memory web that responds for every host. Close it, or use `with`, to remove what `publish` wrote.

    Pass it as `Toolkit(transport=...)`. Unknown URLs return 404. One FakeOrigin may serve many Toolkits and threads at
    once.

    Attributes:
        requests: all received requests, in order.
    """

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._files: dict[str, bytes] = {}
        self._mounts: dict[str, Path] = {}
        self._failures: dict[str, deque[_Failure]] = {}
        self._lock = threading.Lock()
        self._scratch: Path | None = None

    def __call__(self, config: Config) -> _Transport:
        return _Transport(self._answer)

    def __enter__(self) -> FakeOrigin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the releases that `publish` wrote. Idempotent."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch)
            self._scratch, self._mounts = None, {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[FakeOrigin]:
        """Inside the block, every new Toolkit of this process uses this origin, unless it has its own transport."""
        with mock.patch.object(Toolkit, "default_transport", self):
            yield self

    def add(self, url: str, content: bytes | str) -> None:
        """Serve `content` at `url`, replacing earlier content; text is encoded as UTF-8."""
        self._files[url] = content.encode() if isinstance(content, str) else content

    def remove(self, url: str) -> None:
        """Return 404 for `url` from now on."""
        self._files.pop(url, None)

    def mount(self, url: str, directory: str | os.PathLike[str]) -> None:
        """Serve the files of a directory below `url`; they are read at each request."""
        self._mounts[url.rstrip("/") + "/"] = Path(directory)

    def publish(self, url: str, files: Mapping[str, bytes | str], *, version: str) -> Release:
        """Publish a release with these files at `url`, for `Toolkit.sync`; the next release has a delta from it.

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
        """Make the next requests for `url` fail: with a status, with a broken connection, or by default with a timeout.

        Args:
            times: how many requests; failures are used up in the order of the calls.
            status: returned instead of the file, with `headers`, such as `{"Retry-After": "1"}`.
            after_bytes: the connection breaks after this many bytes of the body.
        """
        failures = self._failures.setdefault(url, deque())
        failures.extend([_Failure(status, after_bytes, headers or {})] * times)

    def clear_failures(self, url: str) -> None:
        """Cancel the remaining failures of `url`."""
        self._failures.pop(url, None)

    def _answer(self, url: str, headers: Mapping[str, str]) -> _Response:
        with self._lock:
            failure = failures.popleft() if (failures := self._failures.get(url)) else None
        asked = {name.lower(): value for name, value in headers.items()}
        if failure is not None and failure.status is None and failure.after_bytes is None:
            self.requests.append(RecordedRequest(url, asked, None))
            raise TransferTimeoutError(url, "no response in time, as the test requested", transient=True)
        if failure is not None and failure.status is not None:
            given = {name.lower(): value for name, value in failure.headers.items()}
            response = _Response(url, failure.status, {"content-length": "0", **given}, b"")
        else:
            response = _answer(url, asked, self._content(url))
        if failure is not None and failure.after_bytes is not None:
            response = dataclasses.replace(response, breaks_at=failure.after_bytes)
        self.requests.append(RecordedRequest(url, asked, response.status))
        return response

    def _content(self, url: str) -> bytes | None:
        content = self._files.get(url)
        if content is None:
            for prefix, directory in tuple(self._mounts.items()):  # the test may publish meanwhile
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

    def path(self) -> None: ...
    def end_after(self, count: int) -> None: ...

    def read1(self, most: int) -> bytes:
        if self.cancel.cancelled:
            raise CancelledError(self.url, "cancelled")
        if self.breaks_at is not None and self._at >= self.breaks_at:
            raise TransferError(self.url, "the connection broke, as the test requested", transient=True)
        end = len(self.body) if self.breaks_at is None else min(len(self.body), self.breaks_at)
        piece = self.body[self._at : min(end, self._at + most)]
        self._at += len(piece)
        return piece

    def __enter__(self) -> _Response:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Transport:
    """A Transport whose server is a FakeOrigin."""

    def __init__(self, answer: Callable[[str, Mapping[str, str]], _Response]) -> None:
        self._answer = answer

    def open(self, request: Get, cancel: Cancel) -> _Response:
        url = request.url
        if cancel.cancelled:
            raise CancelledError(url, "cancelled")
        if urlsplit(url).scheme not in ("http", "https"):
            raise TransferError(url, "is neither http nor https")
        headers = {**request.private_headers, **request.headers}
        response = self._answer(quote(url, safe=":/?#[]@!$&'()*+,;=%~"), headers)
        return dataclasses.replace(response, cancel=cancel)

    def expire(self) -> None: ...
    def path(self) -> None: ...
    def close(self) -> None: ...
