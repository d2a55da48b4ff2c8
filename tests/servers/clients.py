"""What curl, wget2 and aria2c do when asked for the same as perfkit, by the options that their manuals name for it."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.servers.bench import Bench
from tests.servers.checks import HELD_AFTER, HELD_BYTES, SIZE, bytes_of, start_of_a_second
from tests.support.tools import need


@dataclass(frozen=True)
class Client:
    """Commands, in which `<url>`, `<dir>` and `<name>` are replaced; the file is `<dir>/<name>`."""

    get: str
    resume: str
    refresh: str

    def start(self, command: str, bench: Bench, name: str, out: Path) -> subprocess.Popen[bytes]:
        arguments = [
            each.replace("<url>", bench.url(name)).replace("<dir>", str(out)).replace("<name>", name)
            for each in command.split()
        ]
        need(arguments[0])
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, command: str, bench: Bench, name: str, out: Path) -> tuple[int, int]:
        """Exit code, and the bytes that it cost."""
        before = bench.relay.sent
        return self.start(command, bench, name, out).wait(60), bench.relay.sent - before


_CURL = "curl -q -sS --fail --location -o <dir>/<name>"
_ARIA2 = (
    "aria2c -q --no-conf --file-allocation=none --disk-cache=0 --auto-save-interval=1 -x4 -s4 -k1M -d <dir> -o <name>"
)
PACKAGES = {"curl": "curl", "wget2": "wget2", "aria2c": "aria2"}  # Debian's
CLIENTS = {
    "curl": Client(
        f"{_CURL} --remote-time --etag-save <dir>/etag <url>",
        f"{_CURL} --continue-at - <url>",
        f"{_CURL} --remote-time -z <dir>/<name> --etag-compare <dir>/etag --etag-save <dir>/etag <url>",
    ),
    "wget2": Client(
        "wget2 --no-config -q -P <dir> <url>",
        "wget2 --no-config -q -P <dir> --continue <url>",
        "wget2 --no-config -q -P <dir> --timestamping <url>",
    ),
    "aria2c": Client(
        f"{_ARIA2} --remote-time=true <url>",
        f"{_ARIA2} --continue=true <url>",
        f"{_ARIA2} --remote-time=true --conditional-get=true --allow-overwrite=true <url>",
    ),
}


def _get_and_kill(client: Client, bench: Bench, name: str, out: Path) -> None:
    bench.relay.hold_after = bench.relay.sent + HELD_AFTER
    try:
        process = client.start(client.get, bench, name, out)
        deadline_s = time.monotonic() + 5
        while _written(out / name) < HELD_BYTES and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if client is CLIENTS["aria2c"]:
            time.sleep(1.5)  # for its control file
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        bench.relay.hold_after = None


def _written(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def _outcome(code: int, path: Path, expected: bytes, good: str) -> str:
    if path.exists() and path.read_bytes() == expected:
        return good
    return "fails" if code else "WRONG"


def resume(client: Client, bench: Bench, out: Path) -> str:
    data = bytes_of("client, resume")
    bench.put("c-resume.bin", data)
    _get_and_kill(client, bench, "c-resume.bin", out)
    code, cost = client.run(client.resume, bench, "c-resume.bin", out)
    good = "resumes" if cost < SIZE - HELD_BYTES // 2 else "starts over"
    return _outcome(code, out / "c-resume.bin", data, good)


def changed_between(client: Client, bench: Bench, out: Path) -> str:
    bench.put("c-between.bin", bytes_of("client, between 1"))
    _get_and_kill(client, bench, "c-between.bin", out)
    new = bytes_of("client, between 2", SIZE + 1000)
    bench.put("c-between.bin", new, mtime_ns=time.time_ns() - 3600 * 10**9)
    code, _ = client.run(client.resume, bench, "c-between.bin", out)
    return _outcome(code, out / "c-between.bin", new, "new file")


def refresh(client: Client, bench: Bench, out: Path) -> str:
    data, new = bytes_of("client, refresh"), bytes_of("client, refresh, changed")
    bench.put("c-refresh.bin", data)
    client.run(client.get, bench, "c-refresh.bin", out)
    code, cost = client.run(client.refresh, bench, "c-refresh.bin", out)
    outcome = _outcome(code, out / "c-refresh.bin", data, "unchanged" if cost < SIZE // 2 else "all again")
    bench.put("c-refresh.bin", new, mtime_ns=time.time_ns() - 3600 * 10**9)
    code, _ = client.run(client.refresh, bench, "c-refresh.bin", out)
    return _outcome(code, out / "c-refresh.bin", new, outcome)


def changed_in_its_second(client: Client, bench: Bench, out: Path) -> str:
    """Before a refresh."""
    old, new = bytes_of("client, second 1", 50_000), bytes_of("client, second 2", 50_000)
    second_ns = start_of_a_second()
    bench.put("c-second.bin", old, mtime_ns=second_ns + 10**8, seen=False)
    client.run(client.get, bench, "c-second.bin", out)
    bench.put("c-second.bin", new, mtime_ns=second_ns + 9 * 10**8)
    code, _ = client.run(client.refresh, bench, "c-second.bin", out)
    return _outcome(code, out / "c-second.bin", new, "new file")


def older_date(client: Client, bench: Bench, out: Path) -> str:
    old = bytes_of("client, older, old")
    bench.put("c-older.bin", bytes_of("client, older, new"), mtime_ns=time.time_ns() - 3600 * 10**9)
    client.run(client.get, bench, "c-older.bin", out)
    bench.put("c-older.bin", old)
    code, _ = client.run(client.refresh, bench, "c-older.bin", out)
    return _outcome(code, out / "c-older.bin", old, "new file")


def same_date_between(client: Client, bench: Bench, out: Path) -> str:
    """Between kill and resume: all bytes differ, or only some near the beginning. The worse outcome counts."""
    when_ns = (int(time.time()) - 86_400) * 10**9
    old, new = bytes_of("client, date 1"), bytes_of("client, date 2")
    outcomes = set()
    for number, changed in enumerate((new, b"edited" + old[6:])):
        name, place = f"c-date-{number}.bin", out / str(number)
        place.mkdir()
        bench.put(name, old, mtime_ns=when_ns)
        _get_and_kill(client, bench, name, place)
        bench.put(name, changed, mtime_ns=when_ns)
        code, _ = client.run(client.resume, bench, name, place)
        outcomes.add(_outcome(code, place / name, changed, "noticed"))
    return next(word for word in ("WRONG", "fails", "noticed") if word in outcomes)


def same_date_at_a_refresh(client: Client, bench: Bench, out: Path) -> str:
    when_ns = (int(time.time()) - 86_400) * 10**9
    old, new = (bytes_of(f"client, refreshed {number}", 100_000) for number in (1, 2))
    bench.put("c-refreshed.bin", old, mtime_ns=when_ns)
    client.run(client.get, bench, "c-refreshed.bin", out)
    bench.put("c-refreshed.bin", new, mtime_ns=when_ns)
    code, _ = client.run(client.refresh, bench, "c-refreshed.bin", out)
    return _outcome(code, out / "c-refreshed.bin", new, "noticed")


CHECKS = {
    "kill and resume": resume,
    "changed between": changed_between,
    "changed within its second": changed_in_its_second,
    "same size and date, resumed": same_date_between,
    "same size and date, refreshed": same_date_at_a_refresh,
    "refresh": refresh,
    "older date": older_date,
}
