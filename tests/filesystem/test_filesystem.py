"""Traversal, hashing, batches and watches, on a real disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import BatchError, ConfigError, FileChangedError
from perfkit.filesystem.batch import copy_tree, link_tree, move_many, remove_tree, write_many, writing
from perfkit.filesystem.hashing.hash_file import _Source, hash_file
from perfkit.filesystem.hashing.hash_tree import hash_tree
from perfkit.filesystem.scan import ScanOptions, scan, scan_batches
from perfkit.filesystem.watch import ALL, watch
from tests.support.tools import mounted_image, need, unavailable

MIB = 1 << 20


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def shape(root: Path) -> dict[str, object]:
    """Names with kind, mode, mtime, and content or target."""
    found: dict[str, object] = {}
    for entry in scan(root, ScanOptions(directories=True)):
        path = root / entry.name
        what = {"file": lambda p=path: p.read_bytes(), "symlink": lambda p=path: os.readlink(p)}.get(entry.kind)
        mode = entry.mode if entry.kind != "symlink" else 0
        found[entry.name] = (entry.kind, mode, entry.mtime_ns, what() if what else None)
    return found


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- scan --------------------------------------------------------------------------------------------------------------


def test_scan_tells_what_lstat_tells(tmp_path: Path) -> None:
    """Every file once, with the numbers of lstat; directories only where asked for."""
    make(tmp_path, {"a": b"1", "d/b": b"22", "d/e/c": b""})
    os.symlink("nowhere", tmp_path / "link")
    found = {entry.name: entry for entry in scan(tmp_path)}
    assert set(found) == {"a", "d/b", "d/e/c", "link"}
    for name, entry in found.items():
        status = os.lstat(tmp_path / name)
        assert entry[1:] == (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev,
                             status.st_mode, None)  # fmt: skip
    names = [entry.name for entry in scan(tmp_path, ScanOptions(directories=True))]
    assert names.index("d") < names.index("d/e") < names.index("d/e/c")


def test_odd_names_survive(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, line breaks and unnormalised Unicode come back as they are."""
    odd = [b"\xff\xfe", b"a\nb", "e\u0301".encode(), "\u00e9".encode(), "\U0001f40d".encode()]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    assert sorted(os.fsencode(entry.name) for entry in scan(tmp_path)) == sorted(odd)
    assert {os.fsencode(each.name): each.sha256 for each in hash_tree(tmp_path)} == {name: sha(name) for name in odd}


