"""Scan a tree, and compare it with the installed manifest; read only what the stat cache can't vouch for.

What happens to files that the user has edited is decided in `planner.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO

from perfkit.filesystem.hashing.hash_file import FileHash
from perfkit.filesystem.hashing.hash_tree import hash_many
from perfkit.filesystem.own_files import open_own
from perfkit.filesystem.scan import ScanEntry, scan_in_order
from perfkit.filesystem.thread_map import cached_property
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Entry, EntrySubset, Manifest
from perfkit.releases.statcache import StatCache
from perfkit.transactions import layout
from perfkit.transactions.records import Seen
from perfkit.updates.digest_index import BlobIndex
from perfkit.updates.planner import ExistingFiles


def _scan_managed(root: str, manifest: Manifest) -> Iterator[tuple[int | None, ScanEntry]]:
    """Everything in a tree except directories and perfkit's own files, by name, each with its index in the manifest;
    None: it is unmanaged. Files that vanish are skipped.
    """
    names = enumerate(manifest.names())
    at, name = next(names, (None, None))
    for entry in scan_in_order(root, without=(layout.PRIVATE_DIR,)):
        if isinstance(entry.error, FileNotFoundError):
            continue
        if entry.error is not None:
            raise entry.error
        while name is not None and name < entry.name:
            at, name = next(names, (None, None))
        yield at if name == entry.name else None, entry


class LocalTree:
    """The files of a tree, by name.

    Managed files whose row in the stat cache does not match are hashed at once, in parallel; unmanaged files when their
    content is needed. A file that is as the manifest has it takes one byte of memory, any other an `Entry`; the SHA-256
    of anything but a regular file is empty.

    Raises:
        OSError: something can't be read.
        FileChangedError: a file changed while it was read.
    """

    def __init__(
        self,
        root: str,
        cache: StatCache,
        *,
        now_ns: int,
        progress: Progress | None = None,
        phase: str = "checking files",
    ) -> None:
        self.cache = cache  # the rows of the managed files, with those that were hashed
        self.now_ns = now_ns  # the file system's time before anything was read
        self.hashed_bytes = 0  # total size of the files that were hashed
        self._root = root
        self._progress = progress
        self._installed = cache.manifest
        self._intact = bytearray(len(cache.manifest))  # 1 for each entry of the manifest that the tree has unchanged
        self._others: dict[str, Entry] = {}  # changed files, and unmanaged ones that were read
        self._hashed: dict[str, ScanEntry] = {}  # files that were read and have no row
        self._unread: dict[str, ScanEntry] = {}  # unmanaged files
        self._stable: list[ScanEntry] = []  # unmanaged files that did not change while they were read
        if os.path.isdir(root):
            self._compare(phase)

    def _compare(self, phase: str) -> None:
        def unmatched() -> Iterator[ScanEntry]:
            for at, entry in _scan_managed(self._root, self._installed):
                if at is None:
                    self._unread[entry.name] = entry
                elif entry.kind != "file":
                    self._others[entry.name] = Entry(entry.name, entry.size, b"")
                elif self.cache.matches(at, entry):
                    self._intact[at] = 1
                    shown.count(files=1, count_bytes=entry.size)
                else:
                    yield entry

        installed = self._installed
        with Stage(self._progress, phase, files=len(installed), total_bytes=installed.total_bytes) as shown:
            self._hash(unmatched(), shown)

    def _read(self, names: Iterable[str]) -> None:
        """Hash unmanaged files; those that vanished are skipped."""
        chosen = [self._unread.pop(name) for name in names]
        files = [entry for entry in chosen if entry.kind == "file"]
        self._others.update((each.name, Entry(each.name, each.size, b"")) for each in chosen if each.kind != "file")
        if files:
            size = sum(entry.size for entry in files)
            with Stage(self._progress, "checking files", files=len(files), total_bytes=size) as shown:
                self._hash(files, shown)

    def _hash(self, entries: Iterable[ScanEntry], shown: Stage) -> None:
        """Hash files, in parallel, and record their content."""
        pending: dict[str, ScanEntry] = {}

        def begun() -> Iterator[ScanEntry]:
            for entry in entries:
                pending[entry.name] = entry
                yield entry

        for found in hash_many(self._root, begun()):
            entry = pending.pop(found.name)
            if found.error is None:
                self._add_hash(entry, found)
            elif not isinstance(found.error, FileNotFoundError):
                raise found.error
            shown.count(files=1, count_bytes=entry.size)

    def _add_hash(self, entry: ScanEntry, found: FileHash) -> None:
        """Record the content of a file that was hashed."""
        at, sha256 = self._installed.find(entry.name), bytes.fromhex(found.sha256 or "")
        # whether the file did not change between the scan and the hash
        stable = (found.size, found.mtime_ns, found.ctime_ns) == (entry.size, entry.mtime_ns, entry.ctime_ns)
        executable = bool(entry.mode & 0o100)
        if at is not None and not self.cache.modes:
            executable = self._installed.executable(at)
        self.hashed_bytes += found.size
        self._hashed[entry.name] = entry
        if at is not None and (sha256, executable) == (self._installed.digest(at), self._installed.executable(at)):
            self._intact[at] = 1
            if stable:
                self.cache.record_at(at, entry, content_ns=self.now_ns, seen_ns=self.now_ns)
                if self.cache.matches(at, entry):
                    del self._hashed[entry.name]  # the row has what `seen` needs
            return
        self._others[entry.name] = Entry(entry.name, entry.size, sha256, executable)
        if at is not None:
            self.cache.forget_at(at)
        elif stable:
            self._stable.append(entry)

    @property
    def all_intact(self) -> bool:
        """Whether every file of the manifest is there unchanged."""
        return 0 not in self._intact

    def differences(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The names of missing managed files, of changed managed files, and of unmanaged files."""
        managed = self._installed.find
        listed = zip(self._installed.names(), self._intact, strict=True)
        missing = tuple(name for name, intact in listed if not intact and name not in self._others)
        changed = sorted(name for name in self._others if managed(name) is not None)
        extra = sorted(name for name in chain(self._others, self._unread) if managed(name) is None)
        return missing, tuple(changed), tuple(extra)

    def is_intact(self, at: int) -> bool:
        """Whether the tree has this entry of the manifest unchanged."""
        return self._intact[at] == 1

    def get(self, name: str) -> Entry | None:
        """The file with this name, if there is one; an unmanaged one is read for its content."""
        if name in self._unread:
            self._read((name,))
        return self._others.get(name) or self._intact_entry(name)

    def _intact_entry(self, name: str) -> Entry | None:
        at = self._installed.find(name)
        return None if at is None or not self._intact[at] else self._installed[at]

    def __contains__(self, name: str) -> bool:
        return name in self._others or name in self._unread or self._intact_entry(name) is not None

    def __len__(self) -> int:
        return sum(self._intact) + len(self._others) + len(self._unread)

    def existing(self, installed: EntrySubset, wanted: EntrySubset) -> ExistingFiles:
        """The tree's files under the names of these entries of the installed and the wanted manifest."""
        intact = EntrySubset(self._installed)
        for at, _ in installed.places():
            if self._intact[at]:
                intact.add(at)
        self._read([name for name in wanted if name in self._unread])
        names = (name for name in chain(installed, wanted) if name in self._others)
        return ExistingFiles(intact, {name: self._others[name] for name in names})

    def cache_for(self, manifest: Manifest) -> StatCache:
        """The rows for another manifest, including the unmanaged files that it has."""
        cache = self.cache.for_manifest(manifest)
        for entry in self._stable:
            digest = self._others[entry.name].sha256.hex()
            cache.record(entry.name, entry, digest, content_ns=self.now_ns, seen_ns=self.now_ns)
        return cache

    def entries_with(self, digest: bytes) -> Iterator[int]:
        """The entries of the manifest with this content that the tree has unchanged."""
        return (at for at in self._blobs.find(digest) if self._intact[at])

    @cached_property
    def _blobs(self) -> BlobIndex:
        return BlobIndex(self._installed)

    def free_index(self) -> None:
        """Free the memory that finding files by their content has taken; it is built again if it is needed."""
        vars(self).pop("_blobs", None)

    def name_of_blob(self, sha256: str) -> str | None:
        """The name of a file with this content (hexadecimal), among those that were read."""
        digest = bytes.fromhex(sha256)
        for at in self.entries_with(digest):
            return self._installed.name(at)
        return next((name for name, found in self._others.items() if found.sha256 == digest), None)

    def open_blob(self, digest: bytes) -> BinaryIO | None:
        """A file with this content, unbuffered, among those that were read, or else in the history; None: it can't be
        opened, or is no longer a regular file.

        Others may have written to it since: verify what you read.
        """
        name = self.name_of_blob(digest.hex()) or layout.object_path(digest.hex())
        try:
            return open(os.path.join(self._root, name), "rb", buffering=0, opener=open_own)
        except OSError:
            return None

    def path_of(self, name: str) -> str | None:
        """The path of the regular file with this name, whatever its content; None: it does not exist."""
        found = self._others.get(name)
        exists = name in self if found is None else bool(found.sha256)
        return os.path.join(self._root, name) if exists else None

    def seen(self, name: str) -> Seen | None:
        """The file as it was scanned, so that the commit can check that it is unchanged; None: it was absent."""
        found = self._others.get(name) or self._intact_entry(name)
        if found is not None and (entry := self._hashed.get(name)) is not None:
            later = entry.mtime_ns >= self.now_ns  # a write within the same tick of the clock would not show
            return Seen(found.sha256.hex(), entry.inode, entry.size, -1 if later else entry.mtime_ns)
        at = self._installed.find(name)
        if found is None or name in self._others or at is None:
            return None
        inode, mtime_ns = self.cache.identity_at(at)
        return Seen(found.sha256.hex(), inode, found.size, mtime_ns)
