"""Downloads one file: requests it, writes, verifies and publishes it. Several workers may be in it at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from perfkit.downloads.body import pieces
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.checksum_files import SharedChecksumFiles
from perfkit.downloads.checksums import Checksum, matches
from perfkit.downloads.destination import Destination, PathClaims
from perfkit.downloads.file_origin import read_origin
from perfkit.downloads.http.network_path import NetworkPath, queued
from perfkit.downloads.http.semantics import (
    NO_VERSION,
    Answer,
    ByteRange,
    Version,
    content_disposition_names,
    may_be_filling_a_cache,
)
from perfkit.downloads.http.transport import Get, Response
from perfkit.downloads.http.urls import is_loopback
from perfkit.downloads.negotiation import (
    Step,
    Wanted,
    adopt,
    asked_range,
    interpret,
    make_get,
    next_step,
    request_headers,
)
from perfkit.downloads.partial_file import ChangedError, OccupiedError, PartialFile
from perfkit.downloads.proofs import Proofs
from perfkit.downloads.request import Download, Request
from perfkit.downloads.retry import Attempts, Network, is_refusal, is_shortage, refuse
from perfkit.downloads.segments import Runner
from perfkit.downloads.throttle import Throttle, Toll
from perfkit.errors import (
    CancelledError,
    HTTPStatusError,
    IntegrityError,
    PerfkitError,
    RemoteChangedError,
    SignatureError,
    TransferError,
    forget_frames,
    reason_of,
)
from perfkit.progress.meter import FileMeter
from perfkit.progress.text import counted
from perfkit.redact import redacted

_log = logging.getLogger(__name__)

_EXPIRED_STATUSES = frozenset({401, 403})  # a new signature or password may let the download continue
_LINK_STATUSES = frozenset({401, 403, 404, 410})  # in response to an expired link
_SHORT_ANSWER_BYTES = 4096  # a 206 with less than requested, and less than this, counts as a failure
_CACHE_FILL_S = 10.0  # a full response that a cache may be storing is not cut off earlier: most would keep none of it
_POLL_S = 0.2  # how often to check whether another process ended its download
_LARGE_BYTES = 4 << 20
_FULL_BYTES = 64 << 10  # a smaller piece can wait for more
_ENDING_BYTES = 8 << 20  # more than what is in flight on a connection
_PAUSE_S = 0.005  # or a sixteenth of the response time, if that is shorter
_HASH_BEHIND_BYTES = 8 << 20  # a smaller file is hashed by its workers, and the rest of it at the end


class TransferContext(NamedTuple):
    """What the transfers of a batch share."""

    cancel: Cancel
    on_end: Callable[[Transfer, Download], None]  # called with each transfer and its result, once
    checksum_files: SharedChecksumFiles
    # and those of all batches:
    network: Network
    throttle: Throttle
    notify: Callable[[], None]  # call it when there may be more to do
    spawn: Callable[[Callable[[], None]], bool]  # run something alongside the workers; False: no thread for it
    claims: PathClaims


@dataclass(slots=True, eq=False)
class Task:
    """A worker's task: begin the transfer."""

    source: int  # index of the transfer's source to request
    url: str  # of that source
    at: str | None  # where redirects of that source led
    host: str = field(default="", kw_only=True)  # whose limit it counts against


@dataclass(slots=True, eq=False)
class RangeTask(Task):
    """A worker's task: fetch a range of the file."""

    partial: PartialFile
    runner: Runner
    retry_at_s: float = 0.0  # when the rest of the runner's range may be claimed


