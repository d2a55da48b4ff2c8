"""One transfer's tries: which of its sources is asked next, when, and after how many failures no more."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from perfkit.config import Config
from perfkit.downloads.concurrency import gate_of
from perfkit.downloads.retry import backoff_s
from perfkit.errors import TransferError
from perfkit.redact import redacted

__all__ = ["Attempts"]

_log = logging.getLogger(__name__)

_FORGIVING_BYTES = 1 << 20  # after this much, earlier failures are forgiven


@dataclass(slots=True)
class Attempts:
    """The sources of a file, the one that is asked, and what became of asking. Guarded by its transfer's lock."""

    config: Config
    sources: tuple[str, ...]  # the file's URL, then its mirrors
    source: int = 0  # the one that is asked
    at: str | None = None  # where redirects of it led
    not_before_s: float = 0.0  # when the whole file may be asked for; a missing range has a time of its own
    restarts: int = 0  # times that what there was has been thrown away
    requests: int = 0
    retries: int = 0
    received: int = 0  # bytes that came over the network
    _failures: int = 0  # in a row, without real progress
    _failed_at_s: float = 0.0
    _gained: int = 0  # bytes put in place by this run
    _gained_at_failure: int = 0

    @property
    def url(self) -> str:
        """The source that is asked."""
        return self.sources[self.source]

    @property
    def host(self) -> str:
        """Whose gate the next request has to pass."""
        return gate_of(self.at or self.url)

    def arrived(self, count: int, gained: int) -> None:
        """So many bytes came, and so many of them were new."""
        self.received += count
        self._gained += gained

    def start_over(self) -> None:
        """What was gained is thrown away."""
        self._gained = self._gained_at_failure = 0

    def retry_at_s(self, error: TransferError, began_s: float | None, now: float) -> float | None:
        """When to try again after a failure, at this source or the next mirror; None: there is no further try.

        Args:
            began_s: when the range that failed was begun, if it was one. Ranges that fail together fail once.
        """
        if error.transient:
            if self._gained - self._gained_at_failure >= _FORGIVING_BYTES:
                self._failures = 0
            if began_s is None or began_s >= self._failed_at_s:
                self._failures += 1
                self._failed_at_s = now
            self._gained_at_failure = self._gained
            if self._failures <= self.config.retries:
                self.retries += 1
                wait_s = backoff_s(self.config, self._failures)
                _log.debug("again in %.2f s, after %d failures: %s", wait_s, self._failures, error)
                return now + wait_s
        return now if self.next_mirror(error) else None

    def next_mirror(self, error: TransferError) -> bool:
        """Go on with the next source; False if there is none."""
        if self.source + 1 == len(self.sources):
            return False
        _log.info("%s: on to the next mirror: %s", redacted(self.url), error)
        self.source, self.at, self._failures = self.source + 1, None, 0
        return True
