"""What a call uses on a cluster: a Toolkit on each worker and, on the scheduler, the limits that they share.

The Toolkits lease their shares in the messages that report their progress to the scheduler. When the call ends, or its
client is lost, the Toolkits are closed, which cancels their work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, TypeVar

from distributed import Client, Future, Scheduler, SchedulerPlugin, Worker, WorkerPlugin, as_completed, get_worker
from distributed.protocol.serialize import Serialize
from distributed.utils import sync

from perfkit.config import Config
from perfkit.downloads.shared_limits import Lease, SharedLimits, Use
from perfkit.progress.meter import FileProgress, Snapshot
from perfkit.toolkit import Toolkit

T = TypeVar("T")

_LOST = "the scheduler was lost; start it again, and repeat the call to go on"
_ANSWER_S = 5.0  # for the scheduler to respond, before a lease is requested again
_POLL_S = 0.1
_RETRIES = 2  # of a task that failed; Dask's settings decide about one whose worker was lost


@dataclass(slots=True)
class ShardCount:
    """The progress of a shard: its files that have ended, how many of them failed, and their bytes."""

    files: int = 0
    failed: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """The progress of a worker."""

    shards: dict[int, ShardCount]
    active: tuple[FileProgress, ...]
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The workers of a cluster, by address, with their numbers of threads; and what they last reported."""

    threads: dict[str, int]
    reports: list[WorkerReport]


@contextlib.contextmanager
def toolkits(client: Client, config: Config) -> Iterator[str]:
    """A Toolkit on each worker of the cluster, also on those that join later; yields the name for `on_this_worker`."""
    name = f"perfkit-{uuid.uuid4().hex}"
    client.register_plugin(OnScheduler(), name="perfkit")
    limits = {"rate": config.rate_limit, "connections": config.connections_per_host}
    _ask(client, "perfkit_begin", name=name, client=client.id, **limits)
    try:
        client.register_plugin(OnWorker(name, config), name=name)
        yield name
    finally:
        if client.status == "running":  # else the scheduler is lost
            _ask(client, "perfkit_end", name=name)


def state_of(client: Client, name: str) -> ClusterState:
    """The progress of the work.

    Raises:
        ConnectionError: the scheduler was lost.
    """
    if client.status != "running":
        raise ConnectionError(_LOST)
    try:
        found = _ask(client, "perfkit_state", name=name)
    except OSError as error:
        raise ConnectionError(_LOST) from error
    return ClusterState(**found)


def _ask(client: Client, handler: str, /, **arguments: Any) -> Any:
    return client.sync(getattr(client.scheduler, handler), **arguments)  # type: ignore[no-untyped-call]


def on_this_worker(name: str) -> OnWorker:
    """The plugin of the call `name` on the worker that runs this task."""
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, OnWorker)
    return plugin


class Tasks(Generic[T]):
    """The running tasks of a call, each for one thing, such as a shard or a host; those left at the end are cancelled.

    A task runs a function whose arguments are bound already: Dask logs the arguments of a task that fails, and URLs may
    contain secrets.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.running: dict[Future[Any], T] = {}
        self._client = client
        self._name = name
        self._completed = as_completed([], loop=client.loop)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Tasks[T]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client.status == "running":
            self._client.cancel(list(self.running))  # type: ignore[no-untyped-call]

    def start(self, kind: str, thing: T, number: object, run: Callable[[], object], **where: Any) -> None:
        """Run a function on a worker; `kind` and `number` make its name in Dask's dashboard."""
        key = f"perfkit-{kind}-{self._name.rpartition('-')[2]}-{number}"
        future = self._client.submit(run, key=key, pure=False, retries=_RETRIES, **where)
        self.running[future] = thing
        self._completed.add(future)  # type: ignore[no-untyped-call]

    def ended(self) -> list[tuple[T, Future[Any]]]:
        """The tasks that have ended since the last call; waits a moment if there are none.

        Raises:
            ConnectionError: the scheduler was lost.
        """
        ended = []
        for future in self._completed.next_batch(block=False):  # type: ignore[no-untyped-call]
            if future.status == "lost":  # it had ended, but its worker was lost: Dask runs it again
                self._completed.add(future)  # type: ignore[no-untyped-call]
            elif future in self.running:
                if future.status == "cancelled":
                    raise ConnectionError(_LOST)
                ended.append((self.running.pop(future), future))
        if not ended:
            time.sleep(_POLL_S)
        return ended


