"""Downloads and syncs through a relay that breaks and falsifies answers, before perfkit's own server.

Falsified bytes can only be noticed with a checksum, so they happen only where there is one. A release has one of
everything but its pointer, a list of URLs and a Metalink document those of their files, a `.zsync` file that of its
target, and gzip that of its content. A zip archive has none of its directory.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perfkit import BatchError, Config, Download, PerfkitError, Request, Toolkit
from perfkit.server.server import Server
from tests.chaos.seeds import TIMEOUT_S, Cases, some
from tests.chaos.sources import PATHS, Sources, expected
from tests.support.chaos_relay import ChaosRelay
from tests.support.crash_cases import copy
from tests.support.kits import QUICK
from tests.support.leaks import nothing_left
from tests.support.trees import tree_of

pytestmark = [pytest.mark.once, pytest.mark.timeout(TIMEOUT_S)]

IMPATIENT = {**QUICK, "connect_timeout_s": 1.0, "read_timeout_s": 0.4, "stall_window_s": 0.5, "retries": 3}
BOUND_S = 60.0  # far more than any case takes: the machine may be busy
FILES = 8  # transfers of a case


@pytest.fixture(scope="module")
def relay(module_place: Path) -> Iterator[ChaosRelay]:
    with Server(module_place) as server:
        found = urlsplit(server.url)
        with ChaosRelay(str(found.hostname), int(found.port or 0)) as relay:
            yield relay


class Bound:
    """Ends a kit's work that takes too long, which fails the test."""

    def __init__(self, kit: Toolkit) -> None:
        self._timer = threading.Timer(BOUND_S, kit.close)
        self._ends_s = time.monotonic() + BOUND_S

    def __enter__(self) -> Bound:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        assert time.monotonic() < self._ends_s, "it hung"


def wait_until_idle(relay: ChaosRelay) -> None:
    deadline = time.monotonic() + BOUND_S
    while relay.open and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not relay.open, "a connection of the client stays open"


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bodies(module_place: Path) -> dict[str, bytes]:
    """Served files, empty to large ones."""
    chance = random.Random(1)
    sizes = [0, 1, 100, 5000, 60_000, 131_072, 400_000, 1_000_000]
    made = {f"file-{number}": chance.randbytes(size) for number, size in enumerate(sizes * 2)}
    for name, body in made.items():
        (module_place / name).write_bytes(body)
    return made


def test_downloads(cases: Cases, relay: ChaosRelay, bodies: dict[str, bytes], place: Path) -> None:
    """Each has the right bytes or a typed error, nothing is left open, and without faults the next run completes it."""
    for number, chance in cases.run(short=2, long=260):
        out = place / str(number)
        checked = {name: chance.random() < 0.6 for name in chance.sample(sorted(bodies), FILES)}
        requests = [
            Request(relay.url + name, checksum=f"sha256:{hashlib.sha256(bodies[name]).hexdigest()}" if sums else None)
            for name, sums in checked.items()
        ]
        with cases.case(number), nothing_left():
            relay.begin(chance, lambda path, checked=checked: checked[path.strip("/")])  # type: ignore[misc]
            for result in download(requests, out):
                if result.error is None:
                    cases.ends["right"] += 1
                    assert (out / Path(result.path).name).read_bytes() == bodies[Path(result.path).name]
                else:
                    cases.ends[type(result.error).__name__] += 1
                    assert isinstance(result.error, PerfkitError), repr(result.error)
            relay.rest()
            assert all(result.error is None for result in download(requests, out))
            assert tree_of(out) == {name: bodies[name] for name in checked}, "wrong bytes, or partial files left"
            wait_until_idle(relay)
        shutil.rmtree(out)
    cases.ends["faults"] += relay.faults.total()


def download(requests: list[Request], out: Path) -> list[Download]:
    with Toolkit(Config(**IMPATIENT)) as kit, Bound(kit):
        try:
            return kit.download_many(requests, out)
        except BatchError as error:
            return list(error.results)


# -- syncs ------------------------------------------------------------------------------------------------------------

KINDS = some(list(PATHS), 3)
FALSIFIED: dict[str, Callable[[str], bool]] = {
    "release": lambda path: "/objects/" in path,
    "zip": lambda path: False,
    "tar": lambda path: True,
    "zsync": lambda path: path.endswith(".bin"),
    "urls": lambda path: "/files/" in path,
    "metalink": lambda path: "/files/" in path,
}


@pytest.fixture(scope="module")
def relayed(module_place: Path, relay: ChaosRelay) -> Sources:
    """Sources at version 2, behind the relay; trees of version 1 stand at `base-KIND`."""
    sources = Sources(module_place / "relayed", f"{relay.url}relayed/")
    with Toolkit(Config(**QUICK)) as kit:
        for kind in KINDS:
            url = sources.urls[kind]
            sources.offer(kind, 1)
            kit.sync(url, module_place / f"base-{kind}", type=kind)
            sources.offer(kind, 2)
    return sources


def test_syncs(cases: Cases, relay: ChaosRelay, relayed: Sources, module_place: Path, place: Path) -> None:
    """The old tree with a typed error, or the new one; nothing is left open; without faults, the new one."""
    relay.faults.clear()
    for number, chance in cases.run(short=3, long=360):
        kind = KINDS[number % len(KINDS)]
        dest, old, new = place / str(number), expected(kind, 1), expected(kind, 2)
        dest.mkdir()
        if chance.random() < 0.6:
            copy(module_place / f"base-{kind}", dest)
        else:
            old = {}
        with cases.case(number, kind), nothing_left():
            relay.begin(chance, FALSIFIED[kind])
            try:
                sync(relayed.urls[kind], dest, kind)
            except PerfkitError as error:
                cases.ends[type(error).__name__] += 1
                assert tree_of(dest) == old
            else:
                cases.ends["right"] += 1
                assert tree_of(dest) == new
            relay.rest()
            sync(relayed.urls[kind], dest, kind)
            assert tree_of(dest) == new
            wait_until_idle(relay)
        shutil.rmtree(dest)
    cases.ends["faults"] += relay.faults.total()


def sync(url: str, dest: Path, kind: str) -> None:
    with Toolkit(Config(**IMPATIENT)) as kit, Bound(kit):
        kit.sync(url, dest, type=kind)
