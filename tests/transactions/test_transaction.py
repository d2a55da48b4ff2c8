"""A managed tree: changes that happen as a whole, the lock, and the way back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import Config, Toolkit
from perfkit.errors import (
    FileChangedError,
    LockedError,
    RecoveryError,
    RollbackError,
    UnsafePathError,
    UpdateError,
)
from perfkit.transactions import commit
from perfkit.transactions.layout import FETCHED_OBJECT, MANIFEST
from perfkit.transactions.prepare import Known
from perfkit.transactions.records import Content, Seen, signature
from perfkit.transactions.tree import Tree
from tests.support import crash_server
from tests.support.tools import mounted_image
from tests.support.trees import litter, tree_of


def put(root: Path, contents: dict[str, bytes | None]) -> None:
    with Tree(root) as tree, tree.transaction() as tx:
        for name, data in contents.items():
            if data is None:
                tx.remove(name)
            else:
                tx.write(name, data)


def test_toolkit_commits_at_the_end(tmp_path: Path) -> None:
    """`kit.transaction` shows nothing before its block ends, and everything after."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "source").write_bytes(b"source")
    with Toolkit() as kit, kit.transaction(tmp_path) as tx:
        tx.write("a/b", [b"one ", b"two"])
        tx.replace("c", tmp_path / "source", mode=0o700)
        tx.move("old", "new")
        tx.remove("source")
        assert tree_of(tmp_path) == {"old": b"old", "source": b"source"}
    assert tree_of(tmp_path) == {"a/b": b"one two", "c": b"source", "new": b"old"}
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    assert not litter(tmp_path)


def test_exception_gives_up(tmp_path: Path) -> None:
    """An exception leaves the tree as it was, and nothing behind."""
    put(tmp_path, {"a": b"1"})
    with pytest.raises(KeyError), Tree(tmp_path) as tree, tree.transaction() as tx:  # noqa: PT012
        tx.write("a", b"2")
        tx.write("b", b"3")
        raise KeyError
    assert tree_of(tmp_path) == {"a": b"1"}
    assert not litter(tmp_path)


def test_calls_see_earlier_ones(tmp_path: Path) -> None:
    """Chains, swaps and changes of mind end in what was said last."""
    put(tmp_path, {"a": b"A", "b": b"B", "c": b"C"})
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        tx.move("a", "t")
        tx.move("b", "a")
        tx.move("t", "b")
        tx.write("d", b"never")
        tx.remove("d")
        tx.remove("c")
        tx.write("c", b"again")
        with pytest.raises(FileNotFoundError):
            tx.move("d", "e")
        with pytest.raises(FileNotFoundError):
            tx.remove("nothing")
        tx.remove("nothing", missing_ok=True)
    assert tree_of(tmp_path) == {"a": b"B", "b": b"A", "c": b"again"}


def test_nothing_new_is_no_generation(tmp_path: Path) -> None:
    """The same content again is not written, and makes no generation."""
    put(tmp_path, {"a": b"1"})
    before = (tmp_path / "a").stat()
    with Tree(tmp_path) as tree:
        with tree.transaction() as tx:
            tx.write("a", b"1")
        assert tx.result is not None
        assert tx.result.changes == ()
        assert tree.generation == 1
    assert (tmp_path / "a").stat().st_ino == before.st_ino
    assert not litter(tmp_path)


def test_one_at_a_time(tmp_path: Path) -> None:
    """A second change of the same tree inside the first is refused, and does the first no harm."""
    put(tmp_path, {"a": b"1"})
    with Tree(tmp_path) as tree:
        with tree.transaction() as tx:
            tx.write("a", b"2")
            for other in (tree.transaction, tree.rollback, lambda: tree.prune(1)):
                with pytest.raises(UpdateError, match="is open"):
                    other()
        with pytest.raises(UpdateError, match="has ended"):
            tx.write("a", b"3")
    assert tree_of(tmp_path) == {"a": b"2"}


