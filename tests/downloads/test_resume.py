"""Downloads whose process dies: what is there is kept, only what is missing is fetched, and versions never mix."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit, TransferError
from perfkit.downloads import resume_journal
from perfkit.downloads.partial_file import PartialFile, part_path
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.partial_files import held
from tests.support.waiting import wait_until
from tests.support.warm import Program, WarmPython

BODY = random.Random(11).randbytes(4 << 20)
OTHER = random.Random(12).randbytes(4 << 20)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

COMPARED = 64 << 10  # of what is there, that is fetched again to see whether it is the same

PROGRAM = """
import sys
from perfkit import Config, Toolkit
with Toolkit(Config(workers=4, adaptive=False, min_segment_bytes=64 << 10, buffer_bytes=16 << 10)) as kit:
    kit.download(sys.argv[1], sys.argv[2])
"""


class Origin:
    """Serves one version slowly, then, once `free`, at full speed; counts the body bytes it sends."""

    def __init__(self) -> None:
        self.body, self.etag, self.free, self.sent = BODY, '"v1"', False, 0

    def __call__(self, x: Exchange) -> None:
        body, (start, end) = self.body, x.asked.range or (0, None)
        if x.asked.headers.get("if-match", self.etag) != self.etag:
            return x.respond("412 Precondition Failed")
        if x.asked.headers.get("if-range", self.etag) != self.etag:
            start, end = 0, None
        if x.asked.range is None or x.asked.headers.get("if-range", self.etag) != self.etag:
            x.head("200 OK", Content_Length=str(len(body)), ETag=self.etag)
        else:
            end = end or len(body)
            x.head(
                "206 Partial Content",
                Content_Length=str(end - start),
                ETag=self.etag,
                Content_Range=f"bytes {start}-{end - 1}/{len(body)}",
            )
        for at in range(start, end or len(body), 16 << 10):
            piece = body[at : min(at + (16 << 10), end or len(body))]
            x.send(piece)
            self.sent += len(piece)
            if not self.free and x.server.stopped.wait(0.025):
                return None
        return None


def kill_when(warm: WarmPython, url: str, dest: Path, least: int) -> int:
    """Run a download in a process of its own; `kill -9` when so much is in its journal. Says how much that was."""
    process = warm.start("-c", PROGRAM, url, dest)
    try:
        wait_until(lambda: held(dest) >= least, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return held(dest)


@pytest.mark.once
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_kill_9_in_the_middle(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, share: float, warm_python: WarmPython
) -> None:
    """Only what the journal does not have is fetched, and the result is right."""
    origin, dest = Origin(), tmp_path / "file"
    server = misbehaving(origin)
    kept = kill_when(warm_python, f"{server.url}/file", dest, int(len(BODY) * share))
    assert not dest.exists()
    origin.free, count = True, len(server.requests)
    # With more, a range that is split under way is read a buffer past its new end.
    download = make_kit(segments=1).download(f"{server.url}/file", dest, checksum=SHA256)
    assert dest.read_bytes() == BODY
    assert download.resumed_from == kept - COMPARED
    assert download.bytes_received == len(BODY) - kept + COMPARED
    assert all(each.range and each.range[0] > 0 for each in server.requests[count:] if kept)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.once
def test_killed_twice(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, warm_python: WarmPython) -> None:
    """The second run adds to what the first left."""
    origin, dest = Origin(), tmp_path / "file"
    server = misbehaving(origin)
    first = kill_when(warm_python, f"{server.url}/file", dest, len(BODY) // 8)
    second = kill_when(warm_python, f"{server.url}/file", dest, first + len(BODY) // 8)
    origin.free = True
    assert make_kit().download(f"{server.url}/file", dest).resumed_from == second - COMPARED
    assert dest.read_bytes() == BODY


def test_a_file_that_changed_in_between(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, warm_python: WarmPython
) -> None:
    """Never stitched together: everything comes from the new version."""
    origin, dest = Origin(), tmp_path / "file"
    server = misbehaving(origin)
    kill_when(warm_python, f"{server.url}/file", dest, len(BODY) // 4)
    origin.body, origin.etag, origin.free = OTHER, '"v2"', True
    assert make_kit().download(f"{server.url}/file", dest).resumed_from == 0
    assert dest.read_bytes() == OTHER


def leave_half(kit: Toolkit, server: MisbehavingServer, dest: Path) -> Path:
    """A first run, cut at half; returns its journal."""
    with pytest.raises(TransferError):
        kit.download(f"{server.url}/file", dest)
    return dest.parent / f"{dest.name}.perfkit-part.json"


def cut_first(x: Exchange) -> None:
    if x.number > 1:
        return x.serve(BODY)
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[: len(BODY) // 2])
    return x.hang_up()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"null",
        lambda text: b"\xff\xfe\0",
        lambda text: b"[" * 100_000,
        lambda text: text.replace(b'"format": 4', b'"format": 99'),
        lambda text: text.replace(b'"v1"', b'"v0"').replace(b'\\"v1\\"', b'\\"v0\\"'),
        lambda text: text.replace(b'"size": 4194304', b'"size": 1'),
        lambda text: text.replace(b'"done": [[0', b'"done": [[-5'),
        lambda text: text.replace(b'"done": [[0', b'"done": [[9999999, 99999999], [0'),
        lambda text: text.replace(b'"done": [[0', b'"done": [["x"'),
        lambda text: text.replace(b'"source": "', b'"source": "0'),
        lambda text: text.replace(b'"boot": "', b'"boot": "another-'),
    ],
)
def test_a_journal_that_can_not_be_trusted(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Damaged, of another file, of another format, or from before a reboot: nothing of it is used."""
    server, dest = misbehaving(cut_first), tmp_path / "file"
    journal = leave_half(make_kit(retries=0, workers=1), server, dest)
    text = journal.read_bytes()
    assert change(text) != text
    journal.write_bytes(change(text))
    make_kit().download(f"{server.url}/file", dest)
    assert dest.read_bytes() == BODY
    assert os.listdir(tmp_path) == ["file"]


