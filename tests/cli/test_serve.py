"""`perfkit serve`, and the garbage collector of the command."""

from __future__ import annotations

import gc
import json
import re
import socket
import subprocess
from pathlib import Path

from perfkit.__main__ import _defer_gc
from tests.support.command import (
    BODY,
    Capture,
    complaints,
    get,
    interrupt,
    read_until,
    start,
)
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython


def test_serve_and_get(tmp_path: Path, capsys: Capture, warm_python: WarmPython) -> None:
    """Two commands, one at each end; Ctrl-C ends the server, with a client still connected."""
    (tmp_path / "f").write_bytes(BODY)
    with start(warm_python, "serve", tmp_path, "--port", "0", "--json") as server:
        url = json.loads(read_until(server.stdout, b"\n"))["url"]
        assert get(capsys, "-o", "copy", f"{url}f")[0] == 0
        port = int(url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            assert interrupt(server) == (b"", b"")
    assert (tmp_path / "copy").read_bytes() == BODY


def test_serve_prints_its_address(tmp_path: Path, warm_python: WarmPython) -> None:
    """On standard error, for people; and the port is free again afterwards."""
    with start(warm_python, "serve", tmp_path, "--port", "0") as server:
        said = read_until(server.stderr, b"\n").decode()
        found = re.fullmatch(r"perfkit: serving .* at http://127\.0\.0\.1:(\d+)/; press Ctrl-C to stop\n", said)
        assert found
        taken = subprocess.run(
            warm_python.python("-m", "perfkit", "serve", ".", "--port", found[1]),
            capture_output=True,
            timeout=100,
            check=False,
        )
        assert (taken.returncode, taken.stdout) == (2, b"")
        assert "--port 0" in complaints(taken.stderr.decode())[0]
        interrupt(server)
    with start(warm_python, "serve", tmp_path, "--port", found[1], "--quiet") as server, socket.socket() as client:
        wait_until(lambda: client.connect_ex(("127.0.0.1", int(found[1]))) == 0)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        assert interrupt(server) == (b"", b"")


def test_the_garbage_collector_is_as_usual_after_its_first_run() -> None:
    """It begins late, for the sake of short commands, and then works as it does elsewhere."""
    usual = gc.get_threshold()
    _defer_gc()
    try:
        assert gc.get_threshold() > usual
        gc.collect()
        assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)