def test_spoilt_object_is_replaced(tmp_path: Path) -> None:
    """An object that somebody wrote into is not taken for the content that is to be kept."""
    put(tmp_path, {"a": b"same", "b": b"same"})
    put(tmp_path, {"a": b"new"})
    (spoilt,) = (tmp_path / ".perfkit/objects").iterdir()
    spoilt.write_bytes(b"SAME")
    put(tmp_path, {"b": b"new"})
    with Tree(tmp_path) as tree:
        tree.rollback(1)
    assert tree_of(tmp_path) == {"a": b"same", "b": b"same"}


def test_object_outlives_a_change_that_is_given_up(tmp_path: Path) -> None:
    """Also where the change has put another file with the same content in its place; what it added goes."""
    before = {"a": b"same", "b": b"same", "c": b"added", "d": b"other"}
    put(tmp_path, before)
    put(tmp_path, {"a": b"new"})
    (kept,) = (tmp_path / ".perfkit/objects").iterdir()

    def seen(name: str) -> Seen:
        data = b"not what is there" if name == "d" else before[name]
        return Seen(hashlib.sha256(data).hexdigest(), 0, 0, 0)

    with Tree(tmp_path) as tree:
        tx = tree.transaction(known=Known(seen=seen))
        for name in "bcd":
            tx.write(name, b"new")
        with pytest.raises(FileChangedError), tx:
            pass
        assert list((tmp_path / ".perfkit/objects").iterdir()) == [kept]
        assert kept.samefile(tmp_path / "b")
        tree.rollback(1)
    assert tree_of(tmp_path) == before


def test_result_tells_the_new_stat(tmp_path: Path) -> None:
    """What a commit returns is what stat(2) says afterwards."""
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        tx.write("a", b"1" * 10)
    assert tx.result is not None
    (change,) = tx.result.changes
    assert change.signature == signature((tmp_path / "a").stat())
    (tmp_path / "a").write_bytes(b"2" * 11)
    assert change.signature != signature((tmp_path / "a").stat())


def test_directories_come_and_go(tmp_path: Path) -> None:
    """A file becomes a directory and a directory a file; directories that a change empties are gone."""
    put(tmp_path, {"f": b"1", "d/x/1": b"2", "d/x/2": b"3", "e/only": b"4"})
    (tmp_path / "d/empty").mkdir()
    with Tree(tmp_path) as tree:
        with tree.transaction() as tx:
            tx.remove("f")
            tx.write("f/in", b"5")
            tx.remove("d/x/1")
            tx.remove("d/x/2")
            tx.write("d", b"6")
            tx.remove("e/only")
        assert tree_of(tmp_path) == {"f/in": b"5", "d": b"6"}
        assert not (tmp_path / "e").exists()
        tree.rollback()
        assert tree_of(tmp_path) == {"f": b"1", "d/x/1": b"2", "d/x/2": b"3", "e/only": b"4"}


