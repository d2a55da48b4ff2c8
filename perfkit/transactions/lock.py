"""One writer per tree: flock(2), and an owner file, since flock does nothing or fails on some network file systems."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from perfkit.errors import LockedError, UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.libc import boot_id, try_lock
from perfkit.transactions.layout import LOCK, OWNER
from perfkit.transactions.object_store import open_regular, write_all

_POLL_S = 0.02


class Lock:
    """The right to change a tree, for one process and one thread.

    The owner file keeps out a second process of the same machine even where flock does not. Nobody can tell whether a
    process of another machine is alive: the later one takes over, and the earlier one notices in `check`, before its
    commit.

    Args:
        rootdir: the directory to lock.
        lock, owner: the names of the two files.
    """

    def __init__(self, rootdir: RootDir, lock: str = LOCK, owner: str = OWNER) -> None:
        self._rootdir = rootdir
        self._lock_name, self._owner_name = lock, owner
        self._fd = -1
        self._pid = os.getpid()
        self.token = os.urandom(8).hex()  # random, in hex; identifies this owner

    def acquire(self, wait_s: float) -> None:
        """Take the lock, waiting at most `wait_s` seconds.

        Raises:
            LockedError: another process or thread holds it.
        """
        deadline = time.monotonic() + wait_s
        while not self._try_acquire():
            if not time.monotonic() < deadline:  # or wait_s is not a number
                holder = self._owner().get("pid")
                by = f" by process {holder}" if holder else ""
                raise LockedError(f"{self._rootdir.root} is being changed{by}; try again when that has finished")
            time.sleep(_POLL_S)

    def _try_acquire(self) -> bool:
        try:
            self._fd = self._rootdir.open(self._lock_name, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # its directory was removed by a process whose first change failed
            self._rootdir.close_cached()
            self._rootdir.mkdir(os.path.dirname(self._lock_name))
            return self._try_acquire()
        try:
            if self._is_free():
                self._write_owner()
                return True
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    def _is_free(self) -> bool:
        try:
            try_lock(self._fd)
        except BlockingIOError:
            return False
        found = self._rootdir.lstat(self._lock_name)
        return found is not None and found.st_ino == os.fstat(self._fd).st_ino and not _is_alive(self._owner())

    def _write_owner(self) -> None:
        fresh = f"{self._owner_name}~"
        self._rootdir.unlink(fresh)  # left by a crash, or planted
        fd = self._rootdir.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(fd, json.dumps({**_identity(os.getpid()), "token": self.token}).encode())
            self._rootdir.rename(fresh, self._owner_name)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk
                self._rootdir.unlink(fresh)
            raise
        finally:
            os.close(fd)

    def check(self) -> None:
        """Check that this is still the owner.

        Raises:
            LockedError: another process took the tree over.
        """
        if self._owner().get("token") != self.token:
            raise LockedError(f"{self._rootdir.root}: another process took over the tree; try again")

    def release(self) -> None:
        """Release the lock. May be called again, and then completes what an interrupt prevented. In a child that was
        forked while it was held, only close the descriptor.
        """
        try:
            if os.getpid() == self._pid:
                with contextlib.suppress(OSError, UpdateError):  # an owner file that stays is that of a dead process
                    if self._owner().get("token") == self.token:
                        self._rootdir.unlink(self._owner_name)
                if self._fd >= 0:
                    with contextlib.suppress(OSError):
                        fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def close(self) -> None:
        """Release the lock, and close the directory. May be called again, also after one that a signal ended."""
        try:
            try:
                self.release()
            finally:
                self.release()  # before the directory is closed, it completes one that a signal ended
        finally:
            self._rootdir.close()

    def _owner(self) -> dict[str, object]:
        return _read_owner(self._rootdir, self._owner_name)


def is_held(rootdir: RootDir) -> bool:
    """Whether a process of this machine is changing the tree, as its owner file says."""
    with contextlib.suppress(OSError):
        return _is_alive(_read_owner(rootdir, OWNER))
    return False


def _read_owner(rootdir: RootDir, name: str) -> dict[str, object]:
    """The owner file; empty if it is missing or can't be parsed."""
    try:
        with open(open_regular(rootdir, name), "rb") as file:
            owner = json.loads(file.read(4096))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _identity(pid: int) -> dict[str, object]:
    """What makes a process unique: boot, process namespace, PID, and start time."""
    if not (boot := boot_id()):
        return {"pid": pid}
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            began = file.read().rpartition(")")[2].split()[19]  # proc_pid_stat(5): field 22
        return {"boot": boot, "space": os.stat("/proc/self/ns/pid").st_ino, "pid": pid, "began": began}
    except OSError:
        return {"pid": pid}


def _is_alive(owner: dict[str, object]) -> bool:
    """Whether this process is known to be alive."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or "boot" not in owner:
        return False
    found = _identity(pid)
    return "boot" in found and all(owner.get(key) == value for key, value in found.items())
