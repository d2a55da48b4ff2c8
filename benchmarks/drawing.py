"""Processor time of drawing: eight bars and a total, ten times a second, on a terminal of 80 by 24. The bar is 2 %.

python benchmarks/drawing.py
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from fcntl import ioctl
from termios import TIOCSWINSZ

from perfkit import Bars
from perfkit.progress.meter import Meter

FRAMES, FILES = 1000, 8
FRAMES_PER_S = 10
MOST = 0.02  # of a core


def main() -> int:
    os.environ["TERM"] = "xterm"
    master, slave = os.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    threading.Thread(target=lambda: [os.read(master, 65536) for _ in iter(int, 1)], daemon=True).start()
    now_s = 0.0
    meter = Meter(clock=lambda: now_s)
    meter.expect(FILES)
    files = [meter.file(f"a-rather-long-name-{number}.tar.gz") for number in range(FILES)]
    for file in files:
        file.start(10**9)
    bars = Bars(os.fdopen(slave, "w", encoding="utf-8"))
    began_s = time.thread_time()
    for _ in range(FRAMES):
        now_s += 1 / FRAMES_PER_S
        for file in files:
            file.advance(100_000)
        bars.update(meter.snapshot())
    share = (time.thread_time() - began_s) / FRAMES * FRAMES_PER_S
    print(f"{FILES} bars and a total at {FRAMES_PER_S} Hz: {share:.2%} of a core (bar: {MOST:.0%})")
    return 0 if share <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
