"""Watch: the names in a tree that changed. The only door to watchdog, which is imported when a watch begins."""

from __future__ import annotations

import enum
import errno
import logging
import os
import secrets
import threading
import warnings
import weakref
from types import TracebackType
from typing import Any, Final

from perfkit.errors import ConfigError

__all__ = ["ALL", "DirtySet", "watch"]

_log = logging.getLogger(__name__)
_SETTLE_S = 10.0  # for the events on their way
_PROBE = ".perfkit-watch-"
_OVERFLOW = 0x4000  # IN_Q_OVERFLOW, inotify(7)
_QUIET = frozenset({"opened", "closed_no_write"})


class _All(enum.Enum):
    ALL = "ALL"


ALL: Final = _All.ALL  # it can't be told what changed: scan


def watch(root: str | os.PathLike[str]) -> DirtySet:
    """A `DirtySet` for `with`: what changes below `root` inside the block is in it."""
    return DirtySet(root)


class DirtySet:
    """The names that changed below a directory, while it is watched; a context manager.

    From `__enter__` on nothing is missed, so watch first and then scan. A name is relative to the root; that of a
    directory stands for all that is or was below it. Where events were lost (the kernel's queue overflowed, there were
    more directories than it may watch, the root went away) everything is dirty, and `take` says `ALL`.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._changed = threading.Condition()
        self._names: set[str] = set()
        self._lost = False
        self._gone = False  # it can't be watched any more: always lost
        self._probes: set[str] = set()  # names of probes whose event has come
        self._observer: Any = None

    def __enter__(self) -> DirtySet:
        """Begin to watch.

        Raises:
            OSError: the root is no directory, or can't be watched.
            ConfigError: a version of watchdog that doesn't tell when events were lost.
        """
        if not os.path.isdir(self.root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)
        _hear_losses()
        _live.add(self)
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """End, with all changes made up to now in the set; `take` still works."""
        try:
            self.settle()
        finally:
            self._stop()
            _live.discard(self)

    def take(self) -> frozenset[str] | _All:
        """What is dirty, which is clean from then on; `ALL` after a loss.

        A change shows here a moment after it was made; `settle` waits for that.
        """
        with self._changed:
            if not self._lost and self._alive():
                names, self._names = self._names, set()
                return frozenset(names)
        # Directories made during the loss may have no watch. The new watch begins before the caller scans, and what
        # the old one still had to say is covered by that scan.
        watching = self._observer is not None
        self._stop()
        with self._changed:
            self._names, self._lost = set(), False
        if watching:
            try:
                self._start()
            except OSError as error:
                _log.warning("%s can't be watched any more: %s", self.root, error)
                self._gone = True
        return ALL

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something is dirty; False if nothing is after `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._names) or self._lost, timeout_s)

    def settle(self, timeout_s: float = _SETTLE_S) -> None:
        """Wait until all changes made before are in the set.

        A file is made in the root and removed, and its event waited for: events come in order. If it can't be made or
        its event doesn't come in time, everything is dirty.
        """
        if self._observer is None:
            return
        probe = _PROBE + secrets.token_hex(8)
        try:
            path = os.path.join(self.root, probe)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            os.unlink(path)
        except OSError:
            self._lose()
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._lost or probe in self._probes, timeout_s):
                self._lost = True
            self._probes.discard(probe)

    def _start(self) -> None:
        from watchdog.observers import Observer

        # watchdog 7 walks a new directory after it has begun to watch it: what is made in between it finds twice, adds
        # to the same watch again, which changes nothing, and warns of that in its thread.
        warnings.filterwarnings("ignore", r"Callback with id '\d+' already exists for watch", RuntimeWarning)
        observer: Any = Observer()
        try:
            observer.schedule(_Handler(self), self.root, recursive=True)
            observer.start()
        except BaseException:
            observer.on_thread_stop()
            raise
        self._observer = observer

    def _stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            emitters = list(observer.emitters)
            observer.stop()
            observer.join()
            for emitter in emitters:
                emitter.join()

    def _alive(self) -> bool:
        observer = self._observer
        return not self._gone and (observer is None or all(each.is_alive() for each in (observer, *observer.emitters)))

    def _lose(self) -> None:
        with self._changed:
            self._lost = True
            self._names.clear()
            self._changed.notify_all()

    def _see(self, path: str, is_probe_end: bool) -> None:
        name = os.path.relpath(path, self.root)
        if name == ".":
            return
        with self._changed:
            if name.startswith(_PROBE):
                if is_probe_end:
                    self._probes.add(name)
                    self._changed.notify_all()
            elif not self._lost:
                self._names.add(name)
                self._changed.notify_all()


class _Handler:
    """What watchdog calls, in its thread."""

    def __init__(self, dirty: DirtySet) -> None:
        self._dirty = dirty

    def dispatch(self, event: Any) -> None:
        kind = event.event_type
        if kind in _QUIET or (event.is_directory and kind == "modified"):
            return  # what changed in a directory has an event of its own
        if kind == "deleted" and event.is_directory and os.fsdecode(event.src_path) == self._dirty.root:
            self._dirty._lose()
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._dirty._see(os.fsdecode(path), kind == "deleted")


_live: weakref.WeakSet[DirtySet] = weakref.WeakSet()
_hearing = False
_hearing_lock = threading.Lock()


def _hear_losses() -> None:
    """Have watchdog tell when events are lost: it drops the kernel's IN_Q_OVERFLOW (6) or keeps it to itself (7), and
    ignores subdirectories for which there are no more watches (ENOSPC). Both pass one of two functions of its reader.

    Raises:
        ConfigError: they are not where we know them to be.
    """
    global _hearing
    with _hearing_lock:
        if _hearing:
            return
        import ctypes

        from watchdog.observers import Observer

        if getattr(Observer, "__name__", "") != "InotifyObserver":
            _hearing = True  # not Linux: FSEvents, kqueue and Windows have no such queue in watchdog
            return
        from watchdog.observers import inotify_c

        reader: Any = getattr(inotify_c, "InotifyFD", None) or getattr(inotify_c, "Inotify", None)
        try:
            parse, complain = reader._parse_event_buffer, reader._raise_error
        except AttributeError:
            raise ConfigError("this version of watchdog does not tell when events were lost; install watchdog 6 or 7"
                              ) from None  # fmt: skip

        def parse_and_tell(buffer: bytes) -> Any:
            for event in parse(buffer):
                if event[1] & _OVERFLOW:
                    _lose_everywhere()
                yield event

        def complain_and_tell(*arguments: Any, **options: Any) -> Any:
            if ctypes.get_errno() == errno.ENOSPC:
                _lose_everywhere()
            return complain(*arguments, **options)

        reader._parse_event_buffer = staticmethod(parse_and_tell)
        reader._raise_error = staticmethod(complain_and_tell)
        _hearing = True


def _lose_everywhere() -> None:
    for dirty in list(_live):
        dirty._lose()