@pytest.mark.parametrize(("there", "name"), [("d/user", "d"), ("f", "f/in")])
def test_in_the_way(tmp_path: Path, there: str, name: str) -> None:
    """What stands in the way and isn't removed by the change is found before anything is done."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"mine")
    with pytest.raises(UpdateError, match="must be removed before"), Tree(tmp_path) as tree, tree.transaction() as tx:  # noqa: PT012
        tx.write("a", b"1")
        tx.write(name, b"2")
    assert tree_of(tmp_path) == {there: b"mine"}
    assert not litter(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".perfkit/state", ".PERFKIT/x", "a\0b", ""])
def test_names_that_escape(tmp_path: Path, name: str) -> None:
    """No call takes a name that leads out, or into perfkit's own directory."""
    (tmp_path / "a").write_bytes(b"")
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        for call in (
            lambda: tx.write(name, b""),
            lambda: tx.replace(name, tmp_path / "a"),
            lambda: tx.remove(name),
            lambda: tx.move("a", name),
            lambda: tx.move(name, "b"),
        ):
            with pytest.raises(UnsafePathError):
                call()


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    """A symbolic link at any place of a name leads nowhere."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "real").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (root / "link").symlink_to(outside)
    (root / "real/deep").symlink_to(outside)
    (root / "leaf").symlink_to(outside / "file")
    for name in ("link/file", "link/new", "real/deep/file", "leaf"):
        with pytest.raises((UnsafePathError, UpdateError)), Tree(root) as tree, tree.transaction() as tx:
            tx.write(name, b"overwritten")
        with pytest.raises((UnsafePathError, UpdateError)), Tree(root) as tree, tree.transaction() as tx:
            tx.remove(name)
    assert (outside / "file").read_bytes() == b"precious"
    assert [entry.name for entry in outside.iterdir()] == ["file"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.perfkit").symlink_to(outside)
    with pytest.raises(UnsafePathError), Tree(tmp_path / "other"):
        pass
    assert [entry.name for entry in outside.iterdir()] == ["file"]


def test_a_fetched_file_is_renamed(tmp_path: Path) -> None:
    """It is moved and not copied, may come late, gets its mode, and survives a change that is given up."""
    content = Content(hashlib.sha256(b"fetched").hexdigest(), 7, 0o755)
    fetched = tmp_path / (FETCHED_OBJECT + content.sha256)
    with Tree(tmp_path) as tree:
        assert tree.fetch_directory == os.fspath(fetched.parent)
        with pytest.raises(KeyError), tree.transaction() as tx:  # noqa: PT012
            tx.expect("a", content)
            fetched.write_bytes(b"fetched")
            raise KeyError
        number = fetched.stat().st_ino
        with tree.transaction() as tx:
            tx.expect("a", content)
        assert (tmp_path / "a").stat().st_ino == number
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
        assert not fetched.exists()


@pytest.mark.parametrize("wrong", ["missing", "longer", "linked", "a link"])
def test_a_fetched_file_that_is_not_as_expected(tmp_path: Path, wrong: str) -> None:
    content = Content(hashlib.sha256(b"fetched").hexdigest(), 7, 0o644)
    with Tree(tmp_path) as tree:
        fetched = Path(tree.fetch_directory) / f"content-{content.sha256}"
        with pytest.raises(UpdateError, match="nothing was changed"), tree.transaction() as tx:  # noqa: PT012
            tx.write("b", b"b")
            tx.expect("a", content)
            if wrong != "missing":
                (fetched.with_name("other") if wrong == "a link" else fetched).write_bytes(b"fetched")
            if wrong == "longer":
                fetched.write_bytes(b"fetched and edited")
            elif wrong == "linked":
                os.link(fetched, fetched.with_name("other"))
            elif wrong == "a link":
                fetched.symlink_to(fetched.with_name("other"))
    assert tree_of(tmp_path) == {}


def test_copies_of_a_fetched_file(tmp_path: Path) -> None:
    """Each is a file of its own with its own mode, and as old as the one that was fetched."""
    content = Content(hashlib.sha256(b"fetched").hexdigest(), 7, 0o644)
    with Tree(tmp_path) as tree:
        with tree.transaction() as tx:
            tx.expect("b", content)
            tx.expect("a", content._replace(mode=0o755), copy=True)
            tx.expect("c/d", content, copy=True)
            fetched = Path(tree.fetch_directory) / f"content-{content.sha256}"
            fetched.write_bytes(b"fetched")
            os.utime(fetched, ns=(1, 1))
        assert tx.result is not None
        assert [change.name for change in tx.result.changes] == ["a", "b", "c/d"]
        with pytest.raises(UpdateError, match="was changed during the update"), tree.transaction() as tx:  # noqa: PT012
            tx.expect("e", content._replace(sha256="0" * 64))
            tx.expect("f", content._replace(sha256="0" * 64), copy=True)
            fetched.with_name("content-" + "0" * 64).write_bytes(b"another")
    found = [(tmp_path / name).stat() for name in ("a", "b", "c/d")]
    assert [oct(each.st_mode & 0o777) for each in found] == ["0o755", "0o644", "0o644"]
    assert {(each.st_nlink, each.st_mtime_ns) for each in found} == {(1, 1)}
    assert tree_of(tmp_path) == dict.fromkeys(("a", "b", "c/d"), b"fetched")


@pytest.mark.parametrize(("meanwhile", "error"), [
    ("nothing", None),
    ("edited", "edited: the file was created or modified during the update; nothing was changed, retry"),
    ("created", "new/deep: the file was created or modified during the update; nothing was changed, retry"),
    ("removed", "old/new: the directory was removed or replaced during the update; nothing was changed, retry"),
    ("all removed", "old/new: the directory was removed or replaced during the update; nothing was changed, retry"),
    ("a file", "new: the directory was removed or replaced during the update; nothing was changed, retry"),
    ("a file of a directory", "was: the file was created or modified during the update; nothing was changed, retry"),
    ("a link", "'new': it is a symbolic link where a directory is needed"),
])  # fmt: skip
def test_what_others_do_after_preparing(tmp_path: Path, meanwhile: str, error: str | None) -> None:
    """It is noticed at the end: all stays as it is then, and nothing is left over."""
    put(tmp_path, {"edited": b"1", "going": b"2", "old/kept": b"3", "old/edited": b"4", "was/deep/a": b"5"})
    content = Content(hashlib.sha256(b"fetched").hexdigest(), 7, 0o644)
    expected = {"edited": b"new", "new/deep": b"fetched", "old/kept": b"3", "old/new": b"new", "old/edited": b"new"}
    expected["was"] = b"new"
    failing = contextlib.nullcontext() if error is None else pytest.raises(Exception, match=error)
    with Tree(tmp_path) as tree, failing, tree.transaction() as tx:
        tx.write("edited", b"new")
        tx.expect("new/deep", content)
        tx.write("old/new", b"new")
        tx.write("old/edited", b"new")
        tx.remove("was/deep/a")
        tx.write("was", b"new")
        tx.remove("going")
        tx.prepare()
        with pytest.raises(UpdateError, match="has ended"):
            tx.write("late", b"")
        (Path(tree.fetch_directory) / f"content-{content.sha256}").write_bytes(b"fetched")
        if meanwhile == "edited":
            (tmp_path / "edited").write_bytes(b"theirs")
        elif meanwhile == "created":
            (tmp_path / "new").mkdir()
            (tmp_path / "new/deep").write_bytes(b"theirs")
        elif meanwhile == "removed":
            (tmp_path / "old").rename(tmp_path / "moved")
        elif meanwhile == "all removed":
            shutil.rmtree(tmp_path / "old")
        elif meanwhile == "a file of a directory":
            shutil.rmtree(tmp_path / "was")
            (tmp_path / "was").write_bytes(b"theirs")
        elif meanwhile == "a file":
            (tmp_path / "new").write_bytes(b"theirs")
        elif meanwhile == "a link":
            (tmp_path / "new").symlink_to(tmp_path.parent)
        expected = expected if error is None else tree_of(tmp_path)
    assert tree_of(tmp_path) == expected
    assert not litter(tmp_path)
    assert bool(list(tmp_path.glob(".perfkit/objects/*"))) == (error is None)


def test_a_prepared_change_that_is_given_up(tmp_path: Path) -> None:
    put(tmp_path, {"a": b"1"})
    with Tree(tmp_path) as tree, pytest.raises(KeyError), tree.transaction() as tx:  # noqa: PT012
        tx.write("a", b"2")
        tx.prepare()
        assert list(tmp_path.glob(".perfkit/objects/*"))
        raise KeyError
    assert tree_of(tmp_path) == {"a": b"1"}
    assert not litter(tmp_path)
    assert not list(tmp_path.glob(".perfkit/objects/*"))


def test_second_one_waits_or_fails(tmp_path: Path) -> None:
    """A thread and a process find the tree locked; one that waits gets it when it is free."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with Tree(tmp_path):
            entered.set()
            leave.wait(100)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(100)
    with pytest.raises(LockedError, match=str(os.getpid())), Tree(tmp_path):
        pass
    code = f"from perfkit.transactions.tree import Tree\nTree({str(tmp_path)!r}).__enter__()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LockedError" in ended.stderr
    threading.Timer(0.1, leave.set).start()
    with Tree(tmp_path, wait_s=100):
        pass
    holder.join()


