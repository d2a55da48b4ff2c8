"""A tree on every host: waves, checks, rollback and a lost worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perfkit import ConfigError
from tests.support.dask_cluster import Cluster
from tests.support.sites import Origin
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

SYNC = """
client.wait_for_workers(int(rest[0]))
def check(path):
    if open(path + "/a").read() == rest[1]: raise ValueError("it does not start")
def lose(path):
    if path.endswith(rest[1]): os._exit(9)
class Shown:
    def update(self, snapshot): pass
    def finish(self, snapshot):
        assert snapshot.unit == "host"
        self.last = [snapshot.files_total, snapshot.files_done, snapshot.files_failed, snapshot.received_bytes > 0]
shown, waves = Shown(), Waves(sizes=("canary", "100%"))
options = {"check": lose if rest[2:] else check, "progress": shown, "allow_older": True}
done = sync_fleet(client, url, dest + "/{host}", waves=waves, **options)
known = status_fleet(client, dest + "/{host}")
print(json.dumps([
    [[each.host, each.wave, each.before, each.after, each.rolled_back, str(each.error or "")] for each in done],
    {each.host: each.status and each.status.version for each in known},
    shown.last,
]))
"""


def test_waves_stop_at_a_failure(cluster: Cluster, origin: Origin, out: Path) -> None:
    """All hosts get 1; 2 fails the check of the canary, which goes back to 1, and the other host is left alone; it is
    passed over by the next sync, which 3 ends.
    """
    origin.publish({"a": b"good"}, "1")
    told, known, shown = cluster.run(SYNC, out, origin.url, "2", "bad")
    assert told == [["one", 1, None, "1", False, ""], ["two", 2, None, "1", False, ""]]
    assert known == {"one": "1", "two": "1"}
    assert shown == [2, 2, 0, True]
    origin.publish({"a": b"bad"}, "2")
    told, known, shown = cluster.run(SYNC, out, origin.url, "2", "bad")
    assert shown == [2, 0, 1, True]
    assert told == [["one", 1, "1", "1", True, "it does not start"], ["two", None, None, None, False, ""]]
    assert known == {"one": "1", "two": "1"}
    assert (out / "one" / "a").read_bytes() == b"good"
    origin.publish({"a": b"better"}, "3")
    _, known, _ = cluster.run(SYNC, out, origin.url, "2", "bad")
    assert known == {"one": "3", "two": "3"}


@pytest.mark.once
def test_a_lost_worker_is_a_failed_host(tmp_path: Path, origin: Origin, out: Path, warm_dask: WarmPython) -> None:
    """Its wave goes back, as far as it can be reached."""
    origin.publish({"a": b"good"}, "1")
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", warm_dask) as cluster:
        for name in ("kept", "lost"):
            cluster.add_worker(name, "--resources", "canary=1")
        told, known, _ = cluster.run(SYNC, out, origin.url, "2", "lost", "lose")
    assert known == {"kept": None}
    kept, lost = sorted(told)
    assert kept == ["kept", 1, None, None, True, ""]
    assert lost[:5] == ["lost", 1, None, None, False]
    assert "the worker of lost was lost" in lost[5]


def test_a_label_that_no_host_has(cluster: Cluster, origin: Origin, out: Path) -> None:
    """A mistyped canary does not make the others the first."""
    origin.publish({"a": b"good"}, "1")
    body = """
client.wait_for_workers(2)
try:
    sync_fleet(client, url, dest + "/{host}", waves=Waves(sizes=("canry", "100%")))
except ConfigError as error:
    print(json.dumps(str(error)))
"""
    assert "no host has the label 'canry'" in cluster.run(body, out, origin.url)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sizes": "canary"}, "Waves.sizes must be a list"),
        ({"sizes": 1}, "Waves.sizes must be a list"),
        ({"sizes": (0,)}, "a wave must be a number of hosts"),
        ({"sizes": (None,)}, "a wave must be a number of hosts"),
        ({"sizes": ("0%",)}, "a wave must be a number of hosts"),
        ({"pause_s": float("inf")}, "pause_s must be a number of seconds"),
        ({"most_failed": 2.0}, "most_failed must be a share"),
    ],
)
def test_waves_that_cannot_be(options: dict[str, Any], said: str) -> None:
    dask = pytest.importorskip("perfkit.contrib.dask")
    with pytest.raises(ConfigError, match=said):
        dask.Waves(**options)
