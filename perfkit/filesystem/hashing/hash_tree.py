"""SHA-256 of every file of a tree, by this process and, for large trees, a second one."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from perfkit.filesystem.hashing.hash_file import FileHash, hash_one
from perfkit.filesystem.hashing.hash_process import HashProcess
from perfkit.filesystem.hashing.small_files import READ_BYTES, Digest, hash_small_files
from perfkit.filesystem.scan import ScanEntry, ScanOptions, scan_batches, totals
from perfkit.filesystem.thread_map import map_in_threads, usable_cpus
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage

_PORTION_FILES = 32
_WAITING_FILES = 256  # read ahead from the scan; with that many, a second process is worthwhile
_ALONE_BYTES = 16 << 20  # hashed by this process alone; if files remain, a second one is worthwhile, too
_MAX_SPECIAL = 1024  # files that are postponed at most


def hash_tree(
    root: str | os.PathLike[str], options: ScanOptions = ScanOptions(), *, progress: Progress | None = None
) -> Iterator[FileHash]:
    """SHA-256 of every regular file of a tree; see `Toolkit.hash_tree`."""
    found = scan_batches(root, options, batch=_WAITING_FILES, types_only=True)
    files = (entry for batch in found for entry in batch if entry.mode == stat.S_IFREG or entry.error)
    hashes = hash_many(root, files)
    return hashes if progress is None else _shown(hashes, root, options, progress)


def _shown(
    hashes: Iterator[FileHash], root: str | os.PathLike[str], options: ScanOptions, progress: Progress
) -> Iterator[FileHash]:
    count, size = totals(root, options, regular=True)
    with Stage(progress, "hashing", files=count, total_bytes=size) as shown:
        for each in hashes:
            failed = each.error is not None
            shown.count(files=not failed, count_bytes=each.size, failed=failed)
            yield each


def hash_many(root: str | os.PathLike[str], entries: Iterable[ScanEntry]) -> Iterator[FileHash]:
    """SHA-256 of these files of a tree, as they are finished; only names and errors of the entries are used."""
    cpus = usable_cpus()
    more = iter(entries)
    waiting = deque(islice(more, _WAITING_FILES))  # before all else, so that errors of the scan are raised first
    if not waiting:
        return
    work, base = _Work(waiting), os.path.join(os.fspath(root), "")
    buffer = memoryview(bytearray(READ_BYTES))
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    helper: HashProcess | None = None
    alone = cpus == 1
    try:
        while waiting or (helper and helper.busy):
            if not alone and waiting and (len(waiting) >= _WAITING_FILES or work.bytes >= _ALONE_BYTES):
                helper, alone = HashProcess.start(directory), True
            if helper is not None:
                for portion, answer in helper.results(wait=not waiting):
                    yield from work.finish(portion, answer)
                while waiting and helper.has_capacity:
                    helper.submit(work.portion())
            if waiting:
                portion = work.portion()
                yield from work.finish(portion, hash_small_files(directory, [entry.name for entry in portion], buffer))
            waiting.extend(islice(more, max(0, _WAITING_FILES - len(waiting))))
            if work.special and (len(work.special) >= _MAX_SPECIAL or not waiting):
                # Large files, in threads, which do not contend for the GIL there; and failed ones, for their error.
                threads = min(cpus, len(work.special))
                yield from map_in_threads(lambda entry: hash_one(base, entry), work.special, threads)
                work.special = []
    finally:
        if helper is not None:
            helper.close()
        os.close(directory)


class _Work:
    """Files to hash, in portions."""

    def __init__(self, waiting: deque[ScanEntry]) -> None:
        self.waiting = waiting
        self.special: list[ScanEntry] = []  # files that `hash_small_files` did not hash
        self.bytes = 0  # hashed so far

    def portion(self) -> list[ScanEntry]:
        """The next files; fewer towards the end, so that both processes finish together."""
        count = min(_PORTION_FILES, 1 + len(self.waiting) // 4)
        return [self.waiting.popleft() for _ in range(count)]

    def finish(self, portion: list[ScanEntry], answer: list[Digest | None]) -> Iterator[FileHash]:
        """The results of a portion. Files without a response are put back."""
        make = tuple.__new__
        for entry, digest in zip(portion, answer, strict=False):
            if digest is None:
                self.special.append(entry)
            else:
                self.bytes += digest[0]
                yield make(FileHash, (entry.name, *digest, None, (), None))
        self.waiting.extendleft(reversed(portion[len(answer) :]))
