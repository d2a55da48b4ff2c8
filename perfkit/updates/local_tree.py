"""What stands in a tree, laid beside the manifest of what is installed: one traversal, and only exceptions are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from perfkit.filesystem.hashing.hash_file import FileHash
from perfkit.filesystem.hashing.hash_tree import hash_many
from perfkit.filesystem.scan import ScanEntry, scan_in_order
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Manifest, Part
from perfkit.transactions.layout import PRIVATE_DIR, object_path
from perfkit.transactions.records import Seen
from perfkit.updates.digest_index import Contents
from perfkit.updates.planner import Held, Standing
from perfkit.updates.statcache import StatCache

__all__ = ["Look", "entries"]


def entries(root: str) -> Iterator[ScanEntry]:
    """Everything in a tree but directories and perfkit's own files, by name; what vanishes meanwhile is none.

    Raises:
        OSError: a directory can't be read.
    """
    for entry in scan_in_order(root, without=(PRIVATE_DIR,)):
        if entry.error is None:
            yield entry
        elif not isinstance(entry.error, FileNotFoundError):
            raise entry.error


class Look(Mapping[str, Held]):
    """The files of a tree, by name.

    Managed files are read if their row in the cache does not fit, many at once; others when they are asked for. Of a
    file that is as the manifest says there is one byte in memory, of any other an object.

    Attributes:
        cache: the rows, with those of what was read.
        now_ns: the file system's clock, before anything was.

    Raises:
        OSError: something can't be read.
        FileChangedError: a file changed while it was.
    """

    def __init__(self, root: str, cache: StatCache, *, now_ns: int, progress: Progress | None = None) -> None:
        self.cache = cache
        self.now_ns = now_ns
        self._root = root
        self._progress = progress
        self._installed = cache.manifest
        self._as_said = bytearray(len(cache.manifest))  # 1 for each entry that the tree has just so
        self._others: dict[str, Held] = {}
        self._rowless: dict[str, ScanEntry] = {}  # what was read and has no row
        self._unread: dict[str, ScanEntry] = {}  # unmanaged ones
        self._at_rest: list[ScanEntry] = []  # of them, that were read
        if os.path.isdir(root):
            self._compare()

    def _compare(self) -> None:
        flying: dict[str, tuple[int, ScanEntry]] = {}  # being read

        def doubtful() -> Iterator[ScanEntry]:
            for at, entry in self._join():
                if at is None:
                    self._unread[entry.name] = entry
                elif entry.kind != "file":
                    self._others[entry.name] = Held(b"", entry.size)
                elif self.cache.fits(at, entry):
                    self._as_said[at] = 1
                else:
                    flying[entry.name] = at, entry
                    yield entry

        with Stage(self._progress, "look") as shown:
            for found in hash_many(self._root, doubtful()):
                at, entry = flying.pop(found.name)
                if found.error is None and found.sha256 is not None:
                    self._note(at, entry, bytes.fromhex(found.sha256), at_rest=_same_times(entry, found))
                elif found.error is not None and not isinstance(found.error, FileNotFoundError):
                    raise found.error
                shown.count(files=1, count_bytes=entry.size)

    def _join(self) -> Iterator[tuple[int | None, ScanEntry]]:
        """Everything in the tree, with its place in the manifest."""
        names = enumerate(self._installed.names())
        at, name = next(names, (None, None))
        for entry in entries(self._root):
            while name is not None and name < entry.name:
                at, name = next(names, (None, None))
            yield at if name == entry.name else None, entry

    def _note(self, at: int, entry: ScanEntry, sha256: bytes, *, at_rest: bool) -> None:
        """A managed file was read."""
        executable = bool(entry.mode & 0o100)
        self._rowless[entry.name] = entry
        if sha256 == self._installed.digest(at) and executable == self._installed.executable(at):
            self._as_said[at] = 1
            if at_rest:
                self.cache.record_at(at, entry, content_ns=self.now_ns, seen_ns=self.now_ns)
                if self.cache.fits(at, entry):
                    del self._rowless[entry.name]
        else:
            self._others[entry.name] = Held(sha256, entry.size, executable)
            self.cache.forget_at(at)

    @property
    def as_installed(self) -> bool:
        """Whether every file of the manifest is there just as it says."""
        return 0 not in self._as_said

    def is_as_said(self, at: int) -> bool:
        """Whether the tree has this entry of the manifest just as it says."""
        return self._as_said[at] == 1

    def __getitem__(self, name: str) -> Held:
        if (held := self._others.get(name)) is not None:
            return held
        if name in self._unread:
            self._read((name,))
            return self._others[name]
        at = self._installed.find(name)
        if at is None or not self._as_said[at]:
            raise KeyError(name)
        return Held(self._installed.digest(at), self._installed.size(at), self._installed.executable(at))

    def __iter__(self) -> Iterator[str]:
        yield from (name for name, said in zip(self._installed.names(), self._as_said, strict=True) if said)
        yield from [*self._others, *self._unread]

    def __len__(self) -> int:
        return sum(self._as_said) + len(self._others) + len(self._unread)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        at = self._installed.find(name)
        return name in self._others or name in self._unread or (at is not None and self._as_said[at] == 1)

    def of(self, before: Part, after: Part) -> Standing:
        """What stands under the names of these entries, the first being of the installed manifest."""
        as_said = Part(self._installed)
        others: dict[str, Held] = {}
        for at, name in before.places():
            if self._as_said[at]:
                as_said.add(at)
            elif name in self._others:
                others[name] = self._others[name]
        self._read([name for name in after if name in self._unread])
        others.update((name, self._others[name]) for name in after if name in self._others)
        return Standing(as_said, others)

    def _read(self, names: Iterable[str]) -> None:
        """Read unmanaged files; what vanished meanwhile is none."""
        chosen = [self._unread.pop(name) for name in names]
        self._others.update((entry.name, Held(b"", entry.size)) for entry in chosen if entry.kind != "file")
        files = {entry.name: entry for entry in chosen if entry.kind == "file"}
        if not files:
            return
        with Stage(self._progress, "look", files=len(files)) as shown:
            for found in hash_many(self._root, files.values()):
                entry = files[found.name]
                if found.error is None:
                    self._rowless[entry.name] = entry
                    sha256 = bytes.fromhex(found.sha256 or "")
                    self._others[entry.name] = Held(sha256, entry.size, bool(entry.mode & 0o100))
                    if _same_times(entry, found):
                        self._at_rest.append(entry)
                elif not isinstance(found.error, FileNotFoundError):
                    raise found.error
                shown.count(files=1, count_bytes=entry.size)

    def cache_for(self, manifest: Manifest) -> StatCache:
        """The rows for another manifest, with those of unmanaged files that it has."""
        cache = self.cache.for_manifest(manifest)
        for entry in self._at_rest:
            digest = self._others[entry.name].sha256.hex()
            cache.record(entry.name, entry, digest, content_ns=self.now_ns, seen_ns=self.now_ns)
        return cache

    def having(self, digest: bytes) -> Iterator[int]:
        """The entries of installed files that have this content, just as the manifest says."""
        return (at for at in self._contents.find(digest) if self._as_said[at])

    @cached_property
    def _contents(self) -> Contents:
        return Contents(self._installed)

    def where(self, digest: bytes) -> str | None:
        """The path of a file that has this content, among those that were read; or else of the history."""
        holder = self.holder(digest.hex())
        if holder is not None:
            return os.path.join(self._root, holder)
        kept = os.path.join(self._root, object_path(digest.hex()))
        return kept if os.path.exists(kept) else None

    def seen(self, name: str) -> Seen | None:
        """What a file was when it was looked at, for the commit to see that it still is; None: there was none."""
        if (entry := self._rowless.get(name)) is not None:
            return Seen(self[name].sha256.hex(), entry.inode, entry.size, entry.mtime_ns)
        at = self._installed.find(name)
        if name in self._others or at is None or not self._as_said[at]:
            return None
        inode, mtime_ns = self.cache.identity_at(at)
        return Seen(self._installed.digest(at).hex(), inode, self._installed.size(at), mtime_ns)

    def holder(self, sha256: str) -> str | None:
        """The name of a file that has this content (hexadecimal), among those that were read."""
        digest = bytes.fromhex(sha256)
        for at in self.having(digest):
            return self._installed.name(at)
        return next((name for name, held in self._others.items() if held.sha256 == digest), None)

    def path(self, name: str) -> str | None:
        """The path of the file of this name, whatever it holds."""
        held = self._others.get(name)
        there = name in self if held is None else bool(held.sha256)
        return os.path.join(self._root, name) if there else None


def _same_times(entry: ScanEntry, found: FileHash) -> bool:
    """Whether a file was still as it had been seen when it was read."""
    return (found.size, found.mtime_ns, found.ctime_ns) == (entry.size, entry.mtime_ns, entry.ctime_ns)
