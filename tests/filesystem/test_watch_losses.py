"""Watching where events don't tell all: roots that are replaced, files without names, what can't be watched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import watchdog.version

from perfkit.errors import ConfigError
from perfkit.filesystem.watch import ALL, DirtySet
from tests.support.files import make
from tests.support.tools import ENVIRONMENT, mounted, need, need_root, unavailable
from tests.support.watched import LONG_S, taken

pytestmark = pytest.mark.once


def rename(root: Path) -> None:
    root.rename(root.with_name("old"))
    make(root, {"a": b"2"})


def rename_the_parent(root: Path) -> None:
    root.parent.rename(root.parent.with_name(f"old {root.parent.name}"))
    make(root, {"a": b"2"})


def remove_and_make(root: Path) -> None:
    (root / "a").unlink()
    root.rmdir()
    make(root, {"a": b"2"})


@pytest.mark.parametrize("replace", [rename, rename_the_parent, remove_and_make])
def test_a_replaced_root(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    """It is noticed by `wait`, `flush`, and `drain` unless that needs the event; then the new one is watched.

    A new directory may get the inode number of the removed one, and then only the event of the removal tells.
    """
    for notice in ("wait", "flush", *(() if replace is remove_and_make else ("drain",))):
        root = make(tmp_path / notice / "root", {"a": b"1"})
        with DirtySet(root) as dirty:
            replace(root)
            if notice == "flush":
                dirty.flush()
            elif notice == "wait":
                assert dirty.wait(LONG_S)
            found = dirty.drain()
            while notice == "wait" and replace is remove_and_make and found is not ALL:
                assert dirty.wait(LONG_S)  # the event of the file in the root came first
                found = dirty.drain()
            assert found is ALL
            assert taken(dirty) == set()
            (root / "b").touch()
            assert taken(dirty) == {"b"}


def test_a_switched_link(tmp_path: Path) -> None:
    """A root that is a symbolic link is watched where it leads, also after it leads elsewhere."""
    one, two, current = make(tmp_path / "1", {"d/a": b"1"}), make(tmp_path / "2", {"d/a": b"2"}), tmp_path / "current"
    current.symlink_to(one)
    with DirtySet(current / "d") as deep, DirtySet(current) as dirty:
        (one / "b").touch()
        (one / "d/c").touch()
        assert taken(dirty) == {"b", "d/c"}
        assert taken(deep) == {"c"}
        (tmp_path / "new").symlink_to(two)
        (tmp_path / "new").rename(current)
        assert dirty.wait(LONG_S)
        assert deep.wait(LONG_S)
        assert dirty.drain() is ALL
        assert deep.drain() is ALL
        (two / "d/e").touch()
        assert taken(dirty) == {"d/e"}
        assert taken(deep) == {"e"}


def test_a_root_that_comes_back(tmp_path: Path) -> None:
    """While it is away, everything is dirty, again and again; a root that is renamed and renamed back is the same."""
    root = make(tmp_path / "root", {"a": b""})
    with DirtySet(root) as dirty:
        root.rename(tmp_path / "away")
        for _ in range(2):
            assert dirty.wait(LONG_S)
            assert dirty.drain() is ALL
        (tmp_path / "away").rename(root)
        assert dirty.drain() is ALL
        (root / "a").write_bytes(b"1")
        root.rename(tmp_path / "away")
        (tmp_path / "away/b").touch()
        (tmp_path / "away").rename(root)
        assert taken(dirty) == {"a", "b"}


def test_the_root_is_replaced_at_the_end(tmp_path: Path) -> None:
    """The set is complete after the block, so everything is dirty; so it is when an exception ends the block."""
    root = make(tmp_path / "root", {"a": b""})
    with DirtySet(root) as dirty:
        rename(root)
    assert dirty.drain() is ALL
    with contextlib.suppress(KeyboardInterrupt), DirtySet(root) as dirty:
        raise KeyboardInterrupt
    assert dirty.drain() is ALL
    assert dirty.drain() == set()


def test_a_file_that_stays_open(tmp_path: Path) -> None:
    """It is dirty after each write, and again once it is closed."""
    with DirtySet(tmp_path) as dirty:
        with (tmp_path / "a").open("wb", buffering=0) as file:
            assert taken(dirty) == {"a"}
            for _ in range(2):
                file.write(b"1")
                assert taken(dirty) == {"a"}
            assert taken(dirty) == set()
        assert taken(dirty) == {"a"}


def _name(fd: int, path: Path) -> None:
    directory = os.open(path.parent, os.O_DIRECTORY)
    os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=directory, follow_symlinks=True)  # thus by linkat(2)
    os.close(directory)


def test_a_file_that_gets_its_name_later(tmp_path: Path) -> None:
    """O_TMPFILE and linkat(2): what is written after it has its name is reported by this name, not by its inode."""
    make(tmp_path, {"d/other": b"", "#12": b""})
    try:
        fd = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY)
    except OSError as error:
        unavailable(f"no O_TMPFILE here: {error}")
    with DirtySet(tmp_path) as dirty:
        os.write(fd, b"1")
        assert taken(dirty) == set()
        _name(fd, tmp_path / "d/named")
        assert taken(dirty) == {"d/named"}
        os.write(fd, b"2")
        assert dirty.wait(LONG_S)
        assert taken(dirty) == {"d/named"}
        os.close(fd)
        assert taken(dirty) == {"d/named"}
        (tmp_path / "#12").write_bytes(b"3")
        assert taken(dirty) == {"#12"}
        (tmp_path / "#12").unlink()
        assert taken(dirty) == {"#12"}


def test_hard_links(tmp_path: Path) -> None:
    """A write through one name changes the others."""
    make(tmp_path, {"a": b"1", "d/e": b"", "alone": b""})
    os.link(tmp_path / "a", tmp_path / "d/b")
    with DirtySet(tmp_path) as dirty:
        (tmp_path / "d/b").write_bytes(b"2")
        assert taken(dirty) == {"a", "d/b"}


def test_a_directory_from_outside(tmp_path: Path) -> None:
    """One that is moved in is watched from then on, and so are those below it."""
    root, outside = make(tmp_path / "root", {}), make(tmp_path / "outside", {"x/y/a": b""})
    root.mkdir(exist_ok=True)
    with DirtySet(root) as dirty:
        outside.rename(root / "in")
        assert "in" in taken(dirty)
        (root / "in/x/y/a").write_bytes(b"1")
        assert taken(dirty) == {"in/x/y/a"}


def exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, relative to the current directory (AT_FDCWD)."""
    if ctypes.CDLL(None, use_errno=True).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        unavailable("the file system can't exchange two names")


