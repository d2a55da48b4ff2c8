"""Hostile and damaged releases: a typed error in bounded time and memory, whatever the bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import random
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import ManifestError, UnsafePathError
from perfkit.errors import PerfkitError
from perfkit.releases.format.delta import Delta, Group, Slice, Span, write_delta
from perfkit.releases.format.draft import complete, draft_bytes
from perfkit.releases.format.frames import decode_range, split_parts, split_pieces, tag
from perfkit.releases.format.index import Index, Pack, Piece
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.format.pointer import DeltaRef, ObjectRef, Pointer
from perfkit.releases.format.zstd import compress, decompress, zstd
from perfkit.releases.publish.publisher import publish
from tests.support.hostile import bounded, one_frame, raw_manifest
from tests.support.release_client import Client, digests_of, manifest_of
from tests.support.trees import Tree, write_tree

pytestmark = pytest.mark.once

OLD: Tree = {"a": b"the old content of a file, some of it kept\n" * 20, "b": b"another\n" * 50, "gone": b"x" * 99}
NEW: Tree = {"a": OLD["a"] + b"and more", "b": OLD["b"], "dir/new": b"the old content of a file" * 9, "empty": b""}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A site with two releases."""
    root = tmp_path_factory.mktemp("hostile")
    for version, tree in (("1", OLD), ("2", NEW)):
        publish(str(write_tree(root / "src", tree)), str(root / "site"), version=version)
    return Client(root / "site")


def damaged(data: bytes, flips: int) -> Iterator[bytes]:
    """The data cut after every byte, with one more, and with bits flipped at random places."""
    yield from (data[:end] for end in range(len(data)))
    yield data + b"\0"
    chance = random.Random(1)
    for _ in range(flips):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(changed)


@pytest.mark.parametrize(
    "name", [b"../up", b"/abs", b"a/../b", b"a//b", b"a/", b".", b"C:x", b"a\\b", b"nul.txt", b"x/CON", b"dot.", b"sp ",
             b".perfkit/journal", b".PerfKit/x", b"tab\t", b"\xff\xfe", b"n" * 256, b"\xed\xa0\x80"],
)  # fmt: skip
def test_names_that_lead_astray_are_refused(name: bytes) -> None:
    """Alone or among good ones."""
    for names in ([name], sorted([name, b"good", b"zz/good"])):
        with pytest.raises((UnsafePathError, ManifestError)):
            Manifest.parse(raw_manifest(names))


@pytest.mark.parametrize(
    "names", [["A", "a"], ["dir/X", "dir/x"], ["\u00e9", "e\u0301"], ["STRASSE", "straße"], ["a", "a/b"], ["A/b", "a"],
              ["Dir", "dir/x/y"]],
)  # fmt: skip
def test_names_that_collide_somewhere_are_refused(names: list[str]) -> None:
    """By case, by normalisation, or a file where a directory is."""
    with pytest.raises(UnsafePathError):
        Manifest.parse(raw_manifest(sorted(name.encode() for name in names)))


def test_manifests_that_are_not_canonical_are_refused() -> None:
    """Order, twins, flags, sizes, counts, versions, lengths: one tree has one form."""
    good = raw_manifest([b"a", b"b"])
    Manifest.parse(good)
    for bad in (
        raw_manifest([b"b", b"a"]),
        raw_manifest([b"a", b"a"]),
        raw_manifest([b"a"], flags=b"\2"),
        raw_manifest([b"a"], sizes=[(1 << 50) + 1]),
        raw_manifest([b"a" * 200 + b"/" + b"b" * 200 + b"/x" * 2000]),
        good.replace(b"manifest 1", b"manifest 2"),
        good.replace(b"a\nb\n", b"a\nbb"),
        good[:19] + b"\xff" * 4 + good[23:],
    ):
        with bounded(), pytest.raises((ManifestError, UnsafePathError)):
            Manifest.parse(bad)
    with pytest.raises(ManifestError, match="version"):
        Manifest.parse(good.replace(b"manifest 1", b"manifest 2"))
    with pytest.raises(ManifestError, match="digest"):
        Manifest.parse(good, sha256=bytes(32))


