"""A batch of downloads on the workers of a cluster, in shards that Dask schedules, retries and moves."""

from __future__ import annotations

import functools
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dask
from distributed import Client, Future, get_worker

from perfkit.config import Config
from perfkit.contrib.dask.checkpoint import Checkpoint, identity_of
from perfkit.contrib.dask.cluster import ShardCount, Tasks, on_this_worker, state_of, toolkits
from perfkit.contrib.dask.cluster_progress import ClusterProgress
from perfkit.contrib.dask.objects import ObjectStore
from perfkit.downloads.manager import Item
from perfkit.downloads.request import Download, Request
from perfkit.errors import BatchError, CancelledError, ConfigError, TransferError
from perfkit.progress.meter import Progress
from perfkit.toolkit import Toolkit

_SHARD_FILES, _SHARD_BYTES = 256, 256 << 20
_AHEAD = 2  # shards submitted to the scheduler for each thread of the workers
_UPLOADS = 8  # at once, of a shard

Shard = list[tuple[int, Item]]  # items with their indices in the input


def download_many(
    client: Client,
    requests: Iterable[Item],
    dest: str | os.PathLike[str],
    *,
    config: Config | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[Download]:
    """Download many files on the workers of a cluster; like `Toolkit.download_many`, on several machines.

    The batch is cut into shards of up to 256 files or 256 MiB, as far as the requests have sizes, and each is a task.
    (Dask's settings `perfkit.shard-files` and `perfkit.shard-bytes` change that.) A shard whose worker is lost runs
    again on another worker, which keeps complete files and resumes partial ones if both workers see the same directory.

    Args:
        client: the client of the cluster. perfkit must be installed on its workers.
        dest: a directory, as an absolute path that exists on every worker: shared storage, or each machine's own disk.
            Or the URL of a place that fsspec can write to, such as `s3://bucket/prefix`; a file is downloaded to its
            worker's disk first, and appears at the URL in one step.
        config: settings of the workers' Toolkits. `rate_limit` and `connections_per_host` are limits for all of them
            together, however many there are; if a host asks one of them to wait (`Retry-After`), all do.
        progress: displays the progress of all workers, such as `Bars()`; none by default.
        checkpoint: a directory on the client's disk that records which files are done. If the client or the scheduler
            is lost, the same call continues with the rest.

    Returns:
        One result per request, in input order.

    Raises:
        BatchError: some failed; the others are complete, and `results` has all of them, in input order.
        ConfigError: `dest` is relative, or the cluster has no workers.
        UpdateError: the checkpoint is damaged.
        OSError: the scheduler was lost, or the checkpoint can't be written.
    """
    dest = os.fspath(dest).removeprefix("file://")
    if not os.path.isabs(dest) and "://" not in dest:
        raise ConfigError(
            f"dest must be an absolute path, since each worker has its own current directory, or a URL; got {dest!r}"
        )
    threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
    if threads == 0:
        raise ConfigError("the cluster has no workers; start some, or wait for them with client.wait_for_workers(1)")
    done = Checkpoint(None if checkpoint is None else os.fspath(checkpoint), dest)
    items = list(requests)
    results = _known(items, done)
    shards = cut_into_shards([(index, item) for index, item in enumerate(items) if index not in results], threads)
    display = ClusterProgress(progress, [_size(item) for item in items], results.values(), unit="file")
    with toolkits(client, config or Config()) as name:
        for shard, ended in _run(client, name, shards, dest, display):
            done.add((item, download) for (_, item), download in zip(shard, ended, strict=True))
            results.update(zip((index for index, _ in shard), ended, strict=True))
    display.finish()
    ordered = [results[index] for index in range(len(items))]
    if any(download.error is not None for download in ordered):
        raise BatchError(ordered)
    return ordered


def _known(items: Sequence[Item], done: Checkpoint) -> dict[int, Download]:
    """The results that are known before anything is requested: files that are done, and errors for duplicate names."""
    results: dict[int, Download] = {}
    names: dict[str, str] = {}
    for index, item in enumerate(items):
        url, (_, name) = _url(item), identity_of(item)
        if name is not None and name in names:
            reason = f"{name!r} is the name of {names[name]} too; give each its own"
            results[index] = Download(url=url, path="", error=TransferError(url, reason))
        elif (download := done.find(item)) is not None:
            results[index] = replace(download, url=url)
        if name is not None:
            names[name] = url
    return results


def cut_into_shards(items: Shard, threads: int) -> list[Shard]:
    """Cut a batch so that each thread has something to do, and shards are of moderate size."""
    most_files = int(dask.config.get("perfkit.shard-files", _SHARD_FILES))
    most_bytes = int(dask.config.get("perfkit.shard-bytes", _SHARD_BYTES))
    most_files = max(1, min(most_files, math.ceil(len(items) / threads)))
    shards: list[Shard] = []
    size = 0
    for index, item in items:
        expected = _size(item) or 0
        if not shards or len(shards[-1]) == most_files or size + expected > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append((index, item))
        size += expected
    return shards


def _run(
    client: Client, name: str, shards: Sequence[Shard], dest: str, display: ClusterProgress
) -> Iterator[tuple[Shard, list[Download]]]:
    """Run all shards; yields each with its results as it ends."""
    waiting = iter(enumerate(shards))
    with Tasks[int](client, name) as tasks:
        while True:
            state = state_of(client, name)
            display.update(state)
            room = max(1, _AHEAD * sum(state.threads.values())) - len(tasks.running)
            for number, shard in itertools.islice(waiting, max(0, room)):
                fetch = functools.partial(_fetch, name, number, [item for _, item in shard], dest)
                tasks.start("download", number, number, fetch)
            if not tasks.running:
                return
            for number, future in tasks.ended():
                results = _results(shards[number], future)
                display.ended(number, results)
                future.release()  # type: ignore[no-untyped-call]
                yield shards[number], results


def _fetch(name: str, number: int, batch: Sequence[Item], dest: str) -> list[Download]:
    """Runs on a worker: download the files of a shard, and upload them if `dest` is a URL."""
    worker = on_this_worker(name)
    with worker.shard(number) as shard:
        if "://" not in dest:
            found = dict(_downloads(worker.kit, shard, batch, dest))
        else:
            place = tempfile.TemporaryDirectory(prefix="perfkit-", dir=get_worker().local_directory)
            with place as local, ThreadPoolExecutor(_UPLOADS) as pool:
                upload = functools.partial(_upload, ObjectStore(dest), local)
                uploads = [(at, pool.submit(upload, each)) for at, each in _downloads(worker.kit, shard, batch, local)]
                found = {at: each.result() for at, each in uploads}
    return [found[at] for at in range(len(batch))]


def _downloads(kit: Toolkit, shard: ShardCount, batch: Sequence[Item], dest: str) -> Iterator[tuple[int, Download]]:
    """Download the files of a shard and count them; yields each with its index in the shard as it ends.

    Raises:
        CancelledError: the worker is closing, so another one has to run the shard.
    """
    for at, download in kit.iter_downloads(batch, dest):
        if isinstance(download.error, CancelledError):
            raise download.error
        shard.files += 1
        shard.failed += download.error is not None
        shard.bytes += download.bytes
        yield at, download


def _upload(store: ObjectStore, local: str, download: Download) -> Download:
    """Move a file from the worker's disk to the store."""
    if download.error is not None:
        return download
    try:
        url = store.put(download.path, os.path.relpath(download.path, local))
    except Exception as error:  # from whatever package fsspec uses
        reason = f"it was downloaded, but could not be stored: {error}"
        return replace(download, path="", error=TransferError(download.url, reason, transient=True))
    os.unlink(download.path)
    return replace(download, path=url)


def _results(shard: Shard, future: Future[list[Download]]) -> list[Download]:
    """The results of a shard; if it failed as a whole, a failure for each of its files."""
    failure = future.exception()  # type: ignore[no-untyped-call]
    if failure is None:
        return list(future.result())
    reason = f"the Dask task failed: {failure}"
    return [
        Download(url=url, path="", error=TransferError(url, reason, transient=True))
        for url in (_url(item) for _, item in shard)
    ]


def _url(item: Item) -> str:
    return item.url if isinstance(item, Request) else item if isinstance(item, str) else item[0]


def _size(item: Item) -> int | None:
    return item.expected_bytes if isinstance(item, Request) else None
