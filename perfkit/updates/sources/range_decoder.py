"""Decode ranges of packs while their bytes arrive, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from types import TracebackType

from perfkit.archives.members import Readable
from perfkit.errors import ManifestError
from perfkit.filesystem.own_files import open_own
from perfkit.releases.format.index import Index, PackRange
from perfkit.updates.sources.site_client import SiteClient

_LEAST_BYTES = 256 << 10  # a smaller range is decoded faster than it is worth asking how much of it has arrived
_POLL_S = 0.01  # how often it asks


class _StoppedError(Exception):
    """Nobody wants the rest."""


class RangeDecoder:
    """Decodes each range in a thread, inside a `with` block in which the caller notes which ranges are staged.

    One range is decoded at a time, since a frame takes a window of up to 8 MiB: first those that are staged, else the
    one of which the largest part has arrived. The block ends when all are decoded; an exception that leaves it stops
    the thread, and an error of the thread is raised in the block.

    Args:
        ranges: all that will be staged.
        decode: called in the thread, with each range and its bytes, which are not verified. A ManifestError concerns
            this range only.
        forget: called in the thread if a range has to be decoded again: its bytes were wrong before it was staged.

    Attributes:
        failures: the errors of ranges that are damaged.
    """

    def __init__(
        self,
        site: SiteClient,
        index: Index,
        ranges: Iterable[PackRange],
        decode: Callable[[PackRange, Readable], None],
        *,
        forget: Callable[[], None],
    ) -> None:
        self.failures: list[ManifestError] = []
        self._site = site
        self._index = index
        self._decode = decode
        self._forget = forget
        self._left = {_key(each): each for each in ranges}
        self._early = [each for each in self._left.values() if self._may_begin_early(each)]
        self._staged = deque[PackRange]()  # as far as the thread has heard
        self._known = set[tuple[int, int]]()  # the same, and those decoded since
        self._news = SimpleQueue[PackRange | None]()  # for the thread; None: stop
        self._ended = SimpleQueue[BaseException | None]()  # how the thread ended
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="perfkit-decode")
        self._started = False

    def _may_begin_early(self, each: PackRange) -> bool:
        """Whether to decode a range while it arrives. A dictionary is there only when the range is staged."""
        return each.end - each.start >= _LEAST_BYTES and self._index.packs[each.pack].dictionary is None

    def __enter__(self) -> RangeDecoder:
        if self._left:
            with contextlib.suppress(RuntimeError):  # the system allows no more threads: decode at the end
                self._thread.submit(self._run)
                self._started = True
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        error: BaseException | None = None
        try:
            if kind is None:
                if not self._started:
                    self._run()
                error = self._ended.get()  # unlike a Future's result: a Ctrl-C here cannot leave a lock held
        finally:
            self._news.put(None)
            self._thread.shutdown()
        if error is not None:
            raise error

    def staged(self, each: PackRange) -> None:
        """Note that a range is staged."""
        self._news.put(each)
        if self._started and not self._ended.empty():
            error = self._ended.get()
            self._ended.put(error)
            if error is not None:
                raise error

    # -- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._left:
                each = self._next()
                early = _key(each) not in self._known
                try:
                    self._decode(each, _Arriving(self, each))
                except ManifestError as failure:
                    if early:  # a download may have started over, and what it has in the end counts
                        self._forget()
                        self._left[_key(each)] = each
                        self._early.remove(each)
                        if _key(each) in self._known:
                            self._staged.append(each)
                    else:
                        self.failures.append(failure)
        except BaseException as failure:
            error = failure
        self._ended.put(error)

    def _next(self) -> PackRange:
        """The range to decode next."""
        while True:
            self.wait(0.0)
            while self._staged:
                if (each := self._left.pop(_key(self._staged.popleft()), None)) is not None:
                    return each
            early = [each for each in self._early if _key(each) in self._left]
            shares = [self.arrived(each)[2] / (each.end - each.start) for each in early]
            if any(shares):
                return self._left.pop(_key(early[shares.index(max(shares))]))
            self.wait(_POLL_S)

    def wait(self, timeout_s: float) -> None:
        """Wait until a range is staged, at most for this long.

        Raises:
            _StoppedError: nobody wants the rest.
        """
        with contextlib.suppress(Empty):
            while True:
                each = self._news.get(timeout=timeout_s) if timeout_s else self._news.get_nowait()
                if each is None:
                    raise _StoppedError
                self._staged.append(each)
                self._known.add(_key(each))
                timeout_s = 0.0

    def arrived(self, each: PackRange) -> tuple[str, int, int]:
        """What has arrived of a range: the path of a file, where the range begins in it, and how many bytes it has.

        Raises:
            ManifestError: it was staged, and is not there any more.
        """
        if _key(each) not in self._known:
            path, size = self._site.arrived(self._index, each)
            return path, 0, size
        if (found := self._site.find_range(self._index, each)) is None:
            raise ManifestError("a range of a pack is missing from the staging area")
        return found[0], each.start - found[1], each.end - each.start


class _Arriving:
    """The bytes of a range, from its start; `read` waits for those that have not arrived yet.

    They may move to another file in between: the whole range's, or a new one if a download starts over.
    """

    def __init__(self, decoder: RangeDecoder, each: PackRange) -> None:
        self._decoder = decoder
        self._range = each
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end of the range."""
        timeout_s = 0.0  # also notices at once that nobody wants the rest
        while self._position < self._range.end - self._range.start:
            self._decoder.wait(timeout_s)
            path, start, arrived = self._decoder.arrived(self._range)
            if (count := min(size, arrived - self._position)) > 0:
                with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=open_own) as file:
                    data = os.pread(file.fileno(), count, start + self._position)
                    self._position += len(data)
                    if data:
                        return data
            timeout_s = _POLL_S
        return b""


def _key(each: PackRange) -> tuple[int, int]:
    return each.pack, each.start
