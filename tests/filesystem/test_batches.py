"""Copies, links, moves, removals and writes of many files."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import BatchError, ConfigError
from perfkit.filesystem.batch.copying import copy_tree
from perfkit.filesystem.batch.moving import move_many
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.scan import scan
from tests.support.files import make, shape
from tests.support.tools import mounted_image, need

MIB = 1 << 20


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    """Contents, modes, mtimes and links of files and directories are those of the source."""
    done = copy_tree(tree, tmp_path / "dest")
    assert shape(tmp_path / "dest") == shape(tree)
    assert (done.files, done.directories) == (6, 4)
    assert sorted(os.listdir(tmp_path)) == ["dest", "src"]


def test_setuid_is_not_copied(tree: Path, tmp_path: Path) -> None:
    """Since the owner isn't kept, neither is the right to act as the owner."""
    os.chmod(tree / "a", 0o4755)
    copy_tree(tree, tmp_path / "dest")
    assert (tmp_path / "dest/a").stat().st_mode & 0o7777 == 0o755


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A sparse file takes no more room as a copy, and has the same contents."""
    (tmp_path / "src").mkdir()
    with (tmp_path / "src/f").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"middle")
        file.truncate(20 * MIB)
    copy_tree(tmp_path / "src", tmp_path / "dest")
    assert (tmp_path / "dest/f").read_bytes() == (tmp_path / "src/f").read_bytes()
    assert (tmp_path / "dest/f").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_without_range_copy_it_is_read_and_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where the kernel can't copy between two files, we do."""

    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    copy_tree(tree, tmp_path / "dest")
    assert shape(tmp_path / "dest") == shape(tree)


