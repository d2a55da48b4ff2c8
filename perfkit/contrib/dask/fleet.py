"""One tree on every host of a cluster, updated in waves; a wave that fails is rolled back, and no other follows."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client

from perfkit.config import Config, check_type
from perfkit.contrib.dask.cluster import ClusterState, Tasks, on_this_worker, state_of, toolkits
from perfkit.contrib.dask.cluster_progress import ClusterProgress
from perfkit.errors import ConfigError, PerfkitError, UpdateError
from perfkit.progress.meter import Progress
from perfkit.toolkit import Toolkit
from perfkit.updates.status import TreeStatus


@dataclass(frozen=True, kw_only=True)
class Waves:
    """In what order hosts are brought up to date, and when that stops.

    Attributes:
        sizes: one element for each wave: a number of hosts; a percentage of all hosts, such as `25%`, that this and
            earlier waves reach together; or a label, for all hosts that have it. Hosts in no wave are left alone.
        labels: the labels of each host, by the name of its worker. By default a worker's labels are its Dask resources,
            as in `dask worker --resources canary=1`.
        pause_s: how long to wait between two waves, in seconds.
        most_failed: the share of a wave's hosts that may fail, 0 to 1, before the wave is rolled back.

    Raises:
        ConfigError: a value is invalid.
    """

    sizes: tuple[int | str, ...] = ("100%",)
    labels: Mapping[str, Collection[str]] | None = None
    pause_s: float = 0.0
    most_failed: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.sizes, str | bytes) or not isinstance(self.sizes, Sequence):
            raise ConfigError(f"Waves.sizes must be a list, such as (1, '50%', '100%'); got {self.sizes!r}")
        for size in self.sizes:
            if not (size >= 1 if isinstance(size, int) else isinstance(size, str) and _share(size)):
                raise ConfigError(f"a wave must be a number of hosts, a percentage or a label; got {size!r}")
        for name in ("pause_s", "most_failed"):
            check_type(f"Waves.{name}", getattr(self, name), "float", secret=False)
        if self.pause_s < 0 or not 0 <= self.most_failed <= 1:
            raise ConfigError("pause_s must not be negative, and most_failed must be a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What was done on a host.

    Attributes:
        host: the name of its worker.
        wave: counted from 1; None if its turn never came.
        before, after: the versions that were and are installed; None if nothing was, or it is unknown.
        bytes: received.
        rolled_back: whether the tree was rolled back because its wave failed.
        error: why it failed; None if it did not.
    """

    host: str
    wave: int | None = None
    before: str | None = None
    after: str | None = None
    seconds: float = 0.0
    bytes: int = 0
    rolled_back: bool = False
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """The status of a host's tree; `error` says why it is not known."""

    host: str
    status: TreeStatus | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Host:
    name: str
    address: str
    dest: str
    labels: Collection[str]
    number: int


