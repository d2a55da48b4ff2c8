"""Scan a tree, and compare it with the installed manifest; read only what the stat cache can't vouch for.

What happens to files that the user has edited is decided in `planner.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import BinaryIO

from perfkit.filesystem.hashing.hash_file import FileHash
from perfkit.filesystem.hashing.hash_tree import hash_many
from perfkit.filesystem.own_files import open_own
from perfkit.filesystem.scan import ScanEntry, scan_in_order
from perfkit.filesystem.thread_map import cached_property
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import EntrySubset, Manifest
from perfkit.releases.statcache import StatCache
from perfkit.transactions import layout
from perfkit.transactions.records import Seen
from perfkit.updates.digest_index import BlobIndex
from perfkit.updates.planner import ExistingFile, ExistingFiles


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


class LocalTree(Mapping[str, ExistingFile]):
    """The files of a tree, by name.

    Managed files whose row in the stat cache does not match are hashed at once, in parallel; unmanaged files when their
    content is needed. A file that is as the manifest has it takes one byte of memory, any other an object.

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
        self.hashed_bytes = 0  # total size of the managed files that were hashed
        self._root = root
        self._progress = progress
        self._installed = cache.manifest
        self._intact = bytearray(len(cache.manifest))  # 1 for each entry of the manifest that the tree has unchanged
        self._others: dict[str, ExistingFile] = {}  # changed files, and unmanaged ones that were read
        self._hashed: dict[str, ScanEntry] = {}  # files that were read and have no row
        self._unread: dict[str, ScanEntry] = {}  # unmanaged files
        self._stable: list[ScanEntry] = []  # unmanaged files that did not change while they were read
        if os.path.isdir(root):
            self._compare(phase)

    def _compare(self, phase: str) -> None:
        pending: dict[str, tuple[int, ScanEntry]] = {}  # being hashed

        def unmatched() -> Iterator[ScanEntry]:
            for at, entry in _scan_managed(self._root, self._installed):
                if at is None:
                    self._unread[entry.name] = entry
                elif entry.kind != "file":
                    self._others[entry.name] = ExistingFile(b"", entry.size)
                elif self.cache.matches(at, entry):
                    self._intact[at] = 1
                    shown.count(files=1, count_bytes=entry.size)
                else:
                    pending[entry.name] = at, entry
                    yield entry

        installed = self._installed
        with Stage(self._progress, phase, files=len(installed), total_bytes=installed.total_bytes) as shown:
            for found in hash_many(self._root, unmatched()):
                at, entry = pending.pop(found.name)
                if found.error is None and found.sha256 is not None:
                    self.hashed_bytes += found.size
                    self._add_hash(at, entry, bytes.fromhex(found.sha256), stable=_same_times(entry, found))
                elif found.error is not None and not isinstance(found.error, FileNotFoundError):
                    raise found.error
                shown.count(files=1, count_bytes=entry.size)

    def _add_hash(self, at: int, entry: ScanEntry, sha256: bytes, *, stable: bool) -> None:
        """Record the content of a managed file that was hashed."""
        executable = bool(entry.mode & 0o100) if self.cache.modes else self._installed.executable(at)
        if sha256 == self._installed.digest(at) and executable == self._installed.executable(at):
            self._intact[at] = 1
            if stable:
                self.cache.record_at(at, entry, content_ns=self.now_ns, seen_ns=self.now_ns)
                if self.cache.matches(at, entry):
                    return
        else:
            self._others[entry.name] = ExistingFile(sha256, entry.size, executable)
            self.cache.forget_at(at)
        self._hashed[entry.name] = entry

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

    def __getitem__(self, name: str) -> ExistingFile:
        if (found := self._others.get(name)) is not None:
            return found
        if name in self._unread:
            self._read((name,))
            return self._others[name]
        at = self._installed.find(name)
        if at is None or not self._intact[at]:
            raise KeyError(name)
        return ExistingFile(self._installed.digest(at), self._installed.size(at), self._installed.executable(at))

    def __iter__(self) -> Iterator[str]:
        yield from (name for name, intact in zip(self._installed.names(), self._intact, strict=True) if intact)
        yield from [*self._others, *self._unread]

    def __len__(self) -> int:
        return sum(self._intact) + len(self._others) + len(self._unread)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        at = self._installed.find(name)
        return name in self._others or name in self._unread or (at is not None and self._intact[at] == 1)

    def existing(self, installed: EntrySubset, wanted: EntrySubset) -> ExistingFiles:
        """The tree's files under the names of these entries of the installed and the wanted manifest."""
        intact = EntrySubset(self._installed)
        others: dict[str, ExistingFile] = {}
        for at, name in installed.places():
            if self._intact[at]:
                intact.add(at)
            elif name in self._others:
                others[name] = self._others[name]
        self._read([name for name in wanted if name in self._unread])
        others.update((name, self._others[name]) for name in wanted if name in self._others)
        return ExistingFiles(intact, others)

    def _read(self, names: Iterable[str]) -> None:
        """Hash unmanaged files; those that vanished are skipped."""
        chosen = [self._unread.pop(name) for name in names]
        self._others.update((entry.name, ExistingFile(b"", entry.size)) for entry in chosen if entry.kind != "file")
        files = {entry.name: entry for entry in chosen if entry.kind == "file"}
        if not files:
            return
        size = sum(entry.size for entry in files.values())
        with Stage(self._progress, "checking files", files=len(files), total_bytes=size) as shown:
            for found in hash_many(self._root, files.values()):
                entry = files[found.name]
                if found.error is None:
                    self._hashed[entry.name] = entry
                    sha256 = bytes.fromhex(found.sha256 or "")
                    self._others[entry.name] = ExistingFile(sha256, entry.size, bool(entry.mode & 0o100))
                    if _same_times(entry, found):
                        self._stable.append(entry)
                elif not isinstance(found.error, FileNotFoundError):
                    raise found.error
                shown.count(files=1, count_bytes=entry.size)

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
        if (entry := self._hashed.get(name)) is not None:
            later = entry.mtime_ns >= self.now_ns  # a write within the same tick of the clock would not show
            return Seen(self[name].sha256.hex(), entry.inode, entry.size, -1 if later else entry.mtime_ns)
        at = self._installed.find(name)
        if name in self._others or at is None or not self._intact[at]:
            return None
        inode, mtime_ns = self.cache.identity_at(at)
        return Seen(self._installed.digest(at).hex(), inode, self._installed.size(at), mtime_ns)


def _same_times(entry: ScanEntry, found: FileHash) -> bool:
    """Whether a file did not change between the scan and the hash."""
    return (found.size, found.mtime_ns, found.ctime_ns) == (entry.size, entry.mtime_ns, entry.ctime_ns)
