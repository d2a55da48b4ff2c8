"""Full disks, real ones: what is needed is counted right, and what can't be used is freed; no temporary directory."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.errors import TransferError, UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.server.server import Server
from perfkit.transactions import commit
from perfkit.transactions.tree import Tree
from perfkit.updates.sources.pack_route import Seeds
from tests.support.sites import Origin
from tests.support.tools import mounted_image, need
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

MIB = 1 << 20


def test_packed_and_unpacked(kit: Toolkit, origin: Origin, small_disk: Path) -> None:
    """1.2 MB that don't compress need 2.4: said before they are fetched. 0.8 MB fit."""
    origin.publish({"a": os.urandom(1_200_000)}, "1")
    with pytest.raises(OSError, match="No space") as caught:
        kit.sync(origin.url, small_disk / "tree")
    assert caught.value.errno == errno.ENOSPC
    assert sum(size for _, size in origin.sent) < 200_000
    assert tree_of(small_disk / "tree") == {}
    origin.publish({"a": os.urandom(800_000)}, "2")
    kit.sync(origin.url, small_disk / "tree")
    assert kit.verify(small_disk / "tree").intact


@pytest.mark.parametrize("count", [1, 40])
def test_nothing_is_used_of_what_could_not_be_synced(
    kit: Toolkit, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A thinly provisioned disk that is full reports once what it lost, which seems to be there until it is read from
    the disk again: the next sync writes it anew.
    """

    def fail(descriptor: int) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    origin.publish({"0": b"old"}, "1")
    kit.sync(origin.url, tmp_path / "tree")
    origin.publish({f"{number}": os.urandom(10_000) for number in range(count)}, "2")
    with monkeypatch.context() as patched:
        patched.setattr(commit, "sync_file", fail)
        patched.setattr(commit, "syncfs", fail)
        with pytest.raises(OSError, match="Input/output error"):
            kit.sync(origin.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"0": b"old"}
    assert os.listdir(tmp_path / "tree" / ".perfkit" / "fetch") == []
    kit.sync(origin.url, tmp_path / "tree")
    assert kit.verify(tmp_path / "tree").intact


def test_a_file_system_that_reports_at_close_what_it_lost(
    kit: Toolkit, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does. The descriptor is closed then, and a second close could be that of another thread's file."""
    close, failed = os.close, []

    def fail(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        close(descriptor)
        if name.startswith("content-"):
            failed.append(name)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    content = os.urandom(200_000)
    origin.publish({"large": content}, "1")
    kit.sync(origin.url, tmp_path / "tree")
    origin.publish({"large": content[:100_000] + b"new" + content[100_000:]}, "2")  # which is made of several parts
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fail)
        with pytest.raises(OSError, match="quota"):
            kit.sync(origin.url, tmp_path / "tree")
    assert failed
    assert tree_of(tmp_path / "tree") == {"large": content}
    kit.sync(origin.url, tmp_path / "tree")
    assert kit.verify(tmp_path / "tree").intact


def test_nothing_is_fetched_for_what_could_not_be_written(
    kit: Toolkit, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when the old parts of a file are copied: the sync ends, and does not fetch these instead."""

    def write(entry: int, offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_seeds(*args: Any, original: Any = Seeds.write) -> None:
        original(*args[:-1], SimpleNamespace(writer=lambda manifest: write))

    content = os.urandom(400_000)
    origin.publish({"large": content}, "1")
    kit.sync(origin.url, tmp_path / "tree")
    changed = content[:200_000] + b"new" + content[200_000:]
    origin.publish({"large": changed}, "2", keep_deltas=0)
    sent = origin.bytes
    with monkeypatch.context() as patched:
        patched.setattr(Seeds, "write", write_seeds)
        with pytest.raises(OSError, match="No space"):
            kit.sync(origin.url, tmp_path / "tree")
    assert origin.bytes - sent < 200_000
    kit.sync(origin.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"large": changed}


def test_copies_count(kit: Toolkit, origin: Origin, small_disk: Path) -> None:
    """The same content under four names is fetched once and written four times."""
    content = os.urandom(500_000)
    origin.publish(dict.fromkeys("abcd", content), "1")
    with pytest.raises(OSError, match="No space"):
        kit.sync(origin.url, small_disk / "tree")
    assert sum(size for _, size in origin.sent) < 200_000
    origin.publish(dict.fromkeys("ab", content), "2")
    kit.sync(origin.url, small_disk / "tree")


def test_leftovers_are_freed(kit: Toolkit, origin: Origin, small_disk: Path) -> None:
    """What a sync that failed has fetched does not keep the next one, of another version, from fitting."""
    check_leftovers(kit, origin, small_disk / "tree", MIB)


def test_leftovers_count_against_a_quota(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """That of btrfs, which says EDQUOT where a full disk says ENOSPC."""
    need("btrfs")
    with mounted_image("btrfs", tmp_path, size=320 * MIB) as disk:
        for command in (
            ("subvolume", "create", disk / "home"),
            ("quota", "enable", disk),
            ("qgroup", "limit", str(32 * MIB), disk / "home"),
        ):
            subprocess.run(["btrfs", "-q", *command], check=True)
        check_leftovers(kit, origin, disk / "home/tree", 16 * MIB)


def check_leftovers(kit: Toolkit, origin: Origin, tree: Path, unit: int) -> None:
    origin.publish({"keep": b"k" * 1000}, "1")
    kit.sync(origin.url, tree)
    fetch = tree / ".perfkit/fetch"
    fetch.mkdir(exist_ok=True)
    for name in ("content-" + "0" * 64, "1" * 64):
        (fetch / name).write_bytes(b"x" * (unit * 6 // 10))
    origin.publish({"keep": b"k" * 1000, "new": os.urandom(unit * 7 // 10)}, "2")
    kit.sync(origin.url, tree)
    assert set(os.listdir(fetch)) <= {"perfkit.json"}


def change(root: Path) -> None:
    with Tree(root) as tree, tree.transaction() as tx:
        tx.write("a", b"2")
        tx.write("sub/b", b"2")


def test_deleted_on_btrfs(tmp_path: Path) -> None:
    """What was deleted counts as free, though btrfs tells so only after a commit; a subvolume inside is named."""
    need("btrfs")
    with mounted_image("btrfs", tmp_path, size=128 * MIB) as disk:
        rootdir = RootDir(str(disk))
        with contextlib.suppress(OSError), (disk / "filling").open("wb") as file:
            while file.write(bytes(MIB)):
                file.flush()
                os.fsync(file.fileno())
        size = (disk / "filling").stat().st_size
        (disk / "filling").unlink()
        print(f"free after unlink: {rootdir.free_space()} of {size}")
        rootdir.check_free_space(size // 2)
        rootdir.close()
        with Tree(disk / "tree") as tree, tree.transaction() as tx:
            tx.write("a", b"1")
        subprocess.run(["btrfs", "-q", "subvolume", "create", disk / "tree/sub"], check=True)
        with pytest.raises(UpdateError, match=r"^sub is a mount point or a subvolume"):
            change(disk / "tree")
        assert tree_of(disk / "tree") == {"a": b"1"}


def test_quota_projects(tmp_path: Path) -> None:
    """XFS renames no file into a directory of another project: it is named before anything changes."""
    with mounted_image("xfs", tmp_path, size=320 * MIB) as disk:
        with Tree(disk / "tree") as tree, tree.transaction() as tx:
            tx.write("sub/old", b"1")
        subprocess.run(["chattr", "-p", "7", disk / "tree/sub"], check=True)
        subprocess.run(["chattr", "+P", disk / "tree/sub"], check=True)
        with pytest.raises(UpdateError, match=r"^sub has another quota project than .*; give both the same project"):
            change(disk / "tree")
        assert tree_of(disk / "tree") == {"sub/old": b"1"}
        (disk / "projects").mkdir()
        subprocess.run(["chattr", "-p", "7", disk / "projects"], check=True)
        subprocess.run(["chattr", "+P", disk / "projects"], check=True)
        change(disk / "projects/tree")
        assert tree_of(disk / "projects/tree") == {"a": b"2", "sub/b": b"2"}


def test_dry_run_without_a_temporary_directory(
    kit: Toolkit, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another place is found, and nothing is left there."""
    import tempfile

    origin.publish({"a": b"1"}, "1")
    kit.sync(origin.url, tmp_path / "tree")
    origin.publish({"a": b"2"}, "2")
    before = sorted(os.listdir(tmp_path / "tree/.perfkit"))
    real = tempfile.TemporaryDirectory

    def refuse(*, prefix: str, dir: str | None) -> tempfile.TemporaryDirectory[str]:
        if dir is None or not dir.startswith(str(tmp_path)):
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory")
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert kit.plan(origin.url, tmp_path / "tree").changed == ("a",)
    assert sorted(os.listdir(tmp_path / "tree/.perfkit")) == before
    with pytest.raises(UpdateError, match="set TMPDIR"):
        kit.plan(origin.url, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_first_sync_that_fails_leaves_why(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """And nothing else of its own."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_bytes(b"mine")
    for dest in ("there", "fresh"):
        with pytest.raises(TransferError):
            kit.sync(f"{origin.url}/no-such-site/", tmp_path / dest)
        assert os.listdir(tmp_path / dest / ".perfkit") == ["last-sync"]
    assert tree_of(tmp_path / "there") == {"mine": b"mine"}
    assert tree_of(tmp_path / "fresh") == {}


def test_failing_first_changes_at_the_same_time(tmp_path: Path) -> None:
    """One removes its traces while others wait for the lock: each gets its turn."""
    done: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            try:
                with Tree(tmp_path / "tree", wait_s=100.0):
                    raise KeyError
            except KeyError:
                done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 80


def test_a_download_is_compressed_where_the_file_system_compresses(tmp_path: Path) -> None:
    """btrfs does not compress what was preallocated (findings/btrfs-does-not-compress-preallocated-files.sh)."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/table").write_bytes(b"a line of a table that repeats itself\n" * (32 * MIB // 38))
    with mounted_image("btrfs", tmp_path, size=128 * MIB) as disk:
        subprocess.run(["mount", "-o", "remount,compress=zstd", disk], check=True)
        before = _used(disk)
        with Server(tmp_path / "site") as server, Toolkit() as kit:
            kit.download(f"{server.url}table", disk)
        assert _used(disk) - before < 8 * MIB


def _used(disk: Path) -> int:
    os.sync()
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
