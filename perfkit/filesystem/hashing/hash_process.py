"""A second process that hashes small files: two threads would contend for the GIL at every system call.

It is a bare interpreter that runs `small_files`, not a fork, which would be unsafe in a process with threads. It holds
the directory and one socket, and exits when the socket is closed for whatever reason. Nothing depends on its responses:
files for which it sends none are returned unhashed.
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

_MAX_PENDING = 4  # portions, so that it does not run out of work while we hash one ourselves
_IDLE_S = 60  # after that it exits by itself
_SILENCE_S = 20  # without a response when we have nothing else to do, or without reading: it is stopped, or hangs
_SIGKILL = 9  # importing the module `signal` takes longer than hashing a thousand files
_RECEIVE = 1 << 16
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # macOS has none; Python ignores SIGPIPE unless the program undid that


class HashProcess:
    """A handle on the second process. For one thread at a time; not usable after a fork."""

    def __init__(self, process: int, connection: socket.socket) -> None:
        self.process = process
        self._owner = os.getpid()
        self._socket = connection
        self._received = bytearray()
        self._pending: deque[list[ScanEntry]] = deque()
        self._ended = False

    @classmethod
    def start(cls, root: int) -> HashProcess | None:
        """Start a process for the tree below this open directory; None where that is impossible."""
        # Where Python is embedded or frozen, the executable is another program, or this program itself.
        executable = sys.executable or ""
        if getattr(sys, "frozen", False) or not os.path.basename(executable).startswith("python"):
            return None
        if not hasattr(os, "POSIX_SPAWN_DUP2"):  # PyPy
            return None
        command = [executable, "-I", "-S", small_files.__file__]
        try:
            near, far = socket.socketpair()
        except OSError:
            return None
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _IDLE_S, 0))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            near.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _SILENCE_S, 0))
        copies: list[int] = []
        try:
            for each in (far.fileno(), root):  # moved away from 0 to 3, which they may be in a daemon
                copies.append(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, small_files.DIRECTORY + 1))
            actions = [
                (os.POSIX_SPAWN_DUP2, copies[0], small_files.SOCKET),
                (os.POSIX_SPAWN_DUP2, copies[1], small_files.DIRECTORY),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ]
            # In its own process group, so that Ctrl-C reaches only us: we end it.
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
    def has_capacity(self) -> bool:
        """Whether another portion can be submitted."""
        return not self._ended and len(self._pending) < _MAX_PENDING

    @property
    def busy(self) -> bool:
        """Whether portions are pending."""
        return bool(self._pending)

    def submit(self, portion: list[ScanEntry]) -> None:
        """Submit these files; `results` returns their digests."""
        self._pending.append(portion)
        names = os.fsencode("\0".join([entry.name for entry in portion]))
        try:
            self._socket.sendall(len(names).to_bytes(4, "little") + names, _NO_SIGNAL)
        except OSError:
            self._ended = True

    def results(self, *, wait: bool) -> list[tuple[list[ScanEntry], list[Digest | None]]]:
        """The portions that are finished, each with the digests of its first files, as `hash_small_files` returns them.

        If the process has died, or does not respond, its pending portions are returned without digests.
        """
        found: list[tuple[list[ScanEntry], list[Digest | None]]] = []
        if os.getpid() != self._owner:  # after a fork: the responses are for the other process
            self._ended = True
        while self._pending and not self._ended and not found:
            try:
                piece = self._socket.recv(_RECEIVE, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not wait:
                    break
                piece = b""
            except OSError:
                piece = b""
            self._ended = not piece
            self._received += piece
            while (answer := self._message()) is not None:
                found.append((self._pending.popleft(), answer))
        if self._ended:
            found += [(portion, []) for portion in self._pending]
            self._pending.clear()
        return found

    def _message(self) -> list[Digest | None] | None:
        end = 4 + int.from_bytes(self._received[:4], "little")
        if len(self._received) < max(end, 5):
            return None
        answer: list[Digest | None] = marshal.loads(self._received[4:end])
        del self._received[:end]
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing, and reap it."""
        self._socket.close()
        if self._owner == os.getpid():
            try:
                if os.waitpid(self.process, os.WNOHANG) == (0, 0):
                    os.kill(self.process, _SIGKILL)
                    os.waitpid(self.process, 0)
            except (ChildProcessError, ProcessLookupError):
                pass  # other code waits for all children of this process
