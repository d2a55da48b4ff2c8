"""A user's code, checked by pyright in strict mode (`tox -e types`): every public call, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from perfkit import (
    Bars,
    BatchError,
    CallbackProgress,
    Config,
    Download,
    Generation,
    HTTPStatusError,
    IntegrityError,
    JsonLines,
    LockedError,
    OfferedRelease,
    PerfkitError,
    PlainLines,
    Plan,
    Progress,
    Release,
    Request,
    Snapshot,
    SyncReport,
    Toolkit,
    TransferError,
    VerifyReport,
)
from perfkit.config import parse_size
from perfkit.filesystem.watch import ALL
from perfkit.server.server import Server
from perfkit.testing import FakeOrigin, RecordedRequest
from perfkit.transactions.tree import Tree


class Percent:
    """A custom progress."""

    def update(self, snapshot: Snapshot) -> None:
        active = [file.name for file in snapshot.active]
        print(snapshot.files_done, snapshot.total_bytes or 0, active)

    def finish(self, snapshot: Snapshot) -> None:
        print(f"{snapshot.speed_bytes_per_s:.0f} B/s")


def shown(kind: str) -> Progress | None:
    kinds: dict[str, Progress] = {"bars": Bars(), "json": JsonLines(), "plain": PlainLines(), "own": Percent()}
    return kinds.get(kind)


def downloads(kit: Toolkit, urls: Iterable[str]) -> list[str]:
    done: Download = kit.download("https://h/f", Path("f"), checksum=None, mirrors=["https://m/f"], headers={"A": "b"})
    print(done.bytes + done.resumed_from, done.checksum)
    try:
        results: list[Download] = kit.download_many([*urls, ("https://h/a", "a"), Request("https://h/b", "b")], "out")
    except BatchError as error:
        return [str(result) for result in error.results]
    return [result.path for result in results]


def stream(kit: Toolkit, urls: Iterator[str | None]) -> int:
    return sum(result.bytes_received for _index, result in kit.iter_downloads(urls))


def failures(kit: Toolkit) -> str:
    try:
        kit.download("https://h/f", "f")
    except HTTPStatusError as error:
        return f"{error.status + 1} {error.url}"
    except IntegrityError as error:
        return error.expected + error.actual
    except TransferError as error:
        return error.reason if error.transient else "for good"
    except PerfkitError as error:
        return str(error)
    return ""


def trees(kit: Toolkit) -> None:
    release: Release = kit.publish("src", Path("site"), version="1", exclude=["*.bak"])
    plan: Plan = kit.plan("https://h/site", "tree")
    report: SyncReport = kit.sync("https://h/site", "tree", public_keys=["RW", Path("key.pub")], threshold=2)
    back: SyncReport = kit.rollback("tree", to=1)
    generations: list[Generation] = kit.history("tree")
    found: VerifyReport = kit.verify("tree", repair=True)
    offered: list[OfferedRelease] = kit.releases("https://h/site")
    print([each.version for each in offered], kit.check_site("site").intact, kit.prune("tree", dry_run=True).bytes)
    print(kit.status("tree").due_in_s(3600), kit.sync("https://h/site", "tree", release="1").held)
    print(release.serial, plan.missing_bytes, report.added, back.generation, found.intact)
    print([generation.label.get("version") for generation in generations])
    try:
        with kit.transaction("tree", wait_s=1) as tx:
            tx.write("a", b"b")
            tx.replace("c", Path("d"))
            tx.move("e", "f")
            tx.remove("g")
    except LockedError:
        pass
    with Tree("tree") as tree:
        print(tree.rollback().generation)


def files(kit: Toolkit) -> None:
    print([entry.name for entry in kit.scan("tree")], kit.hash_file("f").sha256)
    print([hashed.size for hashed in kit.hash_tree("tree", include=["*.rules"])])
    kit.copy_tree("a", "b", merge=True)
    kit.link_tree("a", "b")
    kit.move_many([("a", Path("b"))])
    print(kit.remove_tree("b") + 1)
    with kit.watch("tree") as dirty:
        names = dirty.drain()
        print("all" if names is ALL else sorted(names))


def test_with_the_fixture(perfkit_origin: FakeOrigin) -> None:
    perfkit_origin.add("https://h/f", "text")
    perfkit_origin.fail("https://h/f", status=503, times=2)
    asked: list[RecordedRequest] = perfkit_origin.requests
    assert [each.status for each in asked] == []


@pytest.fixture
def kit() -> Iterator[Toolkit]:
    config = Config.from_env(workers=4, rate_limit=parse_size("5M"))
    with Server("site") as server, Toolkit(config, progress=CallbackProgress(print)) as kit:
        kit.set_rate_limit(None)
        print(server.url)
        yield kit
