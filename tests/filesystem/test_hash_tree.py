"""SHA-256 of whole trees: by this process, by the second one beside it, and what comes of the latter."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perfkit import FileChangedError
from perfkit.filesystem.hashing import small_files
from perfkit.filesystem.hashing.hash_process import HashProcess
from perfkit.filesystem.hashing.hash_tree import hash_many, hash_tree
from perfkit.filesystem.hashing.small_files import hash_small_files
from perfkit.filesystem.scan import scan

MIB = 1 << 20
FILES = 1200


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A tree that is worth a second process, with odd names and files of all kinds of sizes; and its digests."""
    root = tmp_path_factory.mktemp("large")
    right = {}
    for number in range(FILES):
        name = f"d{number % 13}/e{number % 7}/" + os.fsdecode(b"\xff\xe9 \n%d" % number)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = os.urandom(number * 37 % 4099) if number % 100 else os.urandom((256 << 10) + number // 100 - 2)
        (root / name).write_bytes(data)
        right[name] = hashlib.sha256(data).hexdigest()
    for name, size in (("empty", 0), ("whole buffer", 256 << 10), ("large", 9 * MIB), ("almost", 8 * MIB - 1)):
        (root / name).write_bytes(bytes(size))
        right[name] = hashlib.sha256(bytes(size)).hexdigest()
    os.symlink("large", root / "link")
    os.mkfifo(root / "pipe")
    return root, right


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[HashProcess]:
    """The second processes, as they are started; there are to be some even where there is one processor."""
    found: list[HashProcess] = []
    start = HashProcess.start

    def noted(root: int) -> HashProcess | None:
        hasher = start(root)
        assert hasher is not None
        found.append(hasher)
        return hasher

    monkeypatch.setattr(HashProcess, "start", noted)
    monkeypatch.setattr("perfkit.filesystem.hashing.hash_tree.usable_cpus", lambda: 2)
    return found


def is_left(hasher: HashProcess) -> bool:
    """Whether it still runs, or was not reaped."""
    try:
        os.waitid(os.P_PID, hasher.process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def test_a_large_tree_is_shared_and_every_digest_is_right(
    large: tuple[Path, dict[str, str]], started: list[HashProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process hashes some of the files, and has ended afterwards; with one processor, none is started."""
    root, right = large
    answered = 0
    answers = HashProcess.results

    def counted(self: HashProcess, *, wait: bool):  # type: ignore[no-untyped-def]
        nonlocal answered
        found = answers(self, wait=wait or not answered)
        answered += sum(len(each) for _, each in found)
        return found

    monkeypatch.setattr(HashProcess, "results", counted)
    assert {each.name: each.sha256 for each in hash_tree(root)} == right
    assert len(started) == 1
    assert answered > 100
    assert not any(map(is_left, started))
    with monkeypatch.context() as one:
        one.setattr("perfkit.filesystem.hashing.hash_tree.usable_cpus", lambda: 1)
        assert {each.name: each.sha256 for each in hash_tree(root)} == right
    assert len(started) == 1
    sizes = {each.name: (each.size, each.mtime_ns, each.ctime_ns) for each in hash_tree(root)}
    assert sizes == {e.name: (e.size, e.mtime_ns, e.ctime_ns) for e in scan(root) if e.kind == "file"}


def test_a_second_process_that_is_stopped(
    large: tuple[Path, dict[str, str]], started: list[HashProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It delays, and loses nothing: what it does not answer for is hashed here, and it is ended."""
    root, right = large
    start = HashProcess.start

    def stopped(directory: int) -> HashProcess | None:
        hasher = start(directory)
        assert hasher is not None
        os.kill(hasher.process, signal.SIGSTOP)
        return hasher

    monkeypatch.setattr(HashProcess, "start", stopped)
    monkeypatch.setattr("perfkit.filesystem.hashing.hash_process._SILENCE_S", 1)
    assert {each.name: each.sha256 for each in hash_tree(root)} == right
    assert not any(map(is_left, started))


def test_what_is_lost_is_a_result(large: tuple[Path, dict[str, str]], started: list[HashProcess]) -> None:
    """Files that vanished after the scan, and what is not a file, are results with errors; the others are hashed."""
    root, right = large
    entries = [entry for entry in scan(root) if entry.kind == "file" or entry.name == "pipe"]
    entries += [entry._replace(name=f"gone/{entry.name}") for entry in entries[:40]]
    entries.append(entries[0]._replace(name="unlisted", error=PermissionError(errno.EACCES, "no", "unlisted")))
    entries.append(entries[0]._replace(name="link"))
    found = {each.name: each for each in hash_many(root, entries)}
    assert len(found) == len(entries)
    assert {name: found[name].sha256 for name in right} == right
    wrong = {name: type(each.error) for name, each in found.items() if each.error}
    assert wrong.pop("unlisted") is PermissionError
    assert wrong.pop("pipe") is OSError
    assert wrong.pop("link") is OSError
    assert len(wrong) == 40
    assert set(wrong.values()) == {FileNotFoundError}


@pytest.mark.parametrize("after", [0, 1, 400])
def test_when_the_second_process_is_killed_the_first_does_it_all(
    large: tuple[Path, dict[str, str]], started: list[HashProcess], after: int
) -> None:
    """Killed at the start or in the middle: every file still has its digest, once."""
    root, right = large
    found = []
    for each in hash_tree(root):
        found.append(each)
        if len(found) == max(1, after):
            os.kill(started[0].process, signal.SIGKILL)
            if after == 0:  # dead and seen to be so, before the next message goes out
                os.waitid(os.P_PID, started[0].process, os.WEXITED | os.WNOWAIT)
    assert len(found) == len(right)
    assert {each.name: each.sha256 for each in found} == right
    assert not any(map(is_left, started))


@pytest.mark.parametrize("executable", [None, "", "/usr/sbin/uwsgi", "/nowhere/python3", "/proc/self/mem/python"])
def test_without_an_interpreter_to_start_it_is_done_alone(
    large: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    """Where Python is embedded, or its executable is gone, nothing is started and nothing is missing."""
    root, right = large
    monkeypatch.setattr("perfkit.filesystem.hashing.hash_tree.usable_cpus", lambda: 2)
    monkeypatch.setattr(sys, "executable", executable)
    assert {each.name: each.sha256 for each in hash_tree(root)} == right


def test_an_iterator_closed_early_leaves_no_process_and_no_descriptor(
    large: tuple[Path, dict[str, str]], started: list[HashProcess]
) -> None:
    """Closing the iterator in the middle ends the second process."""
    before = os.listdir("/proc/self/fd")
    found = hash_tree(large[0])
    next(found)
    assert started
    found.close()  # type: ignore[attr-defined]
    assert not any(map(is_left, started))
    assert os.listdir("/proc/self/fd") == before


def test_after_a_fork_both_go_on(large: tuple[Path, dict[str, str]], started: list[HashProcess]) -> None:
    """A process forked in the middle does not take the answers of its parent, and both get every digest right."""
    root, right = large
    found = hash_many(root, [entry for entry in scan(root) if entry.kind == "file"])  # a scan can't be shared
    first = next(found)
    child = os.fork()
    if child == 0:
        try:
            rest = list(found)
            ok = all(each.sha256 == right[each.name] for each in rest) and len(rest) == len(right) - 1
            os._exit(0 if ok else 1)
        except BaseException:
            os._exit(2)
    rest = {each.name: each.sha256 for each in found}
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {**rest, first.name: first.sha256} == right


_LOOP = """
import sys, time
from perfkit.filesystem.hashing import hash_tree
from perfkit.filesystem.hashing.hash_process import HashProcess
hash_tree.usable_cpus = lambda: 2
start = HashProcess.start
def noted(root):
    hasher = start(root)
    print(hasher.process, flush=True)
    return hasher
HashProcess.start = noted
found = hash_tree.hash_tree(sys.argv[1])
next(found)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_it_ends_with_its_parent(large: tuple[Path, dict[str, str]], number: int) -> None:
    """The parent is killed, or its process group interrupted: the second process ends and says nothing."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _LOOP, large[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    hasher = os.pidfd_open(int(parent.stdout.readline()))
    try:
        os.killpg(parent.pid, number)
        _, said = parent.communicate(timeout=100)
        assert said.count("Traceback") == (1 if number == signal.SIGINT else 0)
        # A descriptor of a process becomes readable when it ends.
        assert wait_readable(hasher, 10)
    finally:
        os.close(hasher)


def wait_readable(descriptor: int, seconds: float) -> bool:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


_WRITER = """
import os, sys, time
files = [os.open(f"{sys.argv[1]}/big{number}", os.O_WRONLY) for number in range(30)]
turn = 0
while True:
    turn = (turn + 1) % 4
    for file in files:
        os.pwrite(file, bytes([turn]), 0)
        os.pwrite(file, bytes([turn]), (2 << 20) - 1)
        time.sleep(0.0005)  # no file twice within a tick of the kernel's clock: the times would show no change
    print(turn, flush=True)
"""


@pytest.mark.once
def test_files_that_change_during_the_scan_never_get_a_wrong_digest(tmp_path: Path, started: list[HashProcess]) -> None:
    """Another process changes the first and then the last byte of files, as they are read: no digest mixes the two.

    What the file never had is an end that is ahead of its beginning: the beginning as it was before, the end after.
    """
    for number in range(300):
        (tmp_path / f"small{number}").write_bytes(b"x")
    for number in range(30):
        (tmp_path / f"big{number}").write_bytes(bytes(2 * MIB))
    states = {
        hashlib.sha256(bytes([first]) + bytes(2 * MIB - 2) + bytes([last])).hexdigest(): (first, last)
        for first in range(4)
        for last in range(4)
    }
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        for _ in range(8):
            writer.stdout.readline()
            for each in hash_tree(tmp_path):
                if each.error is not None:
                    assert isinstance(each.error, FileChangedError)
                elif each.size > 1:
                    first, last = states[str(each.sha256)]
                    assert (first - last) % 4 in (0, 1), each
    finally:
        writer.kill()
        writer.communicate()
    assert len(started) == 8


@pytest.mark.parametrize("change", ["shrink", "grow", "rewrite"])
def test_a_change_between_two_reads_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """A file that is cut, grows or is rewritten after its first bytes were read has no digest here."""
    path = tmp_path / "f"
    path.write_bytes(bytes(MIB))
    readv, turn = os.readv, 0

    def changing(file: int, into: list[memoryview]) -> int:
        nonlocal turn
        turn += 1
        if turn == 2:
            if change == "rewrite":
                with path.open("r+b") as other:
                    other.write(b"x")
            else:
                os.truncate(path, {"shrink": 300_000, "grow": 2 * MIB}[change])
        return readv(file, into)

    monkeypatch.setattr(small_files, "readv", changing)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert hash_small_files(directory, ["f"], memoryview(bytearray(256 << 10))) == [None]
        assert turn > 1
    finally:
        os.close(directory)
