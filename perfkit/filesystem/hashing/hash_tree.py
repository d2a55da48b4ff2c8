"""Hashing: SHA-256 of every file of a tree, by this process and, where it is worth it, a second one beside it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from perfkit.filesystem.hashing.hash_file import FileHash, hash_one
from perfkit.filesystem.hashing.hash_process import Hasher
from perfkit.filesystem.hashing.small_files import READ_BYTES, Digest, digests
from perfkit.filesystem.scan import DIRECTORY, ScanEntry, ScanOptions, scan_batches
from perfkit.filesystem.thread_map import pooled, usable_cpus

__all__ = ["hash_many", "hash_tree"]

_PORTION_FILES = 32
_WAITING_FILES = 256  # taken from the scan before they are hashed; so many are worth a second process
_ALONE_BYTES = 16 << 20  # after so many, and more to come, it is worth it too
_ODD_FILES = 1024  # kept back at most


def hash_tree(
    root: str | os.PathLike[str],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    without: Iterable[str] = (),
    cpus: int | None = None,
) -> Iterator[FileHash]:
    """SHA-256 of every regular file of a tree, as `scan` finds them (and its patterns); links are not followed.

    Files come as they are done. What can't be read, or changed while it was, is a result with `error` set, and the rest
    goes on. Closing the iterator ends the work. A large tree is shared with a second process, which lives as long as
    the iterator; memory stays below 16 MB in either.

    Args:
        cpus: processors to use, by default as many as there are, four at most; with 1 no process and no thread is made.

    Raises:
        ConfigError, OSError: as `scan`.
    """
    options = ScanOptions(include=include, exclude=exclude, without=frozenset(without))
    found = scan_batches(root, options, batch=_WAITING_FILES, types_only=True)
    files = (entry for batch in found for entry in batch if entry.mode == stat.S_IFREG or entry.error)
    return hash_many(root, files, cpus=cpus)


def hash_many(
    root: str | os.PathLike[str], entries: Iterable[ScanEntry], *, cpus: int | None = None
) -> Iterator[FileHash]:
    """SHA-256 of these files of a tree, as they are done; only the names and errors of the entries are used."""
    cpus = cpus or usable_cpus()
    more = iter(entries)
    waiting = deque(islice(more, _WAITING_FILES))  # first of all, so that the scan's errors come first
    if not waiting:
        return
    work = _Work(waiting)
    buffer = memoryview(bytearray(READ_BYTES))
    directory = os.open(root, DIRECTORY)
    hasher: Hasher | None = None
    alone = cpus == 1
    try:
        while waiting or (hasher and hasher.busy):
            if not alone and waiting and (len(waiting) >= _WAITING_FILES or work.bytes >= _ALONE_BYTES):
                hasher, alone = Hasher.start(directory), True
            if hasher is not None:
                for portion, answer in hasher.answers(wait=not waiting):
                    yield from work.settle(portion, answer)
                while waiting and hasher.idle:
                    hasher.give(work.portion())
            if waiting:
                portion = work.portion()
                yield from work.settle(portion, digests(directory, [entry.name for entry in portion], buffer))
            waiting.extend(islice(more, max(0, _WAITING_FILES - len(waiting))))
            if len(work.odd) >= _ODD_FILES or not waiting:
                yield from _closely(root, work.odd, cpus)
                work.odd = []
        yield from _closely(root, work.odd, cpus)
    finally:
        if hasher is not None:
            hasher.close()
        os.close(directory)


class _Work:
    """What is to be done, in portions."""

    def __init__(self, waiting: deque[ScanEntry]) -> None:
        self.waiting = waiting
        self.odd: list[ScanEntry] = []  # to be looked at closely
        self.bytes = 0  # hashed

    def portion(self) -> list[ScanEntry]:
        """The next files; fewer towards the end, so that nobody waits long for the other."""
        count = min(_PORTION_FILES, 1 + len(self.waiting) // 4)
        return [self.waiting.popleft() for _ in range(count)]

    def settle(self, portion: list[ScanEntry], answer: list[Digest | None]) -> Iterator[FileHash]:
        """The results that a portion brought. What was not come to waits again."""
        make = tuple.__new__
        for entry, digest in zip(portion, answer, strict=False):
            if digest is None:
                self.odd.append(entry)
            else:
                self.bytes += digest[0]
                yield make(FileHash, (entry.name, *digest, None, (), None))
        self.waiting.extendleft(reversed(portion[len(answer) :]))


def _closely(root: str | os.PathLike[str], odd: list[ScanEntry], cpus: int) -> Iterator[FileHash]:
    """Files that are large, by threads, which are no burden to each other there; and others, to know what is wrong."""
    if odd:
        base = os.path.join(os.fspath(root), "")
        yield from pooled(lambda entry: hash_one(base, entry), odd, min(cpus, len(odd)))
