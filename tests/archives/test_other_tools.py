"""Archives as other systems and tools write them."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from perfkit import Toolkit, UnsafePathError
from perfkit.server.server import Server
from tests.support.archive_tools import FILES, make_zip
from tests.support.archive_tools import unpack_zip as unpack
from tests.support.tools import need
from tests.support.trees import tree_of, write_tree

pytestmark = pytest.mark.once

NAMES = {"pkg/naïve 中文.txt": b"1\n", "pkg/sub/plain.txt": b"2" * 5000}
C_LOCALE = {**os.environ, "LC_ALL": "C"}  # in which tools store the bytes of names, and do not say what they are


def run(tmp_path: Path, *command: str, **options: object) -> None:
    need(command[0])
    subprocess.run(command, cwd=tmp_path / "src", check=True, capture_output=True, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "command",
    [
        ("zip", "-q", "-r"),
        ("7z", "a", "-tzip", "-bso0"),
        ("7z", "a", "-tzip", "-bso0", "-mm=Copy"),
        ("bsdtar", "--format", "zip", "-cf"),
    ],
)
def test_names_in_utf_8_without_the_flag(tmp_path: Path, command: tuple[str, ...]) -> None:
    """As the Archive Utility of macOS writes them; these tools do so where the locale is C."""
    write_tree(tmp_path / "src", NAMES)
    run(tmp_path, *command, "../x.zip", "pkg", env=C_LOCALE)
    data = (tmp_path / "x.zip").read_bytes()
    if command[0] != "7z":
        flagged = [info.flag_bits & 1 << 11 for info in zipfile.ZipFile(io.BytesIO(data)).infolist()]
        assert not any(flagged)
    assert unpack(data) == NAMES


@pytest.mark.parametrize("options", [("--options", "zip:zip64"), ()])
def test_zips_written_to_a_pipe(tmp_path: Path, options: tuple[str, ...]) -> None:
    """They have Zip64 records where plain ones would do, or end in zeros, which fill the last block of the pipe."""
    write_tree(tmp_path / "src", FILES)
    need("bsdtar")
    command = ["bsdtar", "-C", tmp_path / "src", "--format", "zip", *options, "-cf", "-", "."]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert data.endswith(b"\0" * 100)
    assert unpack(data) == FILES


def windows_zip(*names: str, system: int = 0) -> bytes:
    """As .NET wrote archives before version 4.6.1: names with backslashes. (No tool on Linux writes these.)"""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.create_system = system
            archive.writestr(info, b"" if name.endswith("\\") else name.encode())
    return out.getvalue()


@pytest.mark.parametrize("system", [0, 10, 14])
def test_backslashes_of_windows(system: int) -> None:
    """They separate directories, and may end the name of one."""
    data = windows_zip("dir\\", "dir\\sub\\a.txt", "dir\\b.txt", "c.txt", system=system)
    assert set(unpack(data)) == {"dir/sub/a.txt", "dir/b.txt", "c.txt"}


@pytest.mark.parametrize("name", ["..\\up", "dir\\..\\..\\up", "\\root", "C:\\x", "a/b\\c"])
def test_backslashes_lead_nowhere_else(name: str) -> None:
    """What they make of a name is checked like any other name; beside slashes they are refused."""
    with pytest.raises(UnsafePathError):
        unpack(windows_zip(name))


def test_backslashes_of_unix_are_characters() -> None:
    with pytest.raises(UnsafePathError):
        unpack(windows_zip("a\\b", system=3))


@pytest.mark.parametrize("stub", [b"MZ" + bytes(70_000), b"#!/bin/sh\nexec unzip $0\n"])
@pytest.mark.parametrize("adjusted", [False, True])
def test_a_stub_in_front(kit: Toolkit, tmp_path: Path, site: Path, stub: bytes, adjusted: bool) -> None:
    """A self-extracting archive, its offsets counted from the archive or, after `zip -A`, from the file; detected."""
    path = site / "setup.exe"
    path.write_bytes(stub + make_zip())
    if adjusted:
        (tmp_path / "src").mkdir()
        run(tmp_path, "zip", "-q", "-A", str(path))
        assert path.read_bytes() != stub + make_zip()
    assert unpack(path.read_bytes()) == FILES
    with Server(site) as server:
        kit.sync(server.url + "setup.exe", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == FILES
    assert (tmp_path / "tree/pkg/run.sh").stat().st_mode & stat.S_IXUSR
