"""One file: ask, judge the answer, put the bytes in place, verify, publish. Several workers may be in it at once."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from perfkit.config import Config
from perfkit.downloads.attempts import Attempts
from perfkit.downloads.body import pieces
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.concurrency import AdaptiveController, HostGates
from perfkit.downloads.draft import Draft, Origin, read_origin
from perfkit.downloads.http.semantics import (
    Answer,
    Validator,
    Version,
    content_disposition_name,
    judge,
    judge_part,
    origin_of,
    parse_repr_digest,
    validator_of,
    version_of,
)
from perfkit.downloads.http.transport import Get, Response, Transport
from perfkit.downloads.request import Download, Request
from perfkit.downloads.retry import GiveUp, refuse
from perfkit.downloads.segments import Runner
from perfkit.downloads.throttle import Throttle
from perfkit.downloads.verify import Checksum, RunningDigest, matches, parse_checksum
from perfkit.errors import (
    CancelledError,
    HTTPStatusError,
    IntegrityError,
    PerfkitError,
    RemoteChangedError,
    TransferError,
)
from perfkit.filesystem.paths import safe_basename
from perfkit.progress.meter import FileMeter
from perfkit.redact import redacted

__all__ = ["Tools", "Transfer"]

_log = logging.getLogger(__name__)

_LINK_STATUSES = frozenset({401, 403, 404, 410})  # what an expired link answers
_SHORT_ANSWER_BYTES = 4096  # a 206 that brings less than asked, and less than this, counts as a failure
_HEDGE_AFTER_S = 2.0
_LARGE_BYTES = 4 << 20
_CHASE_BYTES = 8 << 20  # a smaller file is hashed by its workers, and what is left of it at the end
_CHASE_STEP_BYTES = 1 << 20
_CHASE_S = (0.002, 0.05)  # least and most to wait for more to hash: a fast file's end must find nothing left


@dataclass(frozen=True, slots=True)
class Tools:
    """What all transfers share."""

    config: Config
    transport: Transport
    throttle: Throttle
    gates: HostGates
    controller: AdaptiveController
    notify: Callable[[], None]  # there may be more to do now
    spawn: Callable[[Callable[[], None]], bool]  # run something beside the workers; False: can't be any more
    claim_path: Callable[[Transfer, str], None]  # no two transfers write one file


@dataclass(slots=True, eq=False)
class Task:
    """A worker's place in a transfer. Until the transfer has begun there is no draft to work on."""

    host: str
    draft: Draft | None = None
    runner: Runner | None = None
    source: int = 0  # which of the transfer's sources it asks
    url: str = ""  # of that source
    at: str | None = None  # where redirects of that source led
    retry_at_s: float = 0.0  # what the runner leaves undone may be claimed from then on


class _Changed(Exception):
    """The file is not the version the draft was begun with."""


