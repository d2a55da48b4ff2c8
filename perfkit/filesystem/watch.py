"""Watching: the names in a tree that change. Only this module imports watchdog, when a watch begins."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import re
import secrets
import stat
import sys
import threading
import time
import warnings
from types import TracebackType
from typing import Any, Final

from perfkit.config import checks_arguments
from perfkit.errors import ConfigError
from perfkit.filesystem.scan import scan

_log = logging.getLogger(__name__)
_FLUSH_S = 10.0  # for pending events
_POLL_S = 1.0  # between two checks that the root is still the same directory
_PROBE = ".perfkit-watch-"
_EVENTS_LOST = 0x4000 | 0x2000  # IN_Q_OVERFLOW | IN_UNMOUNT, inotify(7)
_QUIET = frozenset({"opened", "closed_no_write"})
_UNNAMED = re.compile(r"(?:.*/)?#(\d+)", re.DOTALL)  # a file without a name, by its inode: O_TMPFILE in open(2)


class _All(enum.Enum):
    ALL = "ALL"


ALL: Final = _All.ALL  # anything may have changed: scan the tree


@checks_arguments
class DirtySet:
    """The names that change below a directory while it is watched; a context manager.

    From `__enter__` on no change is missed, so watch first and scan afterwards. Names are relative to the root; that of
    a directory includes everything that is or was below it. A file that is being written is dirty after each write, and
    again when it is closed. If a file has several names, all those in the tree are dirty.

    When events are lost, everything is dirty, and `drain` returns `ALL`: the kernel's queue overflowed, there are more
    directories than it may watch, or the root was removed, replaced, or is a symbolic link that now points elsewhere.

    The kernel does not report (inotify(7)): stores through a shared mapping before the file is closed, changes through
    a hard link outside the tree, changes that other machines make on a network file system, and mounts.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._changed = threading.Condition()
        self._names: set[str] = set()
        self._unnamed: set[int] = set()  # inodes of changed files whose event has no name
        self._lost = False
        self._probes: set[str] = set()  # names of probe files whose event has arrived
        self._active = False  # inside the `with` block
        self._incomplete = False  # something can't be watched, or was not when the watch last started
        self._unreadable = False  # a directory can't be watched until it can be read
        self._threads: list[Any] = []  # of watchdog
        self._watched = self.root  # without symbolic links
        self._identity: tuple[int, int] | None = None  # of the watched directory

    def __enter__(self) -> DirtySet:
        """Start watching.

        Raises:
            OSError: the root is not a directory, or can't be watched.
            ConfigError: watchdog is older than 7.1, which misses directories that are moved into the tree.
        """
        self._start()
        self._active = True
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Stop watching, with all changes made up to now in the set; `drain` still works."""
        try:
            if kind is None:
                self.flush()
            else:
                self.mark_all()  # don't delay the exception by waiting for events
        finally:
            self._active = self._incomplete = False
            self._stop()

    def drain(self) -> frozenset[str] | _All:
        """Remove and return the dirty names; `ALL` if events were lost.

        A change arrives here a moment after it was made; `flush` waits for that.
        """
        self._check()
        with self._changed:
            lost, names, unnamed = self._lost, self._names, self._unnamed
            self._names, self._unnamed = set(), set()
        if not lost:
            return frozenset(names | self._other_names(names, unnamed))
        # Directories created while events were lost may not be watched. The new watch starts before the caller scans,
        # and that scan covers the pending events of the old one.
        self._stop()
        self._lost = False
        if self._active:
            self._restart()
        return ALL

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something is dirty; returns False after `timeout_s` seconds without a change.

        While something can't be watched, this returns after a second at most, since anything may have changed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic()))
            if self._incomplete:
                time.sleep(left)
                return True
            self._check()
            with self._changed:
                if self._changed.wait_for(lambda: bool(self._names or self._unnamed) or self._lost, left):
                    return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def flush(self, timeout_s: float = _FLUSH_S) -> None:
        """Wait until all changes made up to now are in the set.

        This creates and removes a probe file in the root, and waits for its event, since events arrive in order. If the
        file can't be created, or its event does not arrive in time, everything is dirty.
        """
        self._check()
        if self._lost or not self._active:
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

    def same_root(self) -> bool:
        """Whether the root still is the directory that is watched."""
        return _identity(self.root) == self._identity

    def _check(self) -> None:
        """If the watch no longer sees what happens below the root, mark everything as dirty."""
        alive = bool(self._threads) and all(thread.is_alive() for thread in self._threads)
        if self._active and not (alive and self.same_root()):
            self.mark_all()

    def _start(self) -> None:
        self._identity = _identity(self.root)  # before the watch: what replaces it from now on will be noticed
        if self._identity is None or not os.path.isdir(self.root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)
        self._watched = os.path.realpath(self.root)
        self._incomplete = self._unreadable = False
        self._threads = _start_threads(self, self._watched)

    def _restart(self) -> None:
        try:
            self._start()
        except OSError as error:
            _log.info("%s can't be watched: %s; every name counts as changed, until it can be", self.root, error)
            self._incomplete = True

    def _stop(self) -> None:
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join()

    def _other_names(self, names: set[str], unnamed: set[int]) -> set[str]:
        """The names of changed files that had no name when they changed, and the other hard links of changed files."""
        inodes = set(unnamed)
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(self._watched, name))
                if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                    inodes.add(found.st_ino)
        if not inodes:
            return set()
        try:
            return {entry.name for entry in scan(self._watched) if entry.inode in inodes}
        except OSError:
            self.mark_all()  # the root is gone
            return set()

    def mark_all(self) -> None:
        """Mark everything as dirty, because events were lost."""
        with self._changed:
            self._lost = True
            self._names.clear()
            self._unnamed.clear()
            self._changed.notify_all()

    def cannot_watch(self, path: str, *, readable: bool) -> None:
        """Note that a directory can't be watched, and must not be the root; while unreadable, nothing in it counts."""
        if readable:
            self._incomplete = True
            self.mark_all()
        elif path == self._watched:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        else:
            self._unreadable = True

    def dispatch(self, event: Any) -> None:
        """Handle an event of watchdog, in its thread."""
        kind, directory, path = event.event_type, event.is_directory, os.fsdecode(event.src_path)
        if kind == "deleted" and directory and path == self._watched:
            self.mark_all()
        elif kind == "attrib" and directory and self._unreadable:
            self.mark_all()  # it may be readable now
        elif kind == "moved" and directory and os.path.lexists(path):
            self.mark_all()  # if it was exchanged (renameat2(2)), watchdog takes both for one from now on
        elif kind in _QUIET or (directory and kind == "modified"):
            pass  # what changed in the directory has its own event
        elif not directory and (match := _UNNAMED.fullmatch(path)) and not os.path.lexists(path) and kind != "deleted":
            self._add(self._unnamed, int(match[1]))
        else:
            for each in filter(None, (path, os.fsdecode(event.dest_path))):
                self._add_name(os.path.relpath(each, self._watched), deleted=kind == "deleted")

    def _add_name(self, name: str, *, deleted: bool) -> None:
        if name.startswith(_PROBE):
            if deleted:
                self._add(self._probes, name)
        elif name != ".":
            self._add(self._names, name)

    def _add(self, found: set[Any], value: str | int) -> None:
        with self._changed:
            if not self._lost or found is self._probes:
                found.add(value)
            self._changed.notify_all()


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode; None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _start_threads(dirty: DirtySet, root: str) -> list[Any]:
    """Start the threads of watchdog: one reads inotify(7), one turns that into events, one dispatches them."""
    if sys.platform != "linux":
        raise ConfigError("watching a directory needs inotify(7), which only Linux has; call scan or sync regularly")
    from watchdog.observers.api import BaseObserver
    from watchdog.version import VERSION_INFO, VERSION_STRING

    if VERSION_INFO < (7, 1):
        raise ConfigError(f"watching needs watchdog 7.1 or newer; this is {VERSION_STRING}, so upgrade it")
    from watchdog.observers.inotify import InotifyEmitter

    class Emitter(InotifyEmitter):
        def on_thread_stop(self) -> None:
            group, self._inotify = self._inotify, None
            while group is not None:
                with contextlib.suppress(KeyError):  # once for each directory that was exchanged: go on with the others
                    group.deactivate()
                    group = None

    # watchdog walks a new directory after it has started to watch it. A directory created in between is found twice
    # and added to the same watch again, which is harmless, but causes a warning in its thread.
    warnings.filterwarnings("ignore", r"Callback with id '\d+' already exists for watch", RuntimeWarning)
    reader = _make_reader(dirty)
    observer: Any = BaseObserver(Emitter, inotify_fd=reader)
    try:
        reader.start()
        try:
            observer.schedule(dirty, root, recursive=True)
            emitters = list(observer.emitters)
            observer.start()
        except BaseException:
            observer.on_thread_stop()
            reader.stop()
            reader.join()
            raise
    except RuntimeError as error:  # the system allows no more threads
        raise OSError(errno.EAGAIN, str(error), root) from error
    return [observer, *emitters, reader]


def _make_reader(dirty: DirtySet) -> Any:
    """A thread that reads inotify(7); it reports lost events and directories that can't be watched to `dirty`."""
    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor

    class Reader(InotifyFD):
        def handle_event(self, event: InotifyEvent) -> None:
            if event.mask & _EVENTS_LOST:
                dirty.mark_all()
            super().handle_event(event)

        def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
            try:
                descriptor = super().add_callback(path, mask, callback, id_)
            except (FileNotFoundError, NotADirectoryError):
                raise  # it was removed, and that has its own event
            except OSError:
                dirty.cannot_watch(os.fsdecode(path), readable=True)
                raise
            if descriptor < 0:  # EACCES
                dirty.cannot_watch(os.fsdecode(path), readable=False)
            return descriptor

        def start(self) -> None:
            try:
                super().start()
            except RuntimeError:
                self._close_resources()
                raise

    return Reader()
