"""The files of a tree to publish: names, sizes, digests, executable bits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import operator
import os
import stat
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from struct import Struct
from typing import BinaryIO, Literal

from perfkit.errors import FileChangedError, UnsafePathError
from perfkit.filesystem.paths import name_errors, name_matcher, parents
from perfkit.libc import is_being_written
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.statcache import StatCache, clamped_ns
from perfkit.transactions.layout import PRIVATE_DIR

Links = Literal["refuse", "skip", "follow"]
HashFile = Callable[[str, BinaryIO, Stage], tuple[int, bytes] | None]  # as `LastRelease.hash`
_Identity = tuple[int, int]  # device and inode
_Item = tuple[str, os.stat_result, tuple[_Identity, ...]]
_READ_BYTES = 1 << 20
_DIGEST = Struct("32s")
_SHOWN = 20  # names in an error
CHANGED = "it changed while it was being published; publish again"


def open_source(src: str, name: str, links: Links) -> BinaryIO:
    """A file that was found to be regular.

    Raises:
        FileChangedError: it is not any more.
        OSError: it can't be read.
    """
    nofollow = 0 if links == "follow" else os.O_NOFOLLOW
    try:  # a FIFO must not block
        file = os.open(os.path.join(src, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | nofollow)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise FileChangedError(name, CHANGED) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileChangedError(name, CHANGED)
    return open(file, "rb")


class SourceTree:
    """The entries of a tree, which is hashed once, and then only where files have changed.

    Args:
        exclude: patterns, as in a `.gitignore`, of names relative to `src`; a directory is left out with its contents.
        links: what to do with symbolic links: `refuse` them, `skip` them, or `follow` them, even out of the tree.
        closed_only: whether a file that is known to be open for writing keeps the entry that it had, if any.
    """

    def __init__(
        self, src: str, exclude: Collection[str] = (), *, links: Links = "refuse", closed_only: bool = False
    ) -> None:
        self._src = src
        self._matches = name_matcher(exclude)
        self._links = links
        self._closed_only = closed_only
        self.manifest = Manifest.of(())
        self.columns: list[array[int]] = []  # as in `StatCache`, from `read_all`

    def read_all(
        self, progress: Progress | None = None, rows: StatCache | None = None, hash_file: HashFile | None = None
    ) -> None:
        """Hash every file, except those that `rows` vouches for.

        Args:
            progress: displays the work.
            rows: the stat cache of the last release; a file that matches its row is not read.
            hash_file: hashes some files in another way.

        Raises:
            UnsafePathError: names that are not valid on every client, symbolic links or special files; it names them.
            FileChangedError: something was removed or replaced meanwhile.
            OSError: something can't be read.
        """
        rows = StatCache(Manifest.of(())) if rows is None else rows
        names, sizes, errors = list[str](), array("q"), list[UnsafePathError]()
        self.columns = mtimes, ctimes, inodes, modes = [array(code) for code in "qqQH"]
        try:
            for name, status in self._below(""):
                if (error := _type_error(name, status.st_mode, self._links)) is not None:
                    errors.append(error)
                    continue
                names.append(name)
                sizes.append(status.st_size)
                mtimes.append(clamped_ns(status.st_mtime_ns))
                ctimes.append(clamped_ns(status.st_ctime_ns))
                inodes.append(status.st_ino)
                modes.append(stat.S_IMODE(status.st_mode))
        except FileNotFoundError as missing:
            raise FileChangedError(str(missing.filename), CHANGED) from missing
        places = array("q", _places(names, rows.manifest.names()))
        same = len(names) == len(rows.manifest) and all(map(operator.eq, places, range(len(names))))
        if errors or not same:  # the names of the last release are known to be valid
            errors += name_errors(names)
        self._check(errors)
        known = _known(rows, places, (sizes, *self.columns))
        executable = bytearray(bool(mode & 0o111) for mode in modes)
        digests = bytearray(_DIGEST.size * len(names))
        left_out = []  # being written, and new
        for at, entry in enumerate(known):
            if entry >= 0:
                _DIGEST.pack_into(digests, _DIGEST.size * at, rows.manifest.digest(entry))
        unknown = array("I", (at for at, entry in enumerate(known) if entry < 0))
        total = sum(map(sizes.__getitem__, unknown))
        with Stage(progress, "checking files", files=len(unknown), total_bytes=total) as shown:
            for at in unknown:
                if (found := self._entry(names[at], modes[at], shown, hash_file)) is None:
                    left_out.append(at)
                else:
                    _, sizes[at], digest, executable[at] = found
                    _DIGEST.pack_into(digests, _DIGEST.size * at, digest)
        for at in reversed(left_out):
            del names[at], sizes[at], executable[at], digests[_DIGEST.size * at : _DIGEST.size * (at + 1)]
        listed = (digest for (digest,) in _DIGEST.iter_unpack(digests))
        self.manifest = Manifest.of_columns(names, sizes, map(bool, executable), listed)

    def _check(self, errors: list[UnsafePathError]) -> None:
        """Raise these errors, if any, as one."""
        if len(errors) == 1:
            raise errors[0]
        if errors:
            shown = "; ".join(f"{each.name!r}: {each.reason}" for each in errors[:_SHOWN])
            more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
            raise UnsafePathError(
                errors[0].name, f"it and others, {len(errors)} in all, can't be published: {shown}{more}"
            )

    def read(self, names: Collection[str]) -> None:
        """Hash these files again, and everything below those that are directories; forget what was removed.

        Raises:
            UnsafePathError, OSError: as `read_all`; the manifest is then as it was.
        """
        names = {name for name in names if not any(parent in names for parent in parents(name))}
        with Stage(None, "") as shown:
            places = [each for name in sorted(names) for each in self._at(name)]
            for name, status in places:
                if (error := _type_error(name, status.st_mode, self._links)) is not None:
                    raise error
            found = [self._entry(name, status.st_mode, shown) for name, status in places]
        kept = (
            self.manifest[at]
            for at, name in enumerate(self.manifest.names())
            if name not in names and not any(parent in names for parent in parents(name))
        )
        self.manifest = Manifest.of([*kept, *filter(None, found)])

    def _at(self, name: str) -> Iterator[tuple[str, os.stat_result]]:
        if any(self._excluded(each) for each in (name, *parents(name))):
            return
        try:
            status = self._status(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        if self._links == "skip" and stat.S_ISLNK(status.st_mode):
            return
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed since: another event reports it
                yield from self._below(name)
        else:
            yield name, status

    def _status(self, name: str) -> os.stat_result:
        path = os.path.join(self._src, name)
        if self._links == "follow":
            try:
                return os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
        return os.lstat(path)

    def _below(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below except directories, in the order of the whole names."""
        left = self._listed(directory, ())
        while left:
            name, status, above = left.pop()
            if name.endswith("/"):
                left += self._listed(name[:-1], above)
            else:
                yield name, status

    def _listed(self, directory: str, above: tuple[_Identity, ...]) -> list[_Item]:
        """What is in a directory, the first name last. Those of directories end in a slash: `a.txt` is before `a/b`.

        A link back to a directory above it counts as a link, to be refused.
        """
        path = os.path.join(self._src, directory)
        if self._links == "follow":
            here = os.stat(path)
            above = (*above, (here.st_dev, here.st_ino))
        items = []
        with os.scandir(path) as found:
            for item in found:
                name, is_link = f"{directory}/{item.name}" if directory else item.name, item.is_symlink()
                if self._excluded(name) or (self._links == "skip" and is_link):
                    continue
                status = self._status(name) if is_link else item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if (status.st_dev, status.st_ino) in above:
                        status = item.stat(follow_symlinks=False)
                    else:
                        name += "/"
                items.append((name, status, above))
        items.sort(reverse=True)
        return items

    def _excluded(self, name: str) -> bool:
        """Also excludes the private directory of a tree that is itself synced."""
        return name == PRIVATE_DIR or (self._matches is not None and self._matches(name))

    def _entry(self, name: str, mode: int, shown: Stage, hash_file: HashFile | None = None) -> Entry | None:
        """The entry of a regular file, which is read; None: it is new, and being written."""
        found = 0, b""
        with open_source(self._src, name, self._links) as file:
            written = self._is_being_written(file)
            if not written:
                found = (hash_file and hash_file(name, file, shown)) or _hash(file, shown)
            written = written or self._is_being_written(file)
        shown.count(files=1)
        if not written:
            return Entry(name, *found, bool(mode & 0o111))
        at = self.manifest.find(name)
        return None if at is None else self.manifest[at]

    def _is_being_written(self, file: BinaryIO) -> bool:
        return self._closed_only and is_being_written(file.fileno())


