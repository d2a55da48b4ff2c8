"""Feeds callers' batches of files to the workers, shows progress, and returns the results."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from perfkit.config import Config
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.checksum_files import SharedChecksumFiles
from perfkit.downloads.concurrency import AdaptiveController, HostLimiter, host_of
from perfkit.downloads.destination import BatchPaths, PathClaims, path_in
from perfkit.downloads.http.semantics import Version
from perfkit.downloads.http.transport import HttpTransport, Transport
from perfkit.downloads.http.urls import is_loopback, origin_of
from perfkit.downloads.probe import Probe, probe
from perfkit.downloads.request import Download, Request
from perfkit.downloads.retry import Network
from perfkit.downloads.scheduler import Queue, Scheduler
from perfkit.downloads.throttle import Throttle
from perfkit.downloads.transfer import Transfer, TransferContext
from perfkit.errors import ConfigError, PerfkitError, TransferError, reason_of
from perfkit.progress.meter import WAITING, Meter, Progress, Silent
from perfkit.progress.operation import OperationProgress

if TYPE_CHECKING:
    from perfkit.downloads.shared_limits import LeaseKeeper, LimitStore

Item = str | tuple[str, str] | Request
_Placed = tuple[Request, str, bool]  # and its path, and whether the caller chose its name

_log = logging.getLogger(__name__)

_LARGE_BYTES = 64 << 10  # the caller gets a result of this size at once, smaller ones with the next tick
_TICK_S = 0.1  # how often the calling thread shows progress and adjusts the workers
_BEGUN = -1, Download(url="", path="")  # a result that says that the downloads have begun


class _Batch:
    """One caller's files: those queued, those under way, and those done but not yet returned."""

    context: TransferContext

    def __init__(self, *, announced: bool) -> None:
        self.announced = announced  # the sizes of its files were counted when it began
        self.process = os.getpid()
        self.queue = Queue(self.wake)
        self.finished: deque[tuple[int, Download]] = deque()
        self.paths = BatchPaths()
        self.directories: set[str] = set()  # that exist
        self.taken = 0  # of the caller's items
        self.open: dict[Transfer, int] = {}  # those without a result yet, and their indices
        self._wake: SimpleQueue[None] = SimpleQueue()

    def check_process(self) -> None:
        """Check that this is the process that began the batch.

        Raises:
            ConfigError: this is a forked child, where no worker will ever serve the batch.
        """
        if self.process != os.getpid():
            raise ConfigError("these downloads belong to the parent process; start new ones after a fork")

    def wake(self) -> None:
        """Wake the calling thread."""
        self._wake.put(None)

    def wait(self) -> None:
        """Sleep until woken, or for a tick. Unlike in an `Event`, a Ctrl-C here cannot leave a lock held."""
        with contextlib.suppress(Empty):
            self._wake.get(timeout=_TICK_S)
            while True:
                self._wake.get_nowait()