def test_a_manifest_holds_what_it_was_given() -> None:
    """By index, by name, in order; and fifty thousand entries take little memory."""
    entries = [Entry(f"d{n % 300}/file{n}", n, hashlib.sha256(b"%d" % n).digest(), n % 2 == 1) for n in range(50_000)]
    manifest = Manifest.of(entries)
    ordered = sorted(entries, key=lambda entry: entry.name)
    assert list(manifest) == ordered
    assert manifest.total_bytes == sum(range(50_000))
    for at in (0, 777, 49_999):
        assert manifest.find(ordered[at].name) == at
    assert manifest.find("nothing") is None
    raw = manifest.raw
    del entries, ordered, manifest
    with bounded(7):
        Manifest.parse(raw)


@given(data=st.binary(max_size=400), magic=st.sampled_from([b"", b"perfkit manifest 1\n"]))
def test_garbage_is_refused_as_a_manifest(data: bytes, magic: bytes) -> None:
    """Nothing but a typed error, or a true manifest."""
    with contextlib.suppress(PerfkitError):
        assert Manifest.of(Manifest.parse(magic + data)).raw == magic + data


def test_a_damaged_manifest_is_refused_everywhere() -> None:
    """Cut or flipped at any place, its digest shows it."""
    manifest = manifest_of(NEW)
    for bad in damaged(manifest.raw, 200):
        with pytest.raises(PerfkitError):
            Manifest.parse(bad, sha256=manifest.sha256)
        with contextlib.suppress(PerfkitError):
            Manifest.parse(bad)  # without a digest: no other kind of error


def test_a_pointer_survives_its_own_form(client: Client) -> None:
    """What is encoded is parsed, and what later formats add is passed over."""
    assert Pointer.parse(client.pointer.encode()) == client.pointer
    record = json.loads(client.pointer.encode())
    assert Pointer.parse(json.dumps({**record, "later": [1]}).encode()) == client.pointer


def test_pointers_that_cannot_be_are_refused(client: Client) -> None:
    """Of another format, with missing or wrong parts, too large, too deep."""
    record = json.loads(client.pointer.encode())
    changes: list[dict[str, object]] = [
        {"format": 2}, {"format": 3}, {"format": "1"}, {"format": True}, {"format": 1.0}, {"version": ""},
        {"version": "a\nb"}, {"version": 3}, {"serial": 0}, {"serial": -1}, {"serial": 1.5}, {"serial": 1 << 60},
        {"serial": True},
        {"manifest": None}, {"manifest": {}}, {"manifest": {**record["manifest"], "size": 1 << 40}},
        {"manifest": {**record["manifest"], "object": "../../etc/passwd"}}, {"solid": []}, {"fine": 7},
        {"manifest": {**record["manifest"], "sha256": record["manifest"]["sha256"].upper()}},
        {"history": {"object": "0" * 64, "bytes": -1}}, {"deltas": {}}, {"deltas": [[1, 2, 3]]},
        {"deltas": record["deltas"] * 2}, {"deltas": [["0" * 16, "1" * 16, "2" * 64, 5]]},
        {"deltas": record["deltas"] * 99},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ManifestError):
            Pointer.parse(json.dumps({**record, **change}).encode())
    for data in (b"", b"[]", b"null", b"[" * 60_000, b"\xff", b" " * 70_000, b'{"format":' + b"9" * 5000 + b"}"):
        with bounded(), pytest.raises(ManifestError):
            Pointer.parse(data)
    with pytest.raises(ManifestError, match="newer"):
        Pointer.parse(json.dumps({**record, "format": 3}).encode())


def test_deltas_that_lead_in_a_circle_are_refused(client: Client) -> None:
    """To themselves, or round and round."""
    ref = ObjectRef("0" * 64, 1)
    for ends in ([("a" * 16, "a" * 16)], [("a" * 16, "b" * 16), ("b" * 16, "a" * 16)]):
        deltas = tuple(DeltaRef(origin, target, ref) for origin, target in ends)
        with pytest.raises(ManifestError, match="form a cycle"):
            Pointer.parse(client.pointer._replace(deltas=deltas).encode())


def test_a_damaged_pointer_gives_no_other_error(client: Client) -> None:
    """Cut or flipped, it is refused, or is still a pointer: the objects' digests show the rest."""
    for bad in damaged(client.pointer.encode(), 400):
        with contextlib.suppress(ManifestError):
            Pointer.parse(bad)


