"""A link of steady speed, on a clock that runs by the bytes: what is drawn of it can be held against what happens.

Wherever the machine is slow or busy, time passes more slowly too, so that nothing depends on it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TextIO, cast

import pytest

from perfkit.downloads import manager
from perfkit.progress import operation, pace, stage
from perfkit.progress.bars import Bars
from perfkit.progress.meter import Meter, Snapshot
from tests.support.fakes import Exchange
from tests.support.terminal import Terminal

_PIECE_BYTES = 8 << 10


class SteadyLink:
    """Counts bytes, and tells the time from them.

    Args:
        bytes_per_s: of its clock.

    Attributes:
        disk: how many times as fast as the network local work is.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.disk = 1
        self._bytes = 0
        self._lock = threading.Lock()

    def count(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def monotonic(self) -> float:
        return self._bytes / self.bytes_per_s

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have downloads and stages use this clock, and be drawn more often than in life."""
        link = self

        class LinkMeter(Meter):
            def __init__(self, *, phase: str = "download") -> None:
                super().__init__(phase=phase, clock=link.monotonic)

            def add(self, *, received: int = 0, resumed: int = 0, transferred: int = 0) -> None:
                link.count(transferred)
                super().add(received=received, resumed=resumed, transferred=transferred)

        counted = stage.Stage.count

        def count(self: stage.Stage, *, files: int = 0, count_bytes: int = 0, failed: int = 0) -> None:
            link.count(count_bytes // link.disk)
            counted(self, files=files, count_bytes=count_bytes, failed=failed)

        monkeypatch.setattr(manager, "Meter", LinkMeter)
        monkeypatch.setattr(pace, "_SILENCE_S", 1000.0)  # between two frames many seconds of this clock pass
        monkeypatch.setattr(manager, "_TICK_S", 0.03)
        monkeypatch.setattr(stage, "time", link)
        monkeypatch.setattr(stage.Stage, "count", count)
        monkeypatch.setattr(operation, "time", link)
        monkeypatch.setattr(stage, "_EVERY_S", 0.0)


@dataclass(frozen=True)
class Frame:
    """What a person saw at a moment, in seconds since the run began."""

    at_s: float
    phase: str
    percent: int | None
    eta_s: int | None
    line: str


class Watched:
    """Bars on a terminal of 80 columns, and every total line that they drew there."""

    def __init__(self, link: SteadyLink, terminal: Terminal) -> None:
        self.frames: list[Frame] = []
        self.ends: list[tuple[str, float]] = []  # phases, and when they ended
        self.link = link
        self._drawn = ""
        self._stream = terminal.stream
        self._bars = Bars(cast(TextIO, self))

    # -- the terminal, with an ear at it ------------------------------------------------------------------------------

    encoding = "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> None:
        self._drawn = text

    def flush(self) -> None:
        pass

    # -- the display --------------------------------------------------------------------------------------------------

    def update(self, snapshot: Snapshot) -> None:
        at_s = self.link.monotonic()
        self._bars.update(snapshot)
        line = re.sub(r"\x1b\[[?\d]*\w|\r", "", self._drawn.rpartition("\n")[2])
        percent, eta = re.search(r" (\d+)% ", line), re.search(r"ETA ([\d:]+)$", line)
        left = None
        if eta:
            left = 0
            for part in eta[1].split(":"):
                left = 60 * left + int(part)
        self.frames.append(Frame(at_s, snapshot.phase, int(percent[1]) if percent else None, left, line))

    def finish(self, snapshot: Snapshot) -> None:
        self.ends.append((snapshot.phase, self.link.monotonic()))
        self._bars.finish(snapshot)

    def check(self, phase: str | None = "download") -> list[Frame]:
        """Hold what was drawn of the last run of this phase against what happened; returns that. None: of all phases.

        The percentage never falls, and is 100 only at the end. From 15 % on the time left is within 20 % or 2 s of the
        truth for nine tenths of the time.
        """
        end_s = next(at_s for name, at_s in reversed(self.ends) if phase in (name, None))
        frames = [each for each in self.frames if phase in (each.phase, None)]
        percents = [each.percent for each in frames if each.percent is not None]
        assert percents == sorted(percents)
        assert all(each.at_s == end_s for each in frames if each.percent == 100)
        late = [each for each in frames if (each.percent or 0) >= 15]
        assert len(late) >= 5, f"seen too rarely: {len(frames)} frames"
        wrong = [
            (each, end_s - each.at_s, then.at_s - each.at_s)
            for each, then in zip(late, [*late[1:], replace(late[-1], at_s=end_s)], strict=True)
            if each.phase == then.phase  # how soon the next stage is drawn depends on the machine
            and (each.eta_s is None or abs(each.eta_s - (end_s - each.at_s)) > max(2.5, 0.2 * (end_s - each.at_s)))
        ]  # 2.5: what is drawn is rounded
        assert sum(seconds for *_, seconds in wrong) <= (end_s - late[0].at_s) / 10, wrong
        return frames


def paced(bodies: dict[str, bytes], bytes_per_s: float, *, chunked: tuple[str, ...] = ()) -> Callable[[Exchange], None]:
    """A handler that serves these bodies over one line, which its connections share.

    Args:
        chunked: those whose length is not sent.
    """
    lock = threading.Lock()

    def handle(x: Exchange) -> None:
        name = x.asked.path.strip("/")
        body = bodies[name]
        if name in chunked:
            x.head("200 OK", Transfer_Encoding="chunked", ETag='"v1"')
        elif wanted := x.asked.range:
            start, end = wanted[0], min(wanted[1] or len(body), len(body))
            x.head(
                "206 Partial Content",
                Content_Length=str(end - start),
                ETag='"v1"',
                Content_Range=f"bytes {start}-{end - 1}/{len(body)}",
            )
            body = body[start:end]
        else:
            x.head("200 OK", Content_Length=str(len(body)), ETag='"v1"')
        for at in range(0, len(body), _PIECE_BYTES):
            piece = body[at : at + _PIECE_BYTES]
            with lock:
                time.sleep(len(piece) / bytes_per_s)
            x.send(b"%x\r\n%b\r\n" % (len(piece), piece) if name in chunked else piece)
        if name in chunked:
            x.send(b"0\r\n\r\n")

    return handle
