"""Batches on real schedulers and workers: their results, their limits, and what is lost if one of them is killed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from perfkit import CallbackProgress, Download, Request, UpdateError
from perfkit.contrib.dask.batch import cut_into_shards
from perfkit.contrib.dask.checkpoint import Checkpoint
from perfkit.contrib.dask.cluster import ClusterState, ShardCount, WorkerReport
from perfkit.contrib.dask.cluster_progress import ClusterProgress
from perfkit.progress.meter import FileProgress, Snapshot, State
from tests.support.dask_cluster import Cluster
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once
FILES = 40
BODY = b"x" * 1000


def test_a_file_that_ends_while_its_worker_reports_counts_once_at_the_end() -> None:
    """Until then, the report may have it both among the active files and among those that have ended."""
    shown: list[Snapshot] = []
    progress = ClusterProgress(CallbackProgress(shown.append), [None], (), unit="file")
    active = FileProgress("a", State.ACTIVE, 1000, None, 0, 0.0, None)
    progress.update(ClusterState({}, [WorkerReport({0: ShardCount(1, 0, 1000)}, (active,), 0.0)]))
    progress.ended(0, [Download(url="http://host/a", path="a", bytes=1000)])
    progress.finish()
    assert [each.received_bytes for each in shown][-1] == 1000


class Log:
    """A server's answers: counts whole bodies by path, and how many there are at once."""

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.most = self._now = 0
        self.lock = threading.Lock()
        self.act: Callable[[], None] = lambda: None
        self.act_at = -1  # bodies sent

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.asked.path
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
            act = sum(self.bodies.values()) == self.act_at
            if act:
                self.act_at = -1
            if '"v1"' not in exchange.asked.headers.get("if-none-match", "") and "missing" not in path:
                self.bodies[path] += 1
        if act:
            self.act()
        time.sleep(0.01)
        with self.lock:
            self._now -= 1  # first: the next request comes as soon as the client has all of this response
        if "missing" in path:
            exchange.respond("404 Not Found")
        elif '"v1"' in exchange.asked.headers.get("if-none-match", ""):
            exchange.respond("304 Not Modified", ETag='"v1"')
        else:
            exchange.serve(BODY)


def test_a_batch_is_that_of_one_toolkit(cluster: Cluster, out: Path) -> None:
    """Results in input order, failed ones among them; limits for all; progress; nothing is left on the workers."""
    body = """
client.wait_for_workers(2)
class Shown:
    shown = []
    def update(self, snapshot):
        if not self.shown:  # the dashboard shows a column for each
            columns = client.run(lambda dask_worker: sorted(dask_worker.metrics)).values()
            told["columns"] = [[each for each in names if each.startswith("perfkit")] for names in columns]
        self.finish(snapshot)
    def finish(self, snapshot): self.shown.append([snapshot.files_done, snapshot.received_bytes, snapshot.share])
told = {}
items = [f"{url}{number}" for number in range(40)]
config = Config(retries=0, connections_per_host=3, rate_limit=40_000, adaptive=False)
results = download_many(client, items, dest, config=config, progress=Shown())
told["bytes"], told["shown"] = [each.bytes for each in results], Shown.shown
told["names"] = [os.path.basename(each.path) for each in results]
try:
    download_many(client, [(url + "a", "a"), "nonsense", (url + "missing", "x"), (url + "b", "a")], dest, config=config)
except BatchError as error:
    told["errors"] = [type(each.error).__name__ for each in error.results]
try:
    download_many(client, items, "relative")
except ConfigError:
    told["relative"] = True
names = client.run(lambda dask_worker: [each for each in dask_worker.plugins if each.startswith("perfkit")])
told["left"] = sorted(map(len, names.values()))
told["calls"] = client.run_on_scheduler(lambda dask_scheduler: len(vars(dask_scheduler.plugins["perfkit"])["_calls"]))
try:
    download_many(client, [url + "a?token=s3cret"], "nonsense://place")
except BatchError as error:
    told["no store"] = [str(each.error) for each in error.results]
import fsspec
told["stored"] = [each.path for each in download_many(client, items[:3], "memory://place")]
stored = client.run(lambda: fsspec.filesystem("memory").du("/place", total=False))
told["contents"] = dict(sum((list(each.items()) for each in stored.values()), []))
print(json.dumps(told))
"""
    log = Log()
    log.act, log.act_at = lambda: wait_until(lambda: log.most > 1), 0  # while the first waits
    with MisbehavingServer(log) as server:
        began_s = time.monotonic()
        told = cluster.run(body, out, f"{server.url}/")
        seconds = time.monotonic() - began_s
    assert told["bytes"] == [len(BODY)] * FILES
    assert told["names"] == [str(number) for number in range(FILES)]
    assert told["errors"] == ["NoneType", "ConfigError", "HTTPStatusError", "TransferError"]
    assert told["columns"] == [["perfkit_bytes_per_s", "perfkit_files"]] * 2
    assert (told["relative"], told["left"], told["calls"]) == (True, [0, 0], 0)
    assert told["stored"] == [f"memory:///place/{number}" for number in range(3)]
    assert told["contents"] == {f"/place/{number}": len(BODY) for number in range(3)}
    assert ["Protocol not known: nonsense" in each for each in told["no store"]] == [True]
    logs = cluster.log("one") + cluster.log("two")
    assert "Compute Failed" in logs
    assert "s3cret" not in logs
    assert log.most <= 3
    assert seconds >= 0.9 * FILES * len(BODY) / 40_000
    *running, ended = told["shown"]
    assert ended == [FILES, FILES * len(BODY), 1.0]
    assert any(0 < files < FILES for files, _, _ in running)
    assert all(earlier[2] <= later[2] for earlier, later in zip(running, told["shown"][1:], strict=True))


