"""Publishing again when files change: real edits, seen by the kernel; only they are read again."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import Release, Toolkit, UnsafePathError
from perfkit.libc import is_being_written
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish.on_change import publish_on_change
from perfkit.releases.publish.source_tree import SourceTree
from perfkit.server.server import Server
from tests.support.files import make
from tests.support.signing import OLD
from tests.support.trees import tree_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_hear)


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths of all files that are opened inside the block."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    for number in range(30):
        path = src / f"d{number % 3}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(2000))
    return src


@pytest.fixture
def releases(src: Path, tmp_path: Path) -> Iterator[Iterator[Release]]:
    """The releases as they are made; ended after the test."""
    with contextlib.closing(publish_on_change(str(src), str(tmp_path / "site"), version="r{n}", quiet_s=0.05)) as made:
        yield made


def test_a_release_that_expires_is_renewed(src: Path, tmp_path: Path) -> None:
    """Though nothing changes, and without another release."""
    pointer = tmp_path / "site/perfkit.json"
    options: dict[str, Any] = {"version": "r{n}", "expires_s": 1, "quiet_s": 0.01, "sign_keys": [OLD]}
    with contextlib.closing(publish_on_change(str(src), str(tmp_path / "site"), **options)) as made:
        next(made)
        first = Pointer.parse(pointer.read_bytes())
        threading.Thread(target=change_when_renewed, args=(pointer, src / "d0/f3")).start()
        assert next(made).version == "r2"
    assert Pointer.parse(pointer.read_bytes()).expires_s > first.expires_s
    assert len(list((tmp_path / "site/objects").glob("*.minisig"))) >= 3


def change_when_renewed(pointer: Path, path: Path) -> None:
    """Change a file when the pointer was replaced."""
    before, deadline_s = pointer.read_bytes(), time.monotonic() + 100
    while pointer.read_bytes() == before and time.monotonic() < deadline_s:
        time.sleep(0.01)
    path.write_bytes(b"edited")


def test_edits_are_published(kit: Toolkit, src: Path, tmp_path: Path, releases: Iterator[Release]) -> None:
    """Changed, new, moved and removed files, with a client that follows; the other files are not read."""
    first = next(releases)
    assert (first.version, first.files) == ("r1", 30)
    with Server(tmp_path / "site") as server:
        kit.sync(server.url, tmp_path / "tree")
        (src / "d0/f3").write_bytes(b"edited")
        with opened_files() as opened:
            second = next(releases)
        read = {os.path.relpath(path, src) for path in opened if path.startswith(str(src))}
        assert {name for name in read if name.rpartition("/")[2].startswith("f")} == {"d0/f3"}
        assert (second.version, second.number, second.files, second.deltas) == ("r2", 2, 30, 1)
        os.rename(src / "d1", src / "moved")
        (src / "d2/f2").unlink()
        (src / "new1").write_bytes(b"new")
        (src / "new2").write_bytes(b"new")
        while len(tree_of(src)) != (third := next(releases)).files:
            pass  # the changes may come in several
        assert third.version.startswith("r")
        report = kit.sync(server.url, tmp_path / "tree")
        assert report.version == third.version
        assert tree_of(tmp_path / "tree") == tree_of(src)


def test_what_cannot_be_published_waits(
    src: Path, releases: Iterator[Release], caplog: pytest.LogCaptureFixture
) -> None:
    """A link is logged as a warning; once it is removed, the edits made with it are published."""
    next(releases)
    (src / "d0/f0").write_bytes(b"edited")
    (src / "link").symlink_to("/etc/passwd")
    handler = _Unlink(src / "link")
    caplog.handler.addFilter(handler)
    second = next(releases)
    assert handler.seen
    assert second.files == 30
    assert "unsafe name 'link'" in caplog.text


class _Unlink:
    """Removes a file when the log names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = False

    def filter(self, record: object) -> bool:
        self.seen = True
        self.path.unlink(missing_ok=True)
        return True


def test_a_file_is_published_when_it_is_closed(src: Path, releases: Iterator[Release]) -> None:
    """Others are published meanwhile, without it if it is new, and with its earlier content if it is not."""
    with (src / "d0/f0").open("wb", buffering=0) as changed, (src / "new").open("wb", buffering=0) as new:
        first = next(releases)
        assert first.files == 29
        new.write(b"half")
        changed.write(b"x" * 1000)
        (src / "other").write_bytes(b"1")
        second = next(releases)
        assert (second.files, second.bytes) == (30, first.bytes + 1)
        new.write(b"whole")
    while (third := next(releases)).files != 32:
        pass  # the two files are closed one after the other
    assert third.bytes == second.bytes + 1000 + len(b"halfwhole")
    with (src / "d0/f0").open("ab", buffering=0) as file:
        file.write(b"more")
        (src / "other").write_bytes(b"22")
        assert next(releases).bytes == third.bytes + 1
    assert next(releases).bytes == third.bytes + 1 + len(b"more")


