"""Scanning: what is there, however deep, odd or closed to this user."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.hashing.hash_tree import hash_tree
from perfkit.filesystem.scan import ScanOptions, scan, scan_batches, scan_in_order
from tests.support.files import make, sha


def test_scan_agrees_with_lstat(tmp_path: Path) -> None:
    """Every file once, with the numbers of lstat; directories only if requested."""
    make(tmp_path, {"a": b"1", "d/b": b"22", "d/e/c": b""})
    os.symlink("nowhere", tmp_path / "link")
    found = {entry.name: entry for entry in scan(tmp_path)}
    assert set(found) == {"a", "d/b", "d/e/c", "link"}
    for name, entry in found.items():
        status = os.lstat(tmp_path / name)
        assert entry[1:] == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            status.st_dev,
            status.st_mode,
            None,
        )
    names = [entry.name for entry in scan(tmp_path, ScanOptions(directories=True))]
    assert names.index("d") < names.index("d/e") < names.index("d/e/c")


def test_odd_names_survive(tmp_path: Path) -> None:
    """Invalid UTF-8, line breaks and unnormalised Unicode come back unchanged."""
    odd = [b"\xff\xfe", b"a\nb", "e\u0301".encode(), "\u00e9".encode(), "\U0001f40d".encode()]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    assert sorted(os.fsencode(entry.name) for entry in scan(tmp_path)) == sorted(odd)
    assert {os.fsencode(each.name): each.sha256 for each in hash_tree(tmp_path)} == {name: sha(name) for name in odd}


@pytest.fixture
def low_limits() -> Iterator[int]:
    """Few levels of recursion and few open files; their number is less than this."""
    recursion, files = sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_NOFILE)
    sys.setrecursionlimit(300)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, files[1]))
    yield 301
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    sys.setrecursionlimit(recursion)


@pytest.mark.once
def test_scan_is_iterative_below_path_max(tmp_path: Path, low_limits: int) -> None:
    """A tree deeper than recursion, open files and PATH_MAX allow is scanned, and removed."""
    root, down = tmp_path / "deep", "down" * 5
    root.mkdir()
    depth = max(low_limits, 2 * os.pathconf(root, "PC_PATH_MAX") // len(down))
    here = os.open(root, os.O_RDONLY)
    for number in range(depth):
        for name in ("side", down):
            os.mkdir(name, dir_fd=here)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open(down, os.O_RDONLY, dir_fd=here)
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


def test_links_are_followed_on_demand_and_loops_are_errors(tmp_path: Path) -> None:
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


def test_what_vanishes_is_an_entry_with_an_error(tmp_path: Path) -> None:
    """A directory that disappears during the scan is an entry with an error; the rest is listed."""
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


def test_what_may_not_be_read_is_an_entry_with_an_error(tmp_path: Path) -> None:
    """A directory and a file that somebody may not read are entries with EACCES, and all the rest comes."""
    make(tmp_path / "tree", {"a/1": b"1", "closed/2": b"2", "z/3": b"3", "secret": b"4"})
    for name, mode in (
        ("", 0o755),
        ("a", 0o755),
        ("a/1", 0o644),
        ("z", 0o755),
        ("z/3", 0o644),
        ("closed", 0),
        ("secret", 0),
    ):
        (tmp_path / "tree" / name).chmod(mode)
    command = [sys.executable, "-c", _AS_SOMEBODY, tmp_path / "tree"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    (tmp_path / "tree/closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    listed: dict[str, int | None] = dict.fromkeys(["a", "a/1", "z", "z/3", "secret"])
    # The directory is an entry, like one that can be listed, and then a second one with its failure.
    assert told["scan"] == {**listed, "closed": errno.EACCES}
    assert told["hash"] == {"a/1": None, "z/3": None, "secret": errno.EACCES, "closed": errno.EACCES}


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


def test_a_scan_in_order_goes_on_beside_a_directory_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files after it are those of the directory above it, not its own of the same names."""
    make(tmp_path, {"d/z": b"not this", "z": b"this"})
    usual, calls = os.scandir, iter((False, True, True))

    def failing(path: int) -> Iterator[os.DirEntry[str]]:
        if next(calls):  # the second is of `d`; scandir(3) takes another descriptor
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return usual(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        found = list(scan_in_order(tmp_path))
    assert [(entry.name, entry.size, entry.error is not None) for entry in found] == [("d", 0, True), ("z", 4, False)]
