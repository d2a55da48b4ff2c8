"""Limit bandwidth during the day: the limit of running downloads follows the clock. It prints:

    07:00  no limit
    08:00  16 MiB/s
    18:00  no limit
    24.0 MiB received, with the limit changed on the way

Here a day takes a second. In production, yield `datetime.now().hour` every minute instead of `quick_day()`.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from perfkit import Toolkit
from perfkit.server.server import Server

BY_DAY = 16 << 20  # bytes per second


def limit_at(hour: int) -> int | None:
    return BY_DAY if 8 <= hour < 18 else None


def quick_day() -> Iterator[int]:
    """The hours of a short day."""
    for hour in range(7, 20):
        yield hour
        time.sleep(0.08)


def follow_the_clock(kit: Toolkit, hours: Iterator[int]) -> None:
    """Set the limit whenever it changes; running downloads apply it at once."""
    last: int | None = -1
    for hour in hours:
        limit = limit_at(hour)
        if limit != last:
            kit.set_rate_limit(limit)
            print(f"{hour:02}:00  {'no limit' if limit is None else f'{limit >> 20} MiB/s'}")
            last = limit


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "big.bin").write_bytes(os.urandom(24 << 20))
        # The server sends 16 MiB/s per connection, so that the limit has an effect.
        with Server(scratch, bytes_per_s=16 << 20) as server, Toolkit() as kit:
            clock = threading.Thread(target=follow_the_clock, args=(kit, quick_day()))
            clock.start()
            done = kit.download(f"{server.url}big.bin", Path(scratch, "copy.bin"))
            clock.join()
        print(f"{done.bytes / (1 << 20):.1f} MiB received, with the limit changed on the way")


if __name__ == "__main__":
    main()
