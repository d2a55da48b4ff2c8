"""What a signature adds to a sync with nothing to do: `python benchmarks/signatures.py`, from perfkit[sign].

The same release, unsigned and signed, by turns, from perfkit's own server on loopback: in one process, and as whole
commands, whose processor time (of user and kernel) varies less than the clock's. Bar: at most 3 ms.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from perfkit import Toolkit
from perfkit.minisign.secret_keys import SecretKey
from perfkit.server.server import Server

BAR_MS = 3.0
FILES = 1000


def processor_s() -> float:
    """Used by this process and by those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def compare(name: str, plain: Callable[[], object], signed: Callable[[], object], pairs: int) -> float:
    """Print the medians of both, by turns; returns what a signature adds, in milliseconds of processor time."""
    spent: dict[str, list[tuple[float, float]]] = {"unsigned": [], "signed": []}
    for _ in range(pairs):
        for what, run in (("unsigned", plain), ("signed", signed)):
            began_s, used_s = time.perf_counter(), processor_s()
            run()
            spent[what].append((time.perf_counter() - began_s, processor_s() - used_s))
    for what, runs in spent.items():
        clock_ms, processor_ms = (1000 * statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name}, {what}: {clock_ms:.2f} ms, of the processor {processor_ms:.2f} ms")
    both = zip(spent["unsigned"], spent["signed"], strict=True)
    added_ms = 1000 * statistics.median(after[1] - before[1] for before, after in both)
    print(f"{name}: a signature adds {added_ms:.2f} ms of the processor")
    return added_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="syncs of each kind (default 30)")
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory(prefix="perfkit-") as name, Toolkit() as kit:
        home, key = Path(name), SecretKey.generate()
        (home / "key").write_bytes(key.encode())
        (home / "src").mkdir()
        for number in range(FILES):
            (home / f"src/{number}").write_text(f"file {number}\n")
        kit.publish(home / "src", home / "web/plain", version="1")
        kit.publish(home / "src", home / "web/signed", version="1", sign_key=home / "key")
        with Server(home / "web") as server:
            plain, signed = (f"{server.url}plain/", home / "a"), (f"{server.url}signed/", home / "b")
            keys = [str(key.public)]
            kit.sync(*plain)
            kit.sync(*signed, public_keys=keys)
            compare("in one process", lambda: kit.sync(*plain), lambda: kit.sync(*signed, public_keys=keys), 5 * pairs)
            command = [sys.executable, "-m", "perfkit", "sync", "--quiet"]
            added_ms = compare(
                "as a command",
                lambda: subprocess.run([*command, *map(os.fspath, plain)], check=True),
                lambda: subprocess.run([*command, *map(os.fspath, signed), "--public-key", *keys], check=True),
                pairs,
            )
    return int(added_ms > BAR_MS)


if __name__ == "__main__":
    raise SystemExit(main())