def test_a_damaged_index_gives_no_other_error(client: Client) -> None:
    """Cut or flipped, what is accepted still gives every byte of every file a place, and all within bounds."""
    raw = client.packed(client.pointer.fine)
    Index.parse(raw, client.manifest)
    for number, bad in enumerate(damaged(raw, 1500)):
        if number <= len(raw):
            with pytest.raises(ManifestError):
                Index.parse(bad, client.manifest)
            continue
        with contextlib.suppress(ManifestError):
            index = Index.parse(bad, client.manifest)
            for frame in range(len(index)):
                assert index.at[frame] + index.packed[frame] <= index.packs[index.packs_of[frame]].object.bytes
                for piece in map(index.piece, index.pieces_of(frame)):
                    assert 0 <= piece.start < piece.start + piece.length <= index.sizes[frame]


@given(st.data())
def test_an_index_is_read_as_it_was_written(data: st.DataObject) -> None:
    """Files in one or several pieces, in any order; frames with none, one or several of them, which may overlap."""
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    manifest = Manifest.of(Entry(f"{at}", size, bytes((at, *bytes(31)))) for at, size in enumerate(sizes))
    pieces = []
    for entry, size in enumerate(sizes):
        cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=3))) if size > 1 else []
        for start, end in pairwise((0, *cuts, size)):
            tag = data.draw(st.integers(1, 2**64 - 1)) if end - start < size else 0
            pieces.append((entry, start, data.draw(st.integers(0, 1000)), end - start, tag))
    pieces = data.draw(st.permutations(pieces))
    first = [0, *sorted(data.draw(st.lists(st.integers(0, len(pieces)), max_size=8))), len(pieces)]
    packs = tuple(Pack(ObjectRef(f"{number}" * 64, 1 << 30)) for number in range(1, 4))
    packs_of = sorted(data.draw(st.lists(st.sampled_from(range(3)), min_size=len(first) - 1, max_size=len(first) - 1)))
    at = [1000 * number + data.draw(st.integers(0, 500)) for number in range(len(packs_of))]
    used = [max((start + length for _, _, start, length, _ in pieces[a:b]), default=1) for a, b in pairwise(first)]
    content = [end + data.draw(st.sampled_from((0, 0, 7))) for end in used]
    columns = zip("IQIIIIQIIQ", (packs_of, at, [9] * len(at), content, first, *zip(*pieces, strict=True)), strict=True)
    index = Index(manifest.sha256, packs, *(array(code, values) for code, values in columns))
    assert Index.parse(index.encode(manifest), manifest) == (
        index if any(index.tags) else dataclasses.replace(index, tags=array("Q"))
    )


def test_indexes_that_lie_are_refused() -> None:
    """Files left out, overlapping, beyond their frame or pack, or of another manifest; counts beyond reason."""
    manifest = manifest_of({"a": b"x" * 100, "b": b"y" * 50})
    pack = Pack(ObjectRef("1" * 64, 80))
    whole = (Piece(0, 0, 0, 100), Piece(1, 0, 100, 50))

    def index(compressed: int, size: int, pieces: tuple[Piece, ...]) -> bytes:
        return one_frame(manifest, pack, compressed, size, pieces).encode(manifest)

    good = index(80, 150, whole)
    assert tuple(map(Index.parse(good, manifest).piece, (0, 1))) == whole
    wrong = [
        index(80, 100, whole[:1]),
        index(81, 150, whole),
        index(80, 17 << 20, whole),
        index(80, 150, (Piece(0, 0, 0, 60), Piece(0, 50, 60, 50), whole[1])),
        index(80, 150, (Piece(0, 0, 0, 60), Piece(0, 70, 60, 30), whole[1])),
        good[:48] + b"\xff\xff\xff\xff" * 4 + good[64:],
        good.replace(manifest.sha256, bytes(32)),
        good.replace(b"index 1", b"index 9"),
    ]
    for bad in wrong:
        with bounded(), pytest.raises(ManifestError):
            Index.parse(bad, manifest)


def test_damaged_frames_are_refused_or_fail_their_digest(client: Client) -> None:
    """A flipped bit in a pack never writes outside a file, and is a typed error or another content."""
    index = Index.parse(client.packed(client.pointer.fine), client.manifest)
    pieces = index.pieces(lambda entry: True)
    fetched = index.ranges(pieces)[0]
    with open(client.site / index.packs[fetched.pack].object.path, "rb") as file:
        data = file.read()[fetched.start : fetched.end]

    def write(entry: int, offset: int, part: memoryview) -> None:
        assert offset >= 0
        assert offset + len(part) <= client.manifest.size(entry)

    for bad in damaged(data, 300):
        with contextlib.suppress(ManifestError):
            decode_range(index, fetched, io.BytesIO(bad), write, wanted=pieces, shared=None)


