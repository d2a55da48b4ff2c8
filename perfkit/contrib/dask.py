"""Downloads on a Dask cluster: each worker has its own Toolkit, and all write below one directory.

Useful if the network of one machine is the limit, or if the files are needed on the workers.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

from distributed import Client, Future, Worker, WorkerPlugin, get_worker

from perfkit.config import Config
from perfkit.downloads.manager import Item
from perfkit.downloads.request import Download, Request
from perfkit.errors import BatchError, ConfigError, TransferError
from perfkit.toolkit import Toolkit

__all__ = ["download_many"]


def download_many(
    client: Client,
    requests: Iterable[Item],
    dest: str | os.PathLike[str],
    *,
    config: Config | None = None,
    files_per_task: int = 32,
) -> list[Download]:
    """Download many files on the workers of a cluster; like `Toolkit.download_many`, on several machines.

    Each file must have its own name. A task whose worker is lost runs again on another worker, and resumes partial
    files if both see the same directory.

    Args:
        client: the client of the cluster. perfkit must be installed on its workers.
        dest: a directory, as an absolute path that exists on every worker: shared storage, or each machine's own disk.
        config: settings of the workers' Toolkits. `rate_limit` is divided among the workers present at the start.
        files_per_task: files per task; more for small files, one for large files.

    Returns:
        One result per request, in input order.

    Raises:
        BatchError: some failed; the others are complete, and `results` has all of them, in input order.
        ConfigError: `dest` is relative, `files_per_task` is less than 1, or the cluster has no workers.
    """
    dest = os.fspath(dest)
    if not os.path.isabs(dest):
        raise ConfigError(
            f"dest must be an absolute path, since each worker has its own current directory; got {dest!r}"
        )
    if files_per_task < 1:
        raise ConfigError(f"files_per_task must be at least 1; got {files_per_task}")
    name = f"perfkit-{uuid.uuid4().hex}"
    batches = [list(batch) for batch in _batched(requests, files_per_task)]
    client.register_plugin(_OwnToolkit(_share(config or Config(), client)), name=name)
    try:
        futures = [client.submit(_fetch, name, batch, dest, pure=False) for batch in batches]
        try:
            results = [each for batch, future in zip(batches, futures, strict=True) for each in _results(batch, future)]
        finally:
            client.cancel(futures)  # type: ignore[no-untyped-call]
    finally:
        client.unregister_worker_plugin(name)  # type: ignore[no-untyped-call]
    if any(download.error is not None for download in results):
        raise BatchError(results)
    return results


class _OwnToolkit(WorkerPlugin):
    """A worker's Toolkit, shared by its tasks for the duration of the batch."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.kit: Toolkit | None = None

    def setup(self, worker: Worker) -> None:
        self.kit = Toolkit(self._config)

    def teardown(self, worker: Worker) -> None:
        if self.kit is not None:
            self.kit.close()


def _share(config: Config, client: Client) -> Config:
    """The settings of each worker."""
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if workers == 0:
        raise ConfigError("the cluster has no workers; start some, or wait for them with client.wait_for_workers(1)")
    if config.rate_limit is None:
        return config
    return replace(config, rate_limit=max(1, config.rate_limit // workers))


def _fetch(name: str, batch: Sequence[Item], dest: str) -> list[Download]:
    """Runs on a worker: download the files of a task."""
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, _OwnToolkit)
    assert plugin.kit is not None
    found = dict(plugin.kit.iter_downloads(batch, dest))
    return [found[index] for index in range(len(batch))]


def _results(batch: Sequence[Item], future: Future[list[Download]]) -> list[Download]:
    """The results of a task; if it failed as a whole, a failure for each of its files."""
    failure = future.exception()  # type: ignore[no-untyped-call]
    if failure is None:
        return list(future.result())
    reason = f"the Dask task failed: {failure}"
    urls = [each.url if isinstance(each, Request) else each if isinstance(each, str) else each[0] for each in batch]
    return [Download(url=url, path="", error=TransferError(url, reason, transient=True)) for url in urls]


def _batched(requests: Iterable[Item], size: int) -> Iterable[tuple[Item, ...]]:
    items = iter(requests)
    return iter(lambda: tuple(itertools.islice(items, size)), ())