def _hash(file: BinaryIO, shown: Stage) -> tuple[int, bytes]:
    """The size and the SHA-256 of a file."""
    size, digest = 0, hashlib.sha256()
    while data := file.read(_READ_BYTES):
        digest.update(data)
        size += len(data)
        shown.count(count_bytes=len(data))
    return size, digest.digest()


def _places(names: Iterable[str], before: Iterable[str]) -> Iterator[int]:
    """The place of each name among those before, which are in order, too; -1: it is not there."""
    listed = enumerate(before)
    at, known = next(listed, (-1, None))
    for name in names:
        while known is not None and known < name:
            at, known = next(listed, (-1, None))
        yield at if known == name else -1


def _known(rows: StatCache, places: array[int], columns: Sequence[array[int]]) -> array[int]:
    """For each file, the entry of the last release that it matches, by its row; -1: it has to be read.

    Args:
        places: of the names in the last release.
        columns: the sizes, and columns as in `StatCache`.
    """
    if not len(rows.manifest):
        return places
    old = [map(column.__getitem__, places) for column in (rows.manifest.sizes, *rows.columns())]
    matched = map(operator.eq, zip(*old, strict=True), zip(*columns, strict=True))
    ctimes = map(rows.columns()[1].__getitem__, places)
    return array("q", (at if same and ctime else -1 for at, same, ctime in zip(places, matched, ctimes, strict=True)))


def _type_error(name: str, mode: int, links: Links) -> UnsafePathError | None:
    """What is wrong with anything but a regular file."""
    if stat.S_ISREG(mode):
        return None
    if not stat.S_ISLNK(mode):
        reason = "it is a special file; a release has regular files only: exclude or replace it"
    elif links == "follow":
        reason = "it is a symbolic link that points to nothing, or back to itself; exclude it, or skip links"
    else:
        reason = "it is a symbolic link; exclude it, or skip or follow links (--links)"
    return UnsafePathError(name, reason)
