"""A second process that hashes small files: two threads of one process would wait for each other at every system call.

It is a bare interpreter that runs `small_files`, and no fork, which would not be safe in a process with threads. It
holds the directory and one socket, ends when that is closed by whatever cause, and nothing depends on its answers: what
it was given and did not answer is given back.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import socket
import struct
import sys
from collections import deque

from perfkit.filesystem.hashing import small_files
from perfkit.filesystem.hashing.small_files import Digest
from perfkit.filesystem.scan import ScanEntry

__all__ = ["Hasher"]

_AHEAD = 4  # portions given and not answered: it must not run dry while we hash one ourselves
_IDLE_S = 60  # then it ends by itself
_KILL = 9  # the module `signal` takes longer to import than a thousand files to hash
_RECEIVE = 1 << 16


class Hasher:
    """The near end of it. Used by one thread at a time; of no use after a fork."""

    def __init__(self, process: int, near: socket.socket) -> None:
        self.process = process
        self._owner = os.getpid()
        self._socket = near
        self._received = bytearray()
        self._given: deque[list[ScanEntry]] = deque()
        self._ended = False

    @classmethod
    def start(cls, root: int) -> Hasher | None:
        """Start one for the tree below this open directory; None where that can't be."""
        # Where Python is embedded or frozen, the executable is some other program, or this one once more.
        executable = sys.executable or ""
        if getattr(sys, "frozen", False) or not os.path.basename(executable).startswith("python"):
            return None
        command = [executable, "-I", "-S", small_files.__file__]
        near, far = socket.socketpair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _IDLE_S, 0))
        copies: list[int] = []
        try:
            for each in (far.fileno(), root):  # out of the way: in a daemon they may be one of 0 to 3 themselves
                copies.append(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, small_files.DIRECTORY + 1))
            actions = [(os.POSIX_SPAWN_DUP2, copies[0], small_files.SOCKET),
                       (os.POSIX_SPAWN_DUP2, copies[1], small_files.DIRECTORY),
                       (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                       (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]  # fmt: skip
            # A group of its own, since Ctrl-C is for us: we end it.
            process = os.posix_spawn(executable, command, os.environ, file_actions=actions, setpgroup=0)
        except OSError:
            near.close()
            return None
        finally:
            far.close()
            for each in copies:
                os.close(each)
        return cls(process, near)

    @property
    def idle(self) -> bool:
        """Whether it can be given something."""
        return not self._ended and len(self._given) < _AHEAD

    @property
    def busy(self) -> bool:
        return bool(self._given)

    def give(self, portion: list[ScanEntry]) -> None:
        """Have these hashed; `answers` tells of them."""
        self._given.append(portion)
        names = os.fsencode("\0".join([entry.name for entry in portion]))
        try:
            self._socket.sendall(len(names).to_bytes(4, "little") + names, socket.MSG_NOSIGNAL)
        except OSError:
            self._ended = True

    def answers(self, *, wait: bool) -> list[tuple[list[ScanEntry], list[Digest | None]]]:
        """What was given and is done, each portion as `digests` leaves it: the digests of its first files.

        A hasher that has died has done nothing of what it still had.
        """
        found: list[tuple[list[ScanEntry], list[Digest | None]]] = []
        if os.getpid() != self._owner:  # a fork: these answers are for the other process
            self._ended = True
        while self._given and not self._ended and not found:
            try:
                piece = self._socket.recv(_RECEIVE, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self._ended = not piece
            self._received += piece
            while (answer := self._message()) is not None:
                found.append((self._given.popleft(), answer))
        if self._ended:
            found += [(portion, []) for portion in self._given]
            self._given.clear()
        return found

    def _message(self) -> list[Digest | None] | None:
        end = 4 + int.from_bytes(self._received[:4], "little")
        if len(self._received) < max(end, 5):
            return None
        answer: list[Digest | None] = marshal.loads(self._received[4:end])
        del self._received[:end]
        return answer

    def close(self) -> None:
        """End it, whatever it does, and leave nothing behind."""
        self._socket.close()
        if self._owner == os.getpid():
            try:
                if os.waitpid(self.process, os.WNOHANG) == (0, 0):
                    os.kill(self.process, _KILL)
                    os.waitpid(self.process, 0)
            except (ChildProcessError, ProcessLookupError):
                pass  # somebody else waits for all children of this process
