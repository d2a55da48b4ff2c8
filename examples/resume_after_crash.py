"""A download that was killed with SIGKILL resumes where it stopped. It prints:

    killed; big.bin exists: False
    resumed from the partial file: True
    received in the second run: less than the file's 8388608 bytes
    the file is identical to the original: True

To run it:  python examples/resume_after_crash.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perfkit import Config, Toolkit
from perfkit.server.server import Server

SIZE = 8 << 20
CONFIG = Config(segments=1)


def download(url: str, dest: str) -> None:
    """What the child process does until it is killed."""
    with Toolkit(CONFIG) as kit:
        kit.download(url, dest)


def recorded(journal: Path) -> int:
    """How many bytes a journal says are there."""
    try:
        done = json.loads(journal.read_bytes())["done"]
    except (FileNotFoundError, ValueError):  # not there yet, or being written
        return 0
    return sum(end - start for start, end in done)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site, dest = Path(scratch, "site"), Path(scratch, "big.bin")
        site.mkdir()
        (site / "big.bin").write_bytes(os.urandom(SIZE))
        with Server(site, bytes_per_s=8 << 20) as server:
            url = f"{server.url}big.bin"
            with subprocess.Popen([sys.executable, __file__, url, str(dest)]) as child:
                # The journal beside the file is written twice a second; only ranges recorded in it are resumed.
                while recorded(Path(f"{dest}.perfkit-part.json")) < SIZE // 8:
                    time.sleep(0.01)
                child.kill()
            print(f"killed; big.bin exists: {dest.exists()}")

            with Toolkit(CONFIG) as kit:
                done = kit.download(url, dest)  # the same call again
        print(f"resumed from the partial file: {done.resumed_from > 0}")
        print(
            f"received in the second run: {'less than' if done.bytes_received < SIZE else 'all of'} "
            f"the file's {SIZE} bytes"
        )
        same = hashlib.sha256(dest.read_bytes()).digest() == hashlib.sha256((site / "big.bin").read_bytes()).digest()
        print(f"the file is identical to the original: {same}")


if __name__ == "__main__":
    download(*sys.argv[1:]) if len(sys.argv) > 1 else main()
