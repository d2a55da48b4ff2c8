"""Archives with links, made by real tools: refused, skipped or followed, and never out of the archive."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import ConfigError, ManifestError, Toolkit, UnsafePathError
from perfkit.archives.links import follow_links
from perfkit.archives.members import Selection
from perfkit.cli import main
from perfkit.errors import PerfkitError
from perfkit.server.server import Server
from tests.support.archive_tools import add, raw_zip, unpack_zip
from tests.support.tools import need
from tests.support.trees import tree_of, write_tree

pytestmark = pytest.mark.once

FILES = {"pkg/v1/lib.so.1": b"one" * 3000, "pkg/v1/run.sh": b"#!/bin/sh\n", "pkg/README": b"read me"}
LINKS = {  # inside pkg
    "current": "v1",  # a directory
    "v1/lib.so": "lib.so.1",
    "v1/deep.so": "lib.so",  # a link to a link
    "notes/README": "../README",
    "newest": "./current/../current",  # through a link, and by more than one way
}
COPIES = {
    "pkg/v1/lib.so": "pkg/v1/lib.so.1",
    "pkg/v1/deep.so": "pkg/v1/lib.so.1",
    "pkg/notes/README": "pkg/README",
    **{
        f"pkg/{link}/{name}": f"pkg/v1/{original}"
        for link in ("current", "newest")
        for name, original in (
            ("lib.so.1", "lib.so.1"), ("lib.so", "lib.so.1"), ("deep.so", "lib.so.1"), ("run.sh", "run.sh"),
        )
    },
}  # fmt: skip
FOLLOWED = {**FILES, **{name: FILES[original] for name, original in COPIES.items()}}
TOOLS = {
    "tar": ("x.tar", ("tar", "-cf")),
    "tar, ustar": ("x.tar.gz", ("tar", "--format=ustar", "-czf")),
    "bsdtar": ("x.tar", ("bsdtar", "-cf")),
    "bsdtar, zip": ("x.zip", ("bsdtar", "--format", "zip", "-cf")),
    "zip": ("x.zip", ("zip", "-q", "-r", "-y")),
    "7z": ("x.zip", ("7z", "a", "-tzip", "-bso0", "-snl")),
}


def source(tmp_path: Path) -> Path:
    root = write_tree(tmp_path / "src", FILES)
    (root / "pkg/v1/run.sh").chmod(0o755)
    for name, target in LINKS.items():
        (root / "pkg" / name).parent.mkdir(exist_ok=True)
        (root / "pkg" / name).symlink_to(target)
    return root


def pack(tmp_path: Path, site: Path, tool: str) -> str:
    """The name of an archive of `source` that this tool made."""
    name, command = TOOLS[tool]
    need(command[0])
    root = source(tmp_path)
    subprocess.run([*command, site / name, "pkg"], cwd=root, check=True, capture_output=True)
    return name


@pytest.mark.parametrize("tool", TOOLS)
def test_links_are_followed(kit: Toolkit, tmp_path: Path, site: Path, tool: str) -> None:
    """What they lead to is there under both names; updates, rollback and repairs work as without links."""
    follow, tree = Selection(links="follow"), tmp_path / "tree"
    name = pack(tmp_path, site, tool)
    with Server(site) as server:
        kit.sync(server.url + name, tree, selection=follow)
        assert tree_of(tree) == FOLLOWED
        assert not any(path.is_symlink() for path in tree.rglob("*"))
        assert os.access(tree / "pkg/current/run.sh", os.X_OK)
        assert kit.sync(server.url + name, tree, selection=follow).route == "none"
        (tree / "pkg/v1/deep.so").unlink()
        (tree / "pkg/README").unlink()
        assert kit.verify(tree, repair=True).intact
        assert kit.sync(server.url + name, tree, selection=Selection(links="skip")).removed == len(COPIES)
        assert tree_of(tree) == FILES
        kit.rollback(tree)
        assert tree_of(tree) == FOLLOWED


@pytest.mark.parametrize("tool", TOOLS)
def test_links_are_refused_or_skipped(kit: Toolkit, tmp_path: Path, site: Path, tool: str) -> None:
    name = pack(tmp_path, site, tool)
    with Server(site) as server:
        with pytest.raises(ManifestError, match=r"symbolic link.*--links"):
            kit.sync(server.url + name, tmp_path / "tree")
        kit.sync(server.url + name, tmp_path / "tree", selection=Selection(links="skip", strip_components=1))
        options = ["--links", "follow", "--strip-components", "1"]
        assert main(["sync", server.url + name, str(tmp_path / "other"), *options]) == 0
    assert tree_of(tmp_path / "tree") == {name.removeprefix("pkg/"): data for name, data in FILES.items()}
    assert tree_of(tmp_path / "other") == {name.removeprefix("pkg/"): data for name, data in FOLLOWED.items()}


def test_an_unknown_choice() -> None:
    with pytest.raises(ConfigError, match="refuse, skip, follow"):
        Selection(links="keep")  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [("tar", "-cf"), ("tar", "--format=pax", "-cf"), ("bsdtar", "-cf"), ("python",)])
def test_hard_links_of_tars_are_files(kit: Toolkit, tmp_path: Path, site: Path, command: tuple[str, ...]) -> None:
    """Whatever is done with symbolic links: they are other names of a file, long ones included."""
    long = "d" * 90 + "/" + "e" * 90
    root = write_tree(tmp_path / "src", {"a": b"data" * 1000, f"{long}/a": b"long"})
    os.link(root / "a", root / "b")
    os.link(root / f"{long}/a", root / "c")
    if command == ("python",):
        with tarfile.open(site / "x.tar", "w") as archive:
            archive.add(root, ".")
    else:
        need(command[0])
        subprocess.run([*command, site / "x.tar", "."], cwd=root, check=True)
    with Server(site) as server:
        kit.sync(server.url + "x.tar", tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == tree_of(root)
        (tmp_path / "tree/b").write_bytes(b"damaged")
        (tmp_path / "tree/a").write_bytes(b"damaged")
        kit.verify(tmp_path / "tree", repair=True)
    assert (tmp_path / "tree/b").read_bytes() == (tmp_path / "tree/a").read_bytes() == b"data" * 1000


@pytest.mark.parametrize(
    "selection",
    [
        Selection(links="follow", exclude=("pkg/current/*", "pkg/newest")),
        Selection(links="follow", include=("pkg/v1", "pkg/current"), exclude=("*.sh",)),
        Selection(links="follow", include=("v1/lib.so.1", "v1/deep.so", "v1/lib.so"), strip_components=1),
    ],
)
def test_a_selection_with_links(tmp_path: Path, site: Path, selection: Selection) -> None:
    """It is about the names that links make, too."""
    data = (site / pack(tmp_path, site, "zip")).read_bytes()
    wanted = {selection.name(name): content for name, content in FOLLOWED.items()}
    wanted.pop(None, None)
    assert unpack_zip(data, selection) == wanted


def test_a_link_to_what_is_not_wanted(tmp_path: Path, site: Path) -> None:
    data = (site / pack(tmp_path, site, "zip")).read_bytes()
    with pytest.raises(ManifestError, match="not a selected file"):
        unpack_zip(data, Selection(links="follow", include=("pkg/current",)))


# -- hostile ones -----------------------------------------------------------------------------------------------------

Members = list[tuple[str, str | None]]  # name, and target of a link
HOSTILE: dict[str, tuple[Members, type[PerfkitError]]] = {
    "absolute": ([("x", "/etc/passwd")], UnsafePathError),
    "up": ([("x", "../../etc/passwd")], UnsafePathError),
    "up from below": ([("a/b/x", "../../../y"), ("y", None)], UnsafePathError),
    "up by a link": (
        [("a/b/in", "../c"), ("a/c/f", None), ("x", "a/b/in/../../../y"), ("y", None)],
        UnsafePathError,
    ),
    "to itself": ([("x", "x")], ManifestError),
    "two to each other": ([("x", "y"), ("y", "x")], ManifestError),
    "to its directory": ([("a/x", "."), ("a/y", None)], ManifestError),
    "to the root": ([("x", "./"), ("y", None)], ManifestError),
    "to nothing": ([("x", "none")], ManifestError),
    "empty": ([("x", ""), ("y", None)], ManifestError),
    "a directory, too": ([("x", "d"), ("d/f", None), ("x/passwd", None)], UnsafePathError),
    "a file, too": ([("x", "d"), ("d", None), ("x", None)], ManifestError),
    "twice": ([("x", "d"), ("x", "d"), ("d", None)], ManifestError),
    "names that collide": ([("X", "d"), ("x", None), ("d", None)], UnsafePathError),
    "a name for windows": ([("con", "d"), ("d", None)], UnsafePathError),
    "wide": (
        [*((f"{level}/{n}", f"../{level + 1}") for level in range(30) for n in range(4)), ("30/f", None)],
        ManifestError,
    ),
}


def tar_of(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, target in members:
            if target is None:
                add(archive, name, b"data")
            else:
                add(archive, name, type=tarfile.SYMTYPE, linkname=target)
    return out.getvalue()


def zip_of(members: Members) -> bytes:
    entries: list[dict[str, object]] = [
        {"name": name} if target is None else {"name": name, "data": target.encode(), "mode": 0o120777}
        for name, target in members
    ]
    return raw_zip(entries)


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("attack", HOSTILE)
def test_links_that_attack(
    kit: Toolkit, tmp_path: Path, site: Path, attack: str, make: Callable[[Members], bytes]
) -> None:
    """A typed error, and nothing anywhere."""
    members, error = HOSTILE[attack]
    (site / "x").write_bytes(make(members))
    with Server(site) as server, pytest.raises(error):
        kit.sync(server.url + "x", tmp_path / "tree", selection=Selection(links="follow"))
    assert tree_of(tmp_path / "tree") == {}


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "none", "h"])
def test_hard_links_that_attack(kit: Toolkit, tmp_path: Path, site: Path, target: str) -> None:
    with tarfile.open(site / "x.tar", "w") as archive:
        add(archive, "a", b"data")
        add(archive, "h", type=tarfile.LNKTYPE, linkname=target)
    with Server(site) as server, pytest.raises((ManifestError, UnsafePathError)):
        kit.sync(server.url + "x.tar", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {}


def test_a_target_without_end() -> None:
    entry: dict[str, object] = {"name": "x", "data": b"a/" * 3000, "mode": 0o120777}
    with pytest.raises(ManifestError, match="6000 bytes"):
        unpack_zip(raw_zip([entry]), Selection(links="follow"))


def test_copies_count_as_what_they_are() -> None:
    """A thousand links to one large file are a bomb, if what they make is more than an archive may."""
    data = bytes(1 << 20)
    entries: list[dict[str, object]] = [{"name": "f", "data": data, "method": 8}]
    entries += [{"name": f"x{n}", "data": b"f", "mode": 0o120777} for n in range(300)]
    with pytest.raises(ManifestError, match="bomb"):
        unpack_zip(raw_zip(entries), Selection(links="follow"))


@given(
    links=st.dictionaries(st.from_regex(r"[ab](/[ab]){0,2}", fullmatch=True),
                          st.from_regex(r"/?(\.\.|\.|[ab])(/(\.\.|\.|[ab])){0,3}", fullmatch=True), max_size=5),
    files=st.sets(st.from_regex(r"[ab](/[ab]){0,3}", fullmatch=True), max_size=5),
)  # fmt: skip
def test_any_links_lead_to_files_or_are_refused(links: dict[str, str], files: set[str]) -> None:
    """Every copy is below a link and of a file of the archive, whatever the links are."""
    try:
        copies: dict[str, Any] = follow_links(links, files, most=1000)
    except (ManifestError, UnsafePathError):
        return
    assert set(copies.values()) <= files
    assert all(any(f"{path}/".startswith(f"{link}/") for link in links) for path in copies)