def test_exchanged_directories(tmp_path: Path) -> None:
    """All is dirty then, and later changes have their right names; an exchange at the end is no error."""
    for name in ("current", "next", "one", "other"):
        make(tmp_path, {f"{name}/below/a": name.encode()})
    with DirtySet(tmp_path) as dirty:
        for _ in range(2):
            exchange(tmp_path / "current", tmp_path / "next")
            dirty.flush()
            assert dirty.drain() is ALL
            (tmp_path / "current/b").touch()
            (tmp_path / "next/below/c").touch()
            assert taken(dirty) == {"current/b", "next/below/c"}
        exchange(tmp_path / "one", tmp_path / "other")
        exchange(tmp_path / "current/below", tmp_path / "next/below")
    assert dirty.drain() is ALL


@pytest.mark.parametrize("which", range(3))
def test_a_dead_thread(tmp_path: Path, which: int) -> None:
    """When a thread of watchdog has ended, all is dirty, and a new watch begins."""
    with DirtySet(tmp_path) as dirty:
        thread = dirty._threads[which]
        thread.stop()
        thread.join()
        assert dirty.wait(LONG_S)
        assert dirty.drain() is ALL
        (tmp_path / "a").touch()
        assert taken(dirty) == {"a"}


def run_limited(limit: str, value: int, code: str, root: Path) -> None:
    """Run code with a low limit of inotify(7) in a user namespace of its own: other tests watch trees at this time.

    The code can change the limit, by writing to `limit`, and watch `root`.
    """
    need("unshare")
    script = f"""
import sys, time
from pathlib import Path
from perfkit.filesystem.watch import ALL, DirtySet
limit, root = map(Path, sys.argv[1:])
try:
    limit.write_text("{value}")
except OSError:
    sys.exit(77)
{code}
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script, f"/proc/sys/user/{limit}", root]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        unavailable("needs a user namespace, with a limit of inotify(7) of its own")
    assert done.returncode == 0, done.stderr


def test_more_directories_than_can_be_watched(tmp_path: Path) -> None:
    """All is dirty as long as that lasts, at a pace that does not keep the machine busy."""
    make(tmp_path, {f"{number}/x": b"" for number in range(20)})
    code = """
