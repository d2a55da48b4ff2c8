"""Deltas of binaries: predicted by old content, with the differences coded."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import Toolkit
from perfkit.errors import ManifestError
from perfkit.releases.format import delta, differences
from perfkit.releases.format.delta import Delta, Group, Slice, Span, write_delta
from perfkit.releases.format.differences import encode_differences, restore
from perfkit.releases.format.zstd import compress
from perfkit.releases.publish import binary_groups, delta_encoder
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.similarity import SimilarityIndex
from perfkit.server.server import Server
from perfkit.updates import staging
from perfkit.updates.local_tree import LocalTree
from tests.support.release_client import Client, manifest_of
from tests.support.trees import Tree, lines, noise, tree_of, write_tree

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


def test_a_renamed_program_whose_code_shares_no_line(tmp_path: Path) -> None:
    """Its text tells which old file it was; all of that is compared."""
    code, labels = bytearray(noise(1, 400_000)), b"\0" + lines(2, 1500)
    old: Tree = {"lib.so.1": labels + bytes(code), "lib.so.other": noise(3, 400_000)}
    code[::24] = bytes(value ^ 4 for value in code[::24])
    for version, tree in (("1", old), ("2", {**old, "lib.so.2": labels + bytes(code)})):
        publish(str(write_tree(tmp_path / version, tree)), str(tmp_path / "site"), version=version)
    assert Client(tmp_path / "site").pointer.deltas[0].object.bytes < len(code) / 10


def test_blocks_of_a_large_file_are_similar_to_it() -> None:
    """Each is a small part of it."""
    content = lines(1, 8000)
    index = SimilarityIndex(len(content), 512)
    for offset in range(0, len(content), 512):
        index.add(0, offset, content[offset : offset + 512])
    found = index.find(content, limit=len(content))
    assert sum(block.length for block in found) > 0.99 * len(content)


def test_an_old_file_is_opened_once_for_all_its_parts(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []

    def open_blob(self: LocalTree, digest: bytes, *, wrapped: Any = LocalTree.open_blob) -> Any:
        opened.append(digest)
        return wrapped(self, digest)

    monkeypatch.setattr(LocalTree, "open_blob", open_blob)
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        for version, tree in (("1", OLD), ("2", NEW)):
            kit.publish(write_tree(tmp_path / version, tree), tmp_path / "site", version=version)
            report = kit.sync(server.url, tmp_path / "tree")
    assert report.route == "delta"
    parts = sum(len(group.sources) for group in groups_of(Client(tmp_path / "site")))
    assert len(opened) <= len(OLD) < parts


def test_the_disk_writes_while_a_large_file_is_made(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the commit waits only for the last part."""
    begun: list[int] = []
    monkeypatch.setattr(staging, "_WRITE_BACK_BYTES", 100_000)
    monkeypatch.setattr(staging, "start_writing", begun.append)
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        for version, tree in (("1", OLD), ("2", NEW)):
            kit.publish(write_tree(tmp_path / version, tree), tmp_path / "site", version=version)
            begun.clear()
            report = kit.sync(server.url, tmp_path / "tree")
    assert report.route == "delta"
    assert begun


def test_compressed_files_are_compared_only_where_they_share_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the equal parts of two archives can be found, and searching noise takes seconds for each MiB."""
    compared = []
    diff = binary_groups.hdiffpatch.diff

    def counted(before: bytes, content: bytes, **options: Any) -> bytes:
        compared.append(content)
        return diff(before, content, **options)

    monkeypatch.setattr(binary_groups.hdiffpatch, "diff", counted)
    noise = [b"\0" + random.Random(seed).randbytes(200_000) for seed in range(4)]
    versions = [noise[0] + noise[1], noise[2] + noise[3], noise[3] + noise[0]]
    sizes = []
    for number, content in enumerate(versions):
        src = write_tree(tmp_path / str(number), {"archive": content})
        publish(str(src), str(tmp_path / "site"), version=str(number))
        if number:
            client = Client(tmp_path / "site")
            assert client.follow({"archive": versions[number - 1]}) == {"archive": content}
            sizes.append(client.pointer.deltas[0].object.bytes)
    assert versions[1] not in compared
    assert versions[2] in compared
    assert 400_000 < sizes[0] < 402_000
    assert 200_000 < sizes[1] < 202_000


def test_a_group_has_no_more_files_than_clients_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta with more is refused as a whole."""
    for module in (binary_groups, delta):
        monkeypatch.setattr(module, "MAX_GROUP_SPANS", 4)
    trees: list[Tree] = [{f"{number:02}": b"\0%d of %d" % (number, at) for number in range(10)} for at in range(2)]
    for number, tree in enumerate(trees):
        publish(str(write_tree(tmp_path / str(number), tree)), str(tmp_path / "site"), version=str(number))
    assert Client(tmp_path / "site").follow(trees[0]) == trees[1]