def test_a_frame_that_expands_without_end_is_stopped() -> None:
    """At the size that was promised, in little memory; and a window beyond 8 MiB is refused."""
    bomb = compress(bytes(64 << 20), level=1)
    with bounded(3), pytest.raises(ManifestError, match="more than"):
        decompress(bomb, 1000)
    wide = zstd.compress(bytes(64 << 20), options={zstd.CompressionParameter.window_log: 26})
    with bounded(3), pytest.raises(ManifestError):
        decompress(wide, 64 << 20)
    for bad in (b"", b"no frame", bomb[:-3], compress(b"ab") + b"x", compress(b"ab") * 2, compress(b"abc")):
        with pytest.raises(ManifestError):
            decompress(bad, 2)


def apply(data: bytes, old: Manifest, tree: Tree) -> dict[int, bytearray]:
    """Run a delta; sees that nothing is written outside a file."""
    contents: dict[int, bytearray] = {}
    file = io.BytesIO(data)
    delta = Delta.open(file)
    new = delta.draft(old)

    def write(entry: int, offset: int, part: memoryview) -> None:
        assert offset == len(contents.setdefault(entry, bytearray()))
        assert offset + len(part) <= new.size(entry)
        contents[entry] += part

    def read(span: Span) -> bytes:
        number = span.entry - len(old)
        content = bytes(contents[number]) if number >= 0 else tree[old.name(span.entry)]
        assert 0 <= span.offset < span.offset + span.length <= len(content)
        return content[span.offset : span.offset + span.length]

    delta.apply(delta.groups(old, new), read, write)
    complete(new, digests_of(new, contents), delta.target_sha256)
    return contents


def test_a_damaged_delta_gives_no_other_error(client: Client) -> None:
    """Cut anywhere, it is refused; flipped, it is refused or makes contents whose digests show it."""
    old = manifest_of(OLD)
    data = (client.site / client.pointer.deltas[0].object.path).read_bytes()
    apply(data, old, OLD)
    for number, bad in enumerate(damaged(data, 1500)):
        if number <= len(data):
            with pytest.raises(PerfkitError):
                apply(bad, old, OLD)
        else:
            with contextlib.suppress(PerfkitError):
                apply(bad, old, OLD)


def test_deltas_that_lie_are_refused() -> None:
    """Of another origin; with too much, too little or the same bytes twice; with spans that are not there."""
    old, new = manifest_of(OLD), manifest_of(NEW)
    a, fresh = new.find("a"), new.find("dir/new")
    assert a is not None
    assert fresh is not None
    change = Slice(len(new.raw), 0, len(old.raw), compress(new.raw, prefix=old.raw))
    frame = compress(NEW["a"] + NEW["dir/new"])
    outputs = (Span(a, 0, len(NEW["a"])), Span(fresh, 0, len(NEW["dir/new"])))

    def delta(groups: list[Group], *, slices: tuple[Slice, ...] = (change,)) -> bytes:
        file = io.BytesIO()
        write_delta(file.write, old, new, slices, groups, [frame] * len(groups))
        return file.getvalue()

    good = delta([Group((), outputs, len(frame))])
    assert bytes(apply(good, old, OLD)[a]) == NEW["a"]
    wrong: list[Callable[[], bytes]] = [
        lambda: delta([]),
        lambda: delta([Group((), outputs[:1], len(frame))]),
        lambda: delta([Group((), (*outputs, outputs[0]), len(frame))]),
        lambda: delta([Group((), (Span(a, 5, len(NEW["a"]) - 5), outputs[1]), len(frame))]),
        lambda: delta([Group((Span(0, 0, 1 << 20),), outputs, len(frame))]),
        lambda: delta([Group((), outputs, len(frame) - 1)]),
        lambda: delta([Group((), outputs, 1 << 31)]),
        lambda: delta([Group((), outputs, len(frame))], slices=()),
        lambda: delta([Group((), outputs, len(frame))], slices=(dataclasses.replace(change, source=1 << 20),)),
        lambda: delta([Group((), outputs, len(frame))], slices=(dataclasses.replace(change, length=5),)),
        lambda: delta([Group((), outputs, len(frame))], slices=(dataclasses.replace(change, length=1 << 23),)),
        lambda: good + b"x",
        lambda: good.replace(b"delta 5", b"delta 6"),
        lambda: good[:48] + b"\xff\xff\xff\xff\xff\xff\xff\xff" + good[56:],
    ]
    for bad in wrong:
        with bounded(), pytest.raises(ManifestError):
            apply(bad(), old, OLD)
    with pytest.raises(PerfkitError):
        apply(good, new, NEW)


