"""An update whose process dies while it fetches: what was fetched is there for the next one."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit
from tests.support.sites import Origin
from tests.support.trees import Tree, noise, tree_of
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

LARGE: Tree = {f"part-{number}": noise(number, 150_000) for number in range(5)} | {"README": b"hello\n"}
SYNC = "import sys; from perfkit import Config, Toolkit; Toolkit(Config(workers=2, segments=1)).sync(*sys.argv[1:])"


def kill_at(warm: WarmPython, origin: Origin, dest: Path, size: int, *, least: int) -> dict[str, int]:
    """Kill a sync that was sent so many bytes of objects, and has so many objects; returns the sizes of what it has."""

    def complete() -> dict[str, int]:
        found = (path for path in (dest / ".perfkit/fetch").iterdir() if len(path.name.partition(".")[0]) == 64)
        return {path.name.partition(".")[0]: path.stat().st_size for path in found if "part" not in path.name}

    origin.stalled.clear()
    origin.stall_at = size
    process = warm.start("-c", SYNC, origin.url, dest)
    assert origin.stalled.wait(100)
    wait_until(lambda: not least or len(complete()) >= least, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    origin.stall_at = None
    return complete()


def test_killed_while_fetching(
    make_kit: Callable[..., Toolkit], origin: Origin, tmp_path: Path, warm_python: WarmPython
) -> None:
    """Objects that are complete are not requested again; those under way are, as far as no journal records them."""
    kit = make_kit(segments=1)  # more of them would be cut short when another takes half of their range
    for count in range(1, len(LARGE) + 1):  # each release has its own pack, so there are some to finish
        origin.publish(dict(list(LARGE.items())[:count]), str(count))
    _, whole = origin.counted(lambda: kit.sync(origin.url, tmp_path / "undisturbed"))
    for share, least in ((0.0001, 0), (0.3, 0), (0.9, 3)):
        dest = tmp_path / f"tree-{share}"
        have = kill_at(warm_python, origin, dest, int(whole * share), least=least)
        asked = len(origin.sent)
        _, cost = origin.counted(lambda dest=dest: kit.sync(origin.url, dest))  # type: ignore[misc]
        assert tree_of(dest) == LARGE
        assert cost <= whole - sum(have.values())
        assert not {path.removeprefix("objects/") for path, _ in origin.sent[asked:]} & have.keys()


def test_contents_cut_off_by_a_crash(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """They have the names of whole contents, and are not taken for such."""
    origin.publish(LARGE, "1")
    fetch = tmp_path / "tree/.perfkit/fetch"
    fetch.mkdir(parents=True)
    for content in LARGE.values():
        (fetch / f"content-{hashlib.sha256(content).hexdigest()}").write_bytes(content[:-1])
    kit.sync(origin.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == LARGE