def test_lock_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock does nothing, a living owner is seen, and one that was robbed does not commit."""
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    with Tree(tmp_path) as tree:
        with pytest.raises(LockedError), Tree(tmp_path):
            pass
        with pytest.raises(LockedError, match="took over the tree"), tree.transaction() as ours:  # noqa: PT012
            ours.write("a", b"ours")
            (tmp_path / ".perfkit/owner").unlink()  # as if it lived on another machine
            with Tree(tmp_path) as other, other.transaction() as theirs:
                theirs.write("a", b"theirs")
                with pytest.raises(LockedError):
                    ours.write("b", b"ours")
    assert tree_of(tmp_path) == {"a": b"theirs"}
    assert not litter(tmp_path)


def test_a_journal_of_another_process(tmp_path: Path) -> None:
    """It appears at the moment of the commit: nothing is changed, and the journal is left to its owner."""
    journal = tmp_path / ".perfkit/journal"
    with Tree(tmp_path) as tree:
        with pytest.raises(LockedError, match="is committing a change"), tree.transaction() as tx:  # noqa: PT012
            tx.write("a", b"ours")
            assert stat.S_IMODE(next(tmp_path.glob(".perfkit/stage-*")).stat().st_mode) == 0o700
            journal.write_bytes(b"theirs")
        assert journal.read_bytes() == b"theirs"
        journal.unlink()
    assert tree_of(tmp_path) == {}
    assert not litter(tmp_path)


def test_back_and_forth(tmp_path: Path) -> None:
    """Any kept generation can be reached; a new change after going back ends what was undone."""
    states = [{}, {"a": b"1"}, {"a": b"2", "b": b"2"}, {"b": b"3", "c/d": b"2"}]
    put(tmp_path, {"a": b"1"})
    put(tmp_path, {"a": b"2", "b": b"2"})
    with Tree(tmp_path) as tree:
        with tree.transaction({"version": "three"}) as tx:
            tx.move("a", "c/d")
            tx.write("b", b"3")
        for to in (0, 3, 1, 2, 3, 0, 1):
            result = tree.rollback(to)
            assert result.generation == tree.generation == to
            assert tree_of(tmp_path) == states[to]
        assert [(g.number, g.current) for g in tree.history()] == [(0, False), (1, True), (2, False), (3, False)]
        assert tree.history()[3].label == {"version": "three"}
        assert (tree.history()[3].added, tree.history()[3].changed, tree.history()[3].removed) == (1, 1, 1)
        with tree.transaction() as tx:
            tx.write("e", b"4")
        assert [g.number for g in tree.history()] == [0, 1, 4]
        with pytest.raises(RollbackError, match="not kept"):
            tree.rollback(3)
        tree.rollback(0)
        with pytest.raises(RollbackError, match="as it was before the first change"):
            tree.rollback()
    assert not litter(tmp_path)


def test_private_files_go_along(tmp_path: Path) -> None:
    """perfkit's own manifest is committed and rolled back with the files."""
    for version in (b"1", b"2"):
        with Tree(tmp_path) as tree, tree.transaction() as tx:
            tx.write("a", version)
            tx.write_private(MANIFEST, version)
            for name in ("state", "objects/x", "stage-1/x", "journal", "../x"):
                with pytest.raises((UpdateError, UnsafePathError)):
                    tx.write_private(f".perfkit/{name}", b"")
    with Tree(tmp_path) as tree:
        tree.rollback()
    assert (tmp_path / ".perfkit/manifest").read_bytes() == b"1"


