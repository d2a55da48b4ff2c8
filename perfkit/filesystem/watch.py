"""Watching: the names in a tree that change. Only this module imports watchdog, when a watch begins."""

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
_FLUSH_S = 10.0  # for pending events
_PROBE = ".perfkit-watch-"
_OVERFLOW = 0x4000  # IN_Q_OVERFLOW, inotify(7)
_QUIET = frozenset({"opened", "closed_no_write"})


class _All(enum.Enum):
    ALL = "ALL"


ALL: Final = _All.ALL  # anything may have changed: scan the tree


def watch(root: str | os.PathLike[str]) -> DirtySet:
    """A `DirtySet` for a `with` block; it collects what changes below `root` inside the block."""
    return DirtySet(root)


class DirtySet:
    """The names that change below a directory while it is watched; a context manager.

    From `__enter__` on no change is missed, so watch first and scan then. Names are relative to the root; that of a
    directory includes everything that is or was below it. When events are lost (the kernel's queue overflowed, there
    are more directories than it may watch, the root was removed), everything is dirty, and `drain` returns `ALL`.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._changed = threading.Condition()
        self._names: set[str] = set()
        self._lost = False
        self._gone = False  # it can't be watched any more: everything stays dirty
        self._probes: set[str] = set()  # names of probe files whose event has arrived
        self._observer: Any = None

    def __enter__(self) -> DirtySet:
        """Start watching.

        Raises:
            OSError: the root is not a directory, or can't be watched.
            ConfigError: this version of watchdog does not report lost events.
        """
        if not os.path.isdir(self.root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)
        _report_lost_events()
        _live.add(self)
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Stop watching, with all changes made up to now in the set; `drain` still works."""
        try:
            self.flush()
        finally:
            self._stop()
            _live.discard(self)

    def drain(self) -> frozenset[str] | _All:
        """Remove and return the dirty names; `ALL` if events were lost.

        A change arrives here a moment after it was made; `flush` waits for that.
        """
        with self._changed:
            if not self._lost and self._alive():
                names, self._names = self._names, set()
                return frozenset(names)
        # Directories created while events were lost may not be watched. The new watch starts before the caller scans,
        # and that scan covers the pending events of the old one.
        watching = self._observer is not None
        self._stop()
        with self._changed:
            self._names, self._lost = set(), False
        if watching:
            try:
                self._start()
            except OSError as error:
                _log.warning("%s can't be watched any more: %s; every name counts as changed", self.root, error)
                self._gone = True
        return ALL

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something is dirty; False after `timeout_s` seconds without a change."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._names) or self._lost, timeout_s)

    def flush(self, timeout_s: float = _FLUSH_S) -> None:
        """Wait until all changes made up to now are in the set.

        It creates and removes a probe file in the root, and waits for its event, since events arrive in order. If the
        file can't be created, or its event does not arrive in time, everything is dirty.
        """
        if self._observer is None:
            return
        probe = _PROBE + secrets.token_hex(8)
        try:
            path = os.path.join(self.root, probe)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            os.unlink(path)
        except OSError:
            self.mark_all()
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._lost or probe in self._probes, timeout_s):
                self._lost = True
            self._probes.discard(probe)

    def _start(self) -> None:
        from watchdog.observers import Observer

        # watchdog 7 walks a new directory after it has started to watch it. A directory created in between is found
        # twice and added to the same watch again, which is harmless, but causes a warning in its thread.
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

    def mark_all(self) -> None:
        """Events were lost: everything is dirty."""
        with self._changed:
            self._lost = True
            self._names.clear()
            self._changed.notify_all()

    def add(self, path: str, *, deleted: bool) -> None:
        """An event for this path, such as that it was deleted."""
        name = os.path.relpath(path, self.root)
        if name == ".":
            return
        with self._changed:
            if name.startswith(_PROBE):
                if deleted:
                    self._probes.add(name)
                    self._changed.notify_all()
            elif not self._lost:
                self._names.add(name)
                self._changed.notify_all()


class _Handler:
    """Called by watchdog, in its thread."""

    def __init__(self, dirty: DirtySet) -> None:
        self._dirty = dirty

    def dispatch(self, event: Any) -> None:
        kind = event.event_type
        if kind in _QUIET or (event.is_directory and kind == "modified"):
            return  # what changed in the directory has its own event
        if kind == "deleted" and event.is_directory and os.fsdecode(event.src_path) == self._dirty.root:
            self._dirty.mark_all()
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._dirty.add(os.fsdecode(path), deleted=kind == "deleted")


_live: weakref.WeakSet[DirtySet] = weakref.WeakSet()
_patched = False
_patch_lock = threading.Lock()


def _report_lost_events() -> None:
    """Patch watchdog to report lost events, which it ignores: the kernel's IN_Q_OVERFLOW, and subdirectories for which
    there are no more watches (ENOSPC). Both pass through one of two functions of its inotify reader.

    Raises:
        ConfigError: this version of watchdog has no such functions.
    """
    global _patched
    with _patch_lock:
        if _patched:
            return
        import ctypes

        from watchdog.observers import Observer

        if getattr(Observer, "__name__", "") != "InotifyObserver":
            _patched = True  # not Linux: FSEvents, kqueue and Windows have no such queue in watchdog
            return
        from watchdog.observers import inotify_c

        reader: Any = getattr(inotify_c, "InotifyFD", None) or getattr(inotify_c, "Inotify", None)
        try:
            parse, raise_error = reader._parse_event_buffer, reader._raise_error
        except AttributeError:
            message = "this version of watchdog does not report lost events; install watchdog 6 or 7"
            raise ConfigError(message) from None

        def parse_and_report(buffer: bytes) -> Any:
            for event in parse(buffer):
                if event[1] & _OVERFLOW:
                    _mark_all_dirty()
                yield event

        def raise_and_report(*arguments: Any, **options: Any) -> Any:
            if ctypes.get_errno() == errno.ENOSPC:
                _mark_all_dirty()
            return raise_error(*arguments, **options)

        reader._parse_event_buffer = staticmethod(parse_and_report)
        reader._raise_error = staticmethod(raise_and_report)
        _patched = True


def _mark_all_dirty() -> None:
    for dirty in list(_live):
        dirty.mark_all()