def test_a_mapped_file_is_being_written(tmp_path: Path) -> None:
    """Also when its descriptor is closed; and not when it is only mapped for reading."""
    path = tmp_path / "a"
    path.write_bytes(b"1" * 4096)
    with path.open("rb") as file:
        assert not is_being_written(file.fileno())
        with path.open("r+b") as other:
            assert is_being_written(file.fileno())
            mapping = mmap.mmap(other.fileno(), 0)
        assert is_being_written(file.fileno())
        mapping.close()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            assert not is_being_written(file.fileno())


def test_asking_whether_a_file_is_written_disturbs_no_writer(tmp_path: Path) -> None:
    """A process that opens it for writing at that moment waits for an instant; no signal ends this one."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    command = f"import sys\nfor _ in range(20000): open({str(path)!r}, 'ab').close()"
    with subprocess.Popen([sys.executable, "-c", command]) as writer, path.open("rb") as file:
        while writer.poll() is None:
            is_being_written(file.fileno())
    assert writer.returncode == 0


@pytest.mark.parametrize("how", ["renamed", "switched"])
def test_the_root_is_replaced(tmp_path: Path, how: str) -> None:
    """The files of the new root are published, and later changes of these."""
    one, two, src = make(tmp_path / "1", {"a": b"1"}), make(tmp_path / "2", {"a": b"22", "b": b""}), tmp_path / "src"
    if how == "switched":
        src.symlink_to(one)
    else:
        one.rename(src)
    site = str(tmp_path / "site")
    with contextlib.closing(publish_on_change(str(src), site, version="r{n}", quiet_s=0.05)) as releases:
        assert next(releases).files == 1
        if how == "switched":
            (tmp_path / "new").symlink_to(two)
            (tmp_path / "new").rename(src)
        else:
            src.rename(tmp_path / "old")
            two.rename(src)
        assert next(releases).files == 2
        (src / "c").write_bytes(b"3")
        assert next(releases).files == 3


def test_the_first_release_must_do(src: Path, tmp_path: Path) -> None:
    """Its errors are raised."""
    (src / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafePathError):
        next(publish_on_change(str(src), str(tmp_path / "site"), version="1"))


def test_hashing_some_names_gives_the_same_as_hashing_all(tmp_path: Path) -> None:
    """Files, directories, what is gone, what became something else, and what is left out."""
    for name in ("a", "d/b", "d/c", "e/f", "skip/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    tree, whole = (SourceTree(str(tmp_path), ("skip", "*.bak")) for _ in range(2))
    tree.read_all()
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "d/b").unlink()
    (tmp_path / "d/c").unlink()
    (tmp_path / "d").rmdir()
    (tmp_path / "d").write_bytes(b"a file now")
    (tmp_path / "e/f").unlink()
    (tmp_path / "e/f").mkdir()
    (tmp_path / "e/f/g").write_bytes(b"")
    (tmp_path / "e/f/g.bak").write_bytes(b"")
    tree.read({"a", "d", "d/b", "e/f", "e/f/g", "skip/x", "skip", "gone", "e/f/g.bak"})
    whole.read_all()
    assert tree.manifest == whole.manifest
    assert list(whole.manifest.names()) == ["a", "d", "e/f/g"]


def test_the_command_line_watches_until_ctrl_c(src: Path, tmp_path: Path) -> None:
    """One JSON object for each release; a SIGINT ends it without a trace."""
    command = [
        sys.executable,
        "-m",
        "perfkit",
        "publish",
        src,
        tmp_path / "site",
        "--version",
        "r{n}",
        "--watch",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["version"] == "r1"
        (src / "d0/f0").write_bytes(b"edited")
        assert json.loads(process.stdout.readline())["version"] == "r2"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=100)
    assert (process.returncode, out, errors) == (130, "", "")
    assert not [path for path in src.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("options", [(), ("--watch",)])
def test_ctrl_c_while_it_compresses(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Frames of 16 MiB, which take seconds each: the command does not wait for them, and leaves nothing."""
    words = [os.urandom(4).hex() for _ in range(3000)]
    text = " ".join(random.choices(words, k=1_000_000)).encode()
    make(tmp_path / "src", {f"{number}.txt": b"%d" % number + text for number in range(6)})
    command = [sys.executable, "-m", "perfkit", "publish", tmp_path / "src", tmp_path / "site", "--version", "1"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(tmp_path.glob("site/objects/.*")))  # it has begun to write
        hashed_s = _processor_s(process.pid)
        wait_until(lambda: _processor_s(process.pid) >= hashed_s + 0.2, process)
        before = _processor_s(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 130
    assert used.ru_utime + used.ru_stime < before + 3  # the frames that were begun take more
    assert not list(tmp_path.glob("site/objects/.*"))


def _processor_s(pid: int) -> float:
    """The time that a process has used; proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
