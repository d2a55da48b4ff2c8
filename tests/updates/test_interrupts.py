"""Ctrl-C at any system call of the calling thread: no descriptor stays open, and the next sync goes on."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from tests.support.sites import Origin
from tests.support.trees import FIRST, tree_of

pytestmark = pytest.mark.once

_STEP = 11  # every call would take minutes


def open_below(root: Path) -> list[str]:
    """What this process has open in a directory."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        path = Path("/proc/self/fd", descriptor)
        if path.is_symlink() and os.readlink(path).startswith(str(root)):
            found.append(os.readlink(path))
    return found


@pytest.mark.parametrize("name", ["open", "fstat", "stat", "rename", "link"])
def test_descriptors_after_an_interrupt(
    origin: Origin, kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At every eleventh call of a sync and a rollback."""
    origin.publish(FIRST, "1")
    tree, call, caller = tmp_path / "tree", getattr(os, name), threading.current_thread()
    interrupted, at = True, 1
    while interrupted:
        left = at

        def interrupting(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= threading.current_thread() is caller
            if left == 0 and threading.current_thread() is caller:
                raise KeyboardInterrupt
            return call(*args, **options)

        shutil.rmtree(tree, ignore_errors=True)
        with monkeypatch.context() as patched:
            patched.setattr(os, name, interrupting)
            try:
                kit.sync(origin.url, tree)
                kit.rollback(tree, to=0, hold=False)
                interrupted = False
            except KeyboardInterrupt:
                pass
        gc.collect()
        assert open_below(tree) == [], f"{name}, call {at}"
        at += _STEP
    assert at > _STEP + 1
    kit.sync(origin.url, tree)
    assert tree_of(tree) == FIRST
