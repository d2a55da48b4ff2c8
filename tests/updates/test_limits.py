"""Few descriptors, no more threads, and system calls that a file system or a container's filter refuses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from perfkit.filesystem.thread_map import WorkerPool, map_in_threads
from tests.support.sites import Origin
from tests.support.tools import need
from tests.support.trees import Tree, tree_of, write_tree

pytestmark = pytest.mark.once

MANY = {f"d{number:03}/deep/er/{leaf}": b"%d" % number for number in range(100) for leaf in "ab"}
FEW = {name: data for name, data in MANY.items() if name < "d014"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PERFKIT_")}
ROOT = os.fspath(Path(__file__).parents[2])


COMMANDS = """
import sys
from perfkit.cli import main
root, url, site, new = sys.argv[1:]
for command in (
    ["sync", url, root],
    ["verify", root],
    ["publish", new, site, "--version", "2"],
    ["sync", url, root],
    ["verify", root],
    ["rollback", root],
    ["verify", root],
):
    code = main(command)
    assert code == 0, (command, code)
"""


def run(*command: str | Path, descriptors: int = 1024) -> None:
    """Run a program, which has to succeed."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    done = subprocess.run(
        list(map(os.fspath, command)),
        preexec_fn=limit,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def refusing(calls: str, error: str) -> tuple[str, ...]:
    """A command in front of another one, whose system calls of these names fail."""
    need("strace")
    names = ",".join(f"?{name}" for name in calls.split(","))
    return (
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={names}",
        "-e",
        f"inject={names}:error={error}",
    )


def story(
    origin: Origin, root: Path, *, tree: Tree = FEW, under: tuple[str, ...] = (), descriptors: int = 1024
) -> None:
    """Sync, publish, sync, roll back and verify, with these limits: in one process, since each one costs a second."""
    origin.publish(tree, "1")
    later = {name: data + b" later" for name, data in tree.items() if not name.startswith("d00")}
    new = write_tree(root.parent / "new", later)
    run(*under, sys.executable, "-c", COMMANDS, root, origin.url, origin.site, new, descriptors=descriptors)
    assert tree_of(root) == tree


@pytest.mark.parametrize("descriptors", [40, 64])
def test_few_descriptors(origin: Origin, tmp_path: Path, descriptors: int) -> None:
    """More directories than may be open at once."""
    story(origin, tmp_path / "tree", tree=MANY, descriptors=descriptors)


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EBADF"])
def test_without_flock(origin: Origin, tmp_path: Path, error: str) -> None:
    """Lustre, and NFS without a lock daemon: the owner note serves."""
    story(origin, tmp_path / "tree", under=refusing("flock", error))


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_without_recent_calls(origin: Origin, tmp_path: Path, error: str) -> None:
    """What an old container runtime does not know, it refuses."""
    calls = "copy_file_range,syncfs,renameat2,fallocate,statx,openat2,close_range,faccessat2"
    story(origin, tmp_path / "tree", under=refusing(calls, error))


def test_without_links(origin: Origin, tmp_path: Path) -> None:
    """Neither hard links nor attributes."""
    story(origin, tmp_path / "tree", under=refusing("link,linkat,setxattr,fsetxattr,getxattr", "EOPNOTSUPP"))


def test_no_more_threads(tmp_path: Path) -> None:
    """Publishing and verifying go on in the caller's thread."""
    (tmp_path / "src").mkdir()
    for number in range(20):
        (tmp_path / "src" / f"{number}").write_bytes(os.urandom(300_000))
    no_threads = refusing("clone,clone3", "EAGAIN")
    run(*no_threads, sys.executable, "-m", "perfkit", "publish", tmp_path / "src", tmp_path / "site", "--version", "1")
    code = "import sys, perfkit; print(perfkit.Toolkit().hash_file(sys.argv[1], chunk_bytes=1 << 16).sha256[:4])"
    run(*no_threads, sys.executable, "-c", code, tmp_path / "src/1")


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_work_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """From the first item, or after some threads: in order, each item once, with its error."""
    real, left = threading.Thread.start, allowed

    def start(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        real(thread)

    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return number * 2

    monkeypatch.setattr(threading.Thread, "start", start)
    assert list(map_in_threads(work, range(50), 4)) == [number * 2 for number in range(50)]
    assert sorted(done) == list(range(50))
    with WorkerPool(2) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result()
