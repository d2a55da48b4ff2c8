"""What all batches share: a result for each path, counting and progress, and temporary names."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from perfkit.errors import BatchError, ConfigError
from perfkit.filesystem.thread_map import map_in_threads, usable_cpus
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage

T = TypeVar("T")
OnError = Literal["stop", "continue"]
Path = str | os.PathLike[str]


class BatchResult(NamedTuple):
    """The result for one path."""

    name: str  # relative to the tree, or as it was given
    size: int = 0  # bytes that were written
    how: str = ""  # reflink, copy, link, symlink or move
    error: Exception | None = None


class BatchRun:
    """Runs a batch: counts results, keeps the failed ones, and reports progress. For the calling thread only."""

    def __init__(self, on_error: OnError, progress: Progress | None, phase: str, *, keep: bool = False) -> None:
        if on_error not in ("stop", "continue"):
            raise ConfigError(f"on_error must be 'stop' or 'continue'; got {on_error!r}")
        self._stop = on_error == "stop"
        self._stage = Stage(progress, phase)
        self._keep = keep
        self.results: list[BatchResult] = []  # the failed results; with `keep`, all of them
        self.failed = 0
        self.files = 0
        self.bytes = 0
        self.how: dict[str, int] = {}

    def expect(self, files: int, total_bytes: int | None = None) -> None:
        """Set how much there is to do; for progress."""
        self._stage.expect(files, total_bytes)

    @property
    def stopped(self) -> bool:
        """Whether the batch has to stop, because something failed."""
        return self._stop and self.failed > 0

    def execute(
        self, work: Callable[[T], list[BatchResult]], items: Iterable[T], *, threads: int | None = None
    ) -> None:
        """Add the results of all items, or up to the first failure."""
        batches = map_in_threads(work, items, threads or usable_cpus())
        try:
            for batch in batches:
                for result in batch:
                    self.add(result)
                if self.stopped:
                    break
        finally:
            batches.close()

    def add(self, result: BatchResult) -> None:
        if result.error is not None:
            self.failed += 1
            self._stage.count(failed=1)
        else:
            self.files += 1
            self.how[result.how] = self.how.get(result.how, 0) + 1
            self.bytes += result.size if result.how in ("reflink", "copy") else 0
            self._stage.count(files=1, count_bytes=result.size)
        if self._keep or result.error is not None:
            self.results.append(result)

    def count(self, files: int) -> None:
        """Add files that were handled, and whose names and sizes nobody needs."""
        self.files += files
        self._stage.count(files=files)

    def close(self) -> None:
        """Finish the progress display.

        Raises:
            BatchError: something failed.
        """
        self._stage.end()
        if self.failed:
            raise BatchError(self.results)


def temporary_path(path: str) -> str:
    """An unused name in the same directory."""
    return os.path.join(os.path.dirname(path.rstrip("/")), f".perfkit-{secrets.token_hex(8)}~")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A block that creates a file under the temporary name that it gets, which is then renamed to `path`."""
    temporary = temporary_path(path)
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        try_unlink(temporary)  # a rename between two links of the same file leaves both names (rename(2))


def try_unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
