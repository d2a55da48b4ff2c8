"""Deltas of binaries: predicted by old content, with the differences coded."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit.errors import ManifestError
from perfkit.releases.format import differences
from perfkit.releases.format.delta import Delta, Group, Slice, Span, write_delta
from perfkit.releases.format.differences import encode_differences, restore
from perfkit.releases.format.zstd import compress, decompress
from perfkit.releases.publish import delta_encoder
from perfkit.releases.publish.publisher import publish
from tests.support.release_client import Client, manifest_of
from tests.support.trees import Tree, write_tree

pytestmark = pytest.mark.once

FUNCTIONS = 3000


def program(seed: int, *, grown: bool) -> bytes:
    """Functions of random code that call each other by address; `grown`: with one more function in the middle."""
    noise = random.Random(seed)
    codes = [noise.randbytes(noise.randrange(20, 90)) for _ in range(FUNCTIONS)]
    calls = [noise.sample(range(FUNCTIONS), 2) for _ in codes]
    added = noise.randbytes(300) if grown else b""
    places, place = [], 0
    for number, code in enumerate(codes):
        place += len(added) if number == FUNCTIONS // 2 else 0
        places.append(place)
        place += len(code) + 8
    linked = [
        code + b"".join(places[to].to_bytes(4, "little") for to in call)
        for code, call in zip(codes, calls, strict=True)
    ]
    return b"\x7fPRG\0" + b"".join(linked[: FUNCTIONS // 2]) + added + b"".join(linked[FUNCTIONS // 2 :])


OLD: Tree = {"bin/program": program(1, grown=False), "notes.txt": b"first\n" * 50, "table": bytes(300_000)}
NEW: Tree = {
    "bin/renamed": program(1, grown=True),
    "notes.txt": b"second\n" * 50,
    "table": bytes(100_000) + bytes(2) + b"\1\2\3" + bytes(199_995),
}


def both(tmp_path: Path) -> Client:
    """A site with both releases."""
    for version, tree in (("1", OLD), ("2", NEW)):
        publish(str(write_tree(tmp_path / version, tree)), str(tmp_path / "site"), version=version)
    return Client(tmp_path / "site")


def groups_of(client: Client) -> list[Group]:
    data = (client.site / client.pointer.deltas[0].object.path).read_bytes()
    delta = Delta.open(io.BytesIO(data))
    return list(delta.groups(manifest_of(OLD), manifest_of(NEW)))


def test_a_program_whose_addresses_moved(tmp_path: Path) -> None:
    """The delta is less than half of what the best exact matches cost, under a new name too."""
    client = both(tmp_path)
    assert client.follow(OLD) == NEW
    by_matches = compress(NEW["bin/renamed"], prefix=OLD["bin/program"])
    assert client.pointer.deltas[0].object.bytes < len(by_matches) / 2
    assert any(group.differences for group in groups_of(client))


def test_without_hdiffpatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher without the extra makes deltas of exact matches."""
    monkeypatch.setattr(delta_encoder, "AVAILABLE", False)
    client = both(tmp_path)
    assert client.follow(OLD) == NEW
    assert not any(group.differences for group in groups_of(client))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    prediction=st.binary(max_size=2000),
    edits=st.lists(st.tuples(st.integers(0, 1999), st.binary(max_size=30)), max_size=20),
)
def test_any_differences_come_back(prediction: bytes, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(prediction)
    for place, data in edits:
        content[place : place + len(data)] = data[: max(0, len(content) - place)]
    frame, decoded = encode_differences(bytes(content), prediction)
    assert decoded <= len(prediction)
    assert b"".join(restore(iter((frame,)), decoded, bytearray(prediction))) == content


@pytest.mark.parametrize(("step", "in_runs"), [(90_001, True), (3, False)])
def test_few_and_many_differences_over_several_chunks(step: int, in_runs: bool) -> None:
    """Few are coded as runs, many one for each byte."""
    prediction = random.Random(step).randbytes(400_000)
    content = bytearray(prediction)
    content[::step] = bytes(byte + 1 & 0xFF for byte in content[::step])
    frame, decoded = encode_differences(bytes(content), prediction)
    assert (decoded < len(content)) == in_runs
    parts = (frame[start : start + 1000] for start in range(0, len(frame), 1000))
    assert b"".join(restore(parts, decoded, bytearray(prediction))) == content


def mutated(frame: bytes) -> Iterator[bytes]:
    noise = random.Random(7)
    for _ in range(300):
        bad = bytearray(frame)
        bad[noise.randrange(len(bad))] ^= noise.randrange(1, 256)
        yield bytes(bad)
    for size in range(len(frame)):
        yield frame[:size]
    yield frame + b"x"


@pytest.mark.parametrize("content", [b"\0" * 900 + b"changed" + b"\0" * 900, bytes(range(256)) * 2])
def test_damaged_differences(content: bytes) -> None:
    """They give other content of the right size, or a typed error."""
    frame, decoded = encode_differences(content, bytes(len(content)))
    for bad in mutated(frame):
        try:
            assert sum(map(len, restore(iter((bad,)), decoded, bytearray(len(content))))) == len(content)
        except ManifestError:
            continue


def test_a_python_without_lzma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "lzma", None)
    with pytest.raises(ManifestError, match="needs CPython's lzma module"):
        list(restore(iter((b"",)), 1, bytearray(1)))


