"""Every error perfkit raises of its own: one tree with one root, `PerfkitError`.

Local `OSError` (disk full, permission denied) passes through unchanged, so that "the disk is full" and "the network
is down" never look alike. Fields survive pickling, so errors cross process pools and task queues whole. What is shown
of an error has no passwords and no tokens of URLs; its fields have the URLs as they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perfkit.redact import redacted, redacted_text

__all__ = [
    "BatchError",
    "CancelledError",
    "ConfigError",
    "FileChangedError",
    "HTTPStatusError",
    "IntegrityError",
    "LockedError",
    "ManifestError",
    "PerfkitError",
    "RecoveryError",
    "RemoteChangedError",
    "RollbackError",
    "TransferError",
    "TransferTimeoutError",
    "UnsafePathError",
    "UpdateError",
]


class PerfkitError(Exception):
    """Root of the tree: `except PerfkitError` catches all that perfkit raises of its own."""

    def __str__(self) -> str:
        return redacted_text(super().__str__())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(PerfkitError, ValueError):
    """The caller asked for something that can't be: a bad setting, a bad argument, a closed Toolkit."""


class TransferError(PerfkitError):
    """A transfer failed for good.

    Attributes:
        url: the URL as the caller gave it.
        reason: what went wrong and, where something can be done, what.
        transient: whether the same request may succeed later; perfkit's own retries are then already used up.
    """

    def __init__(self, url: str, reason: str, *, transient: bool = False) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason
        self.transient = transient

    def __str__(self) -> str:
        return f"{redacted(self.url)}: {redacted_text(self.reason)}"


class HTTPStatusError(TransferError):
    """The server answered with a status that ends the transfer.

    Attributes:
        status: the HTTP status code (RFC 9110 section 15).
    """

    def __init__(self, url: str, reason: str, status: int, *, transient: bool = False) -> None:
        super().__init__(url, reason, transient=transient)
        self.args = (url, reason, status)
        self.status = status


class TransferTimeoutError(TransferError, TimeoutError):
    """The peer did not connect, answer, or send fast enough in the time allowed."""

    __str__ = TransferError.__str__


class IntegrityError(TransferError):
    """All bytes arrived, and they are not the bytes that were promised.

    Attributes:
        expected: the promised digest or size, as `algorithm:hex` or `N bytes`.
        actual: what was received, in the same form.
    """

    def __init__(self, url: str, reason: str, expected: str, actual: str) -> None:
        super().__init__(url, reason)
        self.args = (url, reason, expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"{super().__str__()} (expected {self.expected}, got {self.actual})"


class RemoteChangedError(TransferError):
    """The file changed at the origin while it was being fetched, again after a fresh start."""


class CancelledError(TransferError):
    """The transfer was ended by the caller: `close()`, Ctrl-C, or the end of its batch."""


class BatchError(PerfkitError):
    """Some items of a batch failed; the others are done.

    Attributes:
        results: one result per item, in input order; a failed one has its exception in `error`.
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
    """A local file was changed, cut short or replaced while it was being read.

    Attributes:
        path: the file.
        reason: what was seen.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ManifestError(PerfkitError):
    """A manifest, pointer or delta is damaged, hostile, or of an unknown version."""


class UnsafePathError(PerfkitError):
    """A name that would leave its root, or that some file system can't hold.

    Attributes:
        name: the name as it was given.
        reason: which rule it breaks.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"unsafe name {self.name!r}: {self.reason}"


class UpdateError(PerfkitError):
    """A change of a local tree could not be made; the tree is as it was."""


class LockedError(UpdateError):
    """Another process or thread is changing the same tree."""


class RollbackError(UpdateError):
    """The generation asked for can't be restored."""


class RecoveryError(UpdateError):
    """An unfinished change was found and could not be completed or discarded."""