@pytest.mark.parametrize("edits", ["refuse", "keep", "overwrite"])
def test_local_edits_and_rollback(tmp_path: Path, edits: str) -> None:
    """A file that was edited since is not lost by a rollback, unless asked for."""
    put(tmp_path, {"a": b"1", "b": b"1"})
    put(tmp_path, {"a": b"2", "b": b"2"})
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_bytes(b"edited")
    with Tree(tmp_path) as tree:
        if edits == "refuse":
            with pytest.raises(RollbackError, match="a: changed since"):
                tree.rollback(1)
            assert tree_of(tmp_path) == {"a": b"edited", "b": b"2"}
        else:
            tree.rollback(1, edits=edits)  # type: ignore[arg-type]
            kept = {"a.perfkit-local": b"edited"} if edits == "keep" else {}
            assert tree_of(tmp_path) == {"a": b"1", "b": b"1", **kept}
    assert not litter(tmp_path)


def test_damaged_object_is_found(tmp_path: Path) -> None:
    """A kept content that somebody wrote into is not put into the tree."""
    (tmp_path / "a").write_bytes(b"old")
    writer = os.open(tmp_path / "a", os.O_WRONLY)
    put(tmp_path, {"a": b"new"})
    os.pwrite(writer, b"bad", 0)
    os.close(writer)
    with Tree(tmp_path) as tree, pytest.raises(RollbackError, match=r"^a: .*modified through a hard link"):
        tree.rollback()
    assert tree_of(tmp_path) == {"a": b"new"}
    assert not litter(tmp_path)


