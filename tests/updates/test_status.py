"""How a tree stands, read without its lock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit, TransferError, TreeStatus, UpdateError
from perfkit.transactions.tree import Tree
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO

pytestmark = pytest.mark.once


def test_of_a_tree(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    before_s = time.time()
    kit.sync(origin_v1.url, tmp_path / "tree")
    found = kit.status(tmp_path / "tree")
    assert (found.version, found.generation, found.files, found.type) == ("1", 1, len(ONE), "release")
    assert found.source == f"{origin_v1.url}/"
    assert found.changed_s is not None
    assert found.checked_s is not None
    assert before_s <= found.changed_s <= found.checked_s <= time.time()
    assert (found.failed_s, found.error, found.held, found.interrupted) == (None, None, None, False)
    assert 0 <= found.age_s() < 60


def test_while_it_is_locked(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    kit.sync(origin_v1.url, tmp_path / "tree")
    with Tree(tmp_path / "tree"):
        assert kit.status(tmp_path / "tree").version == "1"


def test_after_a_failure(kit: Toolkit, make_kit: Callable[..., Toolkit], origin_v1: Origin, tmp_path: Path) -> None:
    """When and why; the last good sync stays known, and the next one forgets the failure."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    good = kit.status(tmp_path / "tree")
    origin_v1.publish(TWO, "2")
    for path in (origin_v1.site / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(TransferError):
        make_kit(retries=0).sync(origin_v1.url, tmp_path / "tree")
    found = kit.status(tmp_path / "tree")
    assert (found.version, found.checked_s) == ("1", good.checked_s)
    assert found.failed_s is not None
    assert found.error
    assert found.failures == 1
    with kit.transaction(tmp_path / "tree") as tx:
        tx.write("own", b"1")
    assert kit.status(tmp_path / "tree").generation == 2


def test_of_what_is_no_tree(kit: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="not managed"):
        kit.status(tmp_path / "none")
    with kit.transaction(tmp_path / "tree") as tx:
        tx.write("a", b"1")
    found = kit.status(tmp_path / "tree")
    assert (found.version, found.generation, found.checked_s) == (None, 1, None)
    assert found.age_s() == float("inf")


def test_after_the_clock_was_set_back(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """What will be is as old as it is far, and no success for years to come."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    record = tmp_path / "tree/.perfkit/last-sync"
    record.write_text(json.dumps({"checked_s": time.time() + 1e6}))
    assert 0.9e6 < kit.status(tmp_path / "tree").age_s() < 1e6
    for wrong in ('{"checked_s": 1e300, "failed_s": NaN}', '{"checked_s": -1.0}', "[]", "{", '{"checked_s": "1"}'):
        record.write_text(wrong)
        found = kit.status(tmp_path / "tree")
        assert (found.checked_s, found.failed_s) == (None, None)


def test_a_journal_means_interrupted(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    kit.sync(origin_v1.url, tmp_path / "tree")
    (tmp_path / "tree/.perfkit/journal").write_bytes(b"")
    assert kit.status(tmp_path / "tree").interrupted


def test_during_a_commit(kit: Toolkit, origin_v1: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal of a live process has begun is no interrupted change; how the tree stands is asked after it."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    journal = tmp_path / "tree/.perfkit/journal"
    with Tree(tmp_path / "tree"):
        journal.write_bytes(b"")
        monkeypatch.setattr("perfkit.updates.status.time.sleep", lambda seconds: journal.unlink())
        assert not kit.status(tmp_path / "tree").interrupted
        assert not journal.exists()
        journal.write_bytes(b"")
        monkeypatch.setattr("perfkit.updates.status._COMMIT_S", 0.0)
        assert not kit.status(tmp_path / "tree").interrupted
        journal.unlink()


@pytest.mark.parametrize(("status", "interval_s", "due_s"), [
    ({}, 0, 0), ({}, 3600, 0), ({"checked_s": -10}, 3600, 3590), ({"checked_s": -4000}, 3600, 0),
    ({"checked_s": 10**6}, 3600, 0), ({"failed_s": 10**6, "failures": 1, "not_before_s": 10**6}, 3600, 0),  # set back
    ({"failed_s": -10, "failures": 1}, 0, 0), ({"failed_s": -10, "failures": 1}, 3600, 50),
    ({"checked_s": -20, "failed_s": -10, "failures": 3}, 3600, 230), ({"failed_s": 0, "failures": 99}, 3600, 3600),
    ({"failed_s": -10}, 3600, 0),  # the disk was full, for example
    ({"failed_s": -10, "failures": 1, "not_before_s": 900}, 0, 900),
    ({"failed_s": 0, "failures": 1, "not_before_s": 10**9}, 0, 86_400),
])  # fmt: skip
def test_when_the_next_sync_is_due(
    status: dict[str, float], interval_s: float, due_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of the status are given from now on."""
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    fields = {name: value if name == "failures" else now + value for name, value in status.items()}
    assert TreeStatus(**fields).due_in_s(interval_s) == due_s  # type: ignore[arg-type]