def test_only_what_is_durable_counts_if_boots_are_not_known(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc, in some containers: there may have been a power cut."""
    monkeypatch.setattr(resume_journal, "boot_id", lambda: "")
    server, dest = misbehaving(cut_first), tmp_path / "file"
    leave_half(make_kit(retries=0, workers=1), server, dest)
    assert make_kit().download(f"{server.url}/file", dest).resumed_from == 0
    assert dest.read_bytes() == BODY


def test_a_partial_file_cut_under_its_journal(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """The journal speaks of bytes that are not there: start over."""
    server, dest = misbehaving(cut_first), tmp_path / "file"
    leave_half(make_kit(retries=0, workers=1), server, dest)
    os.truncate(tmp_path / "file.perfkit-part", 1000)
    assert make_kit().download(f"{server.url}/file", dest).resumed_from == 0
    assert dest.read_bytes() == BODY


def test_what_is_kept_and_what_is_not(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Kept where it can be resumed, unless the caller wants none kept, or the error is final."""

    def then_gone(x: Exchange) -> None:
        cut_first(x) if x.number == 1 else x.respond("404 Not Found")

    cases = [(cut_first, {}, True), (cut_first, {"keep_partial": False}, False)]
    for number, (handler, options, kept) in enumerate(cases):
        dest = tmp_path / f"{number}"
        leave_half(make_kit(retries=0, workers=1, **options), misbehaving(handler), dest)
        assert (tmp_path / f"{number}.perfkit-part").exists() == kept
    leave_half(make_kit(retries=2, workers=1), misbehaving(then_gone), tmp_path / "final")
    assert not (tmp_path / "final.perfkit-part").exists()


@pytest.fixture
def other_process(misbehaving: Start, tmp_path: Path, warm_python: WarmPython) -> Iterator[tuple[Origin, str, Program]]:
    """A slow origin, the URL of its file, and a process that is downloading it to `file`."""
    origin = Origin()
    url = f"{misbehaving(origin).url}/file"
    process = warm_python.start("-c", PROGRAM, url, tmp_path / "file")
    try:
        wait_until(lambda: held(tmp_path / "file"), process)
        yield origin, url, process
    finally:
        process.kill()
        process.wait()


def test_two_processes_one_destination(
    make_kit: MakeKit, other_process: tuple[Origin, str, Program], tmp_path: Path
) -> None:
    """The second waits, and finds the file there."""
    origin, url, process = other_process

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            origin.free |= "waits for another process" in record.getMessage()

    log, handler = logging.getLogger("perfkit.downloads.transfer"), Waits()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        download = make_kit().download(url, tmp_path / "file", checksum=SHA256)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert origin.free
    assert (download.unchanged, download.bytes_received) == (True, 0)
    assert (tmp_path / "file").read_bytes() == BODY
    assert process.wait(100) == 0


def test_another_process_that_is_done_just_now(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It published the file after the look for one: it is found nevertheless, and not fetched again."""
    create, dest = PartialFile.create, tmp_path / "file"

    def after_the_other(partial: PartialFile, size: int | None) -> None:
        dest.write_bytes(BODY)
        create(partial, size)

    monkeypatch.setattr(PartialFile, "create", after_the_other)
    server = misbehaving(lambda x: x.serve(BODY))
    download = make_kit().download(f"{server.url}/file", dest, checksum=SHA256)
    assert (download.unchanged, download.requests) == (True, 1)
    assert os.listdir(tmp_path) == ["file"]


def test_another_process_that_hangs(
    make_kit: MakeKit, other_process: tuple[Origin, str, Program], tmp_path: Path
) -> None:
    """It is not waited for."""
    _, url, process = other_process
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{process.program}/stat").read_text().rpartition(") ")[2].startswith("T"))
    os.utime(part_path(str(tmp_path / "file")), (time.time() - 1000,) * 2)
    with pytest.raises(TransferError, match=r"another process is downloading to .* nothing for 1\d{3} s"):
        make_kit().download(url, tmp_path / "file")
