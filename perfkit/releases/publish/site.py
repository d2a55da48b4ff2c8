"""A site on the publisher's disk: lock, objects, pointer, history, and the blobs of earlier releases."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator

from perfkit.errors import LockedError, ManifestError
from perfkit.filesystem.own_files import create_own, open_own
from perfkit.filesystem.rootdir import RootDir, naming
from perfkit.libc import set_mode, sync_directory_at, sync_file
from perfkit.minisign.secret_keys import SecretKey
from perfkit.progress.text import printable
from perfkit.releases.format import POINTER_NAME, signature_path
from perfkit.releases.format.pointer import ObjectRef, PackedRef, Pointer
from perfkit.releases.format.release_history import History
from perfkit.releases.format.zstd import compress, decompress
from perfkit.transactions.lock import Lock

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_WINDOW_LOG = 20  # of a packed list: its lines are like those just before
_UNFINISHED = re.compile(r"\.new-[0-9a-f]{16}")  # as `_new_file` names them
_OBJECT = re.compile(r"[0-9a-f]{64}(-[0-9A-F]+\.minisig)?")  # an object, or the signature of a pointer
_CHANNEL = re.compile(r"perfkit-[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\.json")  # as `channel_name` names them
_ANEW = f"publish to a new directory, which continues the serials if it has a copy of {POINTER_NAME}"
_RETIRED_NAME = ".perfkit-publish.retired"
_LEAST_LINES = 100
_LOCK_NAME, _OWNER_NAME = ".perfkit-publish.lock", ".perfkit-publish.owner"


def _new_file(directory: str) -> tuple[int, str]:
    """Create a file that a web server of another user can read; returns its descriptor and its path."""
    path = os.path.join(directory, f".new-{os.urandom(8).hex()}")
    descriptor = create_own(path, 0o644)
    set_mode(descriptor, 0o644)  # whatever the umask
    return descriptor, path


class ObjectWriter:
    """Writes a new object, which joins the site with `finish`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        descriptor, self._path = _new_file(directory)
        self._file = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._digest.update(data)
        with naming(self._directory):
            self._file.write(data)
        self.bytes += len(data)

    def finish(self) -> ObjectRef:
        """Rename the object to its digest. Durable."""
        ref = ObjectRef(self._digest.hexdigest(), self.bytes)
        with naming(self._directory), self._file:
            self._file.flush()
            sync_file(self._file.fileno())
        os.replace(self._path, os.path.join(self._directory, ref.sha256))
        return ref

    def discard(self) -> None:
        """Delete the object, unless it is finished."""
        with contextlib.suppress(OSError):  # what is buffered may not fit on the disk
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class Site:
    """A site, locked against other publishers inside a `with` block; created if missing.

    Everybody can read what is created here (files 0644, directories 0755), whatever the umask: a web server has to. A
    directory that exists keeps its mode; what root creates in another user's directory belongs to that user.

    Args:
        wait_s: how long to wait for another publisher.

    Raises:
        LockedError: another process is publishing to it.
    """

    def __init__(self, root: str, *, wait_s: float = 0.0) -> None:
        self.root = root
        self._wait_s = wait_s
        self.objects = os.path.join(root, "objects")
        self.written: list[ObjectRef] = []
        self._close: Callable[[], None] | None = None

    def __enter__(self) -> Site:
        missing = [directory for directory in (self.root, self.objects) if not os.path.isdir(directory)]
        with contextlib.suppress(FileExistsError):
            os.makedirs(self.root)
        try:
            rootdir = RootDir(self.root)
            self._close = rootdir.close
            if self.objects in missing:
                rootdir.mkdir("objects")
            for directory in missing:
                with contextlib.suppress(OSError):  # a file system without permissions has its own errors
                    os.chmod(directory, 0o755)
            self._lock = Lock(rootdir, _LOCK_NAME, _OWNER_NAME)
            self._close = self._lock.close
            try:
                self._lock.acquire(self._wait_s)
            except LockedError:
                raise LockedError(
                    f"{self.root}: another process is publishing to it; try again when it has ended"
                ) from None
            self._remove_unfinished()
            with contextlib.suppress(OSError):  # another publisher's, or there are no permissions
                os.chmod(os.path.join(self.root, _LOCK_NAME), 0o644)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, value: object, at: object) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(OSError, LockedError):  # the next publisher tries again
                    self._lock.check()
                    self._remove_unfinished()
        finally:
            self.close()

    def close(self) -> None:
        """Unlock it. May be called again: a signal as `__exit__` begins skips it."""
        if self._close is not None:
            self._close()

    def _remove_unfinished(self) -> None:
        """Remove the files that a publisher was writing when it failed, or was interrupted or killed."""
        for directory in (self.root, self.objects):
            for name in os.listdir(directory):
                if _UNFINISHED.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(directory, name))

    def channels(self) -> list[Pointer]:
        """The pointers of the site's channels."""
        names = sorted(name for name in os.listdir(self.root) if _CHANNEL.fullmatch(name))
        return [pointer for name in names if (pointer := self.pointer(name)) is not None]

    def pointer(self, name: str = POINTER_NAME) -> Pointer | None:
        """The current pointer, or that of a channel; None: the site is new."""
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                return Pointer.parse(file.read())
        except FileNotFoundError:
            return None

    def is_empty(self) -> bool:
        """Whether there are no objects."""
        return not os.listdir(self.objects)

    def replace_pointer(self, pointer: Pointer, keys: Iterable[SecretKey] = (), *, name: str = POINTER_NAME) -> None:
        """Sign a pointer, and offer its release, all of whose objects are written. Durable.

        Args:
            name: the file name of the pointer, if a channel is to offer the release.

        Raises:
            ManifestError: it exceeds a limit of the format.
        """
        encoded = pointer.encode()
        Pointer.parse(encoded)  # so that no client refuses what is published
        path, current = os.path.join(self.root, name), None
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            current = file.read()
        site = printable(os.path.basename(os.path.realpath(self.root)))
        about = f"file:{name}\tsite:{site}\tversion:{pointer.version}\tserial:{pointer.serial}"
        for key in keys:
            signature = os.path.join(self.root, signature_path(hashlib.sha256(encoded).hexdigest(), key.public.name))
            if not os.path.exists(signature):
                self._replace(signature, key.sign(encoded, f"timestamp:{int(time.time())}\t{about}"))
        sync_directory_at(self.objects)
        if encoded != current:
            self._replace(path, encoded)

    def _replace(self, path: str, data: bytes) -> None:
        """Create or replace a file. Durable."""
        directory = os.path.dirname(path)
        descriptor, fresh = _new_file(directory)
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _date_after(file.fileno(), path)
            sync_file(file.fileno())
        os.replace(fresh, path)
        try:
            sync_directory_at(directory)
        except OSError as error:  # raising it would say that nothing was published
            _log.warning("%s: written, but it may be lost if the power fails now: %s", path, error)

    @contextlib.contextmanager
    def create(self) -> Iterator[ObjectWriter]:
        """A new object; it is deleted unless the block finishes it."""
        writer = ObjectWriter(self.objects)
        try:
            yield writer
        finally:
            writer.discard()

    def finish(self, writer: ObjectWriter) -> ObjectRef:
        """Finish an object, and add it to `written`."""
        ref = writer.finish()
        self.written.append(ref)
        return ref

    def put(self, data: bytes) -> ObjectRef:
        """An object with these bytes; written unless it exists."""
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        if not self.has(ref):
            with self.create() as writer:
                writer.write(data)
                self.finish(writer)
        return ref

    def put_packed(self, data: bytes) -> PackedRef:
        """As `put`, compressed. Higher levels would save 0.4 % of a large manifest, and take seconds; a larger window
        would save nothing, and take memory of clients.
        """
        level = 19 if len(data) <= _READ_BYTES else 12
        return PackedRef(self.put(compress(data, level=level, window_log=_WINDOW_LOG)), len(data))

    def has(self, ref: ObjectRef) -> bool:
        """Whether the object exists, with the right size."""
        try:
            return os.stat(self.path(ref)).st_size == ref.bytes
        except FileNotFoundError:
            return False

    def path(self, ref: ObjectRef) -> str:
        """The path of an object."""
        return os.path.join(self.objects, ref.sha256)

    def get(self, ref: ObjectRef) -> bytes:
        """The bytes of an object.

        Raises:
            ManifestError: the site is damaged.
        """
        try:
            with open(self.path(ref), "rb") as file:
                data = file.read(ref.bytes + 1)
        except FileNotFoundError:
            raise ManifestError(f"{self.path(ref)}: missing from the site; {_ANEW}") from None
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise ManifestError(f"{self.path(ref)}: damaged; {_ANEW}")
        return data

    def history(self, pointer: Pointer) -> History:
        """The history that a pointer refers to.

        Raises:
            ManifestError: the site is damaged, or another version of perfkit made it.
        """
        try:
            return History.parse(self.get(pointer.history))
        except ManifestError as error:
            advice = "" if _ANEW in str(error) else f"; if an earlier perfkit made this site, {_ANEW}"
            raise ManifestError(f"{self.root}: {error}{advice}") from error

    def get_packed(self, packed: PackedRef) -> bytes:
        """The decompressed bytes of an object."""
        return decompress(self.get(packed.object), packed.size)

    def is_signed(self) -> bool:
        """Whether the current pointer or that of a channel is signed."""
        return any(name.startswith(self._signed()) for name in os.listdir(self.objects) if name.endswith(".minisig"))

    def _signed(self) -> tuple[str, ...]:
        """What the names of needed signatures start with: the digests of the pointers."""
        digests = []
        for name in os.listdir(self.root):
            if name == POINTER_NAME or _CHANNEL.fullmatch(name):
                with open(os.path.join(self.root, name), "rb") as file:
                    digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return tuple(digests)

    def retire(self, names: Iterable[str]) -> None:
        """Record that these objects are not needed any more, once the pointer is replaced.

        The log gets a line for each, after a line feed, since the last line may have been cut short.
        """
        descriptor = open_own(os.path.join(self.root, _RETIRED_NAME), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with open(descriptor, "w", encoding="ascii") as log:
            log.write("".join(["\n", *(f"{name} {int(time.time())}\n" for name in sorted(names))]))

    def prune(self, keep: set[str], *, grace_s: float, dry_run: bool = False) -> list[ObjectRef]:
        """Remove objects that are not in `keep` and have been unused for longer than `grace_s`; returns them.

        An object that was never retired counts as unused since it was written. Files with names that perfkit does not
        give are left alone.

        Args:
            dry_run: remove nothing; only return them.
        """
        limit = time.time() - grace_s
        retired, lines = self._read_retired()
        left: dict[str, int] = {}
        signatures = self._signed()
        removed = []
        for item in os.scandir(self.objects):
            if item.name in keep or item.name.startswith(signatures) or not _OBJECT.fullmatch(item.name):
                continue
            if retired.get(item.name, item.stat().st_mtime) > limit:
                if item.name in retired:
                    left[item.name] = retired[item.name]
                continue
            removed.append(ObjectRef(item.name, item.stat().st_size))
            if not dry_run:
                os.unlink(item.path)
        if lines > 2 * len(left) + _LEAST_LINES and not dry_run:
            rows = (f"{name} {since}\n" for name, since in sorted(left.items()))
            self._replace(os.path.join(self.root, _RETIRED_NAME), "".join(rows).encode())
        return removed

    def _read_retired(self) -> tuple[dict[str, int], int]:
        """Since when each object has been unused, and the number of lines in the log; a line cut short is ignored."""
        lines: list[str] = []
        path = os.path.join(self.root, _RETIRED_NAME)
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
            lines = file.readlines()
        rows = (line.split() for line in lines if line.endswith("\n"))
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}, len(lines)


def referenced(history: History, solid: PackedRef) -> Iterator[ObjectRef]:
    """The objects that the releases of a history need, except the history itself; some of them more than once.

    Args:
        solid: the index of large frames of the last release.
    """
    yield from (delta.object for delta in history.deltas)
    yield solid.object
    yield from history.solid_packs
    for record in history.records:
        yield record.manifest.object
        if record.base is not None:
            yield record.base.packed.object
        yield record.fine.object
        yield from record.packs


def _date_after(descriptor: int, path: str) -> None:
    """Set a later mtime than the file at `path` has: servers derive the ETag from size and mtime in seconds."""
    with contextlib.suppress(FileNotFoundError):
        before_s = int(os.stat(path).st_mtime)
        if int(os.fstat(descriptor).st_mtime) <= before_s:
            os.utime(descriptor, (before_s + 1, before_s + 1))
