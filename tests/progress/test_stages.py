"""What a sync shows besides its downloads: looking, applying, committing; and nothing where all is over at once."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.cli import main
from perfkit.progress import operation
from perfkit.progress import stage as stages
from perfkit.progress.lines import CallbackProgress, PlainLines
from perfkit.progress.meter import Snapshot
from perfkit.progress.operation import OperationProgress
from perfkit.progress.stage import Stage
from perfkit.progress.summary import summary
from perfkit.progress.text import amount
from perfkit.server.server import Server
from tests.support.sites import publish
from tests.support.trees import FIRST, edited

pytestmark = pytest.mark.once

SECOND = edited(FIRST, 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is shown, at every step."""
    monkeypatch.setattr(stages, "SHOWN_FROM_S", 0.0)
    monkeypatch.setattr(operation, "SHOWN_FROM_S", 0.0)
    monkeypatch.setattr(stages, "_EVERY_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_sync_shows_what_is_looked_at_fetched_applied_and_committed(
    make_kit: Callable[..., Toolkit], tmp_path: Path
) -> None:
    """Each stage counts up to its end, and has one last word."""
    seen: list[Snapshot] = []
    kit, publisher = make_kit(progress=CallbackProgress(seen.append)), make_kit()
    with Server(publish(publisher, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(publisher, tmp_path, SECOND, "2")
        seen.clear()
        (tmp_path / "tree/README").touch()
        report = kit.sync(server.url, tmp_path / "tree")
    assert report.route == "delta"
    phases = list(dict.fromkeys(snapshot.phase for snapshot in seen if snapshot.phase != "reading the release"))
    assert phases == ["checking files", "fetching", "unpacking", "applying"]
    last = {snapshot.phase: snapshot for snapshot in seen}
    assert summary(last["fetching"]).startswith("fetching: 1 download, ")  # of a delta, not of a file
    assert summary(last["checking files"]).startswith(f"checking files: {len(FIRST)} files")
    assert last["checking files"].files_done == len(FIRST)
    assert last["applying"].files_done == last["applying"].files_total
    assert last["applying"].received_bytes == report.bytes_written
    for phase in ("unpacking", "applying"):
        done = [snapshot.files_done for snapshot in seen if snapshot.phase == phase]
        assert done == sorted(done)
        assert done[-1] > 0
    seen.clear()
    assert kit.verify(tmp_path / "tree").intact
    assert (seen[-1].phase, seen[-1].files_done, seen[-1].received_bytes) == (
        "verifying",
        len(SECOND),
        seen[-1].total_bytes,
    )


def test_what_is_over_at_once_is_not_shown(
    make_kit: Callable[..., Toolkit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync makes several tiny downloads; none of them has a summary, while a download by itself has one."""
    for module in (stages, operation):
        monkeypatch.setattr(module, "SHOWN_FROM_S", 60.0)  # as long as "at once" may take on a busy machine
    stream = io.StringIO()
    kit = make_kit(progress=PlainLines(stream))
    with Server(publish(make_kit(), tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        assert stream.getvalue() == ""
        kit.download(f"{server.url}perfkit.json", tmp_path / "pointer")
        assert "1 file, " in stream.getvalue()


@pytest.mark.usefixtures("impatient")
def test_a_stage_is_called_by_its_name() -> None:
    """In lines; the last word comes also where the work fails."""
    stream = io.StringIO()

    def commit() -> None:
        with Stage(PlainLines(stream), "applying", files=2) as shown:
            shown.count(files=1, count_bytes=10)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        commit()
    assert stream.getvalue().splitlines()[-1].startswith("applying: 1 of 2 files, 10 B")


def test_patience_ends_with_the_block() -> None:
    """Inside, short stages are not shown, and long ones are, with their end; outside, all are shown."""
    told: list[str] = []

    class Telling:
        def update(self, snapshot: Snapshot) -> None:
            told.append("update")

        def finish(self, snapshot: Snapshot) -> None:
            told.append(f"finish after {snapshot.elapsed_s} s")

    delayed = OperationProgress(Telling())
    with delayed.operation():
        delayed.update(at("download", 0.1))
        delayed.finish(at("download", 0.2))
        assert told == []
        delayed.update(at("download", 5.0))
        delayed.finish(at("download", 6.0))
        assert told == ["update", "finish after 6.0 s"]
        delayed.finish(at("download", 0.5))  # it was over before its first update
        assert told[2:] == ["finish after 0.5 s"]
    delayed.finish(at("download", 0.1))
    assert told[-1] == "finish after 0.1 s"


def test_an_operation_of_another_thread_ends_meanwhile() -> None:
    """It is the only one when that is asked, and gone a moment later."""

    class Operations(list[Any]):
        asked = 0

        def __len__(self) -> int:
            count, self.asked = super().__len__(), self.asked + 1
            if self.asked == 2:  # first, whether there are any
                self.clear()
            return count

    seen: list[Snapshot] = []
    progress = OperationProgress(CallbackProgress(seen.append))
    with contextlib.suppress(ValueError), progress.operation():
        progress._operations = Operations(progress._operations)
        progress.update(at("download", 5.0))
    assert len(seen) == 1


def at(phase: str, elapsed_s: float, share: float | None = None, eta_s: float | None = None) -> Snapshot:
    return Snapshot(phase, 1, 0, 0, 0, None, 0, 0, 0.0, eta_s, elapsed_s, (), (), share=share)


@pytest.fixture
def drawn() -> Iterator[tuple[OperationProgress, list[Snapshot]]]:
    """An operation, and what is displayed of it."""
    seen: list[Snapshot] = []
    progress = OperationProgress(CallbackProgress(seen.append))
    with progress.operation():
        yield progress, seen


Drawn = tuple[OperationProgress, list[Snapshot]]


def test_stages_are_parts_of_one_whole(drawn: Drawn) -> None:
    """Ten seconds of fetching, then five of unpacking and five of applying, as expected: a straight line."""
    progress, seen = drawn
    progress.expect({"fetching": 0.0, "unpacking": 5.0, "applying": 5.0})
    for phase, seconds in {"fetching": 10, "unpacking": 5, "applying": 5}.items():
        for second in range(1, seconds + 1):
            progress.update(at(phase, second, second / seconds * 0.999, seconds - second))
    progress.finish(at("applying", 5.0, 1.0, 0.0))
    assert [each.share for each in seen[:-1]] == pytest.approx([n / 20 for n in range(1, 21)], abs=1e-3)
    assert [each.eta_s for each in seen[:-1]] == pytest.approx([20 - n for n in range(1, 21)])
    assert all((each.share or 0) < 1 for each in seen[:-1])
    assert seen[-1].share == 1.0


def test_a_stage_that_was_not_expected_takes_of_the_rest(drawn: Drawn) -> None:
    """The percentage never falls, and goes on growing, when there is ten times as much to do as was thought."""
    progress, seen = drawn
    progress.expect({"fetching": 0.0, "unpacking": 1.0, "applying": 0.0})
    progress.update(at("fetching", 9.0, 0.9, 1.0))
    for second in range(1, 100):
        progress.update(at("unpacking", second, second / 100, 100 - second))
    shares = [each.share or 0 for each in seen]
    assert all(one < two for one, two in pairwise(shares))
    assert shares[0] == pytest.approx(9 / 11)
    assert 0.95 < shares[-1] < 1
    assert [each.eta_s for each in seen[1:]] == [100 - second for second in range(1, 100)]


def test_no_time_is_told_while_the_rest_is_unknown(drawn: Drawn) -> None:
    """The tree is compared before the release is looked at: that counts as half. What only helps does not count."""
    progress, seen = drawn
    progress.update(at("reading the release", 1.0, 0.9, 0.1))
    progress.expect({"checking files": 0.0, "applying": None})
    progress.update(at("checking files", 5.0, 0.5, 5.0))
    progress.update(at("reading the index", 1.0, 0.9, 0.1))
    progress.expect({"fetching": 0.0, "applying": 1.0})
    progress.update(at("fetching", 2.0, 0.5, 1.0))
    progress.update(at("waiting", 2.0))
    assert [(each.share, each.eta_s) for each in seen] == [
        (None, None),
        (0.25, None),
        (0.25, None),
        (0.625, 2.0),
        (0.625, None),
    ]


def test_two_operations_at_once_are_not_one(drawn: Drawn) -> None:
    progress, seen = drawn
    with progress.operation():
        progress.update(at("fetching", 1.0, 0.5, 1.0))
    assert (seen[0].share, seen[0].eta_s, seen[0].elapsed_s) == (0.5, 1.0, 1.0)


def test_a_dry_run_shows_routes_and_costs(kit: Toolkit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one JSON object, or as a line."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        assert main(["sync", server.url, str(tmp_path / "tree"), "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert main(["sync", server.url, str(tmp_path / "tree"), "--dry-run"]) == 0
        line = capsys.readouterr().err
        assert kit.sync(server.url, tmp_path / "tree").previous_version == "1"
    assert (plan["route"], plan["installed_version"], plan["requests"]) == ("delta", "1", 1)
    assert plan["offers"] == [{"route": "delta", "bytes": plan["bytes"], "requests": 1}]
    assert f"by delta: {amount(plan['bytes'])} in 1 request, " in line
