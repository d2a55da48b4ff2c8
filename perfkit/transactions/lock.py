"""One writer per tree: flock(2), and a note of who holds it, since flock does nothing on some network file systems."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from perfkit.errors import LockedError
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.layout import LOCK, OWNER
from perfkit.transactions.object_store import write_all

__all__ = ["Lock"]

_POLL_S = 0.02


class Lock:
    """The right to change a tree, for one process and one thread.

    The note tells two processes of one machine apart even where flock doesn't. Between machines it can't be known
    whether the other lives: whoever comes later takes over, and the earlier finds out by `check`, before its commit.
    """

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath
        self._fd = -1
        self._pid = os.getpid()
        self.token = os.urandom(8).hex()

    def acquire(self, wait_s: float) -> None:
        """Take it, waiting so long at most.

        Raises:
            LockedError: another holds it.
        """
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                holder = self._owner().get("pid")
                by = f" by process {holder}" if holder else ""
                raise LockedError(f"{self._beneath.root} is being changed{by}; wait for that to end")
            time.sleep(_POLL_S)

    def _try(self) -> bool:
        fd = self._beneath.open(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = self._beneath.lstat(LOCK)
            if found is None or found.st_ino != os.fstat(fd).st_ino or _lives(self._owner()):
                os.close(fd)
                return False
            self._write_note()
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def _write_note(self) -> None:
        note = self._beneath.open(OWNER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(note, json.dumps({**_identity(os.getpid()), "token": self.token}).encode())
        except BaseException:
            with contextlib.suppress(OSError):  # on a full disk an empty note would stay
                self._beneath.unlink(OWNER)
            raise
        finally:
            os.close(note)

    def check(self) -> None:
        """See that nobody took the tree over.

        Raises:
            LockedError: somebody did.
        """
        if self._owner().get("token") != self.token:
            raise LockedError(f"{self._beneath.root}: another process took the tree over; start again")

    def release(self) -> None:
        """Give it back; idempotent. In a child that was forked with it, only close."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if os.getpid() == self._pid:
                with contextlib.suppress(OSError):  # a note that stays is that of a dead process
                    if self._owner().get("token") == self.token:
                        self._beneath.unlink(OWNER)
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def _owner(self) -> dict[str, object]:
        """The note; empty if there is none that can be read."""
        try:
            with open(self._beneath.open(OWNER), "rb") as file:
                owner = json.loads(file.read(4096))
        except (FileNotFoundError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}


def _identity(pid: int) -> dict[str, object]:
    """What makes a process unique: boot, process namespace, number, and when it began."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            began = file.read().rpartition(")")[2].split()[19]  # proc_pid_stat(5): field 22
        return {"boot": boot, "space": os.stat("/proc/self/ns/pid").st_ino, "pid": pid, "began": began}
    except OSError:
        return {"pid": pid}


def _lives(owner: dict[str, object]) -> bool:
    """Whether this is a process that can be seen to live."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or "boot" not in owner:
        return False
    found = _identity(pid)
    return "boot" in found and all(owner.get(key) == value for key, value in found.items())
