"""What a sync shows besides its downloads: looking, applying, committing; and nothing where all is over at once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.cli import main
from perfkit.progress import stage as stages
from perfkit.progress.lines import CallbackProgress, PlainLines
from perfkit.progress.meter import Snapshot
from perfkit.progress.stage import DelayedProgress, Stage
from perfkit.progress.text import amount
from perfkit.server.server import Server
from tests.support.sites import publish
from tests.support.trees import FIRST, edited

SECOND = edited(FIRST, 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is shown, at every step."""
    monkeypatch.setattr(stages, "_SHOWN_FROM_S", 0.0)
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
    monkeypatch.setattr(stages, "_SHOWN_FROM_S", 60.0)  # as long as "at once" may take on a busy machine
    stream = io.StringIO()
    kit = make_kit(progress=PlainLines(stream))
    with Server(publish(make_kit(), tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        assert stream.getvalue() == ""
        kit.download(f"{server.url}perfkit.json", tmp_path / "pointer")
        assert stream.getvalue().startswith("1 file, ")


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
    told: list[tuple[str, float]] = []

    class Telling:
        def update(self, snapshot: Snapshot) -> None:
            told.append(("update", snapshot.elapsed_s))

        def finish(self, snapshot: Snapshot) -> None:
            told.append(("finish", snapshot.elapsed_s))

    def at(elapsed_s: float) -> Snapshot:
        return Snapshot("download", 1, 0, 0, 0, None, 0, 0, 0.0, None, elapsed_s, (), ())

    delayed = DelayedProgress(Telling())
    with delayed.delayed():
        delayed.update(at(0.1))
        delayed.finish(at(0.2))
        assert told == []
        delayed.update(at(5.0))
        delayed.finish(at(6.0))
        assert told == [("update", 5.0), ("finish", 6.0)]
    delayed.finish(at(0.1))
    assert told[-1] == ("finish", 0.1)


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
