"""What a test needs of the machine it runs on: it skips where that is missing, and fails there in CI, which has it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # of processes that run code of these tests


def unavailable(reason: str) -> NoReturn:
    """Skip, with a reason; in CI, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def first_everywhere(*values: Any) -> list[Any]:
    """Parameters of a test that doesn't depend on the interpreter: all but the first are marked `once`."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.once) for value in values[1:])]


def need(*tools: str) -> None:
    """Skip without these programs."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        unavailable(f"needs {', '.join(missing)}")


def need_root(why: str) -> None:
    """Skip unless root runs the tests."""
    if os.geteuid() != 0:
        unavailable(f"needs root, {why}")


@contextlib.contextmanager
def mounted(at: Path, *arguments: str | Path) -> Iterator[Path]:
    """`mount ARGUMENTS AT`, which is unmounted at the end; skip where that is not possible."""
    need("mount", "umount")
    need_root("to mount")
    made = subprocess.run(["mount", *arguments, at], capture_output=True, text=True, check=False)
    if made.returncode:
        unavailable(f"can't mount here: {made.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)  # lazily: other processes may look at it just now


@contextlib.contextmanager
def mounted_image(kind: str, directory: Path, *options: str, size: int) -> Iterator[Path]:
    """A new file system of this kind in a file, mounted below `directory`."""
    need(f"mkfs.{kind}")
    image, at = directory / "image", directory / "mounted"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True, capture_output=True)
    with mounted(at, "-o", "loop", image):
        yield at