def test_links_share_and_what_cannot_be_linked_is_copied(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are hard links; empty ones are not; after EMLINK it is a copy."""
    done = copy_tree(tree, tmp_path / "dest", link=True)
    assert shape(tmp_path / "dest") == shape(tree)
    assert done.linked == 4
    assert os.path.samefile(tree / "a", tmp_path / "dest/a")
    assert not os.path.samefile(tree / "d/e/empty", tmp_path / "dest/d/e/empty")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    assert copy_tree(tree, tmp_path / "copies", link=True).linked == 0
    assert shape(tmp_path / "copies") == shape(tree)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_reflinks_on_file_systems_that_have_them(tmp_path: Path, kind: str) -> None:
    """On xfs and btrfs a copy shares its blocks with the source."""
    need("filefrag")
    with mounted_image(kind, tmp_path, size=320 * MIB) as point:
        make(point / "src", {"a": os.urandom(MIB), "b": b"small" * 2000})
        done = copy_tree(point / "src", point / "dest")
        assert done.reflinked == 2
        assert shape(point / "dest") == shape(point / "src")
        os.sync()
        said = subprocess.run(["filefrag", "-v", point / "dest/a"], capture_output=True, text=True, check=True).stdout
        assert "shared" in said
        results = move_many([(point / "src", tmp_path / "moved"), (point / "dest/a", tmp_path / "one")])
        assert [each.error for each in results] == [None, None]
        assert sorted(os.listdir(tmp_path / "moved")) == ["a", "b"]
        assert (tmp_path / "one").read_bytes() == (tmp_path / "moved/a").read_bytes()
        assert os.listdir(point / "dest") == ["b"]
        assert not (point / "src").exists()


def test_the_destination_is_respected(tree: Path, tmp_path: Path) -> None:
    """Existing contents are an error without merge, and replaced or kept with it. A copy into itself is an error."""
    dest = make(tmp_path / "dest", {"a": b"old", "mine": b"stays"})
    with pytest.raises(FileExistsError):
        copy_tree(tree, dest)
    assert (dest / "a").read_bytes() == b"old"
    copy_tree(tree, dest, merge=True)
    assert (dest / "a").read_bytes() == b"1" * 5000
    assert (dest / "mine").read_bytes() == b"stays"
    copy_tree(tree, dest, merge=True, link=True)
    copy_tree(tree, dest, merge=True, link=True)  # a rename between two names of one file does nothing, and leaves both
    assert not [entry.name for entry in scan(dest) if ".perfkit" in entry.name]
    (tmp_path / "empty").mkdir()
    copy_tree(tree, tmp_path / "empty")
    with pytest.raises(ConfigError):
        copy_tree(tree, tree / "inside")


def test_merge_does_not_leave_through_a_link(tree: Path, tmp_path: Path) -> None:
    """A link where a directory should be is a failure; nothing is written behind it."""
    dest, outside = tmp_path / "dest", tmp_path / "outside"
    dest.mkdir()
    outside.mkdir()
    os.symlink(outside, dest / "d")
    with pytest.raises(BatchError) as raised:
        copy_tree(tree, dest, merge=True, on_error="continue")
    assert {each.name for each in raised.value.results} >= {"d", "d/b"}
    assert os.listdir(outside) == []
    assert (dest / "a").exists()


def test_a_failure_stops_or_not_as_asked(tree: Path, tmp_path: Path) -> None:
    """Stop leaves no destination; continue gives all the rest, and each failed path with its error."""
    os.mkfifo(tree / "pipe")
    with pytest.raises(BatchError):
        copy_tree(tree, tmp_path / "dest")
    assert sorted(os.listdir(tmp_path)) == ["src"]
    with pytest.raises(BatchError, match="pipe") as raised:
        copy_tree(tree, tmp_path / "dest", on_error="continue")
    assert [each.name for each in raised.value.results] == ["pipe"]
    expected = shape(tree)
    del expected["pipe"]
    assert shape(tmp_path / "dest") == expected


def test_a_link_in_place_of_a_directory_fails_alone(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put there during a copy: it is not followed, and the other files are copied."""
    outside = make(tmp_path / "outside", {"precious": b"!"})
    usual = os.open

    def swapping(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == "d" and not (tree / "d").is_symlink():
            os.rename(tree / "d", tmp_path / "aside")
            os.symlink(outside, tree / "d")
        return usual(path, flags, *arguments, **options)

    make(tree, {"beside": b"it"})
    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(BatchError) as caught:
        copy_tree(tree, tmp_path / "copy", on_error="continue")
    assert [result.name for result in caught.value.results] == ["d"]
    assert (tmp_path / "copy/beside").read_bytes() == b"it"
    assert os.listdir(tmp_path / "copy/d") == []


def test_progress_counts_every_file(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last snapshot has all files and bytes; how many there are is known from the first on."""
    from perfkit import CallbackProgress
    from perfkit.progress import stage

    monkeypatch.setattr(stage, "SHOWN_FROM_S", 0.0)
    monkeypatch.setattr(stage, "_EVERY_S", 0.0)
    seen: list[Any] = []
    copy_tree(tree, tmp_path / "dest", progress=CallbackProgress(seen.append))
    assert (seen[-1].phase, seen[-1].files_done, seen[-1].files_total, seen[-1].eta_s) == ("copying", 6, 6, 0.0)
    assert seen[-1].received_bytes == seen[-1].total_bytes == seen[0].total_bytes
    assert (seen[-1].share, max(each.share or 0.0 for each in seen[:-1]) < 1.0) == (1.0, True)
    seen.clear()
    remove_tree(tmp_path / "dest", progress=CallbackProgress(seen.append))
    assert {(each.phase, each.files_total) for each in seen} == {("removing", seen[-1].files_done)}


def test_moves_build_on_each_other(tmp_path: Path) -> None:
    """Moves happen in order; one that would overwrite is a failure, and the rest goes on if asked to."""
    make(tmp_path, {"a": b"a", "c": b"c", "e": b"e"})
    at = tmp_path.joinpath
    with pytest.raises(BatchError) as raised:
        move_many([(at("a"), at("b")), (at("b"), at("d")), (at("c"), at("e")), (at("e"), at("f"))], on_error="continue")
    assert [type(each.error) for each in raised.value.results] == [type(None), type(None), FileExistsError, type(None)]
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"d": b"a", "c": b"c", "f": b"e"}
    move_many([(at("c"), at("f"))], replace=True)
    assert at("f").read_bytes() == b"c"


def test_a_link_with_a_slash_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another file system, it would be copied as the directory that it leads to."""

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    make(tmp_path / "outside", {"precious": b"!"})
    os.symlink("outside", tmp_path / "link")
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(BatchError, match="Not a directory"):
        move_many([(f"{tmp_path}/link/", f"{tmp_path}/target")])
    assert sorted(os.listdir(tmp_path)) == ["link", "outside"]
    assert (tmp_path / "outside/precious").exists()


def test_all_pairs_are_read_before_the_first_move(tmp_path: Path) -> None:
    """A scan that the pairs come from does not meet a file again under its new name, as ext4 may list it."""
    make(tmp_path, {"a": b"a", "b": b"b"})
    listed = []

    def pairs() -> Iterator[tuple[Path, Path]]:
        for name in "ab":
            yield tmp_path / name, tmp_path / f"{name}.bak"
            listed.append(sorted(os.listdir(tmp_path)))

    move_many(pairs())
    assert listed == [["a", "b"]] * 2
    assert sorted(os.listdir(tmp_path)) == ["a.bak", "b.bak"]


def test_removal_follows_no_link(tree: Path, tmp_path: Path) -> None:
    """Links go, what they lead to stays; a link or a file in the path's place is refused."""
    outside = make(tmp_path / "outside", {"precious": b"!"})
    os.symlink(outside, tree / "d/out")
    os.chmod(tree / "ro", 0o700)
    assert remove_tree(tree) == 12
    assert not tree.exists()
    assert (outside / "precious").exists()
    os.symlink(outside, tmp_path / "link")
    for name in ("link", "link/", "link//", "outside/precious"):
        with pytest.raises(NotADirectoryError):
            remove_tree(f"{tmp_path}/{name}")
    for name in ("link/.", "outside/.", "outside/./", "outside/..", "link/.."):
        with pytest.raises(OSError, match="Invalid argument"):
            remove_tree(f"{tmp_path}/{name}")
    assert (outside / "precious").exists()


def test_removal_names_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    make(tmp_path / "tree", {"d/e/f": b"1"})
    for name, call in (("d/e/f", "unlink"), ("d/e", "rmdir")):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refused)
            with pytest.raises(BatchError) as caught:
                remove_tree(tmp_path / "tree")
        (result,) = caught.value.results
        assert (result.name, result.error.filename) == (name, str(tmp_path / "tree" / name))


def test_removal_opens_its_directory_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that takes the directory's place after it was opened does not lead the removal elsewhere."""
    outside = make(tmp_path / "outside", {"precious": b"!"})
    usual = os.open

    def swapping(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        descriptor = usual(path, flags, *arguments, **options)
        if Path(path) == tree and not tree.is_symlink():
            os.rename(tree, tmp_path / "aside")
            os.symlink(outside, tree)
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(NotADirectoryError):  # rmdir(2) refuses the link
        remove_tree(tree)
    assert (outside / "precious").exists()
    assert tree.is_symlink()
