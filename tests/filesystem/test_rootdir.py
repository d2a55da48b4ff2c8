"""File operations confined to one directory: names that lead out, and directories however deep."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit import UnsafePathError
from perfkit.filesystem import rootdir
from perfkit.filesystem.rootdir import RootDir
from tests.support.files import free_descriptors
from tests.support.interrupts import interrupted

NOT_PLAIN = ["..", "../out", "a/../../out", ".", "a/./b", "a//b", "a/", "/etc", "//etc", "a\0b", "a\0/b"]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[RootDir]:
    (tmp_path / "root").mkdir()
    rootdir = RootDir(str(tmp_path / "root"))
    yield rootdir
    rootdir.close()
    subprocess.run(["rm", "-rf", rootdir.root], check=True)  # shutil.rmtree, and so pytest, recurses


def write(root: RootDir, name: str, data: bytes) -> None:
    with open(root.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)


def read(root: RootDir, name: str) -> bytes:
    with open(root.open(name), "rb") as file:
        return file.read()


def make_directories(root: RootDir, leaf: str, levels: int) -> str:
    """A directory so deep; returns its name."""
    name = leaf
    for _ in range(levels):
        root.mkdir(name)
        name += f"/{leaf}"
    return name.rpartition("/")[0]


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_names_that_are_not_plain_are_refused(root: RootDir, tmp_path: Path, name: str) -> None:
    """Whatever the operation: nothing is created, renamed or deleted, inside or outside."""
    root.mkdir("a")
    write(root, "file", b"in")
    (tmp_path / "out").write_bytes(b"out")
    for operation in (root.lstat, root.open, root.mkdir, root.rmdir, root.unlink, root.listdir, root.directory):
        with pytest.raises(UnsafePathError):
            operation(name)
    for operation in (root.rename, root.link):
        with pytest.raises(UnsafePathError):
            operation("file", name)
        with pytest.raises(UnsafePathError):
            operation(name, "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "out", "root"]
    assert (tmp_path / "out").read_bytes() == b"out"


def test_two_names_deeper_than_the_cache(root: RootDir) -> None:
    """No descriptor is used after it was closed: between deep directories the right files are renamed and linked."""
    one, other = (make_directories(root, leaf, 150) for leaf in "ab")
    write(root, f"{one}/file", b"of a")
    write(root, f"{other}/file", b"of b")
    root.rename(f"{one}/file", f"{other}/moved")
    root.link(f"{other}/file", f"{one}/linked")
    assert read(root, f"{other}/moved") == b"of a"
    assert read(root, f"{one}/linked") == b"of b"
    assert root.listdir(one) == ["linked"]
    assert sorted(root.listdir(other)) == ["file", "moved"]


def test_a_thousand_levels(root: RootDir) -> None:
    """No recursion limit, a bounded number of descriptors, and none left open."""
    before = len(os.listdir("/proc/self/fd"))
    deep = make_directories(root, "d", 1100)
    write(root, f"{deep}/file", b"deep")
    root.close_cached()
    assert read(root, f"{deep}/file") == b"deep"
    assert len(os.listdir("/proc/self/fd")) <= before + 128
    assert root.unlink(f"{deep}/file")
    while deep:
        assert root.rmdir(deep)
        deep = deep.rpartition("/")[0]
    root.close_cached()
    assert len(os.listdir("/proc/self/fd")) == before


def test_deep_names_with_few_descriptors(root: RootDir) -> None:
    """Where the process may open few files, descriptors in use stay open while others are closed."""
    one, other = (make_directories(root, leaf, 100) for leaf in "ab")
    write(root, f"{one}/file", b"of a")
    root.close_cached()
    with free_descriptors(4):
        root.rename(f"{one}/file", f"{other}/file")
        assert read(root, f"{other}/file") == b"of a"
        assert root.listdir(other) == ["file"]


def test_missing_directories_are_looked_for_once(
    root: RootDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a block that says so; a directory that is created there counts from then on, and all others after it."""
    opened: list[str] = []
    real = os.open

    def counted(path: str, *args: int, **options: int) -> int:
        opened.append(path)
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", counted)
    with root.remember_missing():
        assert [root.lstat(f"new/below/{number}") for number in range(3)] == [None] * 3
        assert opened == ["new"]
        assert root.lstat("newer") is None
        root.mkdir("new")
        (tmp_path / "root/new/file").touch()
        assert root.lstat("new/file") is not None
        assert root.lstat("other/file") is None
        (tmp_path / "root/other").mkdir()
        (tmp_path / "root/other/file").touch()
    assert root.lstat("other/file") is not None


def test_closing_again_completes_what_an_interrupt_ended(tmp_path: Path) -> None:
    """It never closes a descriptor twice: meanwhile another thread may have got the same number."""
    for number in itertools.count(1):
        root = RootDir(tmp_path)
        came = interrupted(root.close, (rootdir,), number)
        root.close()
        if not came:
            break
    assert number > 3
