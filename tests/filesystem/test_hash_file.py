"""Digests of files: right, or an error if the file changes while it is read; within bounded memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from perfkit import ConfigError, FileChangedError
from perfkit.filesystem.hashing.hash_file import _Source, hash_file, hash_one
from perfkit.filesystem.scan import ScanEntry
from tests.support.files import sha

MIB = 1 << 20


@pytest.mark.parametrize("leased", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("size", [0, 1, 4096, 8 * MIB, 9 * MIB + 123])
def test_digests_are_right(tmp_path: Path, size: int, leased: bool) -> None:
    """Whole and chunk digests, alone and together, at the edges and with chunks that fit no page."""
    data = os.urandom(size)
    path = tmp_path / "f"
    path.write_bytes(data)
    for chunk in (MIB, 3 * MIB + 17):
        expected = tuple(sha(data[start : start + chunk]) for start in range(0, size, chunk))
        both = hash_file(path, chunk_bytes=chunk, lease=leased)
        assert (both.sha256, both.chunks) == (sha(data), expected)
        alone = hash_file(path, chunk_bytes=chunk, whole=False, lease=leased)
        assert (alone.sha256, alone.chunks) == (None, expected)
    assert hash_file(path, lease=leased).sha256 == sha(data)


@pytest.mark.parametrize(
    "name", ["/proc/sys/kernel/osrelease", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/filesystems"]
)
def test_files_of_the_kernel(name: str) -> None:
    """Their stat says 0 or 4096 bytes; they are hashed to their end, as sha256sum does."""
    if not os.access(name, os.R_OK):
        pytest.skip(f"this kernel has no {name}")
    content = Path(name).read_bytes()
    both = hash_file(name, chunk_bytes=4)
    assert (both.sha256, both.size) == (sha(content), len(content))
    assert both.chunks == tuple(sha(content[at : at + 4]) for at in range(0, len(content), 4))
    assert hash_file(name, chunk_bytes=4, whole=False).chunks == both.chunks
    parent, _, leaf = name.rpartition("/")
    assert hash_one(f"{parent}/", ScanEntry(leaf, 0, 0, 0, 0, 0, 0)).sha256 == sha(content)


@pytest.mark.parametrize("lease", [False, True])
def test_others_can_write_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lease: bool) -> None:
    """An open for writing fails at once, if it does not wait, while a lease was asked for; without one it succeeds."""
    path = tmp_path / "f"
    path.write_bytes(bytes(9 * MIB))
    original, refused = _Source.feed, []

    def feed(self: Any, update: Any, start: int, end: int, buffer: memoryview) -> None:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError:
            refused.append(path)
        original(self, update, start, end, buffer)

    monkeypatch.setattr(_Source, "feed", feed)
    assert hash_file(path, lease=lease).sha256 == sha(bytes(9 * MIB))
    assert bool(refused) == lease


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of ours is hashed from a mapping, under a lease that was asked for and ends with it."""
    path = tmp_path / "f"
    path.write_bytes(bytes(9 * MIB))
    windows = []
    original = _Source._map
    monkeypatch.setattr(_Source, "_map", lambda *a: windows.append(original(*a)) or windows[-1])
    hash_file(path, lease=True)
    assert len(windows) == 4  # and the last MiB is read
    assert None not in windows
    with path.open("r+b", buffering=0) as file:  # would wait for a lease
        file.write(b"x")


def test_a_lease_is_kept_while_any_thread_has_a_mapping(tmp_path: Path) -> None:
    """A writer is let in, and may truncate the file, when none has: reading what is gone would end in SIGBUS."""
    path = tmp_path / "f"
    path.write_bytes(bytes(9 * MIB))
    kept: list[bool] = []

    def is_kept() -> bool:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError:
            return True
        return False

    def hash_the_next(view: memoryview) -> None:
        kept.append(is_kept())  # from now on, a writer waits
        buffer = memoryview(bytearray(MIB))
        other = threading.Thread(target=source.feed, args=(lambda view: None, 4 * MIB, 8 * MIB, buffer))
        other.start()
        other.join()
        kept.append(is_kept())

    with _Source(str(path), "f", lease=True) as source:
        source.feed(hash_the_next, 0, 2 * MIB, memoryview(bytearray(MIB)))
        assert kept == [True, True]
        assert not is_kept()


_ATTACKER = """
import os, sys, time
path, size, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
while True:
    if how == "truncate":
        os.truncate(path, 0)
        os.truncate(path, size)
    else:
        with open(path, "r+b", buffering=0) as file:
            file.truncate(4096); file.truncate(size)
    time.sleep(0.001)
"""


