"""Downloads on a Dask cluster: real workers, in processes of their own or in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfkit.server.server import Server

# In another process, since distributed leaves threads behind.
PROGRAM = """
import json, os, signal, sys, tempfile
import dask
from distributed import Client, LocalCluster
from perfkit import BatchError, Config, ConfigError
from perfkit.contrib.dask import download_many

dask.config.set({"distributed.worker.daemon": True, "distributed.comm.timeouts.connect": "10s"})

def run(client, url, dest, names):
    %s

if __name__ == "__main__":
    url, dest, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=%s, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            print(json.dumps(run(client, url, dest, names)))
"""


def on_cluster(body: str, tmp_path: Path, url: str, *names: str, processes: bool = False) -> list[object]:
    script = tmp_path / "on_cluster.py"
    script.write_text(PROGRAM % (body.strip().replace("\n", "\n    "), processes), encoding="utf-8")
    command = [sys.executable, str(script), url, str(tmp_path / "out"), *names]
    ended = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout))


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    (tmp_path / "site").mkdir()
    names = [f"{number:02}.bin" for number in range(20)]
    for name in names:
        (tmp_path / "site" / name).write_bytes(os.urandom(3000) + name.encode())
    return names


def test_files_come_in_order_from_all_workers(tmp_path: Path, names: list[str]) -> None:
    """Results in input order, failed ones among them; a shared limit; the Toolkits are gone afterwards."""
    body = """
results = download_many(client, [url + name for name in names], dest, config=Config(retries=0), files_per_task=3)
told = [[each.bytes, os.path.basename(each.path)] for each in results]
try:
    download_many(client, [url + "00.bin", "nonsense", (url + "missing", "x")], dest, config=Config(rate_limit=10**9))
except BatchError as error:
    told.append([type(each.error).__name__ for each in error.results])
try:
    download_many(client, [url], "relative")
except ConfigError:
    told.append("relative")
told.append([sorted(name for name in plugins if name.startswith("perfkit-"))
             for plugins in client.run(lambda dask_worker: list(dask_worker.plugins)).values()])
return told
"""
    with Server(tmp_path / "site") as server:
        *told, failed, relative, plugins = on_cluster(body, tmp_path, server.url, *names)
    assert told == [[3006, name] for name in names]
    assert (failed, relative, plugins) == (["NoneType", "ConfigError", "HTTPStatusError"], "relative", [[], []])
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "site" / name).read_bytes()


@pytest.mark.once
def test_a_lost_worker(tmp_path: Path, names: list[str]) -> None:
    """One of the two is killed in the middle: what it had to do is done by another."""
    body = """
import threading
def kill(): os.kill(list(client.run(os.getpid).values())[0], signal.SIGKILL)
killer = threading.Timer(0.3, kill)
killer.start()
slow = Config(rate_limit=60_000)
results = download_many(client, [url + name for name in names], dest, config=slow, files_per_task=2)
killer.join()
return [each.bytes for each in results]
"""
    with Server(tmp_path / "site") as server:
        assert on_cluster(body, tmp_path, server.url, *names, processes=True) == [3006] * len(names)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "site" / name).read_bytes()
