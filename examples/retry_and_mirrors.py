"""A busy server, a missing file, a server with wrong contents, and a mirror that has the file. It prints:

    busy: complete after 2 retries
    missing and wrong, but mirrored: sha256 verified
    no mirror left: IntegrityError, and no file: True

To run it:  python examples/retry_and_mirrors.py
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import tempfile
import threading
from pathlib import Path

from perfkit import Config, IntegrityError, Toolkit
from perfkit.server.server import Server

DATA = os.urandom(1 << 20)
CHECKSUM = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Busy(http.server.SimpleHTTPRequestHandler):
    """Returns 503 twice, then the file."""

    refusals = 2

    def do_GET(self) -> None:
        if Busy.refusals:
            Busy.refusals -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site, dest = Path(scratch, "site"), Path(scratch, "f.bin")
        site.mkdir()
        (site / "f.bin").write_bytes(DATA)
        (site / "wrong.bin").write_bytes(b"not the expected content")
        handler = functools.partial(Busy, directory=str(site))
        with (
            Server(site) as server,
            Toolkit(Config(retries=3, backoff_base_s=0.01)) as kit,
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as busy,
        ):
            threading.Thread(target=busy.serve_forever, args=(0.05,), daemon=True).start()
            done = kit.download(f"http://127.0.0.1:{busy.server_port}/f.bin", dest)
            print(f"busy: complete after {done.retries} retries")
            busy.shutdown()

            mirrors = [f"{server.url}wrong.bin", f"{server.url}f.bin"]  # a mirror needs a checksum to be trusted
            done = kit.download(f"{server.url}gone.bin", dest, mirrors=mirrors, checksum=CHECKSUM, resume=False)
            print(f"missing and wrong, but mirrored: {(done.checksum or '').partition(':')[0]} verified")

            other = Path(scratch, "other.bin")
            try:
                kit.download(f"{server.url}wrong.bin", other, checksum=CHECKSUM)
            except IntegrityError as error:
                print(f"no mirror left: {type(error).__name__}, and no file: {not other.exists()}")


if __name__ == "__main__":
    main()
