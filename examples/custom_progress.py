"""Send progress as messages to a web socket, a queue or a log. It prints:

    last message to the browser: {"event": "progress", "percent": 100, "files": "30/30", "speed": "...", "eta": 0}
    percentages never decreased: True
    the log has: fetched 30 files, 5.9 MiB

To run it:  python examples/custom_progress.py
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path

from perfkit import CallbackProgress, Snapshot, Toolkit
from perfkit.server.server import Server


def message(snapshot: Snapshot) -> dict[str, object]:
    """The data that the page needs to draw a bar."""
    return {
        "event": "progress",
        "percent": int(100 * (snapshot.share or 0)),
        "files": f"{snapshot.files_done}/{snapshot.files_total}",
        "speed": "...",  # snapshot.speed_bytes_per_s, omitted here since it varies between runs
        "eta": 0 if snapshot.eta_s is None else round(snapshot.eta_s),
    }


def main() -> None:
    logging.basicConfig(stream=sys.stdout, format="the log has: %(message)s", level=logging.INFO)
    browser, server_side = socket.socketpair()  # in place of a web socket

    def send(snapshot: Snapshot) -> None:
        server_side.sendall(json.dumps(message(snapshot)).encode() + b"\n")

    with tempfile.TemporaryDirectory() as scratch, browser, server_side:
        site = Path(scratch, "site")
        site.mkdir()
        for number in range(30):
            (site / f"{number}.bin").write_bytes(os.urandom(200 << 10))
        with Server(site, bytes_per_s=4 << 20) as server, Toolkit(progress=CallbackProgress(send)) as kit:
            done = kit.download_many((f"{server.url}{number}.bin" for number in range(30)), Path(scratch, "out"))
        server_side.shutdown(socket.SHUT_WR)
        seen = [json.loads(line) for line in browser.makefile()]
    print(f"last message to the browser: {json.dumps(seen[-1])}")
    percents = [each["percent"] for each in seen]
    print(f"percentages never decreased: {percents == sorted(percents)}")
    size = sum(each.bytes for each in done)
    logging.info("fetched %d files, %.1f MiB", len(done), size / (1 << 20))


if __name__ == "__main__":
    main()
