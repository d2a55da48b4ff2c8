"""Names that other file systems take for `.perfkit` or for one another, and paths of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from perfkit import ConfigError, ManifestError, Toolkit, UnsafePathError
from perfkit.filesystem.paths import check_name, check_names, fold_name, local_path
from perfkit.releases.format.manifest import Manifest
from tests.support.hostile import raw_manifest

PRIVATE = [
    ".perfkit",
    ".PERFKIT",
    ".perf\u200ckit",
    "\ufeff.perfkit",
    ".perfkit\u2060",
    ".per\u00adfkit",
    ".perfkit\U000e0001",
    ".perf\u212ait",
    "PERFKI~1",
    "perfki~9",
    "Perfki~10",
    "PE1a2B~1",
    ".perfkit.",
    ".perfkit ",
    ".perfkit::$DATA",
]
LIKE = [
    "perfkit",
    ".perfkit2",
    "a/.perfkit",
    "perfki~",
    "perfki~x",
    "pearls~1",
    "x/PERFKI~1",
    "peeeeee~1",
    "❤️",
    "日本語",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_names_that_are_perfkits_own_somewhere(name: str) -> None:
    """HFS+ and ext4 ignore characters, NTFS and FAT have short names and drop dots and blanks at the end."""
    for each in (name, f"{name}/journal"):
        with pytest.raises(UnsafePathError):
            check_name(each)
        with pytest.raises((UnsafePathError, ManifestError)):
            Manifest.parse(raw_manifest([each.encode()]))


@pytest.mark.parametrize("name", LIKE)
def test_names_that_only_look_like_it(name: str) -> None:
    assert check_name(name) == name
    assert Manifest.parse(raw_manifest([name.encode()])).name(0) == name


def test_names_that_differ_in_ignorable_characters() -> None:
    """They are one file on HFS+, and on ext4 with casefold."""
    assert fold_name("A\u200db") == "ab"
    with pytest.raises(UnsafePathError, match="collides"):
        check_names(["ab", "a\u200db"])


@pytest.mark.parametrize(
    "path", [b"bytes", "", "a\0b", "\ud800", None, 3, Path("a\0b"), "http://localhost:1/", "HTTP://localhost:1/"]
)
def test_paths_that_are_none(path: Any, tmp_path: Path) -> None:
    """A typed error from every command, before anything is done."""
    with pytest.raises(ConfigError):
        local_path(path)
    with Toolkit() as kit:
        for command in (
            lambda: kit.sync("http://localhost:1/", path),
            lambda: kit.rollback(path),
            lambda: kit.history(path),
            lambda: kit.verify(path),
            lambda: kit.publish(path, tmp_path, version="1"),
            lambda: kit.publish(tmp_path, path, version="1"),
            lambda: kit.transaction(path).__enter__(),
        ):
            with pytest.raises(ConfigError):
                command()
    assert local_path(tmp_path) == os.fspath(tmp_path)
