"""What stands in a tree: scanned once, hashed only where the stat cache does not know, and only when asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from perfkit.filesystem.commit import OWN
from perfkit.filesystem.hashing import hash_file
from perfkit.filesystem.scan import ScanEntry, scan
from perfkit.filesystem.store import OBJECTS
from perfkit.incremental.plan import Held
from perfkit.incremental.statcache import Patch, StatCache
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage

__all__ = ["Look", "entries"]


def entries(root: str) -> Iterator[ScanEntry]:
    """Everything in a tree but directories and perfkit's own files; what vanishes meanwhile is none.

    Raises:
        OSError: a directory can't be read.
    """
    for entry in scan(root, without=(OWN,)):
        if entry.error is None:
            yield entry
        elif not isinstance(entry.error, FileNotFoundError):
            raise entry.error


class Look(Mapping[str, Held]):
    """The files of a tree, by name; a file is read when it is asked for, and its row in the cache doesn't fit.

    Attributes:
        patch: the rows of what was read.
        now_ns: the file system's clock, before anything was.
    """

    def __init__(self, root: str, cache: StatCache, *, now_ns: int, progress: Progress | None = None) -> None:
        self.patch = Patch()
        self._root = root
        self._progress = progress
        self._cache = cache
        self.now_ns = now_ns
        self._entries = {entry.name: entry for entry in entries(root)} if os.path.isdir(root) else {}
        self._held: dict[str, Held] = {}
        self._holders: dict[bytes, str] = {}

    def __getitem__(self, name: str) -> Held:
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = self._look(name, self._entries[name])
            if held.sha256:
                self._holders.setdefault(held.sha256, name)
        return held

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def of(self, names: Iterable[str]) -> dict[str, Held]:
        """What stands under these names; those under which nothing does are left out."""
        found = {}
        with Stage(self._progress, "look") as shown:
            for name in names:
                if name in self._entries:
                    found[name] = self[name]
                    shown.count(files=1, count_bytes=found[name].size)
        return found

    def where(self, digest: bytes) -> str | None:
        """The path of a file that has this content, among those that were asked for; or else of the history."""
        if (name := self._holders.get(digest)) is not None:
            return os.path.join(self._root, name)
        kept = os.path.join(self._root, OBJECTS, digest.hex())
        return kept if os.path.exists(kept) else None

    def known(self) -> dict[str, str]:
        """The SHA-256 of each file that was asked for, in hexadecimal."""
        return {name: held.sha256.hex() for name, held in self._held.items() if held.sha256}

    def _look(self, name: str, entry: ScanEntry) -> Held:
        if entry.kind != "file":
            return Held(b"", entry.size)
        digest = self._cache.sha256(name, entry)
        if digest is None:
            seen = hash_file(os.path.join(self._root, name))
            digest = seen.sha256 or ""
            if (seen.size, seen.mtime_ns, seen.ctime_ns) == (entry.size, entry.mtime_ns, entry.ctime_ns):
                self.patch.record(name, entry, digest, content_ns=self.now_ns, seen_ns=self.now_ns)
        return Held(bytes.fromhex(digest), entry.size, bool(entry.mode & 0o100))
