"""Parts of a file (`Request.byte_range`): exactly these bytes, or an error that says why not."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import BatchError, ConfigError, Download, HTTPStatusError, IntegrityError, Request, Toolkit, TransferError
from tests.support.fakes import Exchange, MisbehavingServer

BODY = random.Random(8).randbytes(2 << 20)
PART = (300_001, 1_500_001)

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def fetch(
    kit: Toolkit, server: MisbehavingServer, out: Path, part: tuple[int, int] = PART, **options: object
) -> Download:
    """One part, to `out/part`; the error is raised as such."""
    request = Request(f"{server.url}/pack", "part", byte_range=part, **options)  # type: ignore[arg-type]
    (_, download), *_ = list(kit.iter_downloads([request], out))
    if download.error is not None:
        raise download.error
    assert download.bytes == part[1] - part[0]
    return download


def assert_fails(
    kit: Toolkit, server: MisbehavingServer, out: Path, match: str, part: tuple[int, int] = PART, **options: object
) -> TransferError:
    """A typed error; the old file stays, and nothing else does."""
    (out / "part").write_bytes(b"old")
    with pytest.raises(TransferError, match=match) as caught:
        fetch(kit, server, out, part, **options)
    assert (out / "part").read_bytes() == b"old"
    assert os.listdir(out) == ["part"]
    return caught.value


@pytest.mark.parametrize("part", [(0, 1), (0, 1000), (1000, 1001), PART, (2_000_000, len(BODY)), (0, len(BODY))])
def test_exactly_these_bytes(kit: Toolkit, misbehaving: Start, tmp_path: Path, part: tuple[int, int]) -> None:
    """In one stream or several; nothing else is requested."""
    server = misbehaving(lambda x: x.serve(BODY))
    download = fetch(kit, server, tmp_path, part, checksum=sha256(BODY[slice(*part)]))
    assert (tmp_path / "part").read_bytes() == BODY[slice(*part)]
    assert os.listdir(tmp_path) == ["part"]
    assert download.bytes_received == part[1] - part[0] or download.segments > 1
    assert all(part[0] <= each.range[0] and each.range[1] <= part[1] for each in server.requests if each.range)
    assert server.requests[0].range == part


def test_a_large_part_comes_in_segments(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Idle workers take from it as from a whole file."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(4), pause_at=0))
    assert fetch(kit, server, tmp_path, checksum=sha256(BODY[slice(*PART)])).segments == 4
    assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]
    assert len({each.range for each in server.requests}) >= 4


def test_many_parts_of_one_file_at_once(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Parts under different names do not disturb each other."""
    server = misbehaving(lambda x: x.serve(BODY))
    cuts = sorted({0, len(BODY), *random.Random(3).sample(range(len(BODY)), 40)})
    parts = list(itertools.pairwise(cuts))
    kit.download_many((Request(f"{server.url}/pack", f"{part[0]}", byte_range=part) for part in parts), tmp_path)
    assert b"".join((tmp_path / f"{start}").read_bytes() for start, _ in parts) == BODY
    assert len(os.listdir(tmp_path)) == len(parts)