def test_drafts_that_lie_are_refused() -> None:
    """With contents that nothing makes, under whatever number; those that are made are in any entry that says so."""
    old, new = manifest_of({"a": b"old"}), manifest_of({"a": b"new", "b": b"new", "c": b"old"})
    frame, digest = compress(b"new"), hashlib.sha256(b"new").digest()

    def contents(*digests: bytes) -> dict[int, bytearray]:
        draft = b"".join(new.with_digests(enumerate(digests)))
        slices, groups = [Slice(len(draft), 0, 0, compress(draft))], [Group((), (Span(0, 0, 3),), len(frame))]
        file = io.BytesIO()
        write_delta(file.write, old, new, slices, groups, [frame])
        return apply(file.getvalue(), old, {"a": b"old"})

    first, second, beyond = (bytes(28) + number.to_bytes(4, "little") for number in (1, 2, 4))
    assert draft_bytes(new, [0]) == b"".join(new.with_digests(enumerate((bytes(32), first))))
    for good in ((bytes(32), first), (first, first), (digest, digest)):
        assert contents(*good) == {0: b"new"}
    for bad in ((first, bytes(32)), (first, second), (first, beyond), (second, second), (beyond, beyond)):
        with pytest.raises(ManifestError):
            contents(*bad)


@given(head=st.binary(min_size=32, max_size=32), table=st.binary(max_size=300))
def test_garbage_is_refused_as_a_delta(head: bytes, table: bytes) -> None:
    """A table of anything, well compressed, gives a typed error."""
    packed = compress(table)
    data = b"perfkit delta 5\n" + head + len(packed).to_bytes(4, "little") + len(table).to_bytes(4, "little") + packed
    old = manifest_of(OLD)
    with contextlib.suppress(PerfkitError):
        apply(data, old, OLD)
        raise AssertionError("garbage was taken for a delta")


@given(
    seed=st.integers(0, 99),
    edit=st.binary(max_size=50),
    at=st.integers(0, 299_999),
    kind=st.sampled_from(("binary", "lines", "one line")),
)
def test_pieces_are_cut_by_content(seed: int, edit: bytes, at: int, kind: str) -> None:
    """They join to the whole, keep to their sizes, and an edit changes few of them, with or without line feeds."""
    content = random.Random(seed).randbytes(300_000)
    if kind != "binary":
        content = content.hex().encode().replace(b"0", b"\n" if kind == "lines" else b",")[:300_000]
    pieces = list(split_pieces(io.BytesIO(content)))
    assert b"".join(pieces) == content
    assert all(len(piece) <= 128 << 10 for piece in pieces)
    assert all(len(piece) >= 8 << 10 for piece in pieces[:-1])
    changed = content[:at] + edit + content[at:]
    fresh = {tag(piece) for piece in split_pieces(io.BytesIO(changed))} - {tag(piece) for piece in pieces}
    assert len(fresh) <= 4
    parts = {part: piece for piece in pieces for part in split_parts(piece, len(piece))}
    assert b"".join(parts) == content
    assert all(len(part) < 8 << 10 for part in parts)
    assert sum(
        len(part)
        for piece in split_pieces(io.BytesIO(changed))
        for part in split_parts(piece, len(piece))
        if part not in parts
    ) < (40 << 10)


def test_what_cut_gives_does_not_depend_on_how_it_is_read(tmp_path: Path) -> None:
    """A large file is read in blocks; lines that reach over their ends are whole."""
    content = random.Random(5).randbytes(3 << 20).replace(b"\n", b"\0")[: (3 << 20) - 5]

    class Drip(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 1000))

    assert list(split_pieces(io.BytesIO(content))) == list(split_pieces(Drip(content)))