def sync_fleet(
    client: Client,
    source: str,
    dest: str | os.PathLike[str],
    *,
    waves: Waves | None = None,
    check: Callable[[str], object] | None = None,
    config: Config | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[HostReport]:
    """Bring a tree up to date on every worker of a cluster: run one worker on each host.

    A wave is done when all of its hosts are. If more of them fail than may, all of its hosts are rolled back, and pass
    over that version from then on (see `Toolkit.hold`); no other wave follows.

    Args:
        dest: the tree, as an absolute path on each host. `{host}` in it is replaced by the name of the worker.
        waves: by default all hosts at once, of which none may fail.
        check: called on each host, with the path of the tree, after its sync; an exception is a failure of the host.
        config: settings of the workers' Toolkits; `rate_limit` and `connections_per_host` are limits for all together.
        progress: displays how many hosts are done, their bytes, and the files in progress on all of them, such as
            `Bars()`; none by default.
        options: as for `Toolkit.sync`, such as `release` and `public_keys`.

    Returns:
        A report for each host, in the order of their turns, then of their names.

    Raises:
        ConfigError: `dest` is relative, the cluster has no workers, or no host has the label of a wave.
        OSError: the scheduler was lost. Hosts finish what they are doing; the same call continues with the others.
    """
    waves = waves or Waves()
    hosts = _hosts(client, os.fspath(dest), waves)
    reports: dict[str, HostReport] = {}
    display = ClusterProgress(progress, [None] * len(hosts), (), unit="host")
    with toolkits(client, config or Config()) as name:
        for number, wave in enumerate(_cut(hosts, waves.sizes), 1):
            if number > 1:
                time.sleep(waves.pause_s)
            generations: dict[str, int] = {}
            for host, outcome in _on_each(client, name, wave, _sync, source, check, options, seen=display.update):
                report, generations[host.name] = (
                    (HostReport(host=host.name, error=outcome), 0) if isinstance(outcome, Exception) else outcome
                )
                reports[host.name] = replace(report, wave=number)
                display.ended(host.number, [reports[host.name]])
            failed = sum(reports[host.name].error is not None for host in wave)
            if failed > waves.most_failed * len(wave):
                changed = [host for host in wave if reports[host.name].after != reports[host.name].before]
                for host, outcome in _on_each(client, name, changed, _roll_back, generations):
                    reports[host.name] = _rolled_back(reports[host.name], outcome)
                break
    display.finish()
    return [*reports.values(), *(HostReport(host=host.name) for host in hosts if host.name not in reports)]


def status_fleet(client: Client, dest: str | os.PathLike[str]) -> list[HostStatus]:
    """The status of the tree on each host of a cluster, without a request to its source.

    Args:
        dest: as for `sync_fleet`.

    Returns:
        A status for each host, in the order of their names.

    Raises:
        ConfigError, OSError: as `sync_fleet`.
    """
    hosts = _hosts(client, os.fspath(dest), Waves())
    with toolkits(client, Config()) as name:
        found = dict(_on_each(client, name, hosts, _status))
    return [
        HostStatus(host=host.name, error=found[host])
        if isinstance(found[host], Exception)
        else HostStatus(host=host.name, status=found[host])
        for host in hosts
    ]


def _hosts(client: Client, dest: str, waves: Waves) -> list[_Host]:
    if not os.path.isabs(dest):
        raise ConfigError(f"dest must be an absolute path on each host; got {dest!r}")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError("the cluster has no workers; start some, or wait for them with client.wait_for_workers(1)")
    hosts = []
    for number, (name, address) in enumerate(sorted((str(worker["name"]), at) for at, worker in workers.items())):
        labels = workers[address]["resources"] if waves.labels is None else waves.labels.get(name, ())
        hosts.append(_Host(name, address, dest.replace("{host}", name), tuple(labels), number))
    return hosts


def _share(size: str) -> float:
    """The share for a percentage; 1 for a label; 0 if it is invalid."""
    if not size.endswith("%"):
        return float(bool(size))
    with contextlib.suppress(ValueError):
        share = float(size.removesuffix("%")) / 100
        return share if 0 < share <= 1 else 0.0
    return 0.0


def _cut(hosts: Sequence[_Host], sizes: Sequence[int | str]) -> list[list[_Host]]:
    """The hosts of each wave that has any."""
    left, waves = list(hosts), []
    for size in sizes:
        if isinstance(size, int):
            wave = left[:size]
        elif size.endswith("%"):
            wave = left[: max(0, math.ceil(_share(size) * len(hosts)) - (len(hosts) - len(left)))]
        else:
            if not any(size in host.labels for host in hosts):
                raise ConfigError(f"no host has the label {size!r} of a wave, so the others would be first")
            wave = [host for host in left if size in host.labels]
        left = [host for host in left if host not in wave]
        waves.append(wave)
    return [wave for wave in waves if wave]


def _on_each(
    client: Client,
    name: str,
    hosts: Sequence[_Host],
    function: Callable[..., Any],
    *arguments: Any,
    seen: Callable[[ClusterState], None] = lambda state: None,
) -> Iterator[tuple[_Host, Any]]:
    """Run `function(name, host, *arguments)` on each host; yields what each returned or raised, as they end.

    Args:
        seen: called now and then with what the workers report.
    """
    with Tasks[_Host](client, name) as tasks:
        for host in hosts:
            on_host = functools.partial(function, name, host, *arguments)
            kind = function.__name__.strip("_")
            tasks.start(kind, host, host.name, on_host, workers=[host.address], allow_other_workers=False)
        while tasks.running:
            state = state_of(client, name)
            seen(state)
            for host, future in tasks.ended():
                yield host, future.exception() or future.result()  # type: ignore[no-untyped-call]
            for future in [future for future, host in tasks.running.items() if host.address not in state.threads]:
                host = tasks.running.pop(future)
                future.cancel()  # type: ignore[no-untyped-call]
                yield host, UpdateError(f"the worker of {host.name} was lost; restart it, and repeat the call")


def _sync(
    name: str, host: _Host, source: str, check: Callable[[str], object] | None, options: Mapping[str, Any]
) -> tuple[HostReport, int]:
    """Runs on a host; returns the report, and the generation that the tree had before."""
    worker = on_this_worker(name)
    before = _status_if_any(worker.kit, host.dest)
    report = HostReport(host=host.name, before=before.version, after=before.version)
    began_s = time.monotonic()
    with worker.shard(host.number):
        try:
            done = worker.kit.sync(source, host.dest, **options)
            report = replace(report, after=done.version, bytes=done.bytes_received)
            if check is not None:
                check(host.dest)
        except Exception as error:
            report = replace(report, error=error)
    return replace(report, seconds=time.monotonic() - began_s), before.generation


def _roll_back(name: str, host: _Host, generations: Mapping[str, int]) -> str | None:
    """Runs on a host; returns the version that the tree has afterwards."""
    kit = on_this_worker(name).kit
    kit.rollback(host.dest, to=generations[host.name])
    return _status_if_any(kit, host.dest).version


def _rolled_back(report: HostReport, outcome: str | Exception | None) -> HostReport:
    if isinstance(outcome, Exception):
        return replace(report, error=outcome)
    return replace(report, after=outcome, rolled_back=True)


def _status(name: str, host: _Host) -> TreeStatus:
    """Runs on a host."""
    return on_this_worker(name).kit.status(host.dest)


def _status_if_any(kit: Toolkit, dest: str) -> TreeStatus:
    try:
        return kit.status(dest)
    except (PerfkitError, FileNotFoundError):
        return TreeStatus()