def delta_of(group: Group, frame: bytes) -> Delta:
    old, new = manifest_of({"a": b"old" * 100}), manifest_of({"a": b"new" * 100})
    change = Slice(len(new.raw), 0, len(old.raw), compress(new.raw, prefix=old.raw))
    file = io.BytesIO()
    write_delta(file.write, old, new, [change], [group], [frame])
    return Delta.open(file)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 301, (0,)), "longer than what they belong to"),
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 300, (1,)), "longer than what they belong to"),
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 300, (1 << 31,)), "more than"),
    ],
)
def test_differences_that_lie_are_refused(group: Group, message: str) -> None:
    old, new = manifest_of({"a": b"old" * 100}), manifest_of({"a": b"new" * 100})
    with pytest.raises(ManifestError, match=message):
        delta_of(group, bytes(9)).groups(old, new)


def test_runs_that_lie_are_refused() -> None:
    """Longer than the content, and with other bytes after them."""
    one = (1).to_bytes(4, "little")
    for gap, length, rest in ((90, 20, b"x" * 20), (0, 1, b"xy"), (0, 5, b"x")):
        runs = one + gap.to_bytes(4, "little") + length.to_bytes(4, "little") + rest
        frame, decoded = encode_differences(runs, bytes(len(runs)))
        assert decoded == len(runs)
        with pytest.raises(ManifestError):
            list(restore(iter((frame,)), decoded, bytearray(100)))


def test_a_delta_of_version_1_is_read() -> None:
    """It has no differences and no gaps."""
    old, new = manifest_of({"a": b"old" * 100}), manifest_of({"a": b"new" * 100})
    change = Slice(len(new.raw), 0, len(old.raw), compress(new.raw, prefix=old.raw))
    frame = compress(b"new" * 100, prefix=b"old" * 100)
    file = io.BytesIO()
    group = Group((Span(0, 0, 300),), (Span(0, 0, 300),), len(frame))
    write_delta(file.write, old, new, [change], [group], [frame])
    data = file.getvalue()
    packed = int.from_bytes(data[80:84], "little")
    table = decompress(data[88 : 88 + packed], int.from_bytes(data[84:88], "little"))
    before_sources = 16 + 20 + 12  # counts, one slice, one group
    first = table[:before_sources] + table[before_sources + 4 : before_sources + 20] + table[before_sources + 24 :]
    smaller = compress(first)
    head = data[:80].replace(b"delta 2", b"delta 1") + len(smaller).to_bytes(4, "little")
    delta = Delta.open(io.BytesIO(head + len(first).to_bytes(4, "little") + smaller + data[88 + packed :]))
    assert delta.new_manifest(old).raw == new.raw
    made = bytearray()
    delta.apply(delta.groups(old, new), lambda span: b"old" * 100, lambda entry, offset, data: made.extend(data))
    assert made == b"new" * 100
