"""The first connection is made while requests is imported, but never past a proxy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WAIT_S = 60

# Its import of urllib3 waits for a line from standard input.
DOWNLOAD = """
import sys

class Held:
    def find_spec(self, name, *_):
        if name == "urllib3":
            sys.stdin.readline()

sys.meta_path.insert(0, Held())
from perfkit import Toolkit

with Toolkit() as kit:
    kit.download(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("proxied", [False, True])
def test_the_first_connection(tmp_path: Path, proxied: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as origin, socket.create_server(("127.0.0.1", 0)) as proxy:
        addresses = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in (origin, proxy)]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        if proxied:
            environment["http_proxy"] = addresses[1]
        command = [sys.executable, "-c", DOWNLOAD, f"{addresses[0]}/file", str(tmp_path / "file")]
        asked = proxy if proxied else origin
        asked.settimeout(WAIT_S)
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            assert process.stdin is not None
            if not proxied:
                peer, _ = asked.accept()  # though urllib3 is not imported yet
            process.stdin.write(b"\n")
            process.stdin.close()
            if proxied:
                peer, _ = asked.accept()
            with peer, peer.makefile("rwb") as stream:
                assert stream.readline().startswith(b"GET ")
                stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
                stream.flush()
                assert process.wait(WAIT_S) == 0
        assert (tmp_path / "file").read_bytes() == b"body"
        origin.setblocking(False)
        with pytest.raises(BlockingIOError):
            origin.accept()  # there was no other connection
