"""Several processes on one tree while it is published, and trees that others take away in the middle of a sync.

Threads on one Toolkit, and forks while it downloads, are in tests/downloads/test_downloads.py.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Config, PerfkitError, Toolkit
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.transport import Get, HttpTransport, Response
from perfkit.server.server import Server
from tests.chaos.seeds import LONG, SEED, TIMEOUT_S, Cases
from tests.chaos.sources import PATHS, Sources, content, expected
from tests.support.crash_cases import copy
from tests.support.kits import QUICK
from tests.support.tools import ENVIRONMENT
from tests.support.trees import tree_of, write_tree

pytestmark = [pytest.mark.once, pytest.mark.timeout(TIMEOUT_S)]

ROUNDS = 40 if LONG else 3
WORK = """if True:
    import json, random, sys
    from perfkit import Config, LockedError, RollbackError, Toolkit
    url, dest, rounds, seed = sys.argv[1:]
    chance, ends = random.Random(seed), {"done": 0, "locked": 0, "nothing before": 0}
    with Toolkit(Config(workers=2, local_changes="overwrite")) as kit:
        for _ in range(int(rounds)):
            work = chance.choice(["sync", "sync", "rollback", "verify"])
            try:
                if work == "sync":
                    kit.sync(url, dest, wait_s=chance.choice([0, 0.05, 60]))
                elif work == "rollback":
                    kit.rollback(dest, hold=False)
                else:
                    assert kit.verify(dest).intact
                ends["done"] += 1
            except LockedError:
                ends["locked"] += 1
            except RollbackError:
                ends["nothing before"] += 1
    print(json.dumps(ends))
"""


@pytest.mark.parametrize("processes", [2, 8] if LONG else [2])
def test_processes_on_one_tree(cases: Cases, place: Path, processes: int) -> None:
    """Each works or is told that the tree is locked, and every report and the end are of one version."""
    site, tree = place / "site", place / "tree"
    with Server(place) as server, Toolkit(Config(**QUICK)) as kit:
        for version in (1, 2):
            kit.publish(write_tree(place / "src", content(version)), site, version=str(version))
            kit.sync(f"{server.url}site", tree)
        command = [sys.executable, "-c", WORK, f"{server.url}site", str(tree), str(ROUNDS)]
        children = [
            subprocess.Popen([*command, f"{SEED} {number}"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
            for number in range(processes)
        ]
        latest = 2
        while any(child.poll() is None for child in children):
            latest += 1
            kit.publish(write_tree(place / "src", content(latest)), site, version=str(latest))
            with contextlib.suppress(subprocess.TimeoutExpired):
                children[0].wait(0.2)
        for child in children:
            told, _ = child.communicate()
            assert child.returncode == 0
            cases.ends.update(json.loads(told))
        assert kit.verify(tree).intact
        assert tree_of(tree) in [content(version) for version in range(1, latest + 1)]
        kit.sync(f"{server.url}site", tree)
        assert tree_of(tree) == content(latest)


class Interrupted(HttpTransport):
    """Does some work before a request."""

    def __init__(self, config: Config, at: int, work: Callable[[], object]) -> None:
        super().__init__(config)
        self._left, self._work = at, work

    def open(self, request: Get, cancel: Cancel) -> Response:
        self._left -= 1
        if self._left == 0:
            self._work()
        return super().open(request, cancel)


@pytest.mark.parametrize("what", ["removed", "replaced by a link", "replaced by a file"])
def test_tree_taken_away(cases: Cases, sources: Sources, place: Path, what: str) -> None:
    """An error or another whole tree; what the link leads to is not touched."""
    elsewhere = write_tree(place / "elsewhere", {"large.bin": b"mine", "pkg/edited.py": b"mine"})
    mine = tree_of(elsewhere)
    for number, chance in cases.run(short=1, long=60):
        kind = list(PATHS)[number % len(PATHS)]
        base, dest, url = place / f"base-{number}", place / f"tree-{number}", sources.urls[kind]
        sources.offer(kind, number + 1)
        with Toolkit(Config(**QUICK)) as kit:
            kit.sync(url, base, type=kind)
        sources.offer(kind, number + 2)
        dest.mkdir()
        copy(base, dest)

        def take(dest: Path = dest) -> None:
            dest.rename(f"{dest}-gone")
            if what == "replaced by a link":
                dest.symlink_to(elsewhere)
            elif what == "replaced by a file":
                dest.write_bytes(b"mine")

        at = chance.randint(1, 3)
        with (
            cases.case(number, kind),
            Toolkit(Config(**QUICK), transport=lambda config: Interrupted(config, at, take)) as kit,  # noqa: B023
        ):
            try:
                kit.sync(url, dest, type=kind)
                cases.ends["done"] += 1
            except (PerfkitError, OSError):
                cases.ends["failed"] += 1
            assert tree_of(elsewhere) == mine
            assert not (elsewhere / ".perfkit").exists()
            assert not dest.is_file() or dest.read_bytes() == b"mine"
            for tree in (dest, Path(f"{dest}-gone")):
                if tree.is_dir() and not tree.is_symlink():
                    assert tree_of(tree) in ({}, expected(kind, number + 2), tree_of(base))
        shutil.rmtree(base)
