"""Files of a tree, and what is there afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from perfkit.filesystem.scan import ScanOptions, scan


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def shape(root: Path) -> dict[str, object]:
    """Names with kind, mode, mtime, and content or target."""
    found: dict[str, object] = {}
    for entry in scan(root, ScanOptions(directories=True)):
        path = root / entry.name
        what = {"file": lambda p=path: p.read_bytes(), "symlink": lambda p=path: os.readlink(p)}.get(entry.kind)
        mode = entry.mode if entry.kind != "symlink" else 0
        found[entry.name] = (entry.kind, mode, entry.mtime_ns, what() if what else None)
    return found


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """A block in which this process can open so many files more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    limit = 0
    while limit - sum(number < limit for number in taken) < count:
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
