"""What is done with each server. A check returns what goes into its cell of docs/servers.md, and fails on wrong bytes
and on more bytes than the server makes necessary."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import random
import signal
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from perfkit import Config, Toolkit
from tests.servers.bench import Ability, Bench
from tests.support.kits import QUICK
from tests.support.partial_files import held
from tests.support.tools import ENVIRONMENT, need
from tests.support.trees import lines, tree_of, write_tree

SIZE = 3 << 20
HELD_AFTER = SIZE * 2 // 5  # what a client gets quickly; the rest comes slowly, for it to be killed in between
HELD_BYTES = 512 << 10
_HALF = SIZE // 2


def bytes_of(seed: str, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


@contextlib.contextmanager
def toolkit(**changes: Any) -> Iterator[Toolkit]:
    with Toolkit(Config(**{**QUICK, "buffer_bytes": 64 << 10, **changes})) as kit:
        yield kit


def get(bench: Bench, name: str, dest: Path, checksum: str | None = None, **changes: Any) -> int:
    """Download a file; returns the bytes that it cost."""
    before = bench.relay.sent
    with toolkit(**changes) as kit:
        kit.download(bench.url(name), dest, checksum=checksum)
    return bench.relay.sent - before


def get_and_kill(
    bench: Bench,
    able: Ability,
    name: str,
    dest: Path,
    prepare: Callable[[], object] = lambda: None,
    *,
    fresh: bool = False,
) -> None:
    """`perfkit get` in four segments, and SIGKILL when it has a part of the file.

    Args:
        prepare: called when it only needs to be told the URL.
        fresh: the file is of this second.
    """
    ours = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PERFKIT_TEST_")}
    environment = {**ours, "PERFKIT_MIN_SEGMENT_BYTES": "64K", "PERFKIT_ADAPTIVE": "no"}
    command = ["-m", "perfkit", "get", "--quiet", "--segments", "4", "-i", "-", "-d", dest.parent]
    bench.relay.hold_after = bench.relay.sent + HELD_AFTER
    try:
        with bench.warm.start(*command, stdin=subprocess.PIPE, env=environment) as process:
            assert process.stdin is not None
            prepare()
            process.stdin.write(f"{bench.url(name)}\t{dest.name}\n".encode())
            process.stdin.flush()
            deadline_s = time.monotonic() + 30
            # Where nothing can be resumed, and perhaps for a file that was just made, no journal comes.
            written_s = time.monotonic() + (0 if not able.ranges else 2 if fresh else 30)
            while not _is_ready(dest, written_s) and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.stdin.close()
            assert process.wait() == -signal.SIGKILL, f"perfkit ended with {process.returncode}"
    finally:
        bench.relay.hold_after = None
    assert not dest.exists(), "it was not killed in the middle"


def _is_ready(dest: Path, written_s: float) -> bool:
    """Whether enough is in the journal; or from the time `written_s` on, in the partial file."""
    if held(dest) >= HELD_BYTES:
        return True
    part = Path(f"{dest}.perfkit-part")
    return time.monotonic() >= written_s and part.exists() and part.stat().st_blocks * 512 >= HELD_BYTES


def _expect(outcome: bool, possible: bool, yes: str, no: str) -> str:
    """The word for an outcome, which must be the better one if the server makes that possible."""
    assert outcome or not possible, f"{no}, although the server makes more possible"
    return yes if outcome else no


def files(bench: Bench, able: Ability, out: Path) -> str:
    """Nine kinds of files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    contents = {
        "empty.bin": b"",
        "small.txt": b"hello world\n",
        "boundary.bin": bytes_of("boundary", 1 << 20),
        "large.bin": bytes_of("large", (5 << 20) + 7),
        "data.gz": gzip.compress(bytes_of("gz", 300_000)),
        "pack.tar.gz": packed.getvalue(),
        "page.html": b"<!doctype html><title>x</title>" + b"<p>text" * 5000,
        "with a blank é.txt": b"text\n" * 3000,
        "plain": bytes_of("plain", 70_000),
    }
    right = 0
    with toolkit() as kit:
        for name, data in contents.items():
            bench.put(name, data, seen=False)
            if bench.fetch(name)[2] != data:
                continue  # the server has a rule against it
            kit.download(bench.url(name), out / name)
            assert (out / name).read_bytes() == data, f"{name} is WRONG"
            right += 1
    assert right >= 7
    return f"{right} of 9"