def test_restored_files_are_not_one(tmp_path: Path) -> None:
    """Two files of equal content that come back are two files: writing to one leaves the other."""
    put(tmp_path, {"a": b"same", "b": b"same", "c": b""})
    put(tmp_path, {"a": None, "b": None, "c": None})
    with Tree(tmp_path) as tree:
        tree.rollback()
    (tmp_path / "a").write_bytes(b"edit")
    assert tree_of(tmp_path) == {"a": b"edit", "b": b"same", "c": b""}


def test_retention_frees_space(tmp_path: Path) -> None:
    """Only so many generations are kept, and only the contents they need."""
    for number in range(8):
        with Tree(tmp_path, keep_generations=3) as tree, tree.transaction() as tx:
            tx.write("a", b"%d" % number)
    with Tree(tmp_path) as tree:
        assert [g.number for g in tree.history()] == [5, 6, 7, 8]
        assert len(list((tmp_path / ".perfkit/objects").iterdir())) == 3
        assert sum(g.bytes_kept for g in tree.history()) == 3
        tree.prune(1)
        assert [g.number for g in tree.history()] == [7, 8]
        tree.rollback()
        tree.prune(0)
        assert [g.number for g in tree.history()] == [7, 8]
        tree.rollback(8)
        tree.prune(0)
        assert not list((tmp_path / ".perfkit/objects").iterdir())
    assert tree_of(tmp_path) == {"a": b"7"}


def test_a_setting_says_how_many_generations_are_kept(tmp_path: Path) -> None:
    """Also of changes by `Toolkit.transaction`."""
    with Toolkit(Config(keep_generations=1)) as kit:
        for number in range(4):
            with kit.transaction(tmp_path) as tx:
                tx.write("a", b"%d" % number)
        assert [each.number for each in kit.history(tmp_path)] == [3, 4]


def refuse_link(*args: object, **options: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def link_with_another_number(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, **_: object) -> None:
    """Each name has an inode number of its own, as with sshfs, whether or not it is of the same file."""
    with open(os.open(source, os.O_RDONLY, dir_fd=src_dir_fd), "rb") as file:
        status = os.fstat(file.fileno())
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, status.st_mode, dir_fd=dst_dir_fd)
        with open(fd, "wb") as other:
            other.write(file.read())
            other.flush()
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("link", [refuse_link, link_with_another_number])
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[..., None]) -> None:
    """A file system without hard links, or where nothing tells which files are linked, costs copies and loses nothing;
    a change that is refused in the middle is undone.
    """
    monkeypatch.setattr(os, "link", link)
    tree_path = tmp_path / "tree"
    put(tree_path, {"a": b"1", "b": b"2"})
    with Tree(tree_path) as tree:
        with tree.transaction() as tx:
            tx.move("a", "c")
            tx.write("b", b"3")
        assert tree_of(tree_path) == {"c": b"1", "b": b"3"}
        tree.rollback()
    assert tree_of(tree_path) == {"a": b"1", "b": b"2"}
    crash_server.begin(str(tmp_path / "refused"))
    old = tree_of(tmp_path / "refused")
    with pytest.raises(UpdateError, match=crash_server.REFUSED):
        crash_server.refused(str(tmp_path / "refused"))
    assert tree_of(tmp_path / "refused") == old