@dataclass
class _Call:
    """What the scheduler keeps for a call."""

    client: str
    limits: SharedLimits
    holders: dict[str, str] = field(default_factory=dict)  # of leases, by their workers' addresses
    reports: dict[str, object] = field(default_factory=dict)  # by address, as Dask has serialized them


class OnScheduler(SchedulerPlugin):
    """Divides the limits among the workers, and collects their reports; one plugin for all calls."""

    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._calls: dict[str, _Call] = {}
        scheduler.handlers.update(
            perfkit_begin=self.begin, perfkit_end=self.end, perfkit_lease=self.lease, perfkit_state=self.state
        )

    async def begin(self, name: str, client: str, rate: int | None, connections: int) -> None:
        self._calls[name] = _Call(client, SharedLimits(rate, connections))

    async def end(self, name: str) -> None:
        if name in self._scheduler.worker_plugins:  # else it has ended, or is ending now
            await self._scheduler.unregister_worker_plugin(comm=None, name=name)
            del self._calls[name]

    async def lease(self, name: str, worker: str, holder: str, use: dict[str, Any], report: object) -> dict[str, Any]:
        call = self._calls[name]
        call.holders[worker], call.reports[worker] = holder, report
        return asdict(call.limits.lease(holder, Use(**use)))

    async def state(self, name: str) -> dict[str, Any]:
        threads = {address: worker.nthreads for address, worker in self._scheduler.workers.items()}
        return {"threads": threads, "reports": list(self._calls[name].reports.values())}

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        for call in self._calls.values():
            call.reports.pop(worker, None)
            if worker in call.holders:
                call.limits.release(call.holders.pop(worker))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for name in [name for name, call in self._calls.items() if call.client == client]:
            scheduler.loop.add_callback(self.end, name)


class OnWorker(WorkerPlugin):
    """A worker's Toolkit, shared by its tasks for the duration of a call; it leases its limits from the scheduler."""

    def __init__(self, name: str, config: Config) -> None:
        self._name = name
        self._config = config

    def setup(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._shards: dict[int, ShardCount] = {}
        self.report = WorkerReport({}, (), 0.0)
        self.kit = Toolkit(self._config, progress=self, limits=self)
        worker.metrics["perfkit_bytes_per_s"] = lambda _: self.report.bytes_per_s  # columns of Dask's dashboard
        worker.metrics["perfkit_files"] = lambda _: sum(each.files for each in self.report.shards.values())

    async def teardown(self, worker: Worker) -> None:
        for metric in ("perfkit_bytes_per_s", "perfkit_files"):
            worker.metrics.pop(metric, None)
        await asyncio.to_thread(self.kit.close)  # in a thread: it waits for responses that the loop handles

    @contextlib.contextmanager
    def shard(self, number: int) -> Iterator[ShardCount]:
        """Count the files of a shard while it runs."""
        shard = ShardCount()
        with self._lock:
            self._shards[number] = shard
        try:
            yield shard
        finally:
            with self._lock:
                del self._shards[number]

    # -- as the Toolkit's `Progress` --

    def update(self, snapshot: Snapshot) -> None:
        with self._lock:  # copied now: the snapshot has the bytes of files that end later
            shards = {number: replace(shard) for number, shard in self._shards.items()}
        self.report = WorkerReport(shards, snapshot.active, snapshot.speed_bytes_per_s)

    def finish(self, snapshot: Snapshot) -> None:
        self.report = WorkerReport({}, (), 0.0)

    # -- as its `LimitStore` --

    def lease(self, holder: str, use: Use) -> Lease:
        found = sync(
            self._worker.loop,
            self._worker.scheduler.perfkit_lease,
            callback_timeout=_ANSWER_S,
            name=self._name,
            worker=self._worker.address,
            holder=holder,
            use=asdict(use),
            report=Serialize(self.report),  # type: ignore[no-untyped-call]
        )
        return Lease(**found)

    def release(self, holder: str) -> None:
        """The lease ends with the worker, or the call."""