with DirtySet(root) as dirty:
    assert dirty.drain() is ALL
    began = time.monotonic()
    assert dirty.wait()
    assert time.monotonic() - began > 0.5
    assert dirty.drain() is ALL
    limit.write_text("1000")
    assert dirty.drain() is ALL
    (root / "7/x").write_bytes(b"1")
    dirty.flush(60)
    assert dirty.drain() == {"7/x"}
"""
    run_limited("max_inotify_watches", 10, code, tmp_path)


def test_too_many_watches(tmp_path: Path) -> None:
    """A typed error, and nothing is left open."""
    code = """
import os
descriptors = os.listdir("/proc/self/fd")
try:
    with DirtySet(root):
        pass
except OSError as error:
    assert "instance limit" in str(error)
else:
    raise AssertionError
assert os.listdir("/proc/self/fd") == descriptors
"""
    run_limited("max_inotify_instances", 0, code, tmp_path)


def only(allowed: int) -> Callable[[threading.Thread], None]:
    """`Thread.start` that works so many times."""
    real, left = threading.Thread.start, [None] * allowed

    def start(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        real(thread)

    return start


def test_no_watch_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more threads, an old watchdog: a typed error, and nothing is left open."""
    descriptors = os.listdir("/proc/self/fd")
    for allowed in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", only(allowed))
            with pytest.raises(OSError, match="thread"), DirtySet(tmp_path):
                pass
    monkeypatch.setattr(watchdog.version, "VERSION_INFO", (7, 0, 0))
    with pytest.raises(ConfigError, match=r"watchdog 7\.1 or newer"), DirtySet(tmp_path):
        pass
    assert os.listdir("/proc/self/fd") == descriptors


def test_an_unmounted_file_system(tmp_path: Path) -> None:
    """What it covered is in sight again."""
    make(tmp_path, {"d/a": b""})
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(tmp_path / "d", "-t", "tmpfs", "tmpfs"))
        with DirtySet(tmp_path) as dirty:
            stack.close()
            assert dirty.wait(LONG_S)
            assert dirty.drain() is ALL
            (tmp_path / "d/a").write_bytes(b"1")
            assert taken(dirty) == {"d/a"}


_UNREADABLE = """
import os, sys
from pathlib import Path
from perfkit.filesystem.watch import ALL, DirtySet
root = Path(sys.argv[1])
with DirtySet(root):
    pass  # what is imported late may be out of another user's reach
os.setgid(65534)
os.setuid(65534)
(root / "d").mkdir()
(root / "d").chmod(0)
with DirtySet(root) as dirty:
    assert dirty.drain() == set()
    (root / "d").chmod(0o700)
    assert dirty.wait(60)
    assert dirty.drain() is ALL
    (root / "d/x").touch()
    dirty.flush(60)
    assert dirty.drain() == {"d/x"}
    root.chmod(0o300)
    dirty.mark_all()
    assert dirty.drain() is ALL
    assert dirty.wait(60)
    assert dirty.drain() is ALL
    root.chmod(0o700)
    assert dirty.drain() is ALL
    (root / "y").touch()
    dirty.flush(60)
    assert dirty.drain() == {"y"}
"""


def test_a_directory_that_becomes_readable(open_path: Path) -> None:
    """It can be watched only from then on."""
    need_root("to become another user")
    (open_path / "root").mkdir()
    os.chown(open_path / "root", 65534, 65534)
    command = [sys.executable, "-c", _UNREADABLE, open_path / "root"]
    subprocess.run(command, env=ENVIRONMENT, check=True)