def test_without_hdiffpatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher without the extra makes deltas of exact matches."""
    monkeypatch.setattr(binary_groups, "AVAILABLE", False)
    client = both(tmp_path)
    assert client.follow(OLD) == NEW
    assert not any(group.differences for group in groups_of(client))


def restored(frame: bytes, decoded: int, size: int, sources: Sequence[bytes], gaps: Sequence[int]) -> bytes:
    """What a client makes of a frame that comes in parts."""
    parts = (frame[start : start + 1000] for start in range(0, len(frame), 1000))
    literals = size - sum(map(len, sources))
    return b"".join(restore(parts, decoded, literals, size, zip(gaps, sources, strict=True)))


@given(
    prediction=st.binary(max_size=2000),
    edits=st.lists(st.tuples(st.integers(0, 1999), st.binary(max_size=30)), max_size=20),
    gap=st.integers(0, 100),
)
def test_any_differences_come_back(prediction: bytes, edits: list[tuple[int, bytes]], gap: int) -> None:
    """With bytes in a gap and at the end that no source has."""
    content = bytearray(prediction)
    for place, data in edits:
        content[place : place + len(data)] = data[: max(0, len(content) - place)]
    half = len(prediction) // 2
    gaps = (0, min(gap, half))
    sources = (prediction[: half - gaps[1]], prediction[half:-5])
    frame, decoded = encode_differences(bytes(content), sources, gaps)
    assert decoded <= len(prediction)
    assert restored(frame, decoded, len(content), sources, gaps) == content


@pytest.mark.parametrize(("step", "in_runs"), [(90_001, True), (3, False)])
def test_few_and_many_differences_over_several_chunks(step: int, in_runs: bool) -> None:
    """Few are coded as runs, many one for each byte."""
    prediction = random.Random(step).randbytes(400_000)
    content = bytearray(prediction)
    content[::step] = bytes(byte + 1 & 0xFF for byte in content[::step])
    frame, decoded = encode_differences(bytes(content), [prediction], [0])
    assert (decoded < len(content)) == in_runs
    assert restored(frame, decoded, len(content), [prediction], [0]) == content


def test_a_run_of_differences_over_several_parts_of_old_content() -> None:
    """With literals inside, and other runs before and after."""
    prediction, changes = random.Random(5).randbytes(300_000), bytearray(300_000)
    for start, stop in ((0, 1), (60_000, 140_000), (140_002, 140_009), (299_999, 300_000)):
        changes[start:stop] = b"\xfb" * (stop - start)
    content = bytes(old + change & 0xFF for old, change in zip(prediction, changes, strict=True))
    parts = [slice(start, start + 30_000) for start in range(0, 300_000, 30_000)]
    gaps = [number % 3 for number in range(len(parts))]
    form = b"!" * sum(gaps) + differences._runs(bytes(changes))
    sources, size = [prediction[part] for part in parts], len(content) + sum(gaps)
    found = restored(differences._lzma(form), len(form), size, sources, gaps)
    assert found == b"".join(b"!" * gap + content[part] for gap, part in zip(gaps, parts, strict=True))


def test_each_coder_where_it_is_smaller() -> None:
    """bzip2 for scattered small numbers, zstd in planes for arrays of numbers, LZMA2 for distant repeats."""
    noise = random.Random(4)
    sparse = bytearray(100_000)
    for place in noise.choices(range(len(sparse)), k=8_000):
        sparse[place] = noise.choice(b"\1\2\3\4\5\6\7")
    numbers = b"".join(struct.pack("<f", noise.gauss(0, 1)) for _ in range(10_000))
    words = [noise.randbytes(24) for _ in range(10_000)]
    repeated = b"".join(words + noise.sample(words, len(words)))
    starts = (b"BZh", b"\x28\xb5\x2f\xfd", b"\1")
    for content, start in zip((bytes(sparse), numbers + b"end", repeated), starts, strict=True):
        frame, decoded = encode_differences(content, [bytes(len(content))], [0])
        assert frame.startswith(start)
        assert restored(frame, decoded, len(content), [bytes(len(content))], [0]) == content


def mutated(frame: bytes) -> Iterator[bytes]:
    noise = random.Random(7)
    for _ in range(300):
        bad = bytearray(frame)
        bad[noise.randrange(len(bad))] ^= noise.randrange(1, 256)
        yield bytes(bad)
    for size in range(len(frame)):
        yield frame[:size]
    yield frame + b"x"


@pytest.mark.parametrize("start", [b"BZh", b"\x28\xb5\x2f\xfd", b""])
@pytest.mark.parametrize("content", [b"\0" * 900 + b"changed" + b"\0" * 900, bytes(range(256)) * 2])
def test_damaged_differences(content: bytes, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give other content of the right size, or a typed error."""
    coders = {b"BZh": differences.bz2, b"\x28\xb5\x2f\xfd": differences, b"": differences.lzma}
    for coder in (each for name, each in coders.items() if name != start):
        monkeypatch.setattr(coder, "compress", lambda *_, **__: bytes(1 << 20))  # the wanted one is smaller
    sources, gaps = [bytes(300), bytes(len(content) - 400)], [50, 10]
    frame, decoded = encode_differences(content, sources, gaps)
    assert frame.startswith(start)
    for bad in mutated(frame):
        try:
            assert len(restored(bad, decoded, len(content), sources, gaps)) == len(content)
        except ManifestError:
            continue


