"""Draw bars.png and others.png: what perfkit, and what other programs show of the same six files, on a real terminal.

The files (30 MB, 20 MB and four of 20 KB; wheels, so that pip and uv take them too) come over one line of 6 MB/s. Each
program runs alone on a pty of 80 by 24; the pictures have its screen after so many seconds.

Needs pyte, Pillow, the font DejaVu Sans Mono, and pip, uv, rclone and aria2c:  python docs/images/make_bars.py
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
FONT = os.environ.get("FONT", "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf")
COLUMNS, LINES = 80, 24
SIZES = {"model": 30_000_000, "geodata": 20_000_000, **{f"rules_{number}": 20_000 for number in range(1, 5)}}
BYTES_PER_S = 6_000_000
PIECE_BYTES = 16 << 10
AFTER_S = 5.0

PERFKIT = "perfkit get -d wheels -i six.txt"
OTHERS = (
    "pip download --no-deps --no-cache-dir -d wheels -r six.txt",
    "uv pip install --no-deps --no-cache --target wheels -r six.txt",
    "rclone copy --progress --http-url $URL :http: wheels",
    "aria2c -d wheels -i six.txt",
)

SIZE = 20  # of the font, in pixels
CELL_WIDTH, CELL_HEIGHT = 12, 27
MARGIN = 24
BACKGROUND, FRAME, TEXT, PROMPT = "#16181d", "#2a2e37", "#b9cde6", "#7fb38a"


def make_wheels(site: Path) -> None:
    for name, size in SIZES.items():
        with zipfile.ZipFile(site / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}/data.bin", os.urandom(size))
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


class Line(http.server.BaseHTTPRequestHandler):
    """Serves files with Range, all over one line."""

    protocol_version = "HTTP/1.1"
    site: Path
    lock = threading.Lock()

    def do_GET(self) -> None:
        path = self.site / self.path.strip("/")
        if not path.is_file():  # rclone reads the list of links
            index = "".join(f'<a href="{each.name}">{each.name}</a>\n' for each in sorted(self.site.iterdir())).encode()
            self.answer(200, index, {"Content-Type": "text/html"})
            return
        data, size = path.read_bytes(), path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{size}"', "Last-Modified": "Sat, 28 Nov 2026 10:00:00 GMT"}
        if not wanted:
            self.answer(200, data, headers)
            return
        start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
        end = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
        self.answer(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(0, len(body) if self.command == "GET" else 0, PIECE_BYTES):
            piece = body[at : at + PIECE_BYTES]
            with self.lock:
                time.sleep(len(piece) / BYTES_PER_S)
            try:
                self.wfile.write(piece)
            except ConnectionError:  # the program has been stopped, or asks for something else
                self.close_connection = True
                return

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(site: Path) -> Iterator[str]:
    Line.site = site
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Line)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def watch(command: str, where: Path, url: str) -> list[str]:
    """The lines of the screen some seconds after the command was begun in this directory."""
    master, slave = os.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "URL": url, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if command.startswith("perfkit"):
        command = f"{sys.executable} -m {command}"
    ends = {"stdin": slave, "stdout": slave, "stderr": slave}
    process = subprocess.Popen(command, shell=True, cwd=where, env=environment, start_new_session=True, **ends)
    os.close(slave)
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    deadline = time.monotonic() + AFTER_S
    try:
        while (left := deadline - time.monotonic()) > 0 and select.select([master], [], [], left)[0]:
            stream.feed(os.read(master, 65536))
    except OSError:
        pass  # EIO: it has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
    return [line.rstrip() for line in screen.display if line.strip()]


def draw(screens: list[tuple[str, list[str]]]) -> Image.Image:
    font = ImageFont.truetype(FONT, SIZE)
    rows: list[tuple[str, str]] = []
    for command, lines in screens:
        rows += [*([("", TEXT)] if rows else []), (f"$ {command}", PROMPT), *((line, TEXT) for line in lines)]
    size = COLUMNS * CELL_WIDTH + 2 * MARGIN, len(rows) * CELL_HEIGHT + 2 * MARGIN
    picture = Image.new("RGB", size, BACKGROUND)
    brush = ImageDraw.Draw(picture)
    for number, (row, colour) in enumerate(rows):
        top = MARGIN + number * CELL_HEIGHT
        for column, character in enumerate(row):
            left, right = MARGIN + column * CELL_WIDTH, MARGIN + (column + 1) * CELL_WIDTH - 1
            bar = {"█": (left, right), "▕": (right - 1, right), "▏": (left, left + 1)}.get(character)
            if bar is not None:  # as terminals do it: the font's own blocks would leave gaps between the cells
                brush.rectangle((bar[0], top + 6, bar[1], top + CELL_HEIGHT - 7), colour)
            elif character not in " ⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏":  # spinners that the font lacks
                brush.text((left, top + 2), character, colour, font)
    brush.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=FRAME, width=2)
    return picture


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch, "site")
        site.mkdir()
        make_wheels(site)
        for name, commands in (("bars.png", (PERFKIT,)), ("others.png", OTHERS)):
            screens = []
            for number, command in enumerate(commands):
                where = Path(scratch, f"{name}-{number}")
                where.mkdir()
                with served(site) as url:
                    (where / "six.txt").write_text("".join(f"{url}/{name}-1.0-py3-none-any.whl\n" for name in SIZES))
                    screens.append((command, watch(command, where, url)))
            draw(screens).quantize(32).save(HERE / name, optimize=True)


if __name__ == "__main__":
    main()