def test_damaged_journal_is_told(tmp_path: Path) -> None:
    """A journal that can't be read is neither obeyed nor thrown away."""
    put(tmp_path, {"a": b"1"})
    (tmp_path / ".perfkit/journal").write_bytes(b'["perfkit-journal",1,0]\ngarbage\n')
    with pytest.raises(RecoveryError, match="journal"), Tree(tmp_path):
        pass
    assert (tmp_path / ".perfkit/journal").exists()
    assert tree_of(tmp_path) == {"a": b"1"}


@pytest.mark.once
@pytest.mark.timeout(60)
def test_full_file_system(tmp_path: Path) -> None:
    """On an ext4 of 4 MB that fills up, at every fill level, a change is whole or not there at all."""
    with mounted_image("ext4", tmp_path, "-O", "^has_journal", "-m", "0", "-b", "1024", size=4 << 20) as mounted:
        _fill_up(mounted / "tree")
        assert not [link for fd in os.listdir("/proc/self/fd") if (link := _target(fd)).startswith(str(mounted))]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _fill_up(root: Path) -> None:
    names = [f"{number:03d}" + "n" * 200 for number in range(20)]  # long names: directories need blocks of their own
    put(root, dict.fromkeys(names[:5], b"old" * 400))
    old = tree_of(root)
    outcomes = set()
    for free_kib in range(100, 0, -3):
        stuffing = root.parent / "stuffing"
        stuffing.unlink(missing_ok=True)
        space = os.statvfs(root)
        with stuffing.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - free_kib * 1024))
        try:
            put(root, dict.fromkeys(names[:4], b"new" * 400) | {f"dir/{n}": b"1" * 900 for n in names[5:]})
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            outcomes.add("full")
            assert tree_of(root) == old
            assert not litter(root)
            assert not (root / "dir").exists()
        else:
            outcomes.add("done")
            assert len(tree_of(root)) == 20
            stuffing.unlink()
            with Tree(root) as tree:
                tree.rollback()
            assert tree_of(root) == old
    assert outcomes == {"full", "done"}


def test_every_directory_of_a_source_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no syncfs, also those of files beyond the first few: the journal will look for them there."""
    monkeypatch.setattr(commit, "syncfs", lambda fd: False)
    synced: set[str] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with Tree(tmp_path) as tree:
        content = Content(hashlib.sha256(b"fetched").hexdigest(), 7, 0o644)
        fetched = Path(tree.fetch_directory) / f"content-{content.sha256}"
        fetched.write_bytes(b"fetched")
        with tree.transaction() as tx:
            for number in range(12):
                tx.write(f"a{number:02}", b"written")
            tx.expect("z", content)
    assert os.fspath(fetched.parent) in synced
    assert {os.fspath(tmp_path), os.fspath(tmp_path / ".perfkit")} <= synced


def test_an_interrupt_as_a_block_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file goes with the transaction, and the block, which nothing leaves, says nothing when it is collected."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    enter, left = contextlib._GeneratorContextManager.__enter__, 0

    def interrupted(block: Any) -> Any:
        """The last moment at which a signal can come before `__exit__` is sure to be called."""
        nonlocal left
        entered = enter(block)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return entered

    for number in itertools.count(1):
        left, root = number, tmp_path / f"tree{number}"
        try:
            with monkeypatch.context() as patched, Tree(root) as tree:
                patched.setattr(contextlib._GeneratorContextManager, "__enter__", interrupted)
                with tree.transaction() as tx:
                    tx.write("a", b"a")
        except KeyboardInterrupt:
            assert tree_of(root) in ({}, {"a": b"a"}), number
        if left > 0:
            break
    assert (tree_of(root), unraisable) == ({"a": b"a"}, [])
    assert number > 3