@pytest.mark.parametrize(
    ("files", "size", "threads", "shards"),
    [
        (1000, None, 2, [256, 256, 256, 232]),
        (10, None, 4, [3, 3, 3, 1]),
        (5, 100 << 20, 1, [2, 2, 1]),
        (0, None, 2, []),
    ],
)
def test_size_and_number_of_shards(files: int, size: int | None, threads: int, shards: list[int]) -> None:
    """Of 256 files or 256 MiB at most; a small batch is spread over all threads."""
    items = [(number, Request(f"https://example.org/{number}", size=size)) for number in range(files)]
    assert [len(each) for each in cut_into_shards(items, threads)] == shards


RESUMED = """
client.wait_for_workers(int(rest[1]))
with dask.config.set({"perfkit.shard-files": 4}):
    items = [f"{url}{number}" for number in range(40)]
    results = download_many(client, items, dest, config=Config(backoff_base_s=0.01), checkpoint=rest[0])
print(json.dumps([each.bytes for each in results]))
"""


def test_a_checkpoint_has_no_secrets(tmp_path: Path) -> None:
    """No URLs at all; and it is only the owner's."""
    items = ["https://me:s3cret@example.org/a?token=s3cret", Request("https://example.org/b?s3cret", name="b", key="b")]
    results = [Download(url="https://me:s3cret@example.org/?s3cret", path=f"/data/{name}", bytes=5) for name in "ab"]
    Checkpoint(str(tmp_path), "/data").add(zip(items, results, strict=True))
    (record,) = tmp_path.iterdir()
    assert "s3cret" not in record.read_text()
    assert record.stat().st_mode & 0o777 == 0o600
    again = Checkpoint(str(tmp_path), "/data")
    assert [again.find(item) for item in items] == [replace(each, url="") for each in results]
    assert again.find("https://example.org/a") is None


@pytest.mark.parametrize("damage", ["[", "[]", '{"a": 1}', '{"a": {}}', '{"a": {"version": {"x": 1}}}', "[" * 100_000])
def test_a_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    (tmp_path / "1.done.json").write_text(damage)
    with pytest.raises(UpdateError, match="remove it, or name another directory"):
        Checkpoint(str(tmp_path), "/data")


@pytest.mark.once
def test_a_killed_worker_loses_its_shard(tmp_path: Path, out: Path, warm_dask: WarmPython) -> None:
    """The other one does it again, and keeps what is complete; one that joins gets the rest of the work."""
    log = Log()
    with Cluster(tmp_path, warm_dask) as cluster, MisbehavingServer(log) as server:
        cluster.add_worker("lost")
        cluster.add_worker("kept")

        def replace() -> None:
            cluster.kill("lost")
            cluster.add_worker("late")

        log.act, log.act_at = replace, 10
        assert cluster.run(RESUMED, out, f"{server.url}/", str(tmp_path / "done"), "2") == [len(BODY)] * FILES
    assert len(log.bodies) == FILES
    twice = sum(count - 1 for count in log.bodies.values())
    assert twice <= 4
    assert len(list(out.iterdir())) == FILES


@pytest.mark.once
def test_a_killed_client_and_a_killed_scheduler_resume(tmp_path: Path, out: Path, warm_dask: WarmPython) -> None:
    """Three runs with one checkpoint: the first loses its client, the second its scheduler. Only what was in flight is
    fetched again, also where the workers keep nothing.
    """
    log = Log()
    done = tmp_path / "done"
    with MisbehavingServer(log) as server:
        for number, victim in enumerate(("client", "scheduler")):
            (place := tmp_path / victim).mkdir()
            reached = threading.Event()
            log.act, log.act_at = reached.set, 12 * (number + 1)
            with Cluster(place, warm_dask) as cluster:
                cluster.add_worker("one")
                with cluster.start(RESUMED, tmp_path / "out", f"{server.url}/", str(done), "1") as client:
                    assert reached.wait(100)
                    wait_until(lambda least=number: len(list(done.glob("*.json"))) > least)
                    if victim == "client":
                        client.kill()
                    else:
                        cluster.kill("scheduler")
                    _, errors = client.communicate()
                    assert client.returncode != 0, errors
        kept = len(list(done.glob("*.json")))
        assert kept >= 2
        (place := tmp_path / "third").mkdir()
        before = log.bodies.total()
        with Cluster(place, warm_dask) as cluster:
            cluster.add_worker("one")
            assert cluster.run(RESUMED, out, f"{server.url}/", str(done), "1") == [len(BODY)] * FILES
    assert log.bodies.total() - before <= FILES - 4 * kept
    assert log.bodies.total() <= FILES + 2 * 4
