"""What crash tests of trees share: which system calls are swept, and how a tree is compared afterwards.

`PERFKIT_FULL_SWEEP=1` lets them try every single call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.history import History, Timeline
from perfkit.transactions.object_store import EMPTY, ObjectStore
from perfkit.transactions.tree import Tree
from tests.support.crash_server import IDLE
from tests.support.tools import ENVIRONMENT
from tests.support.warm import WarmPython

FULL = bool(os.environ.get("PERFKIT_FULL_SWEEP"))
MUTATING = frozenset(IDLE) | {
    "rename", "renameat2", "link", "symlink", "symlinkat", "unlink", "rmdir", "mkdir", "mknod", "mknodat", "creat",
    "openat2", "truncate", "ftruncate", "fallocate", "pwrite64", "writev", "pwritev", "pwritev2", "fdatasync", "sync",
    "sync_file_range", "msync", "copy_file_range", "sendfile", "splice", "chmod", "fchmodat", "fchownat",
    "setxattr", "fsetxattr",
}  # fmt: skip
# What may be in `.perfkit` of a tree that nothing is wrong with.
OWN = {"lock", "state", "history", "objects", "fetch", "manifest", "release", "serials", "statcache", "clock",
       "last-sync", "hold"}  # fmt: skip
Snapshot = dict[str, tuple[int, bytes]]


class CrashServer:
    """A crash server (a module of tests.support) that strace is attached to."""

    def __init__(self, warm: WarmPython, module: str, *arguments: str) -> None:
        command = warm.python("-m", f"tests.support.{module}", *arguments)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        self._pid = int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @contextlib.contextmanager
    def traced(self, *options: str) -> Iterator[None]:
        command = ["strace", "-f", *options, "-p", str(self._pid)]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        reader = threading.Thread(target=strace.stderr.read)  # strace reports every process and thread
        reader.start()
        try:
            yield
        finally:
            strace.terminate()  # it detaches then
            strace.wait(100)
            reader.join(100)
            strace.stderr.close()

    def injected(self, injections: Mapping[str, tuple[str, int]]) -> contextlib.AbstractContextManager[None]:
        """Inside, for each kind of call, that of a number in its process or thread meets what `strace -e inject` does.

        Args:
            injections: by kind, what it does, and that number.
        """
        options = [f"inject={kind}:{how}:when={when}" for kind, (how, when) in injections.items()]
        each = [word for option in options for word in ("-e", option)]
        return self.traced("-o", "/dev/null", "-e", f"trace={','.join(injections)}", *each)

    def run(self, action: str, root: Path, number: int = 0, kind: str = "none", when: int = 0) -> tuple[int, int]:
        """How the run ended, and its PID."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number} {action} {root} {kind} {when}\n")
        self._process.stdin.flush()
        code, pid = map(int, self._answer().split())
        return code, pid

    def close(self) -> None:
        self._process.communicate(timeout=100)


def sample(count: int, cases: int) -> list[int]:
    """So many numbers from 1 to `count`, evenly, the first and the last among them; all of them in a full sweep."""
    if FULL or count <= cases:
        return list(range(1, count + 1))
    return sorted({1 + (count - 1) * index // (cases - 1) for index in range(cases)})


def snapshot(root: Path) -> Snapshot:
    """Names, permissions and contents of all that is not perfkit's own, and of its manifest, which is part of it."""
    found: Snapshot = {}
    for directory, names, files in os.walk(root):
        if directory == str(root) and ".perfkit" in names:
            names.remove(".perfkit")
        for name in names:
            found[os.path.relpath(os.path.join(directory, name), root)] = (0, b"directory")
        for name in files:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
    manifest = root / ".perfkit/manifest"
    found[".perfkit/manifest"] = (0, manifest.read_bytes() if manifest.exists() else b"")
    return found


def copy(source: Path, target: Path) -> None:
    """A copy that keeps hard links, as rollback knows them."""
    links: dict[int, str] = {}
    for directory, _, files in os.walk(source):
        there = target / os.path.relpath(directory, source)
        there.mkdir(exist_ok=True)
        for name in files:
            path, goal = os.path.join(directory, name), str(there / name)
            number = os.stat(path).st_ino
            if number in links:
                os.link(links[number], goal)
            else:
                links[number] = shutil.copy2(path, goal)


def reachable(root: Path) -> tuple[Timeline, set[str]]:
    """The timeline of a tree, and the objects (SHA-256) that its generations need."""
    with contextlib.closing(RootDir(os.fspath(root))) as rootdir:
        history = History(rootdir, ObjectStore(rootdir))
        timeline = history.timeline()
        return timeline, {digest.hex() for digest in history.needed_objects(timeline)} - {EMPTY}


def check_whole(root: Path, old: Snapshot, new: Snapshot, *, tidy: bool = False) -> bool:
    """Open it again: it is old or new, nothing is left over, and what it may need is there. True if it is new.

    With `tidy`, objects that nothing needs may have stayed, and the next change removes them.
    """
    with Tree(root) as tree:
        found = snapshot(root)
        assert found in (old, new)
        if tidy:
            tree.prune(99)
        own = {entry.name for entry in (root / ".perfkit").iterdir()}
        assert own <= {"lock", "owner", "state", "history", "objects", "fetch", "manifest"}
        timeline, needed = reachable(root)
        objects = {entry.name for entry in (root / ".perfkit/objects").glob("*")}
        assert objects == needed
        numbers = {int(entry.name) for entry in (root / ".perfkit/history").glob("*")}
        assert numbers == set(timeline.chain) - {0}
        if len(timeline.chain) > 1 and timeline.current != timeline.chain[0]:
            here = timeline.current
            tree.rollback()
            tree.rollback(here)
            assert snapshot(root) == found
    return found == new
