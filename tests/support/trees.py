"""Trees of files as dictionaries: written, read back, made, and edited from one release to the next."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import shutil
from pathlib import Path

Tree = dict[str, bytes]


def write_tree(root: Path, tree: Tree) -> Path:
    """Make `root` hold exactly these files."""
    root.mkdir(parents=True, exist_ok=True)
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tree_of(root: Path) -> Tree:
    """Every file but perfkit's own."""
    files = (path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != ".perfkit")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def litter(root: Path) -> set[str]:
    """What perfkit keeps in a tree beyond what it always keeps there."""
    own = {path.name for path in root.glob(".perfkit/*")}
    return own - {"lock", "state", "history", "objects", "manifest", "fetch"}


@functools.lru_cache(64)
def lines(seed: int, count: int) -> bytes:
    """Text of some variety."""
    chance = random.Random(seed)
    rows = ((chance.randrange(999), chance.randrange(10**6)) for _ in range(count))
    return b"".join(b"    value_%d = compute(%d)\n" % row for row in rows)


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


FIRST: Tree = {
    "README": b"hello\n",
    "empty": b"",
    "pkg/a.py": lines(1, 400),
    "pkg/b.py": lines(2, 300),
    "pkg/same.py": lines(2, 300),
    "data/large.bin": noise(3, 150_000),
    "data/large.txt": lines(4, 4_000),
    "ünï/näme.txt": b"not ascii\n",
}


def edited(tree: Tree, step: int) -> Tree:
    """The next release: an edit in the middle, one of a large file, a move, a moved and edited file, a new one."""
    new = dict(tree)
    text = new["pkg/a.py"]
    new["pkg/a.py"] = text[:2000] + b"# edit %d\n" % step + text[2000:]
    large = new["data/large.txt"]
    new["data/large.txt"] = large[: 15_000 * step] + b"# here\n" + large[15_000 * step :]
    new[f"moved{step}/b.py"] = tree["pkg/b.py"]
    new[f"moved{step}/c.py"] = tree["pkg/b.py"] + b"# more\n"
    new[f"new{step}.bin"] = noise(100 + step, 3000)
    return new


@functools.lru_cache(64)
def text(seed: int, rows: int = 120) -> bytes:
    """Lines that compress as source code does, other ones for each seed."""
    return b"".join(b"value_%d = compute(%d)\n" % (seed * 1000 + row, seed * row * 7919) for row in range(rows))


ONE: Tree = {
    "README": b"hello\n",
    "empty": b"",
    "pkg/a.py": text(1),
    "pkg/b.py": text(2),
    "pkg/same.py": text(3),
    "pkg/going.py": text(4),
    "data/noise": b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(600)),
}
TWO: Tree = {
    "README": b"hello again\n",
    "empty": b"",
    "pkg/a.py": text(1)[:900] + b"# edited\n" + text(1)[900:],
    "moved/b.py": text(2),
    "pkg/same.py": text(3),
    "pkg/new.py": text(5),
    "data/noise": ONE["data/noise"],
}


def edit(path: Path, data: bytes) -> None:
    """As editors do it: a new file in the place of the old one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def damage(path: Path, data: bytes = b"?") -> None:
    """As a failing disk does it: other bytes in the same file, of the same size, at the same times."""
    found = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_of(tree: Path, dest: Path) -> Path:
    """A copy of a managed tree, as it is, its history included."""
    shutil.copytree(tree, dest)
    return dest
