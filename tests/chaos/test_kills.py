"""kill -9 at random moments of all kinds of work in a row, on the same trees, site and file, while versions follow."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit.server.server import Server
from perfkit.transactions import layout
from perfkit.transactions.tree import Tree as Managed
from tests.chaos.seeds import LONG, TIMEOUT_S, Cases
from tests.chaos.sources import PATHS, Sources, content, expected
from tests.support.fault_worker import DONE, Worker
from tests.support.release_client import Client
from tests.support.trees import Tree, edit, tree_of, write_tree

pytestmark = [pytest.mark.once, pytest.mark.timeout(TIMEOUT_S)]

WORK = ["sync"] * 6 + ["rollback", "repair", "publish", "download"]
KINDS = list(PATHS) if LONG else ["release", "zsync"]
KILLS = 40 if LONG else 5  # of a story, which is one case


class Story:
    """A tree for every source, a file, and the site with all the sources. Each stays one of the versions, whole."""

    def __init__(self, place: Path, sources: Sources, worker: Worker, chance: random.Random) -> None:
        self._place, self._sources, self._worker, self._chance = place, sources, worker, chance
        self._latest = dict.fromkeys(KINDS, 1)
        self._damaged: Tree | None = None
        self._takes_s = dict.fromkeys(WORK, 0.06)  # as last seen: so kills come at all moments on any machine
        self.kills = Counter[str]()
        for kind in KINDS:
            sources.offer(kind, 1)

    def step(self, kind: str) -> None:
        """Work that is killed, and after it the same to its end, or in a later step."""
        if self._chance.random() < 0.3 and kind != "release":
            self._latest[kind] += 1
            self._sources.offer(kind, self._latest[kind])
        work = self._chance.choice(WORK)
        installed = self._tree(kind)
        # A version that an archive or a list offers no more can't be fetched again.
        if (work == "rollback" and not self._has_earlier(kind)) or (
            work == "repair" and installed != expected(kind, self._latest[kind])
        ):
            work = "sync"
        command = self._command(work, kind)
        killed = self._run(*command, killed_after_s=self._chance.uniform(0, 1.3 * self._takes_s[work]))
        self.kills[work] += killed
        if killed and (work == "repair" or self._chance.random() < 0.6):
            self._complete(work, kind, command)
        self._damaged = None

    def _command(self, work: str, kind: str) -> tuple[object, ...]:
        """What is to be done; a tree that is to be repaired is damaged, and a site has another version to publish."""
        dest = self._place / kind
        if work == "sync":
            return "sync", self._sources.urls[kind], dest, kind
        if work == "publish":
            version = self._latest["release"] + 1
            src = write_tree(self._place / "src", content(version))
            return "publish", src, self._sources.site / PATHS["release"], version
        if work == "download":
            return "download", f"{self._sources.url}large.bin", self._place / "file", ""
        if work == "repair":
            edit(dest / "large.bin", b"damaged")
            self._damaged = tree_of(dest)
        return work, dest

    def _run(self, *command: object, killed_after_s: float | None = None) -> bool:
        """Whether it was killed; all is as it should be then."""
        began = time.monotonic()
        code = self._worker.run(*command, killed_after_s=killed_after_s).code
        if code == DONE:
            self._takes_s[str(command[0])] = time.monotonic() - began
        assert code in (DONE, -signal.SIGKILL), f"{command[0]} failed"
        published = int(Client(self._sources.site / PATHS["release"]).pointer.version)
        assert published - self._latest["release"] in (0, 1)
        self._latest["release"] = published
        for kind in KINDS:
            tree = self._tree(kind)
            assert tree in (self._damaged, {}, *self._versions(kind)), f"a mixture in {kind}"
        file = self._place / "file"
        assert not file.exists() or {"large.bin": file.read_bytes()} in self._versions("zsync")
        return code != DONE

    def _complete(self, work: str, kind: str, command: tuple[object, ...]) -> None:
        """The next run goes on, unless the work was done when the kill came."""
        if work == "rollback" or (work == "publish" and command[-1] == self._latest["release"]):
            return  # again, it would do something else
        assert not self._run(*command)
        latest = expected(kind, self._latest[kind])
        if work == "sync":
            assert self._tree(kind) == latest
        elif work == "download":
            assert (self._place / "file").read_bytes() == content(self._latest["zsync"])["large.bin"]
        elif work == "repair":
            assert self._tree(kind) != self._damaged

    def _versions(self, kind: str) -> list[Tree]:
        return [expected(kind, version) for version in range(1, self._latest[kind] + 1)]

    def _has_earlier(self, kind: str) -> bool:
        """Whether a version was installed before the one that is."""
        root = self._place / kind
        if not (root / ".perfkit/release").exists():
            return False
        with Managed(root) as tree:
            return not tree.step_back_removes(layout.RELEASE)

    def _tree(self, kind: str) -> Tree:
        """What is in a tree, as soon as it is opened."""
        root = self._place / kind
        if (root / ".perfkit").exists():
            with Managed(root):
                pass
        return tree_of(root) if root.exists() else {}


@pytest.fixture
def story(place: Path) -> Iterator[tuple[Path, Sources, Worker]]:
    with Server(place) as server, Worker(place) as worker:
        yield place, Sources(place / "site", f"{server.url}site/"), worker


def test_killed_at_random_moments(cases: Cases, story: tuple[Path, Sources, Worker]) -> None:
    """A few stories of many kills each."""
    place, sources, worker = story
    for number, chance in cases.run(short=1, long=14):
        with cases.case(number):
            (place / str(number)).mkdir()
            this = Story(place / str(number), sources, worker, chance)
            while this.kills.total() < KILLS:
                this.step(chance.choice(KINDS))
            cases.ends.update({f"kills in {work}": count for work, count in this.kills.items()})