@pytest.mark.once
@pytest.mark.parametrize("how", ["truncate", "open"])
def test_truncation_is_an_error_and_no_sigbus(tmp_path: Path, how: str) -> None:
    """A real process cuts the file again and again while another hashes it: errors or true digests, never a signal."""
    path, size = tmp_path / "f", 16 * MIB
    path.write_bytes(bytes(size))
    right = hash_file(path).sha256
    victim = (
        "import sys, time\nfrom perfkit.filesystem.hashing.hash_file import hash_file\n"
        "from perfkit import FileChangedError\n"
        "seen = set()\nend = time.monotonic() + 0.5\n"
        "while time.monotonic() < end or 'changed' not in seen:\n"
        "    for chunk, lease in ((None, False), (None, True), (1 << 20, False), (1 << 20, True)):\n"
        "        try:\n            result = hash_file(sys.argv[1], chunk_bytes=chunk, lease=lease)\n"
        "        except FileChangedError:\n            seen.add('changed')\n"
        "        else:\n            assert result.size in (0, 4096) or result.sha256 == sys.argv[2], result\n"
        "            seen.add('same')\n"
        "print(*sorted(seen))\n"
    )
    attacker = subprocess.Popen([sys.executable, "-c", _ATTACKER, path, str(size), how], stdout=subprocess.PIPE)
    try:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        command = [sys.executable, "-c", victim, path, str(right)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    finally:
        attacker.kill()
        attacker.communicate()
    assert done.returncode == 0, done.stderr
    assert "changed" in done.stdout


@pytest.mark.parametrize("change", ["shrink", "grow", "rewrite", "replace"])
def test_a_change_in_the_middle_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Shrunk, grown, rewritten with its mtime put back, or replaced after the first window: never a digest."""
    path = tmp_path / "f"
    path.write_bytes(bytes(4 * MIB))
    before = path.stat()
    original = _Source.feed

    def feed(self: Any, update: Any, start: int, end: int, buffer: memoryview) -> None:
        original(self, update, start, 256 << 10, buffer)
        if change == "shrink":
            os.truncate(path, MIB)
        elif change == "grow":
            os.truncate(path, 5 * MIB)
        elif change == "rewrite":
            with path.open("r+b") as file:
                file.write(b"x")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            (tmp_path / "new").write_bytes(bytes(4 * MIB))
            os.replace(tmp_path / "new", path)
        original(self, update, 256 << 10, end, buffer)

    monkeypatch.setattr(_Source, "feed", feed)
    with pytest.raises(FileChangedError):
        hash_file(path)


def test_sparse_and_special_files(tmp_path: Path) -> None:
    """Holes hash as zeros; a pipe is refused and doesn't block; a directory is refused."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(12 * MIB)
    assert hash_file(path).sha256 == sha(bytes(12 * MIB))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        hash_file(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        hash_file(tmp_path)
    with pytest.raises(ConfigError):
        hash_file(path, chunk_bytes=0)


@pytest.mark.once
def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    """A process that may have 160 MiB in all, its code included, hashes a sparse file of 256 MiB, also in a tree."""
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(150 * MIB)
        file.write(b"in the middle")
        file.truncate(256 * MIB)
    code = (
        "import resource, sys\nfrom perfkit.filesystem.hashing.hash_file import hash_file\n"
        "from perfkit.filesystem.hashing.hash_tree import hash_tree\n"
        "resource.setrlimit(resource.RLIMIT_AS, (160 << 20, 160 << 20))\n"
        "try:\n    bytearray(160 << 20)\nexcept MemoryError:\n    pass\nelse:\n    sys.exit('no limit')\n"
        "print(hash_file(sys.argv[1] + '/sparse').sha256)\n"
        "print(*[each.sha256 for each in hash_tree(sys.argv[1])])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    with (tmp_path / "sparse").open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    assert done.stdout.split() == [expected] * 2, done.stderr


@pytest.mark.once
def test_hashing_stays_below_50_mb(tmp_path: Path) -> None:
    """A process that hashes a file of 256 MiB and its chunks holds less than 50 MB, mapped pages counted."""
    with (tmp_path / "f").open("wb") as file:
        file.truncate(256 * MIB)
    code = (
        "import resource, sys\nfrom perfkit import Toolkit\n"
        "with Toolkit() as kit:\n    kit.hash_file(sys.argv[1], chunk_bytes=4 << 20)\n"
        "    kit.hash_file(sys.argv[1], chunk_bytes=64 << 20, whole=False, lease=True)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 50e6
