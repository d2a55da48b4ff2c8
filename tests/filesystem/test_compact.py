"""What holds very many files in little memory says the same as the dictionaries and lists that it stands for."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import tempfile
import weakref
from bisect import bisect_left
from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from perfkit.filesystem import compact
from perfkit.filesystem.compact import (
    DigestIndex,
    DigestSet,
    FileBytes,
    FileRows,
    Names,
    chunks,
    keep_bytes,
    pack_numbers,
    sort_numbers,
)
from perfkit.filesystem.own_files import create_unnamed
from perfkit.releases.format.manifest import Entry, EntrySubset, Manifest
from perfkit.transactions.changeset import ChangeSet, StagedFile
from perfkit.transactions.journal import check_ops, read_ops, write_ops
from perfkit.transactions.records import Change, Content, JournalOp, Previous
from perfkit.updates.digest_index import BlobIndex, BlobSet

pytestmark = pytest.mark.once

LONG = "d" * 300
NAMES = st.text(alphabet="ab/é\U0001f600", min_size=1, max_size=12) | st.sampled_from([f"{LONG}/x", LONG])
KINDS = ["staged", "fetched", "drop", "forget"]


def unnamed_file() -> int:
    return create_unnamed(tempfile.gettempdir())


def change_set() -> ChangeSet:
    return ChangeSet("stage/", "fetch/content-", unnamed_file)


def content(text: str, mode: int = 0o644) -> Content:
    return Content(hashlib.sha256(text.encode()).hexdigest(), len(text), mode)


@given(st.lists(NAMES, max_size=200))
def test_packed_names_come_back_sorted(names: list[str]) -> None:
    """Whatever they share with each other, all come back, and their bytes sort as they do."""
    kept = Names()
    for name in names:
        kept.append(name)
    assert [kept[at] for at in range(len(names))] == names
    assert [kept.encoded(at) for at in range(len(names))] == [name.encode() for name in names]


@given(st.lists(st.integers(0, 400)))
def test_digest_set(numbers: list[int]) -> None:
    """As a set says, and in the order in which they were added first."""
    digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
    kept, model = DigestSet(), dict[bytes, None]()
    for digest in digests:
        assert kept.add(digest) == (digest not in model)
        model[digest] = None
    assert list(kept) == list(model)
    assert kept == set(model)
    assert set(model) - kept == set()
    assert bytes(32) not in kept


@given(st.lists(st.integers(0, 400)))
def test_digest_index(numbers: list[int]) -> None:
    """Every position of a digest is found, in order, and counted."""
    digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
    index = DigestIndex(digests)
    for digest in {*digests, bytes(32)}:
        places = [at for at, each in enumerate(digests) if each == digest]
        assert list(index.candidates(digest)) == places
        assert list(index.candidates(digest, skip=1)) == places[1:]
        assert index.count(digest) == len(places)


@given(st.integers(0, 40_000), st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 20_000)), max_size=9))
def test_bytes_of_a_file(size: int, slices: list[tuple[int, int]]) -> None:
    """Read in any order and amount, they are those of the file."""
    data = Random(size).randbytes(size)
    file = unnamed_file()
    os.write(file, data)
    stored = FileBytes(file)
    assert len(stored) == size
    assert stored[:] == data
    for start, length in slices:
        start, stop = min(start, size), min(start + length, size)
        assert stored[start:stop] == data[start:stop]
        if start < size:
            assert stored[start:] == data[start:]


@given(st.integers(0, 2_000), st.integers(1, 900), st.integers(1, 900), st.integers(0, 2_000))
def test_bytes_that_are_kept(size: int, in_memory: int, chunk: int, start: int) -> None:
    """Few in memory, many in a file; in any case the same when they are read in chunks."""
    data = Random(size).randbytes(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact, "_IN_MEMORY", in_memory)
        patch.setattr(compact, "_CHUNK_BYTES", chunk)
        kept = keep_bytes(chunks(data), unnamed_file)
        assert isinstance(kept, bytes) == (size <= in_memory)
        assert b"".join(chunks(kept, start)) == data[start:]
        assert b"".join(chunks(kept, start, min(size, start + 300))) == data[start : start + 300]


def test_a_file_that_becomes_shorter() -> None:
    """An error, and not other bytes, nor a signal."""
    file = unnamed_file()
    os.write(file, bytes(30_000))
    stored = FileBytes(file)
    os.truncate(file, 29_000)
    assert stored[8_000:9_000] == bytes(1_000)
    for wanted in (slice(29_990, 30_000), slice(None)):
        with pytest.raises(OSError, match="became shorter"):
            stored[wanted]


def test_rows_in_a_file() -> None:
    """More rows than are kept in memory, written and read in any order, also again."""
    files: list[int] = []

    def create() -> int:
        files.append(unnamed_file())
        return files[-1]

    rows, random = FileRows(Struct("=IB"), create), Random(1)
    for number in range(20_000):
        rows.append(number, number % 256)
    model = [(number, number % 256) for number in range(20_000)]
    for _ in range(2_000):
        at = random.randrange(20_000)
        model[at] = rows[at] = random.randrange(1 << 32), random.randrange(256)
        assert rows[(place := random.randrange(20_000))] == model[place]
    assert list(map(rows.__getitem__, range(len(rows)))) == model
    (file,) = files
    assert os.fstat(file).st_size > 10_000 * 5
    del rows
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_few_rows_need_no_file() -> None:
    """Nor does a small change."""
    rows = FileRows(Struct("=I"), lambda: pytest.fail("no file is needed"))
    for number in range(1_000):
        rows.append(number)
    assert rows[999] == (999,)


def test_changes_that_follow_each_other() -> None:
    """The first previous content of a name stays, and the last new one counts, as in an undo of several generations."""
    changes = change_set()
    for change in (
        Change("a", content("1"), content("2")),
        Change("b", None, content("3")),
        Change("a", content("2"), content("4")),
        Change("b", content("3"), None),
        Change("c", content("5"), None),
    ):
        changes.follow(change)
    found = {changes.name(row): (changes.recorded(row), changes.after(row)) for row in changes.rows()}
    assert found == {"a": (content("1"), content("4")), "b": (None, None), "c": (content("5"), None)}
    changes.set_source(changes.row("a"), "stage/7")
    assert changes["a"] == StagedFile("stage/7", content("4"))
    del changes["b"]
    assert sorted(changes) == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(KINDS))))
def test_change_set(calls: list[tuple[str, str]]) -> None:
    """It maps each name to what was last set for it, in whatever order."""
    changes = change_set()
    model: dict[str, StagedFile | None] = {}
    for number, (name, kind) in enumerate(calls, 1):
        new = content(f"{number}")
        if kind == "forget":
            if name in model:
                del changes[name], model[name]
            continue
        source = {"staged": f"stage/{number}", "fetched": f"fetch/content-{new.sha256}"}
        model[name] = changes[name] = None if kind == "drop" else StagedFile(source[kind], new)
    assert dict(changes) == model
    assert len(changes) == len(model)
    found = {changes.name(row): expected for row, expected in changes.fetched()}
    assert found == {name: put.content for name, put in model.items() if put and put.source.startswith("fetch")}
    assert [changes.name(row) for row in changes.rows()] == sorted(model)


def test_rows_of_many_names_are_in_order() -> None:
    """More than are sorted at once."""
    changes = change_set()
    names = [hashlib.sha256(b"%d" % number).hexdigest()[:9] for number in range(10_000)]
    for number, name in enumerate(names, 1):
        changes[name] = StagedFile(f"stage/{number}", content(name))
    assert [changes.name(row) for row in changes.rows()] == sorted(names)
    assert changes[names[7777]] == StagedFile("stage/7778", content(names[7777]))


def test_changes_and_their_summary() -> None:
    """What is done to the disk, and what the record says, where others edited a file or had made the change."""
    changes = change_set()
    changes["new"], changes["same"], changes["edited"] = (
        StagedFile("stage/1", content(text)) for text in ("n", "s", "w")
    )
    changes["gone"] = None
    changes["kept"] = StagedFile("stage/2", content("mine"))
    changes.omit_from_record("kept")
    changes.record("noted")
    changes.set_before(changes.row("new"), None, None)
    changes.set_before(changes.row("same"), content("s"), content("s"))
    changes.set_before(changes.row("edited"), content("theirs"), content("meant"))
    changes.set_before(changes.row("gone"), content("g"), content("g"))
    changes.set_before(changes.row("kept"), None, None)
    changes.set_before(changes.row("noted"), content("n2"), content("n1"))
    assert list(changes.disk_changes()) == [
        Change("edited", content("theirs"), content("w")), Change("gone", content("g"), None),
        Change("kept", None, content("mine")), Change("new", None, content("n")),
    ]  # fmt: skip
    assert list(changes.recorded_changes()) == [
        Change("edited", content("meant"), content("w")), Change("gone", content("g"), None),
        Change("new", None, content("n")), Change("noted", content("n1"), content("n2")),
    ]  # fmt: skip
    changes.record_found("edited")
    assert Change("edited", content("theirs"), content("w")) in changes.recorded_changes()


@given(st.lists(st.integers(0, 5)) | st.integers(0, 9).map(lambda first: list(range(first, first + 4))))
def test_packed_numbers_come_back(numbers: list[int]) -> None:
    """A range or not, they are what they were."""
    packed = pack_numbers(iter(numbers))
    assert list(packed) == numbers
    first = min(numbers, default=0)
    assert isinstance(packed, range) == (numbers == list(range(first, first + len(numbers))))


def test_sorted_numbers() -> None:
    """As `sorted` has them, those of equal keys in order, with few and with many."""
    for count in (0, 5, 4096, 4097, 20_000):
        numbers = [number * 7919 % 20_011 for number in range(count)]
        found = sort_numbers(numbers, lambda number: number % 100)
        assert list(found) == sorted(numbers, key=lambda number: number % 100)


OPS = [
    JournalOp("mkdir", "d"),
    JournalOp("put", "d/x", ".perfkit/stage-01/1"),
    JournalOp("drop", "é", "", Previous(f".perfkit/objects/{'ab' * 32}", 3, 4, 0o644, 5)),
]


@pytest.mark.parametrize("count", range(4))
def test_a_journal_is_read_as_written(count: int) -> None:
    """What is written is read."""
    file = io.BytesIO()
    write_ops(file, OPS[:count])
    check_ops(io.BytesIO(file.getvalue()))
    assert list(read_ops(io.BytesIO(file.getvalue()))) == OPS[:count]


def test_journal_that_is_none() -> None:
    """Cut anywhere, changed, empty, or of a format to come."""
    file = io.BytesIO()
    write_ops(file, OPS)
    whole = file.getvalue()
    later = whole.replace(b'perfkit-journal",3', b'perfkit-journal",4')[: whole.rindex(b"\n", 0, -1) + 1]
    sealed = later + hashlib.sha256(later).hexdigest().encode() + b"\n"
    empty = hashlib.sha256().hexdigest().encode() + b"\n"
    for data in (*(whole[:end] for end in range(len(whole))), whole.replace(b"d/x", b"d/y"), sealed, empty):
        with pytest.raises(ValueError, match=r"truncated|format"):
            check_ops(io.BytesIO(data))


def manifest(**files: str) -> Manifest:
    return Manifest.of(Entry(name, len(data), hashlib.sha256(data.encode()).digest()) for name, data in files.items())


def test_operations_of_content_sets() -> None:
    """They are sets of what the manifest has, each content once, and take others away."""
    tree = manifest(a="1", b="2", c="1", d="4", e="5")
    contents = BlobIndex(tree)
    one, two, four, five = (hashlib.sha256(text).digest() for text in (b"1", b"2", b"4", b"5"))
    some = BlobSet(contents, [one, four, b"?" * 32])
    assert set(some) == {one, four}
    assert len(some) == 2
    assert [each in some for each in (one, two, b"?" * 32, "1")] == [True, False, False, False]
    assert some - BlobSet(contents, [four, five]) == {one}
    assert some - frozenset([one, two]) == {four}
    assert frozenset([one, two]) - some == {two}
    assert some & {one} == {one}
    assert not some.isdisjoint({four})
    assert contents.bytes_of([one, four]) == 2
    assert BlobIndex(tree, [2, 3]).first(one) == 2
    assert BlobIndex(tree, [3]).first(one) is None


def test_a_part_of_a_manifest_is_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a manifest is a mapping of its entries, in any order that it is asked in."""
    tree = manifest(**{f"n{number:03}": f"{number % 7}" for number in range(100)})
    part = EntrySubset(tree)
    for at in range(0, 100, 3):
        part.add(at)
    assert list(part) == [f"n{number:03}" for number in range(0, 100, 3)]
    assert list(part.places()) == [(at, f"n{at:03}") for at in range(0, 100, 3)]
    assert part.names[1:3] == ["n003", "n006"]
    searches: list[object] = []

    def counted(names: Any, name: Any, **options: Any) -> int:
        searches.append(name)
        return bisect_left(names, name, **options)

    monkeypatch.setattr("perfkit.releases.format.manifest.bisect_left", counted)
    for _ in range(3):  # in order, only the first is searched for
        assert [part[name] for name in part] == list(part.entries)
    assert searches == ["n000", "n000"]
    assert [tree.find(name) for name in tree.names() for _ in range(2)] == [at for at in range(100) for _ in range(2)]
    assert len(searches) == 2
    for at in (99, 0, 3, 3, 60, 57):
        assert part[f"n{at:03}"] == tree[at]
    for name in ("n001", "", "z", "n055", "n058"):
        assert name not in part
        with pytest.raises(KeyError):
            part[name]


@pytest.mark.parametrize(
    "make",
    [DigestSet, change_set],
    ids=["digests", "changes"],
)
def test_freed_at_once(make: Callable[[], object]) -> None:
    """Nothing waits until cycles are looked for, which is seldom where there are many objects."""
    gc.disable()
    try:
        made = make()
        left = weakref.ref(made)
        del made
        assert left() is None
    finally:
        gc.enable()
