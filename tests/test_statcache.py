"""Change detection: what may be believed of a file without reading it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from perfkit.filesystem.scan import ScanEntry, scan
from perfkit.incremental.statcache import Patch, StatCache, append, clock_ns

RELEASE = "a" * 64


class Tree:
    """One file, and a cache that has seen it at rest."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "file"
        self.log = str(home / "statcache")
        self.probe = str(home / "clock")
        self.file.write_bytes(b"first")
        self.rest()
        self.note()

    def rest(self) -> None:
        """Let the file system's clock move on past the last change."""
        while clock_ns(self.probe) <= max(self.file.stat().st_mtime_ns, self.file.stat().st_ctime_ns):
            time.sleep(0.001)

    def look(self) -> ScanEntry:
        return next(each for each in scan(self.home) if each.name == "file")

    def note(self) -> None:
        cache, patch = StatCache.load(self.log), Patch()
        now = clock_ns(self.probe)
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        patch.record("file", self.look(), digest, content_ns=now, seen_ns=now)
        cache.apply(patch, self.log, manifest=RELEASE)

    def known(self) -> str | None:
        return StatCache.load(self.log).sha256("file", self.look())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_file_at_rest_is_known(tree: Tree) -> None:
    """What was hashed once and has not changed needs no second hash."""
    assert tree.known() == hashlib.sha256(b"first").hexdigest()


def test_chmod(tree: Tree) -> None:
    """`chmod -R` changes the mode and ctime; the file is looked at again."""
    tree.file.chmod(0o600)
    assert tree.known() is None


def test_touch(tree: Tree) -> None:
    """`touch` says nothing about the content, so the content is read."""
    os.utime(tree.file)
    assert tree.known() is None


def test_a_restored_backup(tree: Tree) -> None:
    """A file with the old size and old mtime, but other content, shows by its ctime and inode."""
    before = tree.file.stat()
    backup = tree.home / "backup"
    backup.write_bytes(b"FIRST")
    os.utime(backup, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy2(backup, tree.file)  # in place: the same inode
    assert tree.file.stat().st_mtime_ns == before.st_mtime_ns
    assert tree.known() is None
    tree.note()
    os.utime(backup, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(backup, tree.file)  # and another inode
    assert tree.known() is None


def test_a_file_older_than_the_row(tree: Tree) -> None:
    """Compared with `!=`: a file that looks older than what is known has changed too."""
    os.utime(tree.file, ns=(1, 1))
    assert tree.known() is None


def test_a_swapped_inode(tree: Tree) -> None:
    """Two files of one size and one mtime that change places are told apart."""
    other = tree.home / "other"
    other.write_bytes(b"other")
    status = tree.file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    aside = tree.home / "aside"
    tree.file.rename(aside)
    other.rename(tree.file)
    assert tree.file.stat().st_size == status.st_size
    assert tree.known() is None


def test_a_write_within_the_same_tick(tree: Tree) -> None:
    """A file changed in the tick in which it was hashed gets no row, since a further change could not be seen."""
    frozen = tree.file.stat().st_mtime_ns  # the clock has not moved since the write
    patch = Patch()
    patch.record("file", tree.look(), "0" * 64, content_ns=frozen, seen_ns=frozen)
    assert patch.rows == {}
    assert patch.gone == {"file"}


def test_in_place_edits_in_quick_succession_are_never_missed(tree: Tree) -> None:
    """Against the real clock: hash, then write the same size at once; a row either is not there or does not match."""
    for number in range(200):
        text = b"%05d" % number
        tree.file.write_bytes(text)
        tree.note()
        changed = b"%05d" % (number + 50000)
        with open(tree.file, "r+b") as file:
            file.write(changed)
        known = tree.known()
        assert known in (None, hashlib.sha256(changed).hexdigest()), number


def test_a_published_file_is_known_though_its_name_is_new(tree: Tree) -> None:
    """A file written at rest and then renamed has a new ctime; content certain before, seen after, that suffices."""
    fresh = tree.home / "fresh"
    fresh.write_bytes(b"second")
    content_ns = clock_ns(tree.probe)
    while content_ns <= fresh.stat().st_mtime_ns:
        content_ns = clock_ns(tree.probe)
    os.replace(fresh, tree.file)
    tree.rest()
    patch = Patch()
    patch.record("file", tree.look(), "5" * 64, content_ns=content_ns, seen_ns=clock_ns(tree.probe))
    assert "file" in patch.rows


def test_a_log_grows_with_the_change_and_is_compacted(tmp_path: Path) -> None:
    """A patch is appended as a line; when most of the log is history it is written anew, with the same rows."""
    path = str(tmp_path / "log")
    cache, patch = StatCache(), Patch()
    patch.rows = {f"name{number}": f"{number} sha" for number in range(10000)}
    cache.apply(patch, path, manifest="m0")
    whole = os.path.getsize(path)
    change = Patch()
    change.rows, change.gone = {"name1": "new sha"}, {"name2"}
    append(change, path, base="m0", manifest="m1")
    assert os.path.getsize(path) - whole < 200
    loaded = StatCache.load(path)
    assert loaded.manifest == "m1"
    assert len(loaded.rows) == 9999
    assert loaded.rows["name1"] == "new sha"
    for number in range(4):
        loaded.apply(patch, path, manifest=f"n{number}")
    assert os.path.getsize(path) < 3.2 * whole
    assert StatCache.load(path).rows == loaded.rows
    assert StatCache.load(path).manifest == "n3"


def test_a_patch_to_another_base_leaves_rows_of_no_release(tmp_path: Path) -> None:
    """Rows are true each for itself; whether they are a whole release is only known along an unbroken chain."""
    path = str(tmp_path / "log")
    patch = Patch()
    patch.rows = {"a": "1 sha"}
    StatCache().apply(patch, path, manifest="m0")
    append(Patch(), path, base="elsewhere", manifest="m1")
    assert StatCache.load(path).manifest is None
    assert StatCache.load(path).rows == {"a": "1 sha"}
    loaded = StatCache.load(path)
    loaded.apply(Patch(), path, manifest="m2")
    assert StatCache.load(path).manifest == "m2"


@pytest.mark.parametrize("damage", ["cut", "garbage", "other format", "zeros", "wrong types"])
def test_a_damaged_log_costs_hashes_and_nothing_else(tmp_path: Path, damage: str) -> None:
    """Whatever stands in the log, loading it gives the rows before the damage and no claim to be whole."""
    path = tmp_path / "log"
    first, second = Patch(), Patch()
    first.rows, second.rows = {"a": "1 sha"}, {"b": "2 sha"}
    StatCache().apply(first, str(path), manifest="m0")
    whole = path.read_bytes()
    append(second, str(path), base="m0", manifest="m1")
    tail = {"cut": path.read_bytes()[len(whole) : -9], "garbage": b"\xff\xfe{]\n", "zeros": b"\0" * 4096,
            "other format": path.read_bytes()[len(whole) :].replace(b'"format":1', b'"format":2'),
            "wrong types": b'{"format":1,"base":"m0","manifest":"m1","rows":{"a":5},"gone":[]}\n'}[damage]  # fmt: skip
    path.write_bytes(whole + tail)
    loaded = StatCache.load(str(path))
    assert loaded.rows == {"a": "1 sha"}
    assert loaded.manifest is None
    loaded.apply(second, str(path), manifest="m1")  # writes the log anew
    assert StatCache.load(str(path)).rows == {"a": "1 sha", "b": "2 sha"}
    assert StatCache.load(str(path)).manifest == "m1"
