"""Change detection: what may be believed of a file without reading it."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.cli import main
from perfkit.filesystem.scan import ScanEntry, scan
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.statcache import StatCache, appended_rows, clock_ns, next_tick_ns
from tests.support.sites import Origin
from tests.support.tools import unavailable

pytestmark = pytest.mark.once


def manifest(**files: bytes) -> Manifest:
    return Manifest.of(Entry(name, len(data), hashlib.sha256(data).digest()) for name, data in files.items())


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
        """What the file holds now is certain, and is what the release says."""
        self.data = self.file.read_bytes()
        cache = self.load()
        now = clock_ns(self.probe)
        cache.record_at(0, self.look(), content_ns=now, seen_ns=now)
        cache.save(self.log)

    def load(self) -> StatCache:
        return StatCache.load(self.log, manifest(file=self.data), lambda digest: None)

    def known(self) -> bytes | None:
        return self.data if self.load().matches(0, self.look()) else None


@pytest.fixture
def cached(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_file_at_rest_is_known(cached: Tree) -> None:
    """What was hashed once and has not changed needs no second hash."""
    assert cached.known() == b"first"


def test_chmod_makes_a_row_invalid(cached: Tree) -> None:
    """`chmod -R` changes the mode and ctime; the file is looked at again."""
    cached.file.chmod(0o600)
    assert cached.known() is None


def test_touch_makes_a_row_invalid(cached: Tree) -> None:
    """`touch` says nothing about the content, so the content is read."""
    os.utime(cached.file)
    assert cached.known() is None


def test_a_restored_backup(cached: Tree) -> None:
    """A file with the old size and old mtime, but other content, shows by its ctime and inode."""
    before = cached.file.stat()
    backup = cached.home / "backup"
    backup.write_bytes(b"FIRST")
    os.utime(backup, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy2(backup, cached.file)  # in place: the same inode
    assert cached.file.stat().st_mtime_ns == before.st_mtime_ns
    assert cached.known() is None
    cached.note()
    os.utime(backup, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(backup, cached.file)  # and another inode
    assert cached.known() is None


def test_a_file_older_than_the_row(cached: Tree) -> None:
    """Compared with `!=`: a file that looks older than what is known has changed too."""
    os.utime(cached.file, ns=(1, 1))
    assert cached.known() is None


def test_a_swapped_inode(cached: Tree) -> None:
    """Two files of the same size and mtime that change places are distinguished."""
    other = cached.home / "other"
    other.write_bytes(b"other")
    status = cached.file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    aside = cached.home / "aside"
    cached.file.rename(aside)
    other.rename(cached.file)
    assert cached.file.stat().st_size == status.st_size
    assert cached.known() is None


def test_a_write_within_the_same_tick(cached: Tree) -> None:
    """A file changed in the tick in which it was hashed gets no row, since a further change could not be seen."""
    frozen = cached.file.stat().st_mtime_ns  # the clock has not moved since the write
    cache = cached.load()
    assert cache.matches(0, cached.look())
    cache.record_at(0, cached.look(), content_ns=frozen, seen_ns=frozen)
    assert not cache.matches(0, cached.look())


def test_in_place_edits_in_quick_succession_are_never_missed(cached: Tree) -> None:
    """Against the real clock: hash, then write the same size at once; a row either is not there or does not match."""
    for number in range(200):
        text = b"%05d" % number
        cached.file.write_bytes(text)
        cached.note()
        changed = b"%05d" % (number + 50000)
        with open(cached.file, "r+b") as file:
            file.write(changed)
        assert cached.known() is None, number


def test_a_published_file_is_known_though_its_name_is_new(cached: Tree) -> None:
    """A file written at rest and then renamed has a new ctime; content certain before, seen after, that suffices."""
    fresh = cached.home / "fresh"
    fresh.write_bytes(b"second")
    content_ns = clock_ns(cached.probe)
    while content_ns <= fresh.stat().st_mtime_ns:
        content_ns = clock_ns(cached.probe)
    os.replace(fresh, cached.file)
    cached.rest()
    cache = StatCache(manifest(file=b"second"))
    cache.record_at(0, cached.look(), content_ns=content_ns, seen_ns=clock_ns(cached.probe))
    assert cache.matches(0, cached.look())


def rows(cache: StatCache) -> list[int]:
    return [
        entry.ctime_ns
        for entry in map(Seen, range(1, 9))
        for at in range(len(cache.manifest))
        if cache.matches(at, entry)
    ]


class Seen:
    """What stat(2) might say of a file of one byte; each differs from all others."""

    def __init__(self, number: int) -> None:
        self.size, self.mtime_ns, self.ctime_ns, self.inode, self.mode = 1, number, number, number, 0o100644


def remember(cache: StatCache, **numbers: int) -> StatCache:
    for name, number in numbers.items():
        digest = cache.manifest.digest(cache.manifest.find(name) or 0).hex()
        cache.record(name, Seen(number), digest, content_ns=1000, seen_ns=1000)
    return cache


def test_rows_follow_files_that_stay_the_same(tmp_path: Path) -> None:
    """Another release has the rows of what it has in common with the one before, and no others."""
    old = remember(StatCache(manifest(a=b"1", b=b"2", d=b"4")), a=1, b=2, d=4)
    new = old.for_manifest(manifest(a=b"1", b=b"x", c=b"3", d=b"4"))
    assert [new.matches(at, Seen(number)) for at, number in ((0, 1), (1, 2), (3, 4))] == [True, False, True]
    assert rows(new) == [1, 4]


def test_after_a_rollback_its_rows_are_taken_over(tmp_path: Path) -> None:
    """A rollback only appends; the next reader puts that together with the rows of the release before."""
    path, newer, older = str(tmp_path / "cache"), manifest(a=b"1", b=b"n"), manifest(a=b"1", b=b"o")
    remember(StatCache(newer), a=1, b=2).save(path)
    with appended_rows(path) as added:
        added.record("b", Seen(3), hashlib.sha256(b"o").hexdigest(), content_ns=1000, seen_ns=1000)
    cache = StatCache.load(path, older, {newer.sha256.hex(): newer}.get)
    assert rows(cache) == [1, 3]
    assert rows(StatCache.load(path, newer, lambda digest: None)) == [1, 2]
    assert rows(StatCache.load(path, older, lambda digest: None)) == [3], "without the release before"


def test_a_content_that_is_not_the_releases_has_no_row() -> None:
    """Rows say that a file is as the manifest has it; of an edited one there is nothing to say."""
    cache = remember(StatCache(manifest(a=b"1")), a=1)
    cache.record("a", Seen(2), hashlib.sha256(b"edited").hexdigest(), content_ns=1000, seen_ns=1000)
    assert rows(cache) == []


@pytest.mark.parametrize("cut", [0, 1, 40, 150, -1])
def test_a_damaged_cache_costs_hashes(tmp_path: Path, cut: int) -> None:
    """What can't be read is as if it were not there."""
    path, release = str(tmp_path / "cache"), manifest(a=b"1", b=b"2")
    remember(StatCache(release), a=1, b=2).save(path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:cut])
    assert rows(StatCache.load(path, release, lambda digest: None)) == []
    Path(path).write_bytes(b"\0" * len(data))
    assert rows(StatCache.load(path, release, lambda digest: None)) == []