def test_the_checksum_is_that_of_the_part(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """And a Repr-Digest, which is of the whole file, is not checked against it."""
    digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    server = misbehaving(lambda x: x.serve(BODY, Repr_Digest=f"sha-256=:{digest}:"))
    assert fetch(kit, server, tmp_path).checksum is None
    (tmp_path / "part").unlink()
    with pytest.raises(IntegrityError):
        fetch(kit, server, tmp_path, checksum=sha256(BODY))
    assert os.listdir(tmp_path) == []


def test_a_part_that_is_there_is_not_requested(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """By its checksum; without one it is fetched anew, and no condition of the whole file is asked."""
    server = misbehaving(lambda x: x.serve(BODY))
    kit.download(f"{server.url}/pack", tmp_path / "part")  # the whole file, with its origin noted
    fetch(kit, server, tmp_path)
    assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]
    fetch(kit, server, tmp_path)
    assert not any("if-none-match" in each.headers for each in server.requests)
    count = len(server.requests)
    assert fetch(kit, server, tmp_path, checksum=sha256(BODY[slice(*PART)])).unchanged
    assert len(server.requests) == count
    kit.download(f"{server.url}/pack", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY


# -- servers that can't ----------------------------------------------------------------------------------------------


def test_a_server_without_ranges(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A 200 is refused unread: its body may be huge."""
    sent = 0

    def handler(x: Exchange) -> None:
        nonlocal sent
        x.head("200 OK", Content_Length=str(1 << 40), ETag='"v1"')
        while True:  # until the client hangs up
            x.send(BODY)
            sent += len(BODY)

    server = misbehaving(handler)
    assert_fails(kit, server, tmp_path, "ignores ranges")
    assert len(server.requests) == 1
    assert sent < 64 << 20


def test_a_whole_file_is_a_part_too(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A 200 whose body is exactly the requested bytes is right."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY))
    fetch(kit, server, tmp_path, (0, len(BODY)))
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_mirror_with_ranges_helps(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    origin, mirror = misbehaving(lambda x: x.respond("200 OK", BODY)), misbehaving(lambda x: x.serve(BODY))
    fetch(kit, origin, tmp_path, mirrors=(f"{mirror.url}/pack",))
    assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]


@pytest.mark.parametrize("length", [0, 1, PART[0], PART[0] + 1, PART[1] - 1])
def test_a_file_that_is_too_short(kit: Toolkit, misbehaving: Start, tmp_path: Path, length: int) -> None:
    """416, or a 206 with a smaller total: the error says so, after one request."""
    server = misbehaving(lambda x: x.serve(BODY[:length]))
    error = assert_fails(kit, server, tmp_path, "bytes 300001 to 1500000 were requested")
    assert isinstance(error, HTTPStatusError) == (length <= PART[0])
    assert len(server.requests) == 1


def test_206_cut_to_pieces(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Shorter answers are legal: the rest is requested."""

    def handler(x: Exchange) -> None:
        start, end = x.asked.range or (0, 0)
        x.asked.headers["range"] = f"bytes={start}-{min(end or 0, start + 400_000) - 1}"
        x.serve(BODY)

    fetch(kit, misbehaving(handler), tmp_path)
    assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]


@pytest.mark.parametrize("early", [1, 5000, PART[0]])
def test_206_that_starts_earlier(kit: Toolkit, misbehaving: Start, tmp_path: Path, early: int) -> None:
    """A small overlap is skipped; much more than requested is not read."""

    def handler(x: Exchange) -> None:
        start, end = x.asked.range or (0, 0)
        x.asked.headers["range"] = f"bytes={max(0, start - early)}-{(end or 0) - 1}"
        x.serve(BODY)

    server = misbehaving(handler)
    if early <= 5000:
        fetch(kit, server, tmp_path)
        assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]
    else:
        assert_fails(kit, server, tmp_path, "sends bytes from 0")


def test_206_that_starts_later(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    def handler(x: Exchange) -> None:
        start, end = x.asked.range or (0, 0)
        x.asked.headers["range"] = f"bytes={start + 1}-{(end or 0) - 1}"
        x.serve(BODY)

    assert_fails(kit, misbehaving(handler), tmp_path, "asked for bytes")


def test_a_coded_part(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Ranges of coded bytes are not ranges of the file."""
    assert_fails(kit, misbehaving(lambda x: x.serve(BODY, Content_Encoding="gzip")), tmp_path, "gzip")


def test_a_file_that_changes_in_the_middle(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Everything comes from the new version."""
    other = BODY[::-1]

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.serve(BODY, pause=lambda: x.server.wait_for(2))
        else:
            x.serve(other, etag='"v2"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert (tmp_path / "part").read_bytes() == other[slice(*PART)]


# -- resuming --------------------------------------------------------------------------------------------------------


COMPARED = 64 << 10  # of what is there, that is fetched again to see whether it is the same


def cut(x: Exchange) -> None:
    """Half of what is requested, and the end of the connection."""
    start, end = x.asked.range or (0, 0)
    assert end
    x.head(
        "206 Partial Content",
        Content_Length=str(end - start),
        ETag='"v1"',
        Content_Range=f"bytes {start}-{end - 1}/{len(BODY)}",
    )
    x.send(BODY[start : (start + end) // 2])
    x.hang_up()


def leave_half(make_kit: MakeKit, server: MisbehavingServer, out: Path) -> None:
    with pytest.raises(TransferError):
        fetch(make_kit(retries=0, workers=1), server, out)
    assert sorted(os.listdir(out)) == ["part.perfkit-part", "part.perfkit-part.json"]
    assert json.loads((out / "part.perfkit-part.json").read_text())["part"] == list(PART)


def test_a_part_is_resumed(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Only the missing bytes are requested."""
    server = misbehaving(lambda x: cut(x) if x.number == 1 else x.serve(BODY))
    leave_half(make_kit, server, tmp_path)
    download = fetch(make_kit(), server, tmp_path)
    middle = sum(PART) // 2
    assert server.requests[1].range == (middle - COMPARED, PART[1])
    assert server.requests[1].headers["if-range"] == '"v1"'
    assert download.resumed_from == middle - COMPARED - PART[0]
    assert (tmp_path / "part").read_bytes() == BODY[slice(*PART)]


def test_a_part_that_changed_since_is_not_resumed(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """If-Range leads to a 200: the part is requested again, and the 200 is not mistaken for a server without ranges."""
    other = BODY[::-1]
    server = misbehaving(lambda x: cut(x) if x.number == 1 else x.serve(other, etag='"v2"'))
    leave_half(make_kit, server, tmp_path)
    fetch(make_kit(workers=1), server, tmp_path)
    assert [each.range for each in server.requests] == [PART, (sum(PART) // 2 - COMPARED, PART[1]), PART]
    assert (tmp_path / "part").read_bytes() == other[slice(*PART)]


@pytest.mark.parametrize("wanted", [None, (PART[0] + 1, PART[1] + 1), (0, PART[1] - PART[0])])
def test_a_partial_file_of_another_part_is_not_used(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, wanted: tuple[int, int] | None
) -> None:
    """Neither for the whole file nor for other bytes of it."""
    server = misbehaving(lambda x: cut(x) if x.number == 1 else x.serve(BODY))
    leave_half(make_kit, server, tmp_path)
    make_kit().download_many([Request(f"{server.url}/pack", "part", byte_range=wanted)], tmp_path)
    assert server.requests[1].range == wanted
    assert (tmp_path / "part").read_bytes() == (BODY[slice(*wanted)] if wanted else BODY)


def test_a_partial_file_of_the_whole_is_not_used_for_a_part(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path
) -> None:
    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            x.send(BODY[: len(BODY) // 2])
            x.hang_up()
        else:
            x.serve(BODY)

    server = misbehaving(handler)
    with pytest.raises(TransferError):
        make_kit(retries=0, workers=1).download(f"{server.url}/pack", tmp_path / "part")
    assert (tmp_path / "part.perfkit-part.json").exists()
    fetch(make_kit(), server, tmp_path, (5, 900_005))
    assert (tmp_path / "part").read_bytes() == BODY[5:900_005]
    assert os.listdir(tmp_path) == ["part"]


@pytest.mark.parametrize("part", [(5, 5), (7, 3), (-1, 5)])
def test_ranges_that_are_none(kit: Toolkit, part: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="byte_range"):
        Request("http://127.0.0.1/f", byte_range=part)


def test_a_batch_reports_which_parts_failed(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    parts = [(0, 10), (len(BODY) - 5, len(BODY) + 5), (10, 20)]
    with pytest.raises(BatchError) as caught:
        kit.download_many([Request(f"{server.url}/p", f"{n}", byte_range=p) for n, p in enumerate(parts)], tmp_path)
    assert [result.error is None for result in caught.value.results] == [True, False, True]
    assert sorted(os.listdir(tmp_path)) == ["0", "2"]


@pytest.mark.parametrize("length", ["told", "not told"])
def test_a_file_that_is_too_large_is_refused(kit: Toolkit, misbehaving: Start, tmp_path: Path, length: str) -> None:
    """With `max_bytes`, no more than that is ever written, whatever the server says or sends."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", **({"Content_Length": "5000"} if length == "told" else {"Connection": "close"}))
        x.send(b"x" * 5000)
        x.hang_up()

    server = misbehaving(handler)
    with pytest.raises(BatchError) as caught:
        kit.download_many([Request(f"{server.url}/f", "f", max_bytes=1000)], tmp_path)
    assert isinstance(caught.value.results[0].error, IntegrityError)
    assert list(tmp_path.iterdir()) == []