def test_scan_is_iterative_below_path_max(tmp_path: Path) -> None:
    """A tree deeper than recursion, open files and PATH_MAX allow is scanned, and removed."""
    root = tmp_path / "deep"
    root.mkdir()
    depth = 1500
    here = os.open(root, os.O_RDONLY)
    for number in range(depth):
        for name in ("side", "down"):
            os.mkdir(name, dir_fd=here)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("down", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    open_before = len(os.listdir("/proc/self/fd"))
    entries = list(scan(root, ScanOptions(directories=True)))
    assert not [entry for entry in entries if entry.error]
    assert len(entries) == 3 * depth
    assert len(os.listdir("/proc/self/fd")) <= open_before
    assert remove_tree(root) == 3 * depth + 1
    assert not root.exists()


def test_links_are_followed_on_demand_and_loops_told(tmp_path: Path) -> None:
    """Followed links are what they lead to; a loop and a dangling link are entries with an error."""
    make(tmp_path / "tree", {"d/a": b"1"})
    make(tmp_path / "other", {"b": b"2"})
    os.symlink("..", tmp_path / "tree/d/loop")
    os.symlink(tmp_path / "other", tmp_path / "tree/out")
    os.symlink("nowhere", tmp_path / "tree/dangling")
    plain = {entry.name: entry.kind for entry in scan(tmp_path / "tree")}
    assert plain == {"d/a": "file", "d/loop": "symlink", "out": "symlink", "dangling": "symlink"}
    entries = scan(tmp_path / "tree", ScanOptions(follow_symlinks=True))
    found = {entry.name: entry.error and entry.error.errno for entry in entries}
    assert found == {"d/a": None, "d/loop": errno.ELOOP, "out/b": None, "dangling": errno.ENOENT}


def test_what_vanishes_is_told_in_place(tmp_path: Path) -> None:
    """A directory that goes away under the scan is an entry with an error, and the rest comes."""
    make(tmp_path, {f"{letter}/{number}": b"" for letter in "abc" for number in range(3)})
    batches = scan_batches(tmp_path, batch=1)
    first = next(batches)[0].name.partition("/")[0]
    gone = next(letter for letter in "abc" if letter != first)
    remove_tree(tmp_path / gone)
    found = [entry for each in batches for entry in each]
    assert [entry.name for entry in found if entry.error] == [gone]
    assert len([entry for entry in found if not entry.error]) == 5


_AS_SOMEBODY = """
import concurrent.futures.thread, json, os, sys
import perfkit.filesystem.hashing.hash_file  # all of it now: where Python is, somebody may not read either
from perfkit.filesystem.hashing.hash_tree import hash_tree
from perfkit.filesystem.scan import ScanOptions, scan
os.chdir(sys.argv[1])
if os.geteuid() == 0:  # root may read everything: step down
    os.setegid(65534), os.seteuid(65534)
told = {}
told["scan"] = {each.name: each.error and each.error.errno for each in scan(".", ScanOptions(directories=True))}
told["hash"] = {each.name: each.error and each.error.errno for each in hash_tree(".")}
print(json.dumps(told))
"""


def test_what_may_not_be_read_is_told_in_place(tmp_path: Path) -> None:
    """A directory and a file that somebody may not read are entries with EACCES, and all the rest comes."""
    make(tmp_path / "tree", {"a/1": b"1", "closed/2": b"2", "z/3": b"3", "secret": b"4"})
    for name, mode in (("", 0o755), ("a", 0o755), ("a/1", 0o644), ("z", 0o755), ("z/3", 0o644), ("closed", 0),
                       ("secret", 0)):  # fmt: skip
        (tmp_path / "tree" / name).chmod(mode)
    command = [sys.executable, "-c", _AS_SOMEBODY, tmp_path / "tree"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (tmp_path / "tree/closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    listed: dict[str, int | None] = dict.fromkeys(["a", "a/1", "z", "z/3", "secret"])
    # The directory is an entry of its own, as one that can be listed is, and then its failure is told under its name.
    assert told["scan"] == {**listed, "closed": errno.EACCES}
    assert told["hash"] == {"a/1": None, "z/3": None, "secret": errno.EACCES, "closed": errno.EACCES}


def test_patterns_without_pathspec_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the optional package is missing, patterns are an error that says what to install; the rest works."""
    make(tmp_path, {"a": b""})
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(ConfigError, match=r"pip install 'perfkit\[patterns\]'"):
        next(scan(tmp_path, ScanOptions(exclude=["*.py"])))
    with pytest.raises(ConfigError, match="patterns"):
        next(hash_tree(tmp_path, include=["*.py"]))
    assert [entry.name for entry in scan(tmp_path)] == ["a"]


def test_patterns_choose(tmp_path: Path) -> None:
    """Gitignore patterns include and exclude; the caller's own names at the root stay out."""
    names = ["a.py", "b.txt", "build/c.py", "d/e.py", ".perfkit/f.py", "d/.perfkit/g.py"]
    make(tmp_path, dict.fromkeys(names, b""))
    found = scan(tmp_path, ScanOptions(include=["*.py"], exclude=["build/"], without={".perfkit"}))
    assert {entry.name for entry in found} == {"a.py", "d/e.py", "d/.perfkit/g.py"}


def test_scan_holds_a_batch_at_a_time(tmp_path: Path) -> None:
    """Batches are bounded, so a directory of any size takes the memory of one batch."""
    for number in range(250):
        (tmp_path / str(number)).touch()
    assert [len(each) for each in scan_batches(tmp_path, batch=100)] == [100, 100, 50]


# -- hashing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leased", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("size", [0, 1, 4096, 8 * MIB, 9 * MIB + 123])
def test_digests_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, leased: bool) -> None:
    """Whole and chunk digests, alone and together, at the edges and with chunks that fit no page."""
    if not leased:
        monkeypatch.setattr("perfkit.filesystem.hashing.hash_file._lease", lambda descriptor: False)
    data = os.urandom(size)
    path = tmp_path / "f"
    path.write_bytes(data)
    for chunk in (MIB, 3 * MIB + 17):
        expected = tuple(sha(data[start : start + chunk]) for start in range(0, size, chunk))
        both = hash_file(path, chunk_bytes=chunk)
        assert (both.sha256, both.chunks) == (sha(data), expected)
        alone = hash_file(path, chunk_bytes=chunk, whole=False)
        assert (alone.sha256, alone.chunks) == (None, expected)
    assert hash_file(path).sha256 == sha(data)


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of ours is hashed from a mapping, under a lease that ends with it."""
    path = tmp_path / "f"
    path.write_bytes(bytes(9 * MIB))
    windows = []
    original = _Source._map
    monkeypatch.setattr(_Source, "_map", lambda *a: windows.append(original(*a)) or windows[-1])
    hash_file(path)
    assert len(windows) == 4  # and the last MiB is read
    assert None not in windows
    with path.open("r+b", buffering=0) as file:  # would wait for a lease
        file.write(b"x")


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


@pytest.mark.parametrize("how", ["truncate", "open"])
def test_truncation_is_an_error_and_no_sigbus(tmp_path: Path, how: str) -> None:
    """A real process cuts the file again and again while another hashes it: errors or true digests, never a signal."""
    path, size = tmp_path / "f", 16 * MIB
    path.write_bytes(bytes(size))
    right = hash_file(path).sha256
    victim = (
        "import sys, time\nfrom perfkit.filesystem.hashing.hash_file import hash_file\n"
        "from perfkit import FileChangedError\n"
        "seen = set()\nend = time.monotonic() + 1.0\n"
        "while time.monotonic() < end:\n"
        "    for chunk in (None, 1 << 20):\n"
        "        try:\n            result = hash_file(sys.argv[1], chunk_bytes=chunk)\n"
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
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


def test_hashing_stays_below_50_mb(tmp_path: Path) -> None:
    """A process that hashes a file of 256 MiB and its chunks holds less than 50 MB, mapped pages counted."""
    with (tmp_path / "f").open("wb") as file:
        file.truncate(256 * MIB)
    code = (
        "import resource, sys\nfrom perfkit import Toolkit\n"
        "with Toolkit() as kit:\n    kit.hash_file(sys.argv[1], chunk_bytes=4 << 20)\n"
        "    kit.hash_file(sys.argv[1], chunk_bytes=64 << 20, whole=False)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 50e6


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make(tmp_path / "src", {"a": b"1" * 5000, "d/b": b"2", "d/e/empty": b"", "x/run.sh": b"#!", "ro/f": b"3"})
    os.chmod(root / "x/run.sh", 0o755)
    os.symlink("../a", root / "d/link")
    for number, name in enumerate(["a", "d/b", "x/run.sh", "ro", "d"]):
        os.utime(root / name, ns=(1, 10**18 + number))
    os.chmod(root / "ro", 0o500)
    return root


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    """Contents, modes, mtimes and links of files and directories are those of the source."""
    done = copy_tree(tree, tmp_path / "dest")
    assert shape(tmp_path / "dest") == shape(tree)
    assert (done.files, done.directories) == (6, 4)
    assert sorted(os.listdir(tmp_path)) == ["dest", "src"]


def test_setuid_is_not_copied(tree: Path, tmp_path: Path) -> None:
    """Since the owner isn't kept, neither is the right to act as the owner."""
    os.chmod(tree / "a", 0o4755)
    copy_tree(tree, tmp_path / "dest")
    assert (tmp_path / "dest/a").stat().st_mode & 0o7777 == 0o755


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A sparse file takes no more room as a copy, and has the same contents."""
    (tmp_path / "src").mkdir()
    with (tmp_path / "src/f").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"middle")
        file.truncate(20 * MIB)
    copy_tree(tmp_path / "src", tmp_path / "dest")
    assert (tmp_path / "dest/f").read_bytes() == (tmp_path / "src/f").read_bytes()
    assert (tmp_path / "dest/f").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_without_range_copy_it_is_read_and_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where the kernel can't copy between two files, we do."""

    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    copy_tree(tree, tmp_path / "dest")
    assert shape(tmp_path / "dest") == shape(tree)


def test_links_share_and_what_cannot_be_linked_is_copied(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are hard links; empty ones are not; after EMLINK it is a copy."""
    done = link_tree(tree, tmp_path / "dest")
    assert shape(tmp_path / "dest") == shape(tree)
    assert done.linked == 4
    assert os.path.samefile(tree / "a", tmp_path / "dest/a")
    assert not os.path.samefile(tree / "d/e/empty", tmp_path / "dest/d/e/empty")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    assert link_tree(tree, tmp_path / "copies").linked == 0
    assert shape(tmp_path / "copies") == shape(tree)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_reflinks_on_file_systems_that_have_them(tmp_path: Path, kind: str) -> None:
    """On xfs and btrfs a copy shares its blocks with the source."""
    need("filefrag")
    with mounted_image(kind, tmp_path, size=320 * MIB) as point:
        make(point / "src", {"a": os.urandom(MIB), "b": b"small" * 2000})
        done = copy_tree(point / "src", point / "dest")
        assert done.reflinked == 2
        assert shape(point / "dest") == shape(point / "src")
        os.sync()
        said = subprocess.run(["filefrag", "-v", point / "dest/a"], capture_output=True, text=True, check=True).stdout
        assert "shared" in said
        results = move_many([(point / "src", tmp_path / "moved"), (point / "dest/a", tmp_path / "one")])
        assert [each.error for each in results] == [None, None]
        assert sorted(os.listdir(tmp_path / "moved")) == ["a", "b"]
        assert (tmp_path / "one").read_bytes() == (tmp_path / "moved/a").read_bytes()
        assert os.listdir(point / "dest") == ["b"]
        assert not (point / "src").exists()


def test_the_destination_is_respected(tree: Path, tmp_path: Path) -> None:
    """Contents in the way are an error without merge; with it they are replaced or stay; a copy into itself is none."""
    dest = make(tmp_path / "dest", {"a": b"old", "mine": b"stays"})
    with pytest.raises(FileExistsError):
        copy_tree(tree, dest)
    assert (dest / "a").read_bytes() == b"old"
    copy_tree(tree, dest, merge=True)
    assert (dest / "a").read_bytes() == b"1" * 5000
    assert (dest / "mine").read_bytes() == b"stays"
    link_tree(tree, dest, merge=True)
    link_tree(tree, dest, merge=True)  # a rename between two names of one file does nothing, and leaves both
    assert not [entry.name for entry in scan(dest) if ".perfkit" in entry.name]
    (tmp_path / "empty").mkdir()
    copy_tree(tree, tmp_path / "empty")
    with pytest.raises(ConfigError):
        copy_tree(tree, tree / "inside")


def test_merge_does_not_leave_through_a_link(tree: Path, tmp_path: Path) -> None:
    """A link where a directory should be is a failure; nothing is written behind it."""
    dest, outside = tmp_path / "dest", tmp_path / "outside"
    dest.mkdir()
    outside.mkdir()
    os.symlink(outside, dest / "d")
    with pytest.raises(BatchError) as raised:
        copy_tree(tree, dest, merge=True, on_error="continue")
    assert {each.name for each in raised.value.results} >= {"d", "d/b"}
    assert os.listdir(outside) == []
    assert (dest / "a").exists()


def test_a_failure_stops_or_not_as_asked(tree: Path, tmp_path: Path) -> None:
    """Stop leaves no destination; continue gives all the rest, and each failed path with its error."""
    os.mkfifo(tree / "pipe")
    with pytest.raises(BatchError):
        copy_tree(tree, tmp_path / "dest")
    assert sorted(os.listdir(tmp_path)) == ["src"]
    with pytest.raises(BatchError, match="pipe") as raised:
        copy_tree(tree, tmp_path / "dest", on_error="continue")
    assert [each.name for each in raised.value.results] == ["pipe"]
    expected = shape(tree)
    del expected["pipe"]
    assert shape(tmp_path / "dest") == expected


def test_progress_counts_every_file(tree: Path, tmp_path: Path) -> None:
    """The last snapshot has all files and bytes."""
    from perfkit import CallbackProgress

    seen: list[Any] = []
    copy_tree(tree, tmp_path / "dest", progress=CallbackProgress(seen.append))
    assert (seen[-1].phase, seen[-1].files_done, seen[-1].files_total, seen[-1].eta_s) == ("copy", 6, 6, 0.0)
    assert seen[-1].received_bytes == seen[-1].total_bytes


def test_moves_build_on_each_other(tmp_path: Path) -> None:
    """Moves happen in order; one that would overwrite is a failure, and the rest goes on if asked to."""
    make(tmp_path, {"a": b"a", "c": b"c", "e": b"e"})
    at = tmp_path.joinpath
    with pytest.raises(BatchError) as raised:
        move_many([(at("a"), at("b")), (at("b"), at("d")), (at("c"), at("e")), (at("e"), at("f"))], on_error="continue")
    assert [type(each.error) for each in raised.value.results] == [type(None), type(None), FileExistsError, type(None)]
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"d": b"a", "c": b"c", "f": b"e"}
    move_many([(at("c"), at("f"))], replace=True)
    assert at("f").read_bytes() == b"c"


def test_removal_follows_no_link(tree: Path, tmp_path: Path) -> None:
    """Links go, what they lead to stays; a link or a file in the path's place is refused."""
    outside = make(tmp_path / "outside", {"precious": b"!"})
    os.symlink(outside, tree / "d/out")
    os.chmod(tree / "ro", 0o700)
    assert remove_tree(tree) == 12
    assert not tree.exists()
    assert (outside / "precious").exists()
    os.symlink(outside, tmp_path / "link")
    for name in ("link", "outside/precious"):
        with pytest.raises(NotADirectoryError):
            remove_tree(tmp_path / name)
    assert (outside / "precious").exists()


def test_many_writes_are_whole_and_stay_inside(tmp_path: Path) -> None:
    """Files are replaced in one step, directories made; a name that escapes, or a link on the way, is a failure."""
    root, outside = make(tmp_path / "root", {"a": b"old"}), tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, root / "link")
    files = [(f"d{number % 5}/e/{number}", str(number).encode()) for number in range(200)]
    done = write_many(root, [("a", b"new"), *files])
    assert [each.name for each in done] == ["a", *(name for name, _ in files)]
    assert {name: (root / name).read_bytes() for name, _ in files} == dict(files)
    with pytest.raises(BatchError) as raised:
        write_many(root, [("../x", b""), ("link/x", b""), ("b", b"good")], on_error="continue")
    assert [each.error is None for each in raised.value.results] == [False, False, True]
    assert os.listdir(outside) == []
    assert not [entry.name for entry in scan(tmp_path) if ".perfkit" in entry.name]


# -- watch -------------------------------------------------------------------------------------------------------------


def test_changes_are_dirty(tmp_path: Path) -> None:
    """Made, changed, moved and removed names, also in directories made meanwhile; then the set is clean."""
    make(tmp_path, {"a": b"", "d/b": b"", "d/c": b"", "quiet": b""})
    with watch(tmp_path) as dirty:
        (tmp_path / "a").write_bytes(b"1")
        os.rename(tmp_path / "d/b", tmp_path / "moved")
        (tmp_path / "d/c").unlink()
        make(tmp_path, {"new/deep/e": b""})
        (tmp_path / "quiet").read_bytes()
        assert dirty.wait(5)
        dirty.flush()
        found = dirty.drain()
        assert found is not ALL
        assert {"a", "d/b", "d/c", "moved", "new"} <= set(found)
        assert "quiet" not in found
        dirty.flush()
        assert dirty.drain() == frozenset()
        assert not dirty.wait(0)


def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    """What changes just before the block ends is in the set after it; no thread is left."""
    threads = set(threading.enumerate())
    with watch(tmp_path) as dirty:
        names = {f"f{number}" for number in range(500)}
        for name in names:
            (tmp_path / name).touch()
    assert dirty.drain() == names
    assert set(threading.enumerate()) == threads


@contextlib.contextmanager
def _queue_of(events: int) -> Iterator[None]:
    path = Path("/proc/sys/fs/inotify/max_queued_events")
    before = path.read_text()
    try:
        path.write_text(str(events))
    except OSError:
        unavailable("needs root, to make the kernel's queue small")
    try:
        yield
    finally:
        path.write_text(before)


def test_directories_made_meanwhile_cause_no_warning(tmp_path: Path) -> None:
    """watchdog finds directories made quickly one in the other twice; nobody is told of that."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch(tmp_path) as dirty:
            for number in range(30):
                (tmp_path / f"{number}/a/b/c/d/e/f").mkdir(parents=True)
    assert told == []
    assert {f"{number}" for number in range(30)} <= dirty.drain()  # type: ignore[operator]


def test_overflow_dirties_everything(tmp_path: Path) -> None:
    """The kernel's queue really overflows: everything is dirty once, and later changes are seen by name again."""
    with _queue_of(4):
        stack = contextlib.ExitStack()
        dirty = stack.enter_context(watch(tmp_path))
    with stack:
        deadline = time.monotonic() + 20
        while not dirty._lost and time.monotonic() < deadline:
            for number in range(200):
                (tmp_path / f"f{number}").touch()
                (tmp_path / f"f{number}").unlink()
        (tmp_path / "late").mkdir()
        assert dirty.drain() is ALL
        (tmp_path / "late/x").touch()
        dirty.flush()
        found = dirty.drain()
        assert found is not ALL
        assert "late/x" in found


def test_a_root_that_goes_away_dirties_everything(tmp_path: Path) -> None:
    """After the removal of the watched directory nothing is known, and the watch ends cleanly."""
    root = make(tmp_path / "root", {"a": b""})
    with watch(root) as dirty:
        remove_tree(root)
        assert dirty.wait(5)
        deadline = time.monotonic() + 5
        while dirty._alive() and time.monotonic() < deadline:
            dirty._observer.join(0.01)
        assert dirty.drain() is ALL
    with pytest.raises(NotADirectoryError), watch(tmp_path / "none"):
        pass


def test_watchdog_is_imported_only_by_a_watch() -> None:
    """Nor do the other rooms come with the Toolkit."""
    code = (
        "import sys\nfrom perfkit import Toolkit\nToolkit().close()\n"
        "late = {'watchdog', 'pathspec', 'perfkit.filesystem.batch', 'perfkit.filesystem.hashing.hash_file'}\n"
        "assert not late & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_toolkit_wires_it(tree: Path, tmp_path: Path, kit: Any) -> None:
    """The facade's methods do what the functions do."""
    assert {entry.name for entry in kit.scan(tree)} == {entry.name for entry in scan(tree)}
    assert kit.hash_file(tree / "a").sha256 == sha(b"1" * 5000)
    assert {each.name for each in kit.hash_tree(tree, exclude=["x/"])} == {"a", "d/b", "d/e/empty", "ro/f"}
    assert kit.copy_tree(tree, tmp_path / "copy").files == kit.link_tree(tree, tmp_path / "links").files == 6
    kit.move_many([(tmp_path / "copy", tmp_path / "moved")])
    assert kit.remove_tree(tmp_path / "moved") > 6
    with kit.watch(tmp_path) as dirty:
        (tmp_path / "w").touch()
    assert dirty.drain() == {"w"}


def test_pieces_of_a_batch_are_bounded() -> None:
    """A batch of writes is cut by number and by size."""
    portions = [len(each) for each in writing._portions([("n", b"")] * 100 + [("n", bytes(MIB))] * 2)]
    assert portions == [64, 37, 1]
