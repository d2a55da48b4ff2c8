"""Draw docs/images/bars.png: what examples/quickstart.py shows on a real terminal (a pty), in the middle of its work.

Needs pyte, Pillow and the font DejaVu Sans Mono:  python docs/images/make_bars.py
"""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_name("bars.png")
FONT = os.environ.get("FONT", "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf")
COLUMNS, LINES = 96, 14
COMMAND = "python examples/quickstart.py"

SIZE = 26  # of the font, in pixels: twice what it is shown at
CELL_WIDTH, CELL_HEIGHT = 16, 36
MARGIN = 36
BACKGROUND, FRAME, TEXT = "#16181d", "#2a2e37", "#b9cde6"


def watch() -> list[str]:
    """The lines of the screen when the large files are about half way."""
    master, slave = os.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    script = subprocess.Popen(
        [sys.executable, ROOT / "examples/quickstart.py"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    os.close(slave)
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    deadline = time.monotonic() + 60
    best: list[str] = []
    try:
        while time.monotonic() < deadline and select.select([master], [], [], 10)[0]:
            stream.feed(os.read(master, 65536))
            lines = [line.rstrip() for line in screen.display if line.strip()]
            shares = [int(share) for line in lines for share in re.findall(r" (\d+)% ▕", line)]
            sized = re.search(r"files +[\d.]+ MiB/", "".join(lines))  # all sizes are known
            if sized and len(shares) == len(lines) >= 4 and all(10 <= share <= 95 for share in shares):
                best = lines
                if shares[-1] >= 45:
                    break
    except OSError:
        pass  # EIO: the script has ended
    finally:
        os.killpg(script.pid, signal.SIGTERM)
        script.wait()
        os.close(master)
    if not best:
        raise SystemExit("the bars were never all on their way; try again")
    return best


def draw(lines: list[str]) -> Image.Image:
    font = ImageFont.truetype(FONT, SIZE)
    rows = [f"$ {COMMAND}", *lines]
    width = max(map(len, rows)) * CELL_WIDTH + 2 * MARGIN
    picture = Image.new("RGB", (width, len(rows) * CELL_HEIGHT + 2 * MARGIN), BACKGROUND)
    brush = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        top = MARGIN + number * CELL_HEIGHT
        for column, character in enumerate(row):
            left, right = MARGIN + column * CELL_WIDTH, MARGIN + (column + 1) * CELL_WIDTH - 1
            bar = {"█": (left, right), "▕": (right - 1, right), "▏": (left, left + 1)}.get(character)
            if bar is not None:  # as terminals do it: the font's own blocks would leave gaps between the cells
                brush.rectangle((bar[0], top + 8, bar[1], top + CELL_HEIGHT - 9), TEXT)
            elif character != " ":
                brush.text((left, top + 3), character, TEXT, font)
    brush.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=FRAME, width=2)
    return picture


if __name__ == "__main__":
    draw(watch()).quantize(32).save(PICTURE, optimize=True)
