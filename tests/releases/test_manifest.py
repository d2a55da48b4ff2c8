"""The canonical list of a release's files: what it refuses, and its views."""

from __future__ import annotations

import pytest

from perfkit import ManifestError, UnsafePathError
from perfkit.releases.format.manifest import Entry, EntrySubset, Manifest

pytestmark = pytest.mark.once

ENTRIES = [Entry(name, number, bytes(32)) for number, name in enumerate("abcd")]


@pytest.mark.parametrize("wrong", [Entry("wrong", -1, bytes(32)), Entry("wrong", 1, bytes(31))])
def test_entries_of_no_file(wrong: Entry) -> None:
    with pytest.raises(ManifestError, match="wrong: a file of"):
        Manifest.of([*ENTRIES, wrong])


def test_unsafe_names_are_named() -> None:
    with pytest.raises(UnsafePathError, match=r"\.\./x"):
        Manifest.of([*ENTRIES, Entry("../x", 1, bytes(32))])


def test_names_are_checked_unless_the_digest_is_known() -> None:
    """That they were parsed before is worth nothing for other bytes."""
    raw = bytearray(Manifest.of(ENTRIES).raw)
    raw[-2:-1] = b"a"  # two files of one name
    for known in (False, True):
        with pytest.raises(ManifestError, match="out of order"):
            Manifest.parse(bytes(raw), known=known)


def test_a_subset_is_sliced_and_compared() -> None:
    """Its names and entries are decoded on access, and otherwise behave as lists."""
    subset = EntrySubset(Manifest.of(ENTRIES))
    for number in (0, 2, 3):
        subset.add(number)
    assert (list(subset.names), list(subset.names[1:])) == (["a", "c", "d"], ["c", "d"])
    assert subset.entries[:2] == [ENTRIES[0], ENTRIES[2]]
    assert subset.names != ["a", "c", "e"]
    assert subset.names != ["a", "c"]