class Transfer:
    """The state of one request, from the queue to its result.

    Workers get tasks by `claim`, `split` and `hedge`, and do them by `run`. The last worker to leave concludes.

    Args:
        dest: the file to make.
        named: whether the caller chose its name; otherwise the server may.
    """

    def __init__(self, request: Request, dest: str, *, named: bool, tools: Tools, meter: FileMeter, cancel: Cancel,
                 on_end: Callable[[Download], None]) -> None:  # fmt: skip
        self.request = request
        self.dest = dest
        self.path = dest  # where the file goes in the end: `dest`, or a name of the server's beside it
        self.claimed: list[str] = []  # names that are this transfer's own until it ends
        self.cancel = cancel
        self._named = named
        self._tools = tools
        self._meter = meter
        self._on_end = on_end
        self._throttle = Throttle(request.rate_limit)
        self._checksum: Checksum | None = None
        self._known = request.known or Version()  # what the caller has, or is at the destination now, from `url`
        self._started_s = 0.0
        self._version = Version()
        self._length_known = True
        self._ranges = True  # whether ranges may be asked for

        self._lock = threading.Lock()  # guards what follows
        self._busy = 0  # workers inside
        self._chasing = False  # a helper hashes behind them
        self._attempts = Attempts(tools.config, (request.url, *request.mirrors))
        self._draft: Draft | None = None
        self._error: Exception | None = None
        self._unchanged = False
        self._ended = False
        self._peak = 0

    # -- what the manager asks, quickly and under its lock ------------------------------------------------------------

    @property
    def host(self) -> str:
        """Whose gate the next request has to pass."""
        return self._attempts.host

    def claim(self, now: float) -> Task | None:
        """Work that is due: the first request, or a range that is missing."""
        with self._lock:
            draft = self._draft
            if self._closing or (self._busy and (draft is None or not draft.settled)):
                return None
            if now < self._attempts.not_before_s:
                return None
            if draft is None:
                return self._enter(Task(self.host))
            runner = draft.map.claim()
            return self._enter(Task(self.host, draft, runner)) if runner else None

    def due_s(self) -> float | None:
        """When there will be something to claim; None if nothing waits for its time."""
        with self._lock:
            draft = self._draft
            if self._closing or (self._busy and (draft is None or not draft.settled)):
                return None
            due_s = draft.map.next_claim_s() if draft else 0.0
            return None if due_s is None else max(due_s, self._attempts.not_before_s)

    def splittable_bytes(self) -> int:
        """How much is left in the range that a further worker would share; 0 if none can be shared."""
        with self._lock:
            draft = self._widenable()
            return draft.map.largest_split(self._tools.config.min_segment_bytes) if draft else 0

    def split(self) -> Task | None:
        """The second half of the largest range under way."""
        with self._lock:
            draft = self._widenable()
            runner = draft.map.split(self._tools.config.min_segment_bytes) if draft else None
            return self._enter(Task(self.host, draft, runner)) if draft and runner else None

    def hedge(self) -> Task | None:
        """A second try at a range that a slow connection holds up."""
        with self._lock:
            draft = self._widenable()
            runner = draft.map.hedge(_HEDGE_AFTER_S) if draft else None
            return self._enter(Task(self.host, draft, runner)) if draft and runner else None

    def _widenable(self) -> Draft | None:
        """The draft, if one more connection may work on it: only where two versions could not be mixed unseen."""
        draft = self._draft
        if self._closing or draft is None or not (draft.settled and draft.ranges):
            return None
        safe = bool(draft.validator or self._checksum)
        return draft if safe and 0 < self._busy < (self.request.segments or self._tools.config.segments) else None

    @property
    def _closing(self) -> bool:
        return self._ended or self._unchanged or self._error is not None or self.cancel.cancelled

    def _enter(self, task: Task) -> Task:
        task.source, task.url, task.at = self._attempts.source, self._attempts.url, self._attempts.at
        self._busy += 1
        self._peak = max(self._peak, self._busy)
        return task

    def fail(self, error: Exception) -> None:
        """End a transfer that can't even be queued."""
        with self._lock:
            self._busy += 1
            self._error = error
        self._leave()

    def abandon(self) -> None:
        """End a transfer whose batch was cancelled, if no worker is in it to do so."""
        with self._lock:
            self._busy += 1
        self._leave()

    # -- what a worker does -------------------------------------------------------------------------------------------

    def run(self, task: Task) -> None:
        """Do a task to its end. Raises nothing: what goes wrong is retried, or becomes the result."""
        try:
            if task.draft is None:
                self._begin(task)
            if task.runner is not None:
                self._fetch(task)
        except _Changed as change:
            self._changed(task, str(change))
        except Exception as error:
            if not isinstance(error, PerfkitError | OSError | GiveUp):
                _log.exception("%s: a bug in perfkit", redacted(self.request.url))
            self._failed(task, error)
        finally:
            if task.draft is not None and task.runner is not None:
                task.draft.map.release(task.runner, not_before_s=task.retry_at_s)
                task.draft.close_if_retired()
            self._leave()

    def _begin(self, task: Task) -> None:
        """Look at what is there: a file that is current already, or what an earlier run left."""
        first = self._started_s == 0.0
        if first:
            self._started_s = time.monotonic()
            self._meter.start(None)
            if self.request.checksum is not None:
                self._checksum = parse_checksum(self.request.checksum)
        source = self._attempts.url
        draft = Draft(self.dest, source, self._checksum, self.request.byte_range)
        draft.ranges = self._ranges or draft.part is not None
        if first and _is_file(self.dest) and self.request.resume:
            if self._checksum is None:
                origin = read_origin(self.dest, source) if draft.part is None else None
                self._known = origin.version if origin else self._known
            elif matches(self.dest, self._checksum, self.cancel):
                self._unchanged = True
                return
        if first and self.request.resume and draft.resume():
            if self._only and draft.validator != self._only:
                draft.discard()
                draft = Draft(self.dest, source, self._checksum, self.request.byte_range)
            self._meter.resumed(draft.resumed_bytes)
        task.draft, task.runner = draft, draft.map.claim()
        with self._lock:
            self._draft = draft

    def _fetch(self, task: Task) -> None:
        """One request, and its body put in place."""
        draft, runner = task.draft, task.runner
        assert draft is not None
        assert runner is not None
        source = task.url
        own = task.source == 0 or origin_of(source) == origin_of(self.request.url)
        start, end = runner.position, runner.segment.end
        if draft.part is None and end == draft.map.size:
            end = None
        first = draft.part[0] if draft.part else 0  # the only place where a part's bytes are not the file's
        start, end = start + first, None if end is None else end + first
        headers = self._conditions(draft)
        if draft.ranges:
            headers["Range"] = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
        self.cancel.add(runner.cancel.cancel)
        asked_s = time.monotonic()
        with self._lock:
            self._attempts.requests += 1
        try:
            get = Get(
                url=source,
                at=task.at,
                headers=headers,
                private_headers=self.request.headers if own else {},
                auth=self.request.auth if own else None,
                trusted=own,
            )
            with self._tools.transport.open(get, runner.cancel) as response:
                self._tools.controller.answered(time.monotonic() - asked_s)
                if _log.isEnabledFor(logging.DEBUG):  # these two texts cost more than they look
                    _log.debug("GET %s, %s: status %d", redacted(source), headers.get("Range", "all"), response.status)
                answer = judge(
                    response.status, response.headers, start=start, end=end, total=draft.total, ranged=draft.ranges
                )
                if draft.part is not None:
                    answer = judge_part(answer, response.status, draft.part)
                if answer.verdict == "status":
                    self._refused(task, response, answer)
                if self._accept(task, response, answer):
                    self._copy(task, response, answer)
        finally:
            self.cancel.discard(runner.cancel.cancel)

    def _conditions(self, draft: Draft) -> dict[str, str]:
        if draft.settled:
            return dict(draft.validator.if_same)
        if self._only:
            return dict(self._only.if_same)
        if draft.resumed_bytes:
            return dict(draft.validator.if_range)
        return dict(self._known.condition) if self._attempts.source == 0 and self._attempts.restarts == 0 else {}

    @property
    def _only(self) -> Validator:
        """The one version that will do. Other servers than the first have names of their own for it."""
        return (self.request.only if self._attempts.source == 0 else None) or Validator()

    def _refused(self, task: Task, response: Response, answer: Answer) -> NoReturn:
        """An error status: what it means for the file, and for everybody who wants something of that host."""
        status, url = response.status, task.url
        if task.at is not None and status in _LINK_STATUSES:
            with self._lock:
                if self._attempts.at == task.at:
                    self._attempts.at = None  # the link has expired; the original URL may lead to a new one
            raise TransferError(url, f"the redirect's target answers with status {status}", transient=True)
        tools = self._tools
        refuse(url, response, answer.reason, host=task.host, config=tools.config, gates=tools.gates,
               controller=tools.controller)  # fmt: skip

    def _accept(self, task: Task, response: Response, answer: Answer) -> bool:
        """Act on a verdict; says whether the body is to be read."""
        draft, runner, url = task.draft, task.runner, task.url
        assert draft is not None
        assert runner is not None
        if task.source != self._attempts.source:
            raise CancelledError(url, "superseded")
        if answer.verdict == "current" and self._known and not draft.settled:
            self._unchanged = True
            return False
        if answer.verdict in ("unranged", "coded") and draft.ranges:
            self._start_over(task).ranges = False
            return False
        if answer.verdict == "empty" and not draft.settled:
            self._settle(task, draft, response, answer)
            return False
        if answer.verdict == "changed":
            raise _Changed(answer.reason)
        if self._only.differs(response.headers):
            raise _Changed("its validator is another one now")
        if answer.verdict == "partless":
            if response.status == 200 and draft.resumed_bytes and not draft.settled:
                raise _Changed("the condition of the range does not hold any more")
            if response.status == 416:
                raise HTTPStatusError(url, answer.reason, 416)
            raise TransferError(url, answer.reason)
        if answer.verdict == "coded" and self._checksum is None:
            raise TransferError(url, f"{answer.reason}; a checksum would tell if it is right")
        if answer.verdict not in ("body", "coded"):
            reason = answer.reason or f"unexpected HTTP status {response.status}"
            raise TransferError(url, reason, transient=True)

        differs = draft.validator.differs(response.headers)
        if differs and (draft.settled or response.status == 206):
            raise _Changed("its validator is another one now")
        if response.status == 200 and draft.ranges:
            # No ranges here, or a new version: the body is the whole file, from its first byte.
            if draft.settled and draft.map.merge_back(runner):
                draft.ranges = False
                return False  # the stream before this range is under way and goes on through it
            if draft.settled or draft.resumed_bytes:
                draft = self._start_over(task)
            draft.ranges = differs
        elif response.status == 206 and answer.total is None and draft.map.size is None:
            self._start_over(task).ranges = False  # without a total nothing tells where the file ends
            return False
        if not draft.settled:
            self._settle(task, draft, response, answer)
        return not draft.map.complete

    def _start_over(self, task: Task) -> Draft:
        """Throw away what there is and go on, in the same request, with an empty draft."""
        old, runner = task.draft, task.runner
        assert old is not None
        assert runner is not None
        draft = Draft(self.dest, task.url, self._checksum, old.part)
        self._replace(old, draft)
        old.map.release(runner)
        task.draft, task.runner = draft, draft.map.claim(runner.cancel)
        old.retire(but=runner)
        return draft

    def _replace(self, old: Draft, new: Draft | None) -> None:
        """Only one worker replaces a draft; the others are cancelled with it."""
        with self._lock:
            if self._draft is not old:
                raise CancelledError(self.request.url, "superseded")
            self._draft = new
            self._attempts.start_over()
        self._meter.reset()

    def _settle(self, task: Task, draft: Draft, response: Response, answer: Answer) -> None:
        """The first good answer tells version, size, name and digest; now the partial file is made."""
        source = task.url
        version = version_of(response.headers)
        draft.total = answer.total if draft.total is None else draft.total
        size = draft.total if draft.part is None else draft.map.size
        if draft.part is None and version:
            draft.origin = Origin(source, version.etag, version.last_modified, size or 0, 0)
        if not self._named:
            self._take_name(source, content_disposition_name(response.headers.get("content-disposition")))
        promised = parse_repr_digest(response.headers.get("repr-digest")) if draft.part is None else None
        checksums = [self._checksum] if self._checksum else []
        if promised is not None and promised != str(self._checksum):
            checksums.append(parse_checksum(promised))
        draft.digest = RunningDigest(tuple(checksums)) if checksums else None
        self._check_size(source, size)
        if draft.descriptor < 0:
            draft.create(size)
        if size is not None:
            draft.map.set_size(size)
        self._meter.start(size)
        with self._lock:
            if task.source != self._attempts.source:
                raise CancelledError(source, "superseded")
            self._attempts.at = response.url if response.url != source else None
            self._version = version if draft.part is None and task.source == 0 else Version()
            draft.validator = validator_of(response.headers)
            draft.settled = True
            self._chase(draft)
        if size is not None and size >= _LARGE_BYTES and response.url.startswith("https:"):
            self._tools.controller.decrypts()
        if draft.ranges:
            self._tools.notify()

    def _check_size(self, url: str, size: int | None) -> None:
        """See that a size, whole or so far, is one the caller wants."""
        most = self.request.max_bytes
        if most is not None and size is not None and size > most:
            raise IntegrityError(url, "the file is too large", f"at most {most} bytes", f"{size} bytes")

    def _take_name(self, source: str, sent: str | None) -> None:
        """Use the name the server gives (RFC 6266), if it is one; it never overwrites a file that is not its own."""
        name = safe_basename(sent) if sent else None
        if name is None or name == os.path.basename(self.dest):
            return
        path = os.path.join(os.path.dirname(self.dest), name)
        if os.path.lexists(path) and read_origin(path, source) is None:
            reason = f"the server names the file {name!r}, and there is such a file from elsewhere; give a name to use"
            raise TransferError(self.request.url, reason)
        self._tools.claim_path(self, path)
        self.path = path

    def _copy(self, task: Task, response: Response, answer: Answer) -> None:
        """The body, from the wire into its place."""
        draft, runner = task.draft, task.runner
        assert draft is not None
        assert runner is not None
        url, tools = task.url, self._tools
        throttles = (tools.throttle, self._throttle)
        for data, count in pieces(url, response, answer, runner, config=tools.config, throttles=throttles):
            position = runner.position
            if runner.remaining is None:
                self._check_size(url, position + len(data))
            draft.write(data, position)
            gained = draft.map.advance(runner, len(data))
            self._meter.advance(gained)
            with self._lock:
                self._attempts.arrived(count, gained)
            if draft.digest is not None and not self._chasing:
                draft.digest.offer(position, data)
            draft.save_if_due()
        if runner.remaining is None:
            self._length_known = "chunked" in response.headers.get("transfer-encoding", "").lower()
            draft.map.end_here(runner)
            self._meter.start(draft.map.size)
        if runner.remaining and not draft.resumable:
            self._ranges = False  # nothing would tell if the rest came from another version: in one piece, then
            raise TransferError(url, "the server sends less than asked, without a validator", transient=True)
        if runner.remaining and runner.position - runner.start < _SHORT_ANSWER_BYTES:
            raise TransferError(url, "the server sends ever less than asked", transient=True)

    # -- when something is wrong ----------------------------------------------------------------------------------

    def _changed(self, task: Task, reason: str) -> None:
        """The file changed at the origin: once, everything is fetched anew."""
        draft = task.draft
        with self._lock:
            if draft is None or draft is not self._draft or task.source != self._attempts.source or self._closing:
                return
            self._attempts.restarts += 1
            if self._only:
                self._error = RemoteChangedError(self.request.url, f"it is another version now: {reason}")
                return
            if self._attempts.restarts > 1:
                self._error = RemoteChangedError(self.request.url, f"the file keeps changing: {reason}")
                return
        _log.info("%s: starts over: %s", redacted(self.request.url), reason)
        self._replace(draft, None)
        draft.retire(but=task.runner)

    def _failed(self, task: Task, error: Exception) -> None:
        """Decide between another try, the next mirror, and the end."""
        draft, runner = task.draft, task.runner
        now = time.monotonic()
        with self._lock:
            if draft is not self._draft or self._closing:
                return
            if runner is not None and runner.cancel.cancelled:
                return  # another runner was faster
            if not isinstance(error, TransferError | GiveUp):
                self._error = error
                return
            if task.source != self._attempts.source:
                return  # others have found out before, and the next mirror is asked already
            if isinstance(error, GiveUp):
                self._error = error.error
                return
            began_s = None if runner is None else runner.started_s
            retry_at_s = self._attempts.retry_at_s(error, began_s, now)
            if retry_at_s is None:
                self._error = error
                return
            if draft is not None and self._attempts.source != task.source:
                draft.change_source(self._attempts.url)
        if not isinstance(error, HTTPStatusError):
            self._tools.controller.trouble()
        self._meter.retrying()
        task.retry_at_s = retry_at_s
        if draft is None:
            with self._lock:
                self._attempts.not_before_s = retry_at_s
        elif draft.descriptor >= 0 and not draft.resumable:
            # Nothing would tell if the rest came from another version: from the first byte, then.
            with self._lock:
                self._attempts.not_before_s = retry_at_s
            self._replace(draft, None)
            draft.retire(but=runner)

    # -- the end --------------------------------------------------------------------------------------------------

    def _chase(self, draft: Draft) -> None:
        """Hash a large file behind its workers, who don't go from front to back. Under the lock."""
        size, digest = draft.map.size, draft.digest
        if self._chasing or digest is None or size is None or size < _CHASE_BYTES:
            return

        def chase() -> None:
            least_s, most_s = _CHASE_S
            wait_s = least_s
            try:
                while not self._closing and draft is self._draft and digest.position < size:
                    before = digest.position
                    digest.catch_up(draft.descriptor, draft.map.frontier, self.cancel)
                    if digest.position < size:
                        wait_s = least_s if digest.position - before >= _CHASE_STEP_BYTES else min(2 * wait_s, most_s)
                        self.cancel.wait(wait_s)
            except OSError as error:
                self._failed(Task(self.host, draft), error)
            finally:
                with self._lock:
                    self._chasing = False
                    self._busy += 1
                self._leave()

        self._chasing = self._tools.spawn(chase)

    def _leave(self) -> None:
        """The last one out concludes, if there is nothing more to do."""
        with self._lock:
            self._busy -= 1
            draft = self._draft
            whole = draft is not None and draft.settled and draft.map.complete
            if self._busy or self._chasing or self._ended or not (self._closing or whole):
                return
            self._ended = True
            if self.cancel.cancelled and not self._unchanged and not whole:
                self._error = self._error or CancelledError(self.request.url, "cancelled")
        try:
            self._conclude(draft)
        except BaseException as error:
            self._error, self._unchanged = error if isinstance(error, Exception) else self._error, False
            if draft is not None:
                draft.discard()
            self._report(None)
            if not isinstance(error, Exception):
                raise  # Ctrl-C, in the calling thread

    def _conclude(self, draft: Draft | None) -> None:
        if self._error is None and not self._unchanged:
            assert draft is not None
            try:
                self._publish(draft)
            except IntegrityError as error:
                if self._try_again(draft, error):
                    return
                self._error = error
            except (PerfkitError, OSError) as error:
                self._error = error
        if draft is not None and (self._error is not None or self._unchanged):
            lasting = isinstance(self._error, TransferError) and not self._error.transient
            hopeless = lasting and not isinstance(self._error, CancelledError)
            if hopeless or not (self._tools.config.keep_partial and self.request.resume):
                draft.discard()
            else:
                draft.keep_or_discard()
        self._report(draft)

    def _publish(self, draft: Draft) -> None:
        size = draft.map.size
        assert size is not None
        if draft.digest is not None:
            self._meter.verifying()
            draft.digest.catch_up(draft.descriptor, size, self.cancel)
            if self.cancel.cancelled and draft.digest.position < size:
                raise CancelledError(self.request.url, "cancelled")
            for promised, found in draft.digest.mismatches():
                actual = f"{promised.algorithm}:{found}"
                raise IntegrityError(draft.url, "these are not the bytes that were promised", str(promised), actual)
        draft.publish(self.path, durable=self._tools.config.durable)

    def _try_again(self, draft: Draft, error: IntegrityError) -> bool:
        """Wrong bytes: fetch them anew if some came from an earlier run or another server, or ask the next mirror."""
        with self._lock:
            if draft.mixed and self._attempts.restarts == 0:
                self._attempts.restarts += 1
            elif not self._attempts.next_mirror(error):
                return False
            self._ended = False
        _log.info("%s: starts over: %s", redacted(self.request.url), error)
        self._replace(draft, None)
        draft.retire()
        return True

    def _report(self, draft: Draft | None) -> None:
        attempts = self._attempts
        if self._error is None:
            self._meter.done()
        else:
            self._meter.failed()
        verified = draft.digest.checksums[0] if draft and draft.digest else self._checksum
        size = (draft.map.size if draft else 0) or 0
        version = self._version
        if self._unchanged:
            size = os.path.getsize(self.path) if os.path.exists(self.path) else 0
            version = self._known
        if _log.isEnabledFor(logging.DEBUG):
            came = "left alone" if self._unchanged else f"{attempts.received} bytes in {attempts.requests} requests"
            _log.debug("%s: %s", redacted(self.request.url), came if self._error is None else f"gave up: {self._error}")
        self._on_end(
            Download(
                url=self.request.url,
                path=self.path,
                bytes=size if self._error is None else 0,
                bytes_received=attempts.received,
                resumed_from=draft.resumed_bytes if draft else 0,
                segments=self._peak,
                requests=attempts.requests,
                retries=attempts.retries,
                checksum=str(verified) if verified and self._error is None else None,
                seconds=time.monotonic() - self._started_s if self._started_s else 0.0,
                length_known=self._length_known,
                unchanged=self._unchanged,
                version=version,
                error=self._error,
            )
        )


def _is_file(path: str) -> bool:
    """Whether something is there; a directory can't be a destination."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "the destination is a directory", path)
    return True
