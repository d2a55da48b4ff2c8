"""The contents of a manifest by their digests."""

from __future__ import annotations

import hashlib

import pytest

from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.digest_index import BlobIndex, BlobSet

pytestmark = pytest.mark.once


def test_operations_of_content_sets() -> None:
    """They are sets of what the manifest has, each content once, and take others away."""
    files = {"a": "1", "b": "2", "c": "1", "d": "4", "e": "5"}
    digests = {name: hashlib.sha256(text.encode()).digest() for name, text in files.items()}
    tree = Manifest.of(Entry(name, 1, digest) for name, digest in digests.items())
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


def test_contents_whose_digests_begin_alike_are_told_apart() -> None:
    """The index compares 8 bytes first; only one entry of each content counts, whichever order they are given in."""
    one, other = b"begins-1" + b"1" * 24, b"begins-1" + b"2" * 24
    tree = Manifest.of(Entry(name, 1, digest) for name, digest in zip("abcd", (one, other, one, other), strict=True))
    whole = BlobSet.at(tree, range(4))
    assert [whole.has_first(at) for at in range(4)] == [True, True, False, False]
    assert [whole.index.first(each) for each in (one, other, b"begins-1" + b"3" * 24)] == [0, 1, None]
    later = BlobSet.at(tree, [2, 3, 0])
    assert [later.has_first(at) for at in range(4)] == [False, False, True, True]
    assert later.index.bytes_of(later) == later.index.bytes_of([one, other]) == 2
