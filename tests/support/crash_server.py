"""The process that is killed: it forks a child per case, and the child changes a tree.

All that is imported when first needed is imported before the first case. Then it prints its PID, and strace may be
attached to it: its children, and their threads, begin with no calls counted. `when=W` of strace counts each process's
calls by itself. So a child that is to die at its K-th call of a kind first makes W-K calls of that kind that fail and
change nothing: one strace, one start of Python, and any number of cases.

Lines on standard input: `K ACTION ROOT KIND WHEN`. Answers on standard output: how the child ended, and its PID.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

from perfkit.errors import PerfkitError, RecoveryError, UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.layout import MANIFEST
from perfkit.transactions.records import Content
from perfkit.transactions.tree import Tree

DONE, FAILED, UNFINISHED = 0, 3, 4
FETCHED_DATA = b"fetched" * 100
FETCHED = Content(hashlib.sha256(FETCHED_DATA).hexdigest(), len(FETCHED_DATA), 0o644)

_LIBC = ctypes.CDLL(None, use_errno=True)
_BAD = 9999  # no such descriptor
_PR_SET_PTRACER = 0x59616D61  # prctl(2), for where only ancestors may trace


def _openat() -> None:
    os.open("/nowhere/at/all", os.O_RDONLY)


IDLE: dict[str, Callable[[], object]] = {
    "renameat": lambda: os.rename("x", "y", src_dir_fd=_BAD, dst_dir_fd=_BAD),
    "linkat": lambda: os.link("x", "y", src_dir_fd=_BAD, dst_dir_fd=_BAD),
    "unlinkat": lambda: os.unlink("x", dir_fd=_BAD),
    "mkdir": lambda: os.mkdir("/nowhere/at/all"),
    "mkdirat": lambda: os.mkdir("x", dir_fd=_BAD),
    "write": lambda: os.write(_BAD, b""),
    "fsync": lambda: os.fsync(_BAD),
    "syncfs": lambda: _LIBC.syncfs(_BAD),
    "openat": _openat,
    "fchmod": lambda: os.fchmod(_BAD, 0),
    "fchown": lambda: os.fchown(_BAD, -1, -1),
    "ioctl": lambda: fcntl.ioctl(_BAD, 0),
    "utimensat": lambda: os.utime("x", dir_fd=_BAD),
    "rename": lambda: os.rename("/nowhere/at/all", "/nowhere/else"),
    "unlink": lambda: os.unlink("/nowhere/at/all"),
    "pwrite64": lambda: os.pwrite(_BAD, b"", 0),
    "ftruncate": lambda: os.ftruncate(_BAD, 0),
    "fallocate": lambda: os.posix_fallocate(_BAD, 0, 1),
    "fsetxattr": lambda: os.setxattr(_BAD, "user.x", b""),
    "copy_file_range": lambda: os.copy_file_range(_BAD, _BAD, 1),
}


def change(root: str) -> None:
    """Every kind of operation, over some dozens of files in nested directories."""
    with Tree(root) as tree, tree.transaction({"version": "2"}) as tx:
        for number in range(6):
            tx.write(f"a/deep/new-{number}", b"new %d" % number * 50)
            tx.write(f"keep/{number}", b"changed %d" % number, mode=0o755)
            tx.remove(f"going/away/{number}")
            tx.move(f"move/{number}", f"moved/to/{number}")
        tx.replace("copy", f"{root}/keep/9")
        tx.expect("adopted", FETCHED)
        tx.expect("copied", FETCHED, copy=True)
        tx.write("empty", b"")
        tx.remove("file-then-directory")
        tx.write("file-then-directory/file", b"below")
        tx.remove("directory-then-file/one")
        tx.remove("directory-then-file/sub/two")
        tx.write("directory-then-file", b"a file now")
        tx.move("swap-1", "swap-3")
        tx.move("swap-2", "swap-1")
        tx.move("swap-3", "swap-2")
        tx.write_private(MANIFEST, b"manifest 2")
        tx.prepare()
        path = os.path.join(tree.fetch_directory, f"content-{FETCHED.sha256}")
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(FETCHED_DATA)


def begin(root: str) -> None:
    """The tree before the change, made by a transaction, so that there is something to go back to."""
    with Tree(root) as tree, tree.transaction({"version": "1"}) as tx:
        for number in range(10):
            tx.write(f"keep/{number}", b"kept %d" % number * 20)
        for number in range(6):
            tx.write(f"going/away/{number}", b"going %d" % number)
            tx.write(f"move/{number}", b"moving %d" % number)
        tx.write("file-then-directory", b"a file")
        tx.write("directory-then-file/one", b"1")
        tx.write("directory-then-file/sub/two", b"2")
        tx.write("swap-1", b"one")
        tx.write("swap-2", b"two")
        tx.write_private(MANIFEST, b"manifest 1")


def back(root: str) -> None:
    with Tree(root) as tree:
        tree.rollback()


REFUSED = "going/away/3"  # the journal replaces all files and removes three before it


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """A file that can't be removed, which nothing tells before the commit point."""

    def unlink(rootdir: RootDir, name: str) -> bool:
        if name == REFUSED:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
        return real(rootdir, name)

    real = RootDir.unlink
    with mock.patch.object(RootDir, "unlink", unlink):
        yield


def refused(root: str) -> None:
    """`change`, which is refused in the middle and undone."""
    with refusing():
        change(root)


def prune(root: str) -> None:
    with Tree(root) as tree:
        tree.prune(0)


ACTIONS: dict[str, Callable[[str], object]] = {
    "change": change,
    "back": back,
    "refused": refused,
    "prune": prune,
    "recover": lambda root: Tree(root).__enter__(),
}


def _idle_in_threads(kind: str, count: int) -> None:
    """Every thread that is started from now on begins with idle calls: strace counts each thread's calls by itself."""
    run = threading.Thread.run

    def idle_first(thread: threading.Thread) -> None:
        idle(kind, count)
        run(thread)

    threading.Thread.run = idle_first  # type: ignore[method-assign]


def idle(kind: str, count: int) -> None:
    """So many calls of a kind that change nothing."""
    for _ in range(count if kind in IDLE else 0):
        with contextlib.suppress(OSError):
            IDLE[kind]()


def serve(actions: Mapping[str, Callable[[str], object]]) -> None:
    """Serve cases until standard input ends; an action whose name ends in `-threads` dies in its own thread."""
    _LIBC.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # any process may attach
    sys.dont_write_bytecode = True  # else the first case, whose calls are counted, may make more calls than the others
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        number, action, root, kind, when = line.split()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if action.endswith("-threads"):
                    _idle_in_threads(kind, int(when) - int(number))
                else:
                    idle(kind, int(when) - int(number))
                actions[action](root)
                code = DONE
            except RecoveryError:
                code = UNFINISHED
            except (OSError, PerfkitError):
                code = FAILED
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), pid, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as warm:
        begin(warm)
        for action in ACTIONS.values():
            with contextlib.suppress(UpdateError):  # of `refused`
                action(warm)
    serve(ACTIONS)
