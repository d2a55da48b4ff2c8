"""`Toolkit`, the facade: it wires the rooms together and holds no algorithm of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType

from perfkit.config import Config
from perfkit.downloads.manager import DownloadManager, Item
from perfkit.downloads.request import Download, Request
from perfkit.downloads.transport import HttpTransport, Transport
from perfkit.errors import BatchError
from perfkit.filesystem.transaction import Transaction
from perfkit.filesystem.tree import Tree
from perfkit.progress.meter import Progress

__all__ = ["Toolkit"]

Path = str | os.PathLike[str]


class Toolkit:
    """Everything perfkit does, in ordinary blocking calls.

    One Toolkit may be used from many threads at once, and after a fork. It holds threads and connections from the
    first download on: use it as a context manager, or call `close()`.

    Args:
        config: settings; the defaults suit most callers.
        progress: where progress is shown, such as `Bars()`; by default nowhere.
        transport: makes another `Transport` than requests and urllib3.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        progress: Progress | None = None,
        transport: Callable[[Config], Transport] = HttpTransport,
    ) -> None:
        self.config = config or Config()
        self._downloads = DownloadManager(self.config, transport=transport, progress=progress)

    def __enter__(self) -> Toolkit:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way, within a second, and give everything back. Idempotent."""
        self._downloads.close()

    def download(
        self,
        url: str,
        dest: Path,
        *,
        checksum: str | None = None,
        mirrors: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        resume: bool = True,
    ) -> Download:
        """Download one file; when this returns, it is whole and under its name.

        Args:
            dest: a file, or an existing directory (or a path ending in a slash) to name the file in.
            checksum: `algorithm:hex`, such as `sha256:…`; any fixed-length algorithm of hashlib. A file that is there
                already and has it is left alone, and nothing is requested.
            mirrors: other URLs of the same file, tried in order when this one fails.
            headers: sent to the origin of `url`, and to no other.
            resume: go on from what an earlier run left, and ask whether a file that is there changed (a 304 leaves it
                alone); False fetches everything anew.

        Raises:
            ConfigError: an argument that can't be.
            HTTPStatusError, TransferTimeoutError, IntegrityError, RemoteChangedError, TransferError: no file.
            CancelledError: the Toolkit was closed meanwhile.
            OSError: the local disk: full, not writable, the destination a directory.
        """
        request = Request(url, checksum=checksum, mirrors=tuple(mirrors), headers=dict(headers or {}), resume=resume)
        return self._downloads.fetch(request, os.fspath(dest))

    def download_many(self, requests: Iterable[Item], dest: Path | None = None) -> list[Download]:
        """Download many files, as many at once as pays.

        Args:
            requests: URLs, (URL, name) pairs, or `Request` objects; read as workers get free.
            dest: the directory that names are relative to; the current one by default. It is made if need be.

        Returns:
            One result per request, in input order.

        Raises:
            BatchError: some failed; the others are done, and `results` has all of them, in input order.
        """
        found = dict(self.iter_downloads(requests, dest))
        results = [found[index] for index in sorted(found)]
        if any(download.error is not None for download in results):
            raise BatchError(results)
        return results

    def iter_downloads(
        self, requests: Iterable[Item | None], dest: Path | None = None
    ) -> Iterator[tuple[int, Download]]:
        """Like `download_many`, for streams of any length: yields (input index, result) as each file ends.

        A source that has to wait for its next item may yield None meanwhile, so that progress and results go on.
        A failed file is a result whose `error` is set; nothing is raised for it. Closing the iterator cancels the rest.
        """
        return self._downloads.run(requests, None if dest is None else os.fspath(dest))

    def set_rate_limit(self, bytes_per_second: int | None) -> None:
        """Limit all downloads together from now on, running ones included; None lifts the limit.

        Raises:
            ConfigError: not a positive number, nor None.
        """
        self._downloads.set_rate_limit(bytes_per_second)

    @contextlib.contextmanager
    def transaction(self, root: Path, *, wait_s: float = 0.0) -> Iterator[Transaction]:
        """Change files below `root` all at once: durably at the end of the block, or not at all.

        An exception that leaves the block, or a crash, gives everything up. What is replaced is kept for a rollback.

        Args:
            wait_s: how long to wait for another that is changing the same tree.

        Raises:
            LockedError: another process or thread is changing it.
            UpdateError, FileChangedError, OSError: the change can't be made; nothing was changed.
            RecoveryError: a commit could not be completed; the next use of the tree tries again.
        """
        with Tree(root, wait_s=wait_s) as tree, tree.transaction() as tx:
            yield tx