def test_a_python_without_lzma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "lzma", None)
    with pytest.raises(ManifestError, match="needs CPython's bz2 and lzma modules"):
        list(restore(iter((b"",)), 1, 0, 1, [(0, bytes(1))]))


def delta_of(group: Group, frame: bytes) -> Delta:
    old, new = manifest_of({"a": b"old" * 100}), manifest_of({"a": b"new" * 100})
    change = Slice(len(new.raw), 0, len(old.raw), compress(new.raw, prefix=old.raw))
    file = io.BytesIO()
    write_delta(file.write, old, new, [change], [group], [frame])
    return Delta.open(file)


def test_a_damaged_group_spares_those_around_it() -> None:
    """Whatever their kinds, they are made, and the error comes last."""
    old_content = bytes(range(256)) * 8
    contents = [bytes((number,)) + old_content[1:] for number in range(1, 7)]
    old = manifest_of({"old": old_content})
    new = manifest_of({"old": old_content} | {str(number): each for number, each in enumerate(contents)})
    groups, frames = [], []
    for number, content in enumerate(contents):
        frame, decoded = encode_differences(content, [old_content], [0])
        if number in (2, 5):
            frame, decoded = compress(content, prefix=old_content), 0
        elif number == 3:
            changes = bytes((content[0] - old_content[0],)) + bytes(len(content) - 1)
            frame, decoded = compress(differences._planes(changes)), len(content)
        span = Span(0, 0, len(old_content))
        groups.append(Group((span,), (Span(number, 0, len(content)),), len(frame), decoded, (0,)))
        frames.append(bytes(len(frame)) if number == 1 else frame)
    file = io.BytesIO()
    write_delta(file.write, old, new, [Slice(len(new.raw), 0, 0, compress(new.raw))], groups, frames)
    delta, written = Delta.open(file), dict[int, bytes]()
    draft = delta.draft(old)
    with pytest.raises(ManifestError):
        delta.apply(
            delta.groups(old, draft),
            lambda span: old_content[span.offset : span.offset + span.length],
            lambda entry, offset, data: written.update({entry: written.get(entry, b"") + bytes(data)}),
        )
    assert written == {number: content for number, content in enumerate(contents) if number != 1}


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 301, (0,)), "longer or shorter than what they belong to"),
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 300, (1,)), "longer or shorter than what they belong to"),
        (Group((Span(0, 0, 300),), (Span(0, 0, 300),), 9, 300, (1 << 31,)), "longer or shorter"),
        (Group((Span(0, 0, 200),), (Span(0, 0, 300),), 9, 99, (50,)), "longer or shorter"),
        (Group((Span(1, 0, 1),), (Span(0, 0, 300),), 9), "new content that comes later"),
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
        frame, decoded = encode_differences(runs, [], [])
        assert decoded == len(runs)
        with pytest.raises(ManifestError):
            restored(frame, decoded, 100, [bytes(100)], [0])


def test_a_delta_of_version_4_is_read() -> None:
    old, new = manifest_of({"a": b"old" * 100}), manifest_of({"a": b"new" * 100})
    change = Slice(len(new.raw), 0, len(old.raw), compress(new.raw, prefix=old.raw))
    frame = compress(b"new" * 100, prefix=b"old" * 100)
    file = io.BytesIO()
    write_delta(file.write, old, new, [change], [Group((Span(0, 0, 300),), (Span(0, 0, 300),), len(frame))], [frame])
    delta = Delta.open(io.BytesIO(file.getvalue().replace(b"delta 5", b"delta 4", 1)))
    assert delta.draft(old) == new


def test_a_delta_of_another_version_is_refused() -> None:
    with pytest.raises(ManifestError, match="delta: unknown format version; this perfkit reads version 5"):
        Delta.open(io.BytesIO(b"perfkit delta 2\n" + bytes(100)))


def test_what_is_new_in_several_files_is_in_the_delta_once(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle and a module of it, in several groups: the sources of the later ones are new files."""
    monkeypatch.setattr(delta_encoder, "MAX_GROUP_BYTES", 128 << 10)
    monkeypatch.setattr(delta_encoder, "_PART_BYTES", 48 << 10)
    noise = random.Random(9)
    old = [f"const old{number} = {noise.random()};\n" for number in range(3000)]
    added = "".join(f"const new{number} = {noise.random()};\n" for number in range(800))
    before, after = "".join(old[:2000]), "".join(old[2000:])
    trees: list[Tree] = [
        {"bundle.js": (before + after).encode(), "module.js": b"// empty\n"},
        {"bundle.js": (before + added + after).encode(), "module.js": added.encode()},
    ]
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        for version, tree in enumerate(trees):
            kit.publish(write_tree(tmp_path / str(version), tree), tmp_path / "site", version=str(version))
            report = kit.sync(server.url, tmp_path / "tree")
    assert report.route == "delta"
    assert Client(tmp_path / "site").follow(trees[0]) == trees[1] == tree_of(tmp_path / "tree")
    assert report.bytes_received < 1.2 * len(compress(added.encode(), level=19)) + 2000
