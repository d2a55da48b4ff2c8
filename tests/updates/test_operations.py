"""docs/operations.md is true: what may be lost from `.perfkit/`, and what that costs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import RollbackError, Toolkit, UpdateError
from perfkit.errors import RecoveryError
from perfkit.testing import FakeOrigin
from perfkit.transactions import layout

pytestmark = pytest.mark.once

URL = "https://example.org/rules/"
FILES = {f"{number}.rules": f"alert {number}\n" * 20 for number in range(30)}
CHANGED = {**FILES, "7.rules": "drop 7\n"}


@pytest.fixture
def kit_after_two(perfkit_origin: FakeOrigin, tmp_path: Path) -> Iterator[Toolkit]:
    """A tree with two releases behind it."""
    with Toolkit() as kit:
        for version, files in ("1", FILES), ("2", CHANGED):
            perfkit_origin.publish(URL, files, version=version)
            kit.sync(URL, tmp_path)
        yield kit


def lose(tree: Path, *names: str) -> None:
    for name in names:
        path = tree / ".perfkit" / name
        assert path.exists(), name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("names", [
    ("fetch",), ("manifest", "release"), ("serials",), ("state", "history"), ("objects",), ("statcache", "clock"),
    ("state",), ("lock",), ("last-sync",),
])  # fmt: skip
def test_what_may_be_lost(
    names: tuple[str, ...], kit_after_two: Toolkit, perfkit_origin: FakeOrigin, tmp_path: Path
) -> None:
    """The files stay, and the next releases come as ever."""
    lose(tmp_path, *names)
    assert (tmp_path / "7.rules").read_text() == "drop 7\n"
    kit_after_two.sync(URL, tmp_path)
    perfkit_origin.publish(URL, {**CHANGED, "8.rules": "drop 8\n"}, version="3")
    assert kit_after_two.sync(URL, tmp_path).version == "3"
    found = kit_after_two.verify(tmp_path)
    assert (found.files, found.missing, found.changed, found.extra) == (30, (), (), ())
    assert (tmp_path / "8.rules").read_text() == "drop 8\n"
    kit_after_two.rollback(tmp_path, hold=False)
    assert (tmp_path / "8.rules").read_text() == FILES["8.rules"]


def test_everything_is_in_the_table() -> None:
    table = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8").partition("During a download")[0]
    names = {value.split("/")[1] for value in vars(layout).values() if str(value).startswith(f"{layout.PRIVATE_DIR}/")}
    assert {name for name in names if not re.search(rf"`{name}/?`", table)} == set()


def test_without_the_manifest_only_what_differs_is_fetched(
    kit_after_two: Toolkit, perfkit_origin: FakeOrigin, tmp_path: Path
) -> None:
    """What is installed is found by its content."""
    lose(tmp_path, "manifest", "release")
    (tmp_path / "9.rules").unlink()
    report = kit_after_two.sync(URL, tmp_path)
    assert (report.added, report.unchanged) == (1, 29)


@pytest.mark.parametrize(("names", "error"), [(("objects",), RollbackError), (("state", "history"), RollbackError)])
def test_what_rollback_needs(
    names: tuple[str, ...], error: type[Exception], kit_after_two: Toolkit, tmp_path: Path
) -> None:
    """Without it, it is refused, and nothing is touched."""
    lose(tmp_path, *names)
    with pytest.raises(error):
        kit_after_two.rollback(tmp_path, hold=False)
    assert (tmp_path / "7.rules").read_text() == "drop 7\n"


def test_an_ordinary_directory_again(kit_after_two: Toolkit, tmp_path: Path) -> None:
    """All of `.perfkit` may go."""
    shutil.rmtree(tmp_path / ".perfkit")
    assert len(list(tmp_path.iterdir())) == 30
    with pytest.raises(UpdateError):
        kit_after_two.history(tmp_path)


def damage_state(tree: Path) -> None:
    (tree / ".perfkit/state").write_text("damaged")


def damage_journal(tree: Path) -> None:
    (tree / ".perfkit/journal").write_text("damaged")


@pytest.mark.parametrize(("damage", "name"), [(damage_state, "state"), (damage_journal, "journal")])
def test_recovering_by_hand(damage: Callable[[Path], None], name: str, kit_after_two: Toolkit, tmp_path: Path) -> None:
    """What the page says to do when the tree can't be recovered by itself."""
    damage(tmp_path)
    (tmp_path / "9.rules").write_text("half old, half new")
    with pytest.raises(RecoveryError):
        kit_after_two.sync(URL, tmp_path)
    lose(tmp_path, name)
    kit_after_two.sync(URL, tmp_path)
    found = kit_after_two.verify(tmp_path, repair=True)
    assert (found.missing, found.changed) == ((), ("9.rules",)) or found.intact
    assert (tmp_path / "9.rules").read_text() == FILES["9.rules"]


def test_the_history_counts_files(kit_after_two: Toolkit, tmp_path: Path) -> None:
    """Those of the tree, and not perfkit's own records, which change with them."""
    told = [
        (each.label.get("version"), each.added, each.changed, each.removed) for each in kit_after_two.history(tmp_path)
    ]
    assert told == [(None, 0, 0, 0), ("1", 30, 0, 0), ("2", 0, 1, 0)]


def test_the_log_of_a_database_that_was_replaced(
    perfkit_origin: FakeOrigin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would apply it to the new file, after a sync or a rollback: a warning says so."""
    databases = ("prices.db", "closed.db", "shipped.db", "text")
    with Toolkit() as kit:
        for version in "12":
            files = {name: version * (4096 if name != "text" else 4095) for name in databases}
            perfkit_origin.publish(URL, {**files, "shipped.db-wal": version}, version=version)
            kit.sync(URL, tmp_path)
            if version == "1":
                assert not caplog.records
                for name, size in (("prices.db", 32), ("closed.db", 0), ("text", 32)):
                    (tmp_path / f"{name}-wal").write_bytes(bytes(size))
        kit.rollback(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert [each.split()[0] for each in said] == [str(tmp_path / "prices.db")] * 2
    assert all(f"remove {tmp_path}/prices.db-wal" in each for each in said)