class DownloadManager:
    """Runs any number of batches at once, each from its caller's thread, over one pool of workers.

    The calling thread feeds its batch, draws progress, and steers the number of streams while it waits. After a fork,
    the manager starts again in the child; the parent's transfers continue in the parent.

    Args:
        transport: makes the `Transport`; the default is `HttpTransport(config)`.
        progress: where progress is shown.
        limits: leases the rate and the connections that the manager shares with others.
    """

    def __init__(
        self,
        config: Config,
        *,
        transport: Callable[[Config], Transport] = HttpTransport,
        progress: Progress | None = None,
        limits: LimitStore | None = None,
    ) -> None:
        self._config = config
        self._limits = limits
        self._make_transport = transport
        self._progress: Progress = progress or Silent()
        self._rate_limit = config.rate_limit
        self._closed = False
        self._reset()
        _managers.add(self)

    def _reset(self) -> None:
        """Create everything that belongs to one process: threads, locks, connections."""
        config = self._config
        self._root = Cancel()
        self._lock = threading.RLock()  # guards the state below
        self._batches: set[_Batch] = set()
        self._left: deque[tuple[_Batch, Cancel]] = deque()  # whose iterators were closed in a worker; needs no lock
        self._claims = PathClaims()
        self._tick_lock = threading.RLock()  # a callback for progress may use this manager
        if isinstance(self._progress, OperationProgress):
            self._progress.lock = self._tick_lock
        self._ticking = False
        self._meter = Meter()
        self._network: Network | None = None
        self._throttle = Throttle(self._rate_limit)
        self._limiter = HostLimiter(config.connections_per_host)
        self._controller = AdaptiveController(
            config.most_streams, adaptive=config.adaptive, rate=lambda: self._throttle.rate
        )
        self._scheduler = Scheduler(config, self._limiter, self._controller, self._end_left)
        self._leases: LeaseKeeper | None = None
        if self._limits is not None:
            from perfkit.downloads.shared_limits import LeaseKeeper

            self._leases = LeaseKeeper(self._limits, self._throttle, self._limiter, self._scheduler.notify)

    # -- for callers ----------------------------------------------------------------------------------------------

    def set_rate_limit(self, bytes_per_second: int | None) -> None:
        """Limit all transfers together; takes effect on running ones.

        Raises:
            ConfigError: not a positive whole number, nor None.
        """
        self._throttle.set_rate(bytes_per_second)
        self._rate_limit = bytes_per_second

    def fetch(self, request: Request, dest: str) -> Download:
        """Download one file; `dest` is a directory if one exists there or `dest` ends in a slash.

        Raises:
            TransferError, ConfigError, OSError: as the download's `error`.
        """
        inside = dest.endswith(os.sep) or os.path.isdir(dest)
        path = path_in(dest, request) if inside else dest
        named = not inside or request.name is not None
        with contextlib.closing(self._run([(request, os.path.abspath(path), named)])) as running:
            _, download = next(running)  # closed explicitly: a Ctrl-C while a generator is garbage-collected is lost
        if download.error is not None:
            download.error.download = replace(download, error=None)  # type: ignore[attr-defined]
            raise download.error
        return download

    def probe(self, url: str, *, most: int, known: Version | None = None, home: str | None = None) -> Probe:
        """Fetch the first `most` bytes of a file, and what the origin says about it, unless it is the version `known`.

        Args:
            home: as in a `Request`.

        Raises:
            ConfigError: the manager is closed.
            HTTPStatusError, TransferError, TransferTimeoutError: no usable response.
            CancelledError: the manager was closed.
        """
        network = self._start()
        done: SimpleQueue[None] = SimpleQueue()
        waiting = Meter(phase=WAITING)
        waiting.expect(1)
        waiting.file(url).start(None, host=host_of(url))
        with self._root.child() as cancel:
            ask = functools.partial(probe, network, url, most=most, known=known, home=home, cancel=cancel)
            future = self._scheduler.submit(ask)
            future.add_done_callback(lambda _: done.put(None))
            answered = False
            try:
                while not answered:
                    with contextlib.suppress(Empty):  # as in `_Batch.wait`; `future.done()` locks a Condition, too
                        done.get(timeout=_TICK_S)
                        answered = True
                    with self._tick_lock:
                        network.transport.expire()
                        self._progress.update(waiting.snapshot())
            finally:
                cancel.cancel()
                with self._tick_lock:
                    self._progress.finish(waiting.snapshot())
        self._throttle.charge(len(future.result().first), self._root)
        return future.result()

    def warm(self, url: str, connections: int) -> None:
        """Open connections for requests that follow soon, unless the server is this machine: opening one takes a round
        trip, or two with TLS. Does not wait for them. Opens none under a rate limit, which they would overrun.
        """
        warm = getattr(self._start().transport, "warm", None)
        if warm is None or self._throttle.rate is not None or is_loopback(origin_of(url)[1]):
            return
        with contextlib.suppress(OSError):  # without threads, it only takes longer
            for _ in range(connections):
                self._scheduler.submit(functools.partial(warm, url, self._root))

    def run(
        self,
        items: Iterable[Item | None],
        dest: str | None,
        *,
        phase: str = "download",
        sizes: Sequence[int | None] | None = None,
        prepare: Callable[[Any], Item] = lambda item: item,
        at_once: bool = False,
    ) -> Generator[tuple[int, Download], None, None]:
        """Download a stream of files into the directory `dest`; yields (index, result) as each one ends.

        The stream is read as workers become free. It may yield None if it has no item yet, and is read again after the
        files under way have been served; a None gets no index and no result. A failed item yields a result with an
        error and does not stop the others. Closing the iterator cancels what is left.

        Args:
            phase: what progress displays call it.
            sizes: of all these files, where they are known; None: those of a list or tuple of requests.
            prepare: called with each item when it is taken from the stream; returns what to download.
            at_once: begin now, and not when the first result is asked for.

        Raises:
            ConfigError: the manager is closed, or `items` is a single URL, or nothing to iterate over.
        """
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise ConfigError(f"what to download must be a list, or another iterable; got a {type(items).__name__}")
        directory = os.path.abspath(dest or os.curdir)
        if sizes is None and isinstance(items, list | tuple):
            sizes = [item.expected_bytes if isinstance(item, Request) else None for item in items]
        known = items if sizes is None else sizes
        total = len(known) if isinstance(known, Sized) else None
        placed = (None if item is None else self._place(prepare(item), directory) for item in items)
        running = self._run(placed, total, phase=phase, sizes=sizes, first=[_BEGUN] if at_once else ())
        if at_once:
            next(running)
        return running

    def close(self) -> None:
        """End all work within a second, and all threads with it. May be called again, and from any thread."""
        self._closed = True
        self._root.cancel()
        self._scheduler.close()
        with self._lock:
            network, self._network = self._network, None
        if self._leases is not None:
            self._leases.close()
        if network is not None:
            network.transport.close()

    # -- the calling thread -----------------------------------------------------------------------------------------

    def _place(self, item: Item, directory: str) -> _Placed | Download:
        """The request and path of an item, or a result that says what is wrong with it."""
        try:
            if isinstance(item, str):
                request = Request(item)
            elif isinstance(item, Request):
                request = item
            else:
                url, name = item
                request = Request(url, name)
            return request, path_in(directory, request), request.name is not None
        except (PerfkitError, TypeError, ValueError) as error:
            if not isinstance(error, PerfkitError):
                error = ConfigError(f"a {type(item).__name__} is neither a URL, nor a (URL, name) pair, nor a Request")
            url = str(getattr(item, "url", item if isinstance(item, str) else ""))
            return Download(url=url, path="", error=error)

    def _run(
        self,
        placed: Iterable[_Placed | Download | None],
        total: int | None = 1,
        *,
        phase: str = "download",
        sizes: Sequence[int | None] | None = None,
        first: Iterable[tuple[int, Download]] = (),
    ) -> Generator[tuple[int, Download], None, None]:
        """As `run`; yields the results `first` as soon as the others have begun."""
        source = iter(placed)
        with self._root.child() as cancel:
            batch = _Batch(announced=sizes is not None)
            batch.context = self._make_context(batch, cancel)
            batch.finished.extend(first)
            try:
                self._join(batch, phase)
                self._meter.expect(total, sizes or ())
                exhausted = False
                while not exhausted or batch.open or batch.finished:
                    batch.check_process()
                    taken = batch.taken
                    if not exhausted:
                        exhausted = self._feed(batch, source, counted=total is not None)
                        if exhausted and total is None:
                            self._meter.all_known()
                        elif exhausted and total is not None:  # a list may have fewer files than lines
                            self._meter.expect(batch.taken - total)
                    if cancel.cancelled:
                        self._abandon(batch)
                        exhausted = exhausted or total is None
                    while batch.finished:
                        yield batch.finished.popleft()
                        batch.check_process()
                    if batch.open or (batch.taken == taken and not exhausted):  # or the source has nothing just now
                        batch.wait()
                        self._tick()
            finally:
                if batch.process == os.getpid() and self._scheduler.runs_here():
                    # The garbage collector is here, in the middle of anything. To wait would be to wait for ourselves.
                    self._left.append((batch, cancel))
                elif batch.process == os.getpid():
                    cancel.cancel()
                    while batch.open:
                        self._abandon(batch)
                        if batch.open:
                            batch.wait()
                    self._leave(batch)

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this Toolkit is closed; make a new one")
        if SimpleQueue is not queue.SimpleQueue:  # greenlets would deadlock in unpatched queues
            raise ConfigError(
                "gevent patched this process after perfkit was imported: have it patched first "
                "(gunicorn: without --preload, or patch in its configuration file)"
            )

    def _join(self, batch: _Batch, phase: str) -> None:
        with self._lock:
            if not self._batches:
                self._meter = Meter(phase=phase)
                self._controller.restart()
            self._scheduler.join(batch.queue)
            self._batches.add(batch)

    def _make_context(self, batch: _Batch, cancel: Cancel) -> TransferContext:
        return TransferContext(
            cancel=cancel,
            on_end=functools.partial(self._ended, batch),
            checksum_files=SharedChecksumFiles(),
            network=self._start(),
            throttle=self._throttle,
            notify=self._scheduler.notify,
            spawn=self._scheduler.spawn,
            claims=self._claims,
        )

    def _start(self) -> Network:
        """Return what requests need; made on first use.

        Raises:
            ConfigError: the manager is closed, or can't be used in this process.
        """
        with self._lock:
            self._check_open()  # under the lock: `close` would not see what is made later
            if self._network is None:
                transport = self._make_transport(self._config)
                self._network = Network(self._config, transport, self._limiter, self._controller)
                if self._leases is not None:
                    self._leases.start()
            return self._network

    def _leave(self, batch: _Batch) -> None:
        self._scheduler.leave(batch.queue)
        del batch.context  # which refers to the batch: its paths would stay until the garbage collector comes
        with self._tick_lock:  # which another caller's run, with a meter of its own, can't be shown before
            with self._lock:
                self._batches.discard(batch)  # a Ctrl-C may have come before it was added
                ended = None if self._batches else self._meter
            if ended is not None:
                self._progress.finish(ended.snapshot())

    def _feed(self, batch: _Batch, source: Iterator[_Placed | Download | None], *, counted: bool) -> bool:
        """Keep a few files queued for each worker; returns True when there are no more."""
        room = self._scheduler.room(batch.queue)
        fresh = []
        first = batch.taken
        try:
            for placed in islice(source, max(0, room)):
                if placed is None:
                    return False
                index = batch.taken
                batch.taken += 1
                if not counted:
                    self._meter.expect(1)
                if isinstance(placed, Download):
                    assert placed.error is not None
                    batch.finished.append((index, placed))
                    self._meter.file(placed.url).failed(reason_of(placed.error))
                elif (transfer := self._admit(batch, index, *placed)) is not None:
                    fresh.append(transfer)
            if first == 0 and self._throttle.rate is None and self._leases is None:
                expect = getattr(batch.context.network.transport, "expect", lambda urls: None)
                expect([each.request.url for each in fresh if each.request.checksum is None])
        finally:  # the caller's source may raise: what it gave before is queued anyway, and ended there
            self._scheduler.add(batch.queue, fresh)
        return batch.taken - first < room

    def _admit(self, batch: _Batch, index: int, request: Request, path: str, named: bool) -> Transfer | None:
        """A transfer with a path of its own, in an existing directory; None if it has already failed."""
        directory, name = os.path.split(path)
        size = request.expected_bytes
        meter = self._meter.file(request.label or name, path=path, total_bytes=size, announced=batch.announced)
        transfer = Transfer(request, path, named=named, context=batch.context, meter=meter)
        batch.open[transfer] = index  # from here on it will have a result, whatever happens
        try:
            self._claims.claim(path, transfer.destination)
            batch.paths.take(request.url, path)
            if directory not in batch.directories:
                os.makedirs(directory, exist_ok=True)
                batch.directories.add(directory)
        except (TransferError, OSError) as error:
            transfer.leave(workers=0, error=error)
            return None
        return transfer

    def _abandon(self, batch: _Batch) -> None:
        """End the transfers that no worker is in, and wake waiting workers."""
        self._scheduler.clear(batch.queue)
        with self._lock:
            waiting = list(batch.open)
        for transfer in waiting:
            transfer.leave(workers=0)

    def _end_left(self) -> None:
        """End batches that the garbage collector left, without waiting: the worker that ends a last task comes here."""
        for each in tuple(self._left):
            batch, cancel = each
            cancel.cancel()
            self._abandon(batch)
            if batch.open:
                continue
            try:
                self._left.remove(each)
            except ValueError:  # another worker was faster
                continue
            try:
                self._leave(batch)
            except Exception:  # of a display, for which no caller is left
                _log.exception("the end of downloads that nobody waits for could not be shown")

    def _tick(self) -> None:
        """Show progress, expire overdue responses, adjust the number of streams. One caller does it for all."""
        if self._ticking:
            return
        with self._tick_lock:  # a Ctrl-C between a call of `acquire` and a `try` would leave it locked
            try:
                self._ticking = True
                network = self._network
                if network is not None:
                    network.transport.expire()
                snapshot = self._meter.snapshot(files=not isinstance(self._progress, Silent))
                rate = self._throttle.rate
                changed = self._controller.observe(
                    received_bytes=snapshot.received_bytes - snapshot.resumed_bytes,
                    files_done=snapshot.files_done,
                    busy=self._scheduler.busy,
                    cpu_s=time.process_time(),
                    throttled=rate is not None and snapshot.speed_bytes_per_s > 0.8 * rate,
                    path=network.transport.path() if network is not None else None,
                )
                if changed:
                    self._scheduler.notify()
                self._progress.update(snapshot)
            finally:
                self._ticking = False

    def _ended(self, batch: _Batch, transfer: Transfer, download: Download) -> None:
        self._scheduler.ended(transfer)
        with self._lock:
            if transfer not in batch.open:
                return
            self._claims.release(transfer.destination)
            batch.finished.append((batch.open[transfer], download))
            del batch.open[transfer]  # last: a batch with nothing open has every result in `finished`
            if not batch.open or download.bytes >= _LARGE_BYTES:
                batch.wake()


_managers: weakref.WeakSet[DownloadManager] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for manager in list(_managers):
        manager._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
