"""Sites with a history: releases published one after the other, each of which can be offered again."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from corpora import run
from measure import note

_POINTER = "perfkit.json"
_MIB = 1 << 20
_PER_DIRECTORY = 35  # entries


class Site:
    """Releases of one tree; objects of earlier ones stay, so restoring a pointer restores the site.

    What stands in `root` from an earlier run is used again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "site"

    def grow(self, version: str, make: Callable[[Path], object]) -> None:
        """Publish the directory that `make` fills as the next release."""
        pointer = self.root / "pointers" / version
        if pointer.exists():
            return
        shutil.rmtree(self.tree(version), ignore_errors=True)
        self.tree(version).mkdir(parents=True)
        make(self.tree(version))
        note(f"publishing {self.root.name} {version}")
        run(
            [
                sys.executable,
                "-m",
                "perfkit",
                "publish",
                str(self.tree(version)),
                str(self.path),
                "--version",
                version,
                "--quiet",
            ]
        )
        pointer.parent.mkdir(exist_ok=True)
        shutil.copy2(self.path / _POINTER, pointer)

    def tree(self, version: str) -> Path:
        """The source tree of the release."""
        return self.root / "trees" / version

    def offer(self, version: str) -> None:
        """Restore the site with this release, including the time of its pointer, from which nginx derives the ETag."""
        fresh = self.path / f"{_POINTER}~"
        shutil.copy2(self.root / "pointers" / version, fresh)
        os.replace(fresh, self.path / _POINTER)


def small_files(root: Path, count: int, *, least: int, most: int) -> None:
    """Files of random bytes, which can't be compressed."""
    sizes = random.Random(2)
    for number in range(count):
        (root / f"{number:04}.bin").write_bytes(os.urandom(sizes.randint(least, most)))


def entries(root: Path, count: int) -> None:
    """Files of some hundred bytes of text each."""
    for number in range(count):
        path = root / f"part-{number // _PER_DIRECTORY // 10}/d{number // _PER_DIRECTORY}/file-{number}.txt"
        if number % _PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        path.write_text(f"the text of file {number}, and of no other\n" * (5 + number % 7))


def edited(root: Path, old: Path, names: Sequence[str], change: str) -> None:
    """A copy of `old` with a line inserted in the middle of each of these files."""
    shutil.copytree(old, root, dirs_exist_ok=True)
    for name in names:
        data = (root / name).read_bytes()
        middle = data.find(b"\n", len(data) // 2) + 1
        (root / name).write_bytes(data[:middle] + f"{change} of {name}\n".encode() + data[middle:])


def spread(root: Path, count: int) -> list[str]:
    """The names of some files, spread evenly over a tree."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return [names[index * len(names) // count] for index in range(count)]


def large_file(path: Path, size: int, *, edits: int) -> None:
    """A file in which no 16 KiB repeat but parts of them do, so that publishing takes only minutes."""
    chance = random.Random(3)
    bases = [chance.randbytes(_MIB) for _ in range(4)]
    changed = {size // _MIB * edit // edits for edit in range(edits)} if edits else set()
    with path.open("wb") as file:
        for number in range(size // _MIB):
            block = bytearray(bases[number % len(bases)])
            for start in range(0, _MIB, 16 << 10):
                block[start : start + 16] = chance.randbytes(16)
            if number in changed:
                block[5000:9000] = random.Random(number).randbytes(4000)
            file.write(block)