class Transfer:
    """The state of one request, from the queue to its result.

    Workers get tasks from `claim` and `share`, and do them with `run`. The first one looks for what exists already, and
    settles size, version and name by the first good response; until then, it is alone. If the file changes, or another
    source takes over without a checksum, a new partial file replaces the old one, and it begins again. The last worker
    to leave concludes the transfer: the file is whole, the existing one is current, or there is an error.

    Args:
        path: the file to make.
        named: whether the caller chose its name; otherwise the server may.
    """

    def __init__(self, request: Request, path: str, *, named: bool, context: TransferContext, meter: FileMeter) -> None:
        self.request = request
        self.destination = Destination(request, path, context.claims, named=named)
        self.cancel = context.cancel
        self._context = context
        self._config = context.network.config
        self._meter = meter
        own = () if request.rate_limit is None else (Throttle(request.rate_limit),)
        self._throttles = (context.throttle, *own)
        self._checksum: Checksum | None = None
        self._known = request.known or NO_VERSION  # the version from `url` that the caller or the destination has
        self._conditional = True  # whether requests have conditions
        self._started_s = 0.0
        self._begun = False  # whether it has checked for existing files
        self._absent = False  # whether there was none then
        self._proofs = Proofs(request, context.network, context.checksum_files, self._throttles, self.cancel)
        self._length_known = True
        self._ranges = True  # whether ranges may be requested

        self._lock = threading.Lock()  # guards the state below
        self._busy = 0  # workers inside
        self._hashing = False  # whether a helper hashes behind them
        most = self._config.retries if request.retries is None else min(request.retries, self._config.retries)
        self._attempts = Attempts(self._config, (request.url, *request.mirrors), most)
        self._partial: PartialFile | None = None
        self._error: Exception | None = None
        self._unchanged = False
        self._ended = False
        self._peak = 0
        self._whole_until_s = 0.0  # until then, the first response is not cut off

    # -- for the scheduler, quickly and under its lock -------------------------------------------------------------

    @property
    def host(self) -> str:
        """The host that the next request is for."""
        return self._attempts.host

    def claim(self, now: float) -> Task | None:
        """Claim work that is due: to begin, or to fetch a missing range."""
        with self._lock:
            if not self._claimable or now < self._attempts.not_before_s:
                return None
            partial = self._partial
            if partial is None:
                return self._enter(None, None)
            runner = partial.map.claim()
            return self._enter(partial, runner) if runner else None

    def due_s(self) -> float | None:
        """When there will be something to claim; None if nothing waits for its time."""
        with self._lock:
            if not self._claimable:
                return None
            due_s = self._partial.map.next_claim_s() if self._partial else 0.0
            return None if due_s is None else max(due_s, self._attempts.not_before_s)

    @property
    def _claimable(self) -> bool:
        """Until version and size of the file are known, one worker is enough."""
        settled = self._partial is not None and self._partial.settled
        return not self._closing and (settled or not self._busy)

    @property
    def may_claim(self) -> bool:
        """Whether `claim` may return a task. Takes no lock, since the scheduler checks each file under way."""
        partial = self._partial
        return not self._busy if partial is None or not partial.settled else partial.map.has_gaps

    @property
    def idle(self) -> bool:
        """Whether no worker is in it."""
        return not self._busy

    def missing_bytes(self) -> int:
        """How many bytes are still to come, as far as is known."""
        partial = self._partial
        return partial.map.missing_bytes if partial else 0

    def share(self) -> Task | None:
        """Claim part of the range that would take longest, or a second try at one that a slow connection holds up."""
        with self._lock:
            partial = self._widenable()
            if partial is None:
                return None
            network = self._context.network.controller
            least, trip_s = self._config.min_segment_bytes, network.round_trip_s
            runner = partial.map.split(least, trip_s, congested=network.congested) or partial.map.hedge()
            return self._enter(partial, runner) if runner else None

    def _widenable(self) -> PartialFile | None:
        """The partial file, if one more connection may work on it: only if mixed versions would be detected."""
        partial = self._partial
        if self._closing or partial is None or not (partial.settled and partial.ranges):
            return None
        if time.monotonic() < self._whole_until_s:
            return None
        safe = partial.version.proves or self._checksum is not None
        most = self.request.segments or self._config.segments
        if not (partial.ranges_promised or partial.ranges_seen):
            most = min(most, 2)  # one range shows whether the server supports them
        return partial if safe and 0 < self._busy < most else None

    @property
    def _closing(self) -> bool:
        return self._ended or self._unchanged or self._error is not None or self.cancel.cancelled

    def _enter(self, partial: PartialFile | None, runner: Runner | None) -> Task:
        self._busy += 1
        self._peak = max(self._peak, self._busy)
        attempts = self._attempts
        if partial is None or runner is None:
            return Task(attempts.source, attempts.url, attempts.at)
        return RangeTask(attempts.source, attempts.url, attempts.at, partial, runner)

    # -- for a worker ------------------------------------------------------------------------------------------------

    def run(self, task: Task, meanwhile: Callable[[], None]) -> None:
        """Do a task to its end; then `leave`. Raises nothing: an error is retried, or becomes the result.

        Args:
            meanwhile: called while the response is awaited, or before, if that may take long; perhaps several times.
        """
        ranged = task if isinstance(task, RangeTask) else None
        try:
            if not self._asks_at_once:
                meanwhile()
            ranged = ranged or self._begin(task)
            if ranged is not None:
                self._fetch(ranged, meanwhile)
        except ChangedError as change:
            if ranged is not None:
                self._changed(ranged, str(change))
        except OccupiedError:
            self._await_other(ranged.partial if ranged is not None else None)
        except Exception as error:
            if not isinstance(error, PerfkitError | OSError):
                _log.exception("%s: a bug in perfkit", redacted(self.request.url))
            self._failed(ranged or task, error)
        finally:
            if ranged is not None:
                if self._error is not None:
                    ranged.partial.map.cancel_others(ranged.runner)  # what they fetch is useless
                ranged.partial.map.release(ranged.runner, not_before_s=ranged.retry_at_s)
                ranged.partial.close_if_retired()
            meanwhile()

    @property
    def _asks_at_once(self) -> bool:
        """Whether nothing that takes long comes before its next request, and the transport calls `Get.meanwhile`."""
        request = self.request
        if request.checksum is not None or request.public_keys or any(each.rate for each in self._throttles):
            return False
        auth = request.auth or self._config.auth  # an object may ask for a token first
        plain = auth is None or isinstance(auth, tuple)
        return plain and getattr(self._context.network.transport, "calls_meanwhile", False)

    @property
    def may_finish_later(self) -> bool:
        """Whether the file has come whole, and `leave` will not take long."""
        partial = self._partial
        if partial is None or self._config.durable or not (partial.settled and partial.map.complete):
            return False
        return partial.map.size is not None and partial.map.size < _LARGE_BYTES

    def _begin(self, task: Task) -> RangeTask | None:
        """Check for a file that is already current, or what an earlier run left; None: nothing to do."""
        if self._started_s == 0.0:
            self._started_s = time.monotonic()
            self._meter.start(None, host=task.host)
        if self.request.checksum is not None and self._checksum is None:
            self._checksum = self._proofs.find_checksum()
        self._proofs.fetch_signature(task.url)  # first: without it, the file is useless
        first, self._begun = not self._begun, True
        partial = self._new_partial()
        partial.ranges = self._ranges or partial.part is not None
        exists = first and self.destination.is_file()
        self._absent = first and not exists
        if first and self.request.resume:
            if exists and self._is_current(partial):
                self._unchanged = True
                return None
            if partial.resume():
                if self._only.proves and partial.version.proof != self._only.proof:
                    partial.discard()
                    partial = self._new_partial()
                self._meter.start(partial.map.size)
                self._meter.resumed(partial.resumed_bytes)
        runner = partial.map.claim()
        assert runner is not None
        with self._lock:
            self._partial = partial
        return RangeTask(task.source, task.url, task.at, partial, runner, host=task.host)

    def _new_partial(self) -> PartialFile:
        request, url = self.request, self._attempts.url
        dest, key = self.destination.first_path, request.key_of(url)
        return PartialFile(dest, url, self._checksum, request.byte_range, key, durable=self._config.durable)

    def _is_current(self, partial: PartialFile) -> bool:
        """Whether the existing file has the checksum; without one, the request will ask whether it changed."""
        path = self.destination.first_path
        if self._checksum is not None:
            return matches(path, self._checksum, self.cancel)
        found = read_origin(path, partial.source) if partial.part is None else None
        self._known = found or self._known
        return False

    def _fetch(self, task: RangeTask, meanwhile: Callable[[], None]) -> None:
        """Send one request, and write its body in place."""
        partial, runner = task.partial, task.runner
        asked = asked_range(partial, runner)
        wanted = self._wanted
        headers = request_headers(partial, asked, wanted)
        get = make_get(self.request, task.url, headers, self._throttles, at=task.at, meanwhile=meanwhile)
        self.cancel.add(runner.cancel.cancel)
        with self._lock:
            self._attempts.requests += 1
        try:
            with Toll(self._throttles, runner.cancel, near=is_loopback(task.host.rpartition(":")[0])) as toll:
                self._ask(task, get, asked, wanted, toll)
        finally:
            self.cancel.discard(runner.cancel.cancel)

    def _ask(self, task: RangeTask, get: Get, asked: ByteRange | None, wanted: Wanted, toll: Toll) -> None:
        network, cancel = self._context.network, task.runner.cancel
        asked_s = time.monotonic() - time.thread_time()
        with network.transport.open(get, cancel) as response:
            # Importing requests and agreeing on keys take CPU time that says nothing about the network.
            network.controller.answered(time.monotonic() - time.thread_time() - asked_s)
            if _log.isEnabledFor(logging.DEBUG):  # formatting these costs more than it looks
                shown = get.headers.get("Range", "all")
                _log.debug("GET %s, %s: status %d", redacted(task.url), shown, response.status)
            answer = interpret(response, task.url, task.partial, asked)
            if self._accept(task, response, answer, asked, wanted):
                self._copy(task, response, answer, toll)
                slow = task.partial.ranges_seen and task.partial.map.was_slow(task.runner)
                if slow and self._lost_by_chance(response.path()):
                    response.end_after(0)  # a new connection starts with a wider window
                    task.runner.replaced = True

    def _lost_by_chance(self, path: NetworkPath | None) -> bool:
        """Whether packets were lost at random, and not in a full queue."""
        if path is None or not path.out_of_order or queued(path.round_trip_s, path.least_s):
            return False
        return not self._context.network.controller.congested

    @property
    def _wanted(self) -> Wanted:
        first = self._attempts.source == 0 and self._attempts.restarts == 0
        return Wanted(self._known if first else NO_VERSION, self._only, self._checksum, self._conditional)

    @property
    def _only(self) -> Version:
        """The only version accepted. It does not apply to mirrors, which name it differently."""
        return (self.request.only if self._attempts.source == 0 else None) or NO_VERSION

    def _accept(
        self, task: RangeTask, response: Response, answer: Answer, asked: ByteRange | None, wanted: Wanted
    ) -> bool:
        """Act on a response; returns whether to read its body."""
        partial = task.partial
        self._check_current_source(task)
        if task.at is not None and response.status in _LINK_STATUSES:
            reason = f"the redirect's target responds with status {response.status}"
            raise TransferError(task.url, reason, transient=True)  # the original URL may lead to a new one
        step = next_step(task.url, response, answer, partial, asked, wanted)
        if step is Step.REFUSED:
            refuse(task.url, response, answer.reason, host=task.host, network=self._context.network)
        if step is Step.UNCHANGED:
            self._unchanged = True
            return False
        if step is Step.UNCONDITIONALLY:
            self._conditional = False
            return False
        if step in (Step.NO_RANGES, Step.READ_WHOLE):
            if partial.settled and partial.map.merge_back(task.runner):
                partial.ranges = False
                return False  # the response before this range continues through it
            differs = partial.version.differs(response.headers)
            if step is Step.NO_RANGES or partial.settled or partial.resumed_bytes:
                partial = self._start_over(task)
            partial.ranges = self._ranges = step is Step.READ_WHOLE and differs
            if step is Step.NO_RANGES:
                return False
        if not partial.settled:
            self._settle(task, response, answer)
        if response.status == 206 and not partial.ranges_seen:
            partial.ranges_seen = True
            self._context.notify()
        return step is not Step.EMPTY and not partial.map.complete

    def _check_current_source(self, task: Task) -> None:
        if task.source != self._attempts.source:
            raise CancelledError(task.url, "superseded by the next mirror")

    def _start_over(self, task: RangeTask) -> PartialFile:
        """Discard what there is, and continue the same request with an empty partial file."""
        old = task.partial
        partial = self._new_partial()
        with self._lock:
            if self._partial is not old:
                raise CancelledError(self.request.url, "superseded by a fresh start")
            self._replace_partial(partial)
        old.map.release(task.runner)
        runner = partial.map.claim(task.runner.cancel)
        assert runner is not None
        task.partial, task.runner = partial, runner
        old.retire()
        return partial

    def _replace_partial(self, new: PartialFile | None) -> None:
        """Forget what came so far. Needs the lock, and under it the check whether another worker did this already."""
        self._partial = new
        self._attempts.start_over()
        self._meter.reset()

    def _settle(self, task: RangeTask, response: Response, answer: Answer) -> None:
        """Take version, size, name and digest from the first good response, and create the partial file."""
        partial, headers = task.partial, response.headers
        self.destination.take_name(task.url, content_disposition_names(headers.get("content-disposition")))
        size = adopt(partial, headers, answer, self._checksum)
        self._check_size(task.url, size)
        if partial.descriptor < 0:
            partial.create(size)
            if self._absent and self.destination.is_file():  # another process published it since
                partial.discard()
                raise OccupiedError
        if size is not None:
            partial.map.set_size(size)
        self._meter.start(size, path=self.destination.path)
        encrypted = response.url.startswith("https:")
        stored = response.status == 200 and may_be_filling_a_cache(headers, encrypted=encrypted)
        with self._lock:
            self._check_current_source(task)
            self._whole_until_s = time.monotonic() + _CACHE_FILL_S if stored else 0.0
            self._attempts.at = response.url if response.url != task.url else None
            partial.settled = True
            self._hash_behind(partial)
        if size is not None and size >= _LARGE_BYTES and encrypted:
            self._context.network.controller.decrypts()
        partial.ranges_promised = "bytes" in headers.get("accept-ranges", "").lower()
        if partial.ranges and (size or 0) >= 2 * self._config.min_segment_bytes:
            self._context.notify()

    def _check_size(self, url: str, size: int | None) -> None:
        most = self.request.max_bytes
        if most is not None and size is not None and size > most:
            raise IntegrityError(url, "the file is too large", f"at most {most} bytes", f"{size} bytes")

    def _copy(self, task: RangeTask, response: Response, answer: Answer, toll: Toll) -> None:
        """Write the body in place as it arrives."""
        partial, runner, url = task.partial, task.runner, task.url
        for data, count in pieces(url, response, answer, runner, network=self._context.network, toll=toll):
            position = runner.position
            if runner.remaining is None:
                self._check_size(url, position + len(data))
            partial.write(data, position)
            gained = partial.map.advance(runner, len(data))
            self._meter.advance(gained)
            with self._lock:
                self._attempts.arrived(count, gained)
            if partial.digest is not None and not self._hashing:
                partial.digest.offer(position, data)
            partial.save_if_due()
            if partial.ranges_seen and answer.end and partial.map.keeps_cut(runner, answer.end, _ENDING_BYTES):
                response.end_after(runner.remaining or 0)
            if count < _FULL_BYTES < (runner.remaining or 0) and toll.quantum(_FULL_BYTES) == _FULL_BYTES:
                self._gather()
        left = runner.remaining
        if left is None:
            self._length_known = "chunked" in response.headers.get("transfer-encoding", "").lower()
            partial.map.set_size(runner.position)
            self._meter.start(partial.map.size)
        if left and not partial.resumable:
            self._ranges = False  # nothing would show if the rest were of another version: fetch it in one piece
            reason = "the server sent less than was requested, without a validator"
            raise TransferError(url, reason, transient=True)
        if left and runner.position - runner.start < _SHORT_ANSWER_BYTES:
            raise TransferError(url, "the server keeps sending shorter ranges than requested", transient=True)

    def _gather(self) -> None:
        """From a distant server, let more arrive before the next read: packet by packet takes twice the CPU time."""
        controller = self._context.network.controller
        if controller.answer_s >= controller.far_s:
            time.sleep(min(controller.answer_s / 16, _PAUSE_S))

    # -- when something is wrong ----------------------------------------------------------------------------------

    def _changed(self, task: RangeTask, reason: str) -> None:
        """The file changed at the origin: start over, once. Without conditions, since some servers (CherryPy with
        ETags) respond to each range as if the file had changed; the version that a response names decides then.
        """
        with self._lock:
            if task.partial is not self._partial or task.source != self._attempts.source or self._closing:
                return
            self._attempts.restarts += 1
            if self._only.proves and not self._conditional:
                self._error = RemoteChangedError(self.request.url, f"it has changed: {reason}")
                return
            if self._attempts.restarts > 1:
                self._error = RemoteChangedError(self.request.url, f"the file keeps changing: {reason}")
                return
            self._conditional = False
            self._replace_partial(None)
        _log.info("%s: starts over: %s", redacted(self.request.url), reason)
        task.partial.retire(but=task.runner)

    def _await_other(self, partial: PartialFile | None) -> None:
        """Begin again shortly: another process is downloading to the destination, and may be done by then."""
        path = self.destination.first_path
        _log.debug("%s: waits for another process that downloads to %s", redacted(self.request.url), path)
        with self._lock:
            if partial is self._partial:
                self._partial, self._begun = None, False
                self._attempts.not_before_s = time.monotonic() + _POLL_S

    def _failed(self, task: Task, error: Exception) -> None:
        """Decide between another attempt, the next mirror, and giving up."""
        partial, runner = (task.partial, task.runner) if isinstance(task, RangeTask) else (None, None)
        if shortage := is_shortage(error):
            self._context.network.limiter.refused(task.host)
        with self._lock:
            if partial is not self._partial or self._closing:
                return
            if runner is not None and runner.cancel.cancelled:
                return  # another runner was faster
            if not (shortage or isinstance(error, TransferError)):
                self._error = error
                return
            if task.source != self._attempts.source:
                return  # another worker has moved on to the next mirror already
            if partial is not None and runner is not None and self._busy > 1 and is_refusal(error):
                partial.map.merge_back(runner)
                return  # the host takes no more workers than are still on the file
            if runner is not None and len(runner.segment.runners) > 1:
                return  # another runner is still on it
            began_s = None if runner is None else runner.started_s
            kept = partial is not None and partial.resumable
            retry_at_s = self._attempts.retry_at_s(error, began_s, time.monotonic(), kept=kept)
            if retry_at_s is None:
                self._error = error
                return
            if partial is not None and self._attempts.source != task.source:
                partial.change_source(self._attempts.url)
            self._attempts.at = None  # the redirect may lead to a better place by now
            # Where nothing would show if the rest were of another version, start from the first byte.
            starts_over = partial is None or (partial.descriptor >= 0 and not partial.resumable)
            if starts_over:
                self._attempts.not_before_s = retry_at_s
                self._replace_partial(None)
        self._meter.retrying(reason_of(error), retry_at_s - time.monotonic())
        if isinstance(task, RangeTask):
            task.retry_at_s = retry_at_s
        if partial is not None and starts_over:
            partial.retire(but=runner)

    # -- the end --------------------------------------------------------------------------------------------------

    def _hash_behind(self, partial: PartialFile) -> None:
        """Start a helper that hashes a large file behind its workers, which write out of order. Needs the lock."""
        if self._hashing or partial.digest is None or (partial.map.size or 0) < _HASH_BEHIND_BYTES:
            return

        def hash_behind() -> None:
            try:
                partial.hash_behind(lambda: self._closing or partial is not self._partial, self.cancel)
            except OSError as error:
                with self._lock:
                    if partial is self._partial and not self._closing:
                        self._error = error
            finally:
                self._hashing = False
                self.leave(workers=0)

        self._hashing = True  # before the helper begins, since it may end at once
        if not self._context.spawn(hash_behind):
            self._hashing = False

    def leave(self, workers: int = 1, error: Exception | None = None) -> None:
        """Leave the transfer; the last worker out concludes it if nothing is left to do.

        Args:
            workers: how many leave; 0: the caller was not counted, and a Ctrl-C can't leave it so. It ends a transfer
                that can't be queued, or whose batch was cancelled, if no worker is in it to do so.
            error: why the transfer ends.
        """
        with self._lock:
            self._busy -= workers
            self._error = self._error or error
            partial = self._partial
            whole = partial is not None and partial.settled and partial.map.complete
            if self._busy or self._hashing or self._ended or not (self._closing or whole):
                return
            self._ended = True
            if self.cancel.cancelled and not self._unchanged and not whole:
                self._error = self._error or CancelledError(self.request.url, "cancelled")
        try:
            self._conclude(partial)
        except BaseException as error:
            self._error, self._unchanged = error if isinstance(error, Exception) else self._error, False
            if partial is not None:
                partial.discard()
            self._report(None)
            if not isinstance(error, Exception):
                raise  # Ctrl-C, in the calling thread

    def _conclude(self, partial: PartialFile | None) -> None:
        kept = False
        if self._error is None:
            try:
                self._finish(partial)
            except (IntegrityError, SignatureError) as error:
                if partial is not None and not self._unchanged and self._try_again(partial, error):
                    return
                self._error, self._unchanged = error, False
            except (PerfkitError, OSError) as error:
                self._error = error
        if partial is not None and (self._error is not None or self._unchanged):
            lasting = isinstance(self._error, TransferError) and not self._error.transient
            expired = isinstance(self._error, HTTPStatusError) and self._error.status in _EXPIRED_STATUSES
            hopeless = lasting and not expired and not isinstance(self._error, CancelledError)
            if hopeless or not (self._config.keep_partial and self.request.resume):
                partial.discard()
            else:
                kept = partial.keep_or_discard()
        self._report(partial, kept=kept)

    def _finish(self, partial: PartialFile | None) -> None:
        """Verify the file, and give it its name if it is new."""
        if self._unchanged:
            if self._proofs.needs_signature:
                self._meter.verifying()
                self._proofs.verify_signature(self.destination.path)
            return
        assert partial is not None
        if partial.digest is not None or self._proofs.needs_signature:
            self._meter.verifying()
            partial.verify(self.cancel)
        if self._proofs.needs_signature:
            self._proofs.verify_signature(partial.descriptor)
        self.destination.publish(partial)

    def _try_again(self, partial: PartialFile, error: TransferError) -> bool:
        """After wrong bytes: start over if some came from an earlier run or another server, or use the next mirror."""
        with self._lock:
            if partial.mixed and self._attempts.restarts == 0:
                self._attempts.restarts += 1
                self._conditional = False
            elif not self._attempts.next_mirror(error):
                return False
            self._ended = False
            self._proofs.forget_signature()
            self._replace_partial(None)
        _log.info("%s: starts over: %s", redacted(self.request.url), error)
        partial.retire()
        return True

    def _report(self, partial: PartialFile | None, *, kept: bool = False) -> None:
        attempts, proofs, destination = self._attempts, self._proofs, self.destination
        if self._error is None:
            self._meter.done(unchanged=self._unchanged)
        else:
            forget_frames(self._error)
            if isinstance(self._error, OSError) and self._error.strerror:  # write(2) and fsync(2) name no file
                self._error.filename = self._error.filename or destination.first_path
            cancelled = isinstance(self._error, CancelledError)
            self._meter.failed(reason_of(self._error), kept=kept, cancelled=cancelled)
        requests, received = attempts.requests + proofs.requests, attempts.received + proofs.received_bytes
        verified = partial.digest.checksums[0] if partial and partial.digest else self._checksum
        size = (partial.map.size if partial else 0) or 0
        version = partial.lasting if partial and partial.settled and attempts.source == 0 else NO_VERSION
        if self._unchanged:
            size = os.path.getsize(destination.path) if os.path.exists(destination.path) else 0
            version = self._known
        if _log.isEnabledFor(logging.DEBUG):
            done = "left alone" if self._unchanged else f"{received} bytes in {counted(requests, 'request')}"
            _log.debug("%s: %s", redacted(self.request.url), done if self._error is None else f"gave up: {self._error}")
        self._context.on_end(
            self,
            Download(
                url=self.request.url,
                path=destination.path,
                bytes=size if self._error is None else 0,
                bytes_received=received,
                resumed_from=partial.resumed_bytes if partial else 0,
                segments=self._peak,
                requests=requests,
                retries=attempts.retries,
                mirror=attempts.source,
                checksum=str(verified) if verified and self._error is None else None,
                seconds=time.monotonic() - self._started_s if self._started_s else 0.0,
                length_known=self._length_known,
                unchanged=self._unchanged,
                version=version,
                error=self._error,
            ),
        )
