"""The exceptions that perfkit defines, all derived from `PerfkitError`.

Local `OSError` (disk full, permission denied) passes through unchanged, so that a full disk never looks like a network
failure. Fields survive pickling, so errors cross process pools and task queues intact. The text of an error contains
no passwords and no tokens from URLs; its fields have the URLs as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perfkit.redact import redacted, redacted_text

__all__ = [
    "BatchError",
    "CancelledError",
    "CheckFailedError",
    "CommandFailedError",
    "ConfigError",
    "ExpiredError",
    "FileChangedError",
    "HTTPStatusError",
    "IntegrityError",
    "LockedError",
    "ManifestError",
    "PerfkitError",
    "RecoveryError",
    "RemoteChangedError",
    "RollbackError",
    "SignatureError",
    "StaleSourceError",
    "TransferError",
    "TransferTimeoutError",
    "UnsafePathError",
    "UpdateError",
]

_MOST_CAUSES = 20  # of an error that are looked at


class PerfkitError(Exception):
    """The base class of all perfkit exceptions."""

    def __str__(self) -> str:
        return redacted_text(super().__str__())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(PerfkitError, ValueError):
    """Invalid configuration or argument, or use of a closed Toolkit."""


class TransferError(PerfkitError):
    """A transfer failed for good.

    Attributes:
        url: the URL as given by the caller.
        reason: what went wrong and, if something can be done about it, what.
        transient: whether the same request may succeed later; perfkit's own retries are already used up.
    """

    def __init__(self, url: str, reason: str, *, transient: bool = False) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason
        self.transient = transient

    def __str__(self) -> str:
        return f"{redacted(self.url)}: {redacted_text(self.reason)}"


def reason_of(error: Exception) -> str:
    """Why something failed, without the URL or path, which is shown beside it."""
    if isinstance(error, OSError) and not isinstance(error, PerfkitError):
        return error.strerror or str(error)
    return redacted_text(error.reason) if isinstance(error, TransferError) else str(error)


def causes_of(error: BaseException) -> list[BaseException]:
    """The error, what caused it, and what urllib3 and requests keep in `reason` and `args`, outermost first."""
    chain: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(chain) < _MOST_CAUSES:
        each = queue.pop(0)
        if isinstance(each, BaseException) and not any(each is other for other in chain):
            chain.append(each)
            queue += [getattr(each, "reason", None), *each.args, each.__cause__, each.__context__]
    return chain


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that becomes a result: each would keep a response and its buffers, some 20 KB."""
    at: BaseException | None = error
    while at is not None:
        at.__traceback__, at = None, at.__context__


class HTTPStatusError(TransferError):
    """The server responded with a status that ends the transfer.

    Attributes:
        status: the HTTP status code (RFC 9110 section 15).
        retry_after_s: how long the server asks to wait (`Retry-After`, RFC 9110 section 10.2.3); None: it does not say.
    """

    retry_after_s: float | None = None

    def __init__(self, url: str, reason: str, status: int, *, transient: bool = False) -> None:
        super().__init__(url, reason, transient=transient)
        self.args = (url, reason, status)
        self.status = status


class TransferTimeoutError(TransferError, TimeoutError):
    """The server did not accept the connection, respond, or send fast enough in the allowed time."""


class IntegrityError(TransferError):
    """Checksum or size mismatch: all bytes arrived, but they are not the expected ones.

    Attributes:
        expected: the expected digest or size, as `algorithm:hex` or `N bytes`.
        actual: the received one, in the same form.
    """

    def __init__(self, url: str, reason: str, expected: str, actual: str) -> None:
        super().__init__(url, reason)
        self.args = (url, reason, expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"{super().__str__()} (expected {self.expected}, got {self.actual})"


class SignatureError(TransferError):
    """A signature is missing, or not made with a key that the caller gave or a tree remembers."""


class RemoteChangedError(TransferError):
    """The file changed on the server during the transfer, and again after a restart."""


class CancelledError(TransferError):
    """The transfer was cancelled: by `close()`, Ctrl-C, or because its batch was abandoned."""


class BatchError(PerfkitError):
    """Some items of a batch failed; the others are complete.

    Attributes:
        results: one result per item, in input order; a failed item has its exception in `error`.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        super().__init__(results)
        self.results = results

    def __str__(self) -> str:
        failed = [result for result in self.results if result.error is not None]
        shown = "; ".join(str(result.error) for result in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        return f"{len(failed)} of {len(self.results)} failed: {shown}{more}"


class FileChangedError(PerfkitError):
    """A local file was modified, truncated or replaced while it was being read.

    Attributes:
        path: the file.
        reason: the observed change.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ManifestError(PerfkitError):
    """A manifest, pointer, delta or archive is damaged, malicious, or of an unknown version."""


class UnsafePathError(PerfkitError):
    """A name would escape its root directory, or is not valid on every file system.

    Attributes:
        name: the name as given.
        reason: the rule that it violates.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"unsafe name {self.name!r}: {self.reason}"


class UpdateError(PerfkitError):
    """A local tree could not be changed; it is as it was before."""


class StaleSourceError(UpdateError, TransferError):
    """A source offers an older release than was seen before, or not all files of the one it offers: a cache, a mirror
    or a CDN edge is behind, and may catch up later (`transient`). The tree was not changed.
    """


class ExpiredError(UpdateError, TransferError):
    """A release is past the time until which its publisher declared it valid: somebody may hold back a newer one.
    The tree was not changed.
    """


class CommandFailedError(PerfkitError):
    """The tree is up to date, but the command to run after a change failed; the next sync runs it again.

    Attributes:
        report: the `SyncReport` of the sync.
    """

    report: object = None


class CheckFailedError(UpdateError):
    """A check refused a release; the tree was not changed. The release is on hold until another one is offered.

    Attributes:
        version: of the release.
        reason: what the check said.
    """

    def __init__(self, version: str, reason: str) -> None:
        super().__init__(version, reason)
        self.version = version
        self.reason = reason

    def __str__(self) -> str:
        return redacted_text(f"the check refused version {self.version}, and the tree was not changed: {self.reason}")


class LockedError(UpdateError):
    """Another process or thread is changing the same tree, or publishing to the same site."""


class RollbackError(UpdateError):
    """The requested generation can't be restored."""


class RecoveryError(UpdateError):
    """An interrupted change could not be completed or discarded; the tree may be in the middle of it."""