@pytest.mark.parametrize("how", ["toolkit", "command"])
def test_a_store_through_a_mapping(origin: Origin, make_kit: Callable[..., Toolkit], how: str) -> None:
    """It leaves the stat as it was: `verify` finds it, and so does a sync that checks all contents."""
    if not os.path.isdir("/dev/shm"):
        unavailable("needs a file system in memory, which never writes a page back")
    origin.publish({"a": b"1" * 5000, "b": b"2"}, "1")
    kit, careful = make_kit(), make_kit(check_contents=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        root = Path(scratch, "tree")
        kit.sync(origin.url, root)
        with (root / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            mapping[0] = ord("1")  # the page is dirty from now on
            next_tick_ns(os.path.join(scratch, "clock"))
            kit.sync(origin.url, root)  # reads it, and stores its row
            before = (root / "a").stat()
            mapping[0] = ord("9")
            assert (root / "a").read_bytes() == b"9" + b"1" * 4999
            assert (root / "a").stat().st_ctime_ns == before.st_ctime_ns
        assert kit.sync(origin.url, root).route == "none"
        assert kit.plan(origin.url, root).changed == ()
        assert kit.verify(root).changed == ("a",)
        assert careful.plan(origin.url, root).changed == ("a",)
        if how == "toolkit":
            assert careful.sync(origin.url, root).changed == 1
        else:
            assert main(["sync", "--check-contents", "--quiet", origin.url, str(root)]) == 0
        assert kit.verify(root).changed == ()
        assert (root / "a.perfkit-local").read_bytes()[:1] == b"9"


@pytest.mark.parametrize("seconds", [-(10**10), 10**10])
def test_times_beyond_64_bits(origin: Origin, make_kit: Callable[..., Toolkit], seconds: int) -> None:
    """In nanoseconds, those before 1677 and after 2262: such files are published, synced and verified like others."""
    if not os.path.isdir("/dev/shm"):
        unavailable("needs a file system in memory, which holds any time")
    origin.publish({"a": b"1", "b": b"2"}, "1")
    kit = make_kit()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        root = Path(scratch, "tree")
        kit.sync(origin.url, root)
        os.utime(root / "a", (seconds, seconds))
        assert os.stat(root / "a").st_mtime_ns == seconds * 10**9
        for _ in range(2):
            assert kit.sync(origin.url, root).changed == 0
            kit.publish(root, Path(scratch, "site"), version="{n}", exclude=[".perfkit"])
        (root / "a").write_bytes(b"9")
        os.utime(root / "a", (seconds, seconds))
        assert kit.verify(root).changed == ("a",)
