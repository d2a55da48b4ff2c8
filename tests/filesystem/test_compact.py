"""What holds very many files in little memory says the same as the dictionaries and lists that it stands for."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from perfkit.filesystem.compact import DigestIndex, DigestSet, Lookup, Names, pack_numbers, sort_numbers
from tests.support.leaks import freed_at_once

pytestmark = pytest.mark.once

LONG = "d" * 300
NAMES = st.text(alphabet="ab/é\U0001f600", min_size=1, max_size=12) | st.sampled_from([f"{LONG}/x", LONG])


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


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 3).map((1 << 32).__mul__), max_size=200))
def test_rows_are_found_by_hash(keys: list[int]) -> None:
    """Also where hashes have the same half, of which the table has to ask the caller."""
    rows, model = Lookup(), dict[int, int]()
    for row, key in enumerate(keys):
        if key not in model:
            rows.add(row, key)
        model.setdefault(key, row)
    for key in {*keys, 7, 1 << 35}:
        assert rows.find(key, lambda row, key=key: keys[row] == key) == model.get(key)


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
        assert index.first(digest) == next(iter(places), None)
    assert sorted(index.repeated()) == [at for at, each in enumerate(digests) if each in digests[:at]]


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


def test_freed_at_once() -> None:
    assert freed_at_once(DigestSet)