def segments(bench: Bench, able: Ability, out: Path) -> str:
    """Without the time in which an answer with a lifetime, which a cache might be storing, stays whole."""
    data = bytes_of("segments")
    bench.put("segments.bin", data)
    bench.relay.hold_after, bench.relay.pause_s = bench.relay.sent + (256 << 10), 0.02
    try:
        with toolkit(segments=4) as kit, patch("perfkit.downloads.transfer._CACHE_FILL_S", 0.0):
            used = kit.download(bench.url("segments.bin"), out / "f").segments
    finally:
        bench.relay.hold_after, bench.relay.pause_s = None, 0.25
    assert (out / "f").read_bytes() == data, "WRONG"
    return _expect(used == 4, able.ranges, "4", str(used))


def resume(bench: Bench, able: Ability, out: Path) -> str:
    data = bytes_of("resume")
    bench.put("resume.bin", data)
    get_and_kill(bench, able, "resume.bin", out / "f")
    cost = get(bench, "resume.bin", out / "f")
    assert (out / "f").read_bytes() == data, "WRONG"
    return _expect(cost < SIZE - HELD_BYTES // 2, able.ranges, "resumes", "starts over")


def changed_between(bench: Bench, able: Ability, out: Path) -> str:
    """Another version of the file, between kill and resume."""
    bench.put("between.bin", bytes_of("between 1"))
    get_and_kill(bench, able, "between.bin", out / "f")
    new = bytes_of("between 2", SIZE + 1000)
    bench.put("between.bin", new, mtime_ns=time.time_ns() - 3600 * 10**9)
    get(bench, "between.bin", out / "f")
    assert (out / "f").read_bytes() == new, "WRONG"
    return "new file"


def changed_in_its_second(bench: Bench, able: Ability, out: Path) -> str:
    """Another version of the same size from the same second: between kill and resume, and before a refresh."""
    old, new = bytes_of("second 1"), bytes_of("second 2")
    bench.put("second.bin", old)
    second_ns = 0

    def prepare() -> None:
        nonlocal second_ns
        second_ns = start_of_a_second()
        bench.put("second.bin", old, mtime_ns=second_ns + 10**8, seen=False)

    get_and_kill(bench, able, "second.bin", out / "f", prepare, fresh=True)
    bench.put("second.bin", new, mtime_ns=second_ns + 9 * 10**8)
    get(bench, "second.bin", out / "f")
    assert (out / "f").read_bytes() == new, "WRONG after a kill"

    small = [bytes_of(f"small {number}", 50_000) for number in (1, 2)]
    second_ns = start_of_a_second()
    bench.put("small.bin", small[0], mtime_ns=second_ns + 10**8, seen=False)
    get(bench, "small.bin", out / "s")
    bench.put("small.bin", small[1], mtime_ns=second_ns + 9 * 10**8)
    get(bench, "small.bin", out / "s")
    if bench.server.keeps_etags and (out / "s").read_bytes() == small[0]:
        get(bench, "small.bin", out / "s", checksum=f"sha256:{hashlib.sha256(small[1]).hexdigest()}")
        return "by checksum"
    assert (out / "s").read_bytes() == small[1], "WRONG after a refresh"
    return "new file"


def start_of_a_second() -> int:
    while time.time() % 1 > 0.5:
        time.sleep(0.02)
    return int(time.time()) * 10**9


def same_date_between(bench: Bench, able: Ability, out: Path) -> str:
    """Other bytes with the same size and date (`rsync -t`, reproducible builds), between kill and resume: all of them,
    or only some that are not compared. Where nothing that the server says differs, a checksum shows those.
    """
    when_ns = (int(time.time()) - 86_400) * 10**9
    old, new = bytes_of("date 1"), bytes_of("date 2")
    outcome = "noticed"
    for number, changed in enumerate((new, b"edited" + old[6:])):
        name, dest = f"date-{number}.bin", out / f"f-{number}"
        bench.put(name, old, mtime_ns=when_ns)
        get_and_kill(bench, able, name, dest)
        bench.put(name, changed, mtime_ns=when_ns)
        saved = [(path, path.read_bytes()) for path in out.glob(f"{dest.name}.*")]
        get(bench, name, dest)
        if dest.read_bytes() == changed:
            continue
        assert changed is not new, "WRONG"
        outcome = "by checksum"
        dest.unlink()
        for path, data in saved:
            path.write_bytes(data)
        get(bench, name, dest, checksum=f"sha256:{hashlib.sha256(changed).hexdigest()}")
        assert dest.read_bytes() == changed, "WRONG, with a checksum"
    return outcome


def same_date_at_a_refresh(bench: Bench, able: Ability, out: Path) -> str:
    """The same, before a refresh. Where nothing that the server says differs, a checksum helps."""
    when_ns = (int(time.time()) - 86_400) * 10**9
    old, new = (bytes_of(f"refreshed {number}", 100_000) for number in (1, 2))
    bench.put("refreshed.bin", old, mtime_ns=when_ns)
    get(bench, "refreshed.bin", out / "f")
    bench.put("refreshed.bin", new, mtime_ns=when_ns)
    get(bench, "refreshed.bin", out / "f")
    if (out / "f").read_bytes() == new:
        return "noticed"
    assert (out / "f").read_bytes() == old, "WRONG"
    get(bench, "refreshed.bin", out / "f", checksum=f"sha256:{hashlib.sha256(new).hexdigest()}")
    assert (out / "f").read_bytes() == new, "WRONG, with a checksum"
    return "by checksum"


def refresh(bench: Bench, able: Ability, out: Path) -> str:
    """An unchanged file costs no transfer, a changed one is fetched."""
    data = bytes_of("refresh")
    bench.put("refresh.bin", data)
    get(bench, "refresh.bin", out / "f")
    cost = get(bench, "refresh.bin", out / "f")
    assert (out / "f").read_bytes() == data, "WRONG"
    new = bytes_of("refresh, changed")
    bench.put("refresh.bin", new, mtime_ns=time.time_ns() - 3600 * 10**9)
    get(bench, "refresh.bin", out / "f")
    assert (out / "f").read_bytes() == new, "WRONG"
    return _expect(cost < _HALF, able.version, "unchanged", "all again")


def older_date(bench: Bench, able: Ability, out: Path) -> str:
    """A file is put back to what it was, with the date that it had."""
    bench.put("older.bin", bytes_of("older, new"), mtime_ns=time.time_ns() - 3600 * 10**9)
    get(bench, "older.bin", out / "f")
    old = bytes_of("older, old")
    bench.put("older.bin", old)
    get(bench, "older.bin", out / "f")
    assert (out / "f").read_bytes() == old, "WRONG"
    return "new file"


def release(bench: Bench, able: Ability, out: Path) -> str:
    """A published release, and two updates of it."""
    tree = {f"d/{number}.txt": lines(number, 2000) for number in range(12)}
    costs = []
    with toolkit() as kit:
        for version in ("1", "2", "3"):
            tree[f"d/{version}.txt"] = b"edited\n" + tree[f"d/{version}.txt"]
            tree[f"new-{version}"] = version.encode() * 100
            kit.publish(write_tree(out / "src", tree), out / "site", version=version)
            bench.put_tree(out / "site", "site")
            bench.wait_until_served("site/perfkit.json", (out / "site" / "perfkit.json").read_bytes())
            before = bench.relay.sent
            report = kit.sync(bench.url("site/"), out / "tree")
            costs.append(bench.relay.sent - before)
            assert tree_of(out / "tree") == tree, f"release {version} is WRONG"
            assert report.version == version
    assert max(costs[1:]) < costs[0] / 4, f"an update costs {costs[1:]} bytes, and the first release {costs[0]}"
    return "1→2→3"


def zip_update(bench: Bench, able: Ability, out: Path) -> str:
    """A zip with one member that changes."""
    tree = {f"{number}.bin": bytes_of(f"zip {number}", 200_000) for number in range(8)}
    cost = _updated(bench, out, "pack.zip", [_zip(tree), _zip({**tree, "3.bin": bytes_of("zip, new", 200_000)})])
    assert (out / "tree" / "3.bin").read_bytes() == bytes_of("zip, new", 200_000), "WRONG"
    return _expect(cost < 800_000, able.ranges, "changed members", "all again")


def zsync_update(bench: Bench, able: Ability, out: Path) -> str:
    """A file with a zsync control file; a part in its middle changes."""
    need("zsyncmake")
    old = bytes_of("zsync", 2 << 20)
    new = old[:1_000_000] + b"edited" + old[1_100_000:]
    for number, data in enumerate((old, new)):
        (out / "disk.bin").write_bytes(data)
        command = ["zsyncmake", "-u", "disk.bin", "-o", "disk.bin.zsync", "disk.bin"]
        subprocess.run(command, cwd=out, check=True, capture_output=True)
        when_ns = time.time_ns() - (3 - number) * 3600 * 10**9
        for name in ("disk.bin", "disk.bin.zsync"):
            bench.put(name, (out / name).read_bytes(), mtime_ns=when_ns)
        before = bench.relay.sent
        with toolkit() as kit:
            kit.sync(bench.url("disk.bin.zsync"), out / "tree")
        assert (out / "tree" / "disk.bin").read_bytes() == data, "WRONG"
    return _expect(bench.relay.sent - before < 1 << 20, able.ranges, "changed blocks", "all again")


def _updated(bench: Bench, out: Path, name: str, versions: list[bytes]) -> int:
    """Sync each version in turn; returns what the last one cost."""
    for number, data in enumerate(versions):
        bench.put(name, data, mtime_ns=time.time_ns() - (3 - number) * 3600 * 10**9)
        before = bench.relay.sent
        with toolkit() as kit:
            kit.sync(bench.url(name), out / "tree")
    return bench.relay.sent - before


def _zip(tree: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in tree.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


def three_hosts(bench: Bench, able: Ability, out: Path) -> str:
    """Three hosts behind one cache fetch a file, which one connection takes most of a second for; the origin sends it
    once.
    """
    data = bytes_of("lasting")
    bench.put("lasting/file.bin", data, seen=False)
    for host in range(3):
        with Toolkit() as kit:
            kit.download(bench.url("lasting/file.bin"), out / f"host-{host}")
        assert (out / f"host-{host}").read_bytes() == data, "WRONG"
    cost = bench.sent_by_origin("lasting/file.bin")
    assert cost <= SIZE, f"the origin sent {cost} bytes of a file of {SIZE}"
    return "one transfer"


OF_SERVERS = {
    "files": files,
    "segments": segments,
    "kill and resume": resume,
    "changed between": changed_between,
    "changed within its second": changed_in_its_second,
    "same size and date, resumed": same_date_between,
    "same size and date, refreshed": same_date_at_a_refresh,
    "refresh": refresh,
    "older date": older_date,
    "release": release,
    "zip": zip_update,
    "zsync": zsync_update,
}
OF_CACHES = {
    name: OF_SERVERS[name]
    for name in (
        "files",
        "segments",
        "kill and resume",
        "changed between",
        "refresh",
        "older date",
        "release",
        "zip",
        "zsync",
    )
} | {"three hosts": three_hosts}
