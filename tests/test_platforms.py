"""Without the system calls that only Linux or CPython has, everything works or says why not."""

from __future__ import annotations

import builtins
import errno
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import perfkit
from perfkit import Config, ConfigError, Toolkit, libc
from perfkit.filesystem.batch.copyfile import copy_file
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.rootdir import closing_fd
from tests.support.sites import Origin
from tests.support.trees import tree_of

FILES = {f"d{number % 3}/{number}": b"%d " % number * 300 for number in range(300)}  # enough for a second process
LATER = {**FILES, "d0/0": b"changed"}

# What macOS lacks, as typeshed has it (mypy --platform darwin), and PyPy: names of modules, which are taken away. File
# systems say there that they have no hard links with ENOTSUP, which is another number than EOPNOTSUPP.
_WITHOUT = """
import errno, fcntl, gc, mmap, os, socket, sys
errno.EOPNOTSUPP = 102
def refuse(*arguments, **options):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
os.link = refuse
for module, names in {
    os: "O_PATH copy_file_range fdatasync getxattr setxattr listxattr sched_getaffinity posix_spawn POSIX_SPAWN_DUP2 "
        "POSIX_SPAWN_OPEN SEEK_DATA SEEK_HOLE posix_fadvise posix_fallocate memfd_create pidfd_open splice O_TMPFILE",
    fcntl: "F_SETLEASE F_GETLEASE F_SETSIG F_GETSIG F_NOTIFY F_SETPIPE_SZ",
    socket: "MSG_NOSIGNAL TCP_INFO TCP_WINDOW_CLAMP TCP_USER_TIMEOUT TCP_QUICKACK TCP_KEEPIDLE AF_NETLINK",
    gc: "get_threshold set_threshold callbacks freeze",
    mmap: "MAP_POPULATE",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
from perfkit import libc
libc._function = lambda name: None  # renameat2, statx, syncfs, malloc_trim
import runpy
sys.argv[0] = "perfkit"
runpy.run_module("perfkit", run_name="__main__")
"""


@pytest.mark.once
def test_without_what_only_linux_has(origin: Origin, tmp_path: Path) -> None:
    """Publish, sync, update, roll back, verify and get."""

    def run(*arguments: object) -> None:
        command = [sys.executable, "-c", _WITHOUT, *map(str, arguments), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

    tree, source = tmp_path / "tree", tmp_path / "source"
    for version, files in (("1", FILES), ("2", LATER)):
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        run("publish", source, origin.site, "--version", version)
        run("sync", origin.url, tree)
        assert tree_of(tree) == files
    run("rollback", tree)
    assert tree_of(tree) == FILES
    run("verify", tree)
    run("get", "-d", tmp_path / "got", f"{origin.url}/perfkit.json")
    assert (tmp_path / "got/perfkit.json").read_bytes() == (origin.site / "perfkit.json").read_bytes()


def test_a_new_name_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT on macOS; what has the name stays."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "source").write_bytes(b"new")
    monkeypatch.setattr(libc, "_function", lambda name: None)
    monkeypatch.setattr(libc, "link", mock.Mock(side_effect=OSError(errno.ENOTSUP, "no hard links")))
    with pytest.raises(FileExistsError):
        libc.rename_to_new(str(tmp_path / "source"), str(tmp_path / "old"))
    libc.rename_to_new(str(tmp_path / "source"), str(tmp_path / "new"))
    assert tree_of(tmp_path) == {"old": b"old", "new": b"new"}


@pytest.mark.parametrize("known", [True, False])
def test_the_boot_without_proc(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """By sysctlbyname(3) of macOS."""

    def sysctlbyname(name: bytes, found: Any, *_: object) -> int:
        found.value = b"8D5B2A5C" if known else b""
        return 0 if known else -1

    monkeypatch.setattr(builtins, "open", mock.Mock(side_effect=FileNotFoundError))
    monkeypatch.setattr(libc, "_function", {"sysctlbyname": sysctlbyname}.get)
    assert libc.boot_id.__wrapped__() == ("8D5B2A5C" if known else "")


def test_a_link_opened_as_macos_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_NOFOLLOW comes before O_DIRECTORY there."""

    def open_there(path: Any, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_NOFOLLOW and os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return os_open(path, flags, *arguments, **options)

    os_open = os.open
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(os, "open", open_there)
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "link")


@pytest.mark.parametrize("size", [0, 300, 3_000_000])
def test_copies_without_a_call_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Through a buffer, holes included."""
    for name in ("copy_file_range", "SEEK_DATA"):
        monkeypatch.delattr(os, name, raising=False)
    with (tmp_path / "f").open("wb") as file:
        file.write(b"begin"[:size])
        file.truncate(size)
    assert copy_file(str(tmp_path / "f"), str(tmp_path / "copy")) in ("copy", "reflink")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "f").read_bytes()


def test_only_bytes_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPy's `struct` takes no array of ctypes."""

    def unpack_from(form: str, data: bytes, offset: int = 0) -> tuple[Any, ...]:
        assert isinstance(data, bytes)
        return struct.unpack_from(form, data, offset)

    monkeypatch.setattr(libc, "struct", SimpleNamespace(unpack_from=unpack_from))
    with closing_fd(os.open(tmp_path, os.O_RDONLY)) as directory:
        assert libc.file_attributes(directory) >= 0
        assert libc.inherited_project(directory) >= 0


def test_watching_needs_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do instead."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with (
        Toolkit(Config()) as kit,
        pytest.raises(ConfigError, match=r"inotify.*only Linux.*scan or sync"),
        kit.watch(tmp_path),
    ):
        pass


def test_windows_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the import, before one of a module that Windows lacks."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert perfkit.__file__ is not None
    with pytest.raises(ImportError, match=r"^perfkit runs on Linux and macOS; on Windows, use it in WSL"):
        runpy.run_path(perfkit.__file__)
