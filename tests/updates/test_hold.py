"""What syncs pass over: a version that was rolled back from, and everything while a tree is pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perfkit import ConfigError, RollbackError, Toolkit, UpdateError
from perfkit.updates.hold import HoldReason, hold_on, with_hold
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO, tree_of

pytestmark = pytest.mark.once


@pytest.fixture
def rolled_back(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> Path:
    """A tree that was rolled back from version 2 to version 1."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    origin_v1.publish(TWO, "2")
    kit.sync(origin_v1.url, tmp_path / "tree")
    kit.rollback(tmp_path / "tree")
    return tmp_path / "tree"


def test_after_a_rollback(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    """The version that was left is passed over, with one request; the next one is installed."""
    for _ in range(2):
        report = kit.sync(origin_v1.url, rolled_back)
        assert (report.version, report.held, report.requests, report.generation) == ("1", "2", 1, 1)
    planned = kit.plan(origin_v1.url, rolled_back)
    assert (planned.version, planned.held, planned.empty) == ("1", "2", True)
    assert kit.plan(origin_v1.url, rolled_back, release="2").version == "2"
    assert tree_of(rolled_back) == ONE
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    assert kit.sync(origin_v1.url, rolled_back).version == "3"
    assert kit.sync(origin_v1.url, rolled_back).held is None


def test_two_rollbacks(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    """Of two releases that were rolled back from, one after the other, neither comes back."""
    kit.unhold(rolled_back)
    kit.sync(origin_v1.url, rolled_back)
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    kit.sync(origin_v1.url, rolled_back)
    kit.hold(rolled_back, "4")
    kit.rollback(rolled_back)
    kit.rollback(rolled_back)
    assert [held.version for held in kit.status(rolled_back).holds] == ["4", "3", "2"]
    report = kit.sync(origin_v1.url, rolled_back)
    assert (report.version, report.held) == ("1", "3")
    kit.rollback(rolled_back, to=3)
    assert [held.version for held in kit.status(rolled_back).holds] == ["4", "3"]
    assert kit.sync(origin_v1.url, rolled_back).held == "3"
    kit.sync(origin_v1.url, rolled_back, release="1")
    assert [held.version for held in kit.status(rolled_back).holds] == ["4", "3"]
    origin_v1.publish(ONE, "3.1")
    assert kit.sync(origin_v1.url, rolled_back).version == "3.1"
    assert [held.version for held in kit.status(rolled_back).holds] == ["4"]


def test_only_a_look(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    assert kit.rollback(rolled_back, to=2).version == "2"
    assert kit.status(rolled_back).held is None
    kit.rollback(rolled_back, hold=False)
    assert kit.sync(origin_v1.url, rolled_back).version == "2"


def test_unhold_lets_sync_install_the_version(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    held = kit.unhold(rolled_back)
    assert held is not None
    assert (held.reason, held.version, held.source) == ("rollback", "2", f"{origin_v1.url}/")
    assert kit.unhold(rolled_back) is None
    assert kit.sync(origin_v1.url, rolled_back).version == "2"


def test_a_pinned_tree_makes_no_requests(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    """Not even the source is asked."""
    kit.pin(rolled_back)
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    asked = len(origin_v1.sent)
    report = kit.sync(origin_v1.url, rolled_back)
    assert (report.version, report.requests, len(origin_v1.sent) - asked) == ("1", 0, 0)
    kit.unhold(rolled_back)
    assert kit.sync(origin_v1.url, rolled_back).version == "3"


def test_a_rollback_of_a_pinned_tree(kit: Toolkit, origin_v1: Origin, rolled_back: Path) -> None:
    """It stays pinned, to what it was rolled back to."""
    kit.rollback(rolled_back, to=2)
    kit.pin(rolled_back)
    kit.rollback(rolled_back)
    held = kit.status(rolled_back).held
    assert held is not None
    assert (held.reason, held.version) == ("pin", "1")
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    assert kit.sync(origin_v1.url, rolled_back).version == "1"


def test_one_by_its_version(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """Before it is offered, whatever its serial; those before and after it are installed."""
    tree = tmp_path / "tree"
    with pytest.raises(UpdateError, match="not managed"):
        kit.hold(tmp_path, "2")
    kit.sync(origin_v1.url, tree)
    with pytest.raises(UpdateError, match="1 is installed; roll back first"):
        kit.hold(tree, "1")
    kit.hold(tree, "2")
    origin_v1.publish({**ONE, "more": b"more\n"}, "1.1")
    assert kit.sync(origin_v1.url, tree).version == "1.1"
    origin_v1.publish(TWO, "2")
    report = kit.sync(origin_v1.url, tree)
    assert (report.version, report.held) == ("1.1", "2")
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    assert kit.sync(origin_v1.url, tree).version == "3"
    kit.pin(tree)
    with pytest.raises(UpdateError, match="is pinned"):
        kit.hold(tree, "2")


@pytest.mark.parametrize("version", ["", "2\n", "2" * 201])
def test_no_release_has_such_a_version(version: str, kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    kit.sync(origin_v1.url, tmp_path / "tree")
    with pytest.raises(ConfigError, match="is not a version"):
        kit.hold(tmp_path / "tree", version)
    assert kit.status(tmp_path / "tree").holds == ()


def test_nothing_to_pin(kit: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="not managed"):
        kit.pin(tmp_path)
    with kit.transaction(tmp_path / "tree") as tx:
        tx.write("a", b"1")
    with pytest.raises(UpdateError, match="nothing is installed"):
        kit.pin(tmp_path / "tree")


def test_to_before_the_first_sync(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """It would remove every file, so it has to be asked for."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    with pytest.raises(RollbackError, match="roll back to generation 0"):
        kit.rollback(tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == ONE
    kit.rollback(tmp_path / "tree", to=0)
    assert tree_of(tmp_path / "tree") == {}


@pytest.mark.parametrize("damage", [b"{", "far"])
def test_a_damaged_record(kit: Toolkit, origin_v1: Origin, rolled_back: Path, damage: bytes | str) -> None:
    """Syncs stop; a rollback, after which it would be another one anyway, does not."""
    path = rolled_back / ".perfkit/hold"
    path.write_bytes(
        damage if isinstance(damage, bytes) else re.sub(rb'(since_s": )[\d.]+', rb"\g<1>1e300", path.read_bytes())
    )
    with pytest.raises(UpdateError, match=r"hold is damaged .* remove it"):
        kit.sync(origin_v1.url, rolled_back)
    assert kit.rollback(rolled_back, to=2).version == "2"
    assert kit.status(rolled_back).held is None


def test_a_site_whose_releases_are_all_refused() -> None:
    """The last hundred are remembered, and what is held for other reasons; of a long message, the beginning."""
    by_hand = hold_on(HoldReason.HAND, "https://x/", "by hand", 0)
    holds = [by_hand]
    for serial in range(150):
        holds = with_hold(holds, hold_on(HoldReason.CHECK, "https://x/", "v", serial, "no" * 10_000))
    assert holds[0] == by_hand
    assert [each.serial for each in holds[1:]] == list(range(50, 150))
    assert {len(each.message) for each in holds[1:]} == {1000}


def test_no_passwords(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """The source is noted without them, and the version is held all the same."""
    url = origin_v1.url.replace("//", "//me:s3cret@")
    kit.sync(url, tmp_path / "tree")
    origin_v1.publish(TWO, "2")
    kit.sync(url, tmp_path / "tree")
    kit.rollback(tmp_path / "tree")
    assert b"s3cret" not in (tmp_path / "tree/.perfkit/hold").read_bytes()
    assert kit.sync(url, tmp_path / "tree").held == "2"
