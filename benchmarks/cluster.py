"""A Dask cluster of processes on this machine: overhead against one Toolkit, messages, memory, and the shared limit.

    python benchmarks/cluster.py overhead [--files 20000] [--pairs 3]
    python benchmarks/cluster.py limit [--only steady killed paused late]
    python benchmarks/cluster.py model

See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from origin import Nginx

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.dask_cluster import Cluster

MB = 10**6
RATE = 20 << 20
PIECE = 16 << 10

ALONE = """
import sys, time
from perfkit import Config, Toolkit
url, dest, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
items = [(f"{url}/{number}", str(number)) for number in range(count)]
began = time.monotonic()
with Toolkit(Config()) as kit:
    done = kit.download_many(items, dest)
print(time.monotonic() - began)
"""

# Its first call is not measured: it loads perfkit on the workers, and what is counted is there from then on.
TOGETHER = """
import time
client.wait_for_workers(2)
def rss(): return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
def peak(): return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
idle = client.run(rss)
download_many(client, [(f"{url}/0", f"first-{number}") for number in range(2)], dest)
def count(dask_scheduler):
    real = dask_scheduler.handlers["perfkit_lease"]
    async def lease(**message):
        dask_scheduler.leases = getattr(dask_scheduler, "leases", 0) + 1
        return await real(**message)
    dask_scheduler.handlers["perfkit_lease"] = lease
    dask_scheduler.tasks_before = dask_scheduler.transition_counter
client.run_on_scheduler(count)
items = [(f"{url}/{number}", str(number)) for number in range(int(rest[0]))]
began = time.monotonic()
done = download_many(client, items, dest)
seconds = time.monotonic() - began
beyond = [after - idle[worker] for worker, after in client.run(peak).items()]
leases = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.leases)
tasks = client.run_on_scheduler(lambda dask_scheduler: sum(
    prefix.state_counts["released"] + prefix.state_counts["forgotten"] + prefix.state_counts["memory"]
    for name, prefix in dask_scheduler.task_prefixes.items() if name.startswith("perfkit")))
print(json.dumps({"seconds": seconds, "beyond_kib": max(beyond), "leases": leases, "tasks": tasks}))
"""

LIMITED = """
with dask.config.set({"perfkit.shard-files": 1}):
    client.wait_for_workers(4)
    items = [(f"{url}/{number}", str(number)) for number in range(int(rest[0]))]
    print(len(download_many(client, items, dest, config=Config(rate_limit=int(rest[1]), backoff_base_s=0.1))))
"""


def overhead(files: int, pairs: int) -> None:
    """One Toolkit, and two workers, by turns."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        (site := place / "site").mkdir()
        for number in range(files):
            (site / str(number)).write_bytes(os.urandom(8192))
        server = stack.enter_context(Nginx(site, place / "nginx"))
        ratios: list[float] = []
        for pair in range(pairs):
            out = place / f"alone-{pair}"
            command = [sys.executable, "-c", ALONE, server.http, str(out), str(files)]
            alone_s = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            with cluster(place / f"cluster-{pair}", 2) as workers:
                found = workers.run(TOGETHER, place / f"together-{pair}", server.http, str(files))
            ratios.append(found["seconds"] / alone_s)
            print(
                f"one Toolkit {alone_s:.2f} s, two workers {found['seconds']:.2f} s: {ratios[-1]:.2f}; "
                f"{found['tasks'] - 2} tasks; {found['leases'] / found['seconds'] / 2:.1f} leases a second a worker; "
                f"{found['beyond_kib'] * 1024 / MB:.0f} MB beyond an idle worker",
                flush=True,
            )
        print(f"median ratio {median(ratios):.2f} (bar 1.1)")


@contextlib.contextmanager
def cluster(place: Path, count: int) -> Iterator[Cluster]:
    place.mkdir()
    with Cluster(place) as found:
        for number in range(count):
            found.add_worker(str(number))
        yield found


class Source:
    """Sends zeros, and notes when: what it was ordered, and how many bytes in each tenth of a second."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)  # what it holds was not received
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.sent: list[tuple[float, int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as lines:
            while lines.readline():
                headers = {}
                while (line := lines.readline().decode().strip()) != "":
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                start, end = 0, self._size
                status = "200 OK"
                if "range" in headers:
                    first, _, last = headers["range"].removeprefix("bytes=").partition("-")
                    start, end = int(first), int(last) + 1 if last else self._size
                    status = f"206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{self._size}"
                head = f'HTTP/1.1 {status}\r\nETag: "zeros"\r\nContent-Length: {end - start}\r\n\r\n'
                connection.sendall(head.encode())
                while start < end:
                    piece = min(PIECE, end - start)
                    connection.sendall(bytes(piece))
                    start += piece
                    with self._lock:
                        self.sent.append((time.monotonic(), piece))

    def close(self) -> None:
        self._listener.close()


def limit(scenarios: list[str]) -> None:
    """20 MiB/s for four workers: the mean of ten seconds, and the fastest one."""
    acts: dict[str, list[tuple[float, Callable[[Cluster], None]]]] = {
        "steady": [],
        "killed": [(3.0, lambda workers: workers.kill("0"))],
        "paused": [
            (2.0, lambda workers: workers.kill("0", signal.SIGSTOP)),
            (5.0, lambda workers: workers.kill("0", signal.SIGCONT)),
        ],
        "late": [(0.0, lambda workers: workers.add_worker("late"))],
    }
    for scenario in scenarios:
        source = Source(24 << 20)
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
            workers = stack.enter_context(cluster(place / "cluster", 4))
            client = stack.enter_context(workers.start(LIMITED, place / "out", source.url, "16", str(RATE)))
            while not source.sent:
                time.sleep(0.01)
            began_s = source.sent[0][0] + 1.5
            for at_s, act in acts[scenario]:
                time.sleep(max(0.0, began_s + at_s - time.monotonic()))
                act(workers)
            time.sleep(max(0.0, began_s + 10.0 - time.monotonic()))
            client.kill()
        tenths = [0] * 100
        for at_s, count in list(source.sent):
            if 0 <= (tenth := int((at_s - began_s) * 10)) < 100:
                tenths[tenth] += count
        source.close()
        seconds = [sum(tenths[at : at + 10]) / RATE for at in range(91)]
        mean = sum(tenths) / 10 / RATE
        print(
            f"{scenario:8} mean {mean - 1:+.1%}, seconds {min(seconds) - 1:+.1%} to {max(seconds) - 1:+.1%}", flush=True
        )


@dataclass(frozen=True)
class Costs:
    """What was measured on one core of this machine, and what is assumed of the network."""

    file_s: float = 0.00055  # of a worker's processor for a small file
    byte_s: float = 1 / 900e6  # and for each byte
    task_s: float = 0.004  # of the scheduler for a task, its result included
    result_s: float = 0.00006  # and of the client for each file of it
    lease_s: float = 0.0004  # of the scheduler for a lease
    leases_per_s: float = 500.0  # of all workers together, at most; four for each
    host_bytes_per_s: float = 125e6  # 1 Gbit/s
    origin_bytes_per_s: float = 1.25e9  # 10 Gbit/s
    origin_file_s: float = 1 / 20_000  # of the origin for a request
    round_trip_s: float = 0.02
    connections: int = 16  # of each worker: `connections_per_host` is as many times that as there are workers


def simulate(hosts: int, files: int, size: int, shard: int, costs: Costs, *, cdn: bool) -> tuple[float, str]:
    """Seconds for a batch, and what was busy longest: workers take shards from a scheduler that handles one message
    at a time, and share the origin.
    """
    leasing = min(0.9, min(costs.leases_per_s, 4 * hosts) * costs.lease_s)  # of the scheduler's time
    active = min(hosts, -(-files // shard))
    share = costs.host_bytes_per_s if cdn else min(costs.host_bytes_per_s, costs.origin_bytes_per_s / active)
    per_file = {
        "worker": costs.file_s + size * costs.byte_s,
        "link of the host": size / costs.host_bytes_per_s,
        "link of the origin": 0.0 if cdn else size * active / costs.origin_bytes_per_s,
        "requests at the origin": 0.0 if cdn else costs.origin_file_s * active,
        "round trips": (costs.round_trip_s + size / share) / costs.connections,
    }
    slowest = max(per_file, key=lambda name: per_file[name])
    free = [0.0] * active  # when each worker is
    scheduler_s = busy_s = 0.0
    left = files
    while left:
        count = min(shard, left)
        left -= count
        asked_s = heapq.heappop(free)
        cost_s = (costs.task_s + count * costs.result_s) / (1 - leasing)
        scheduler_s = max(scheduler_s, asked_s) + cost_s
        busy_s += cost_s
        heapq.heappush(free, scheduler_s + count * per_file[slowest])
    total_s = max(free)
    if busy_s > 0.5 * total_s:
        slowest = "scheduler"
    elif total_s > 1.5 * per_file[slowest] * files / hosts:
        slowest = "last shards"
    return total_s, slowest


def model(measured: tuple[float, float] | None) -> None:
    """A million files of 64 KiB."""
    costs = Costs()
    if measured is not None:
        print("20,000 files of 8 KiB on this machine, where two cores are shared with the server:")
        local = replace(costs, round_trip_s=0.0002, host_bytes_per_s=3e9, origin_bytes_per_s=3e9)
        for hosts, seconds in zip((1, 2), measured, strict=True):
            found, why = simulate(hosts, 20_000, 8192, 256, local, cdn=False)
            print(f"  {hosts}: {found:.1f} s ({why}), measured {seconds:.1f} s")
    for cdn in (False, True):
        print(
            f"\na million files of 64 KiB from {'a CDN' if cdn else 'one origin of 10 Gbit/s'}, by files per shard:\n"
        )
        print("| hosts | 16 | 64 | 256 | 1,024 | 4,096 |\n| --- | --- | --- | --- | --- | --- |")
        for hosts in (1, 10, 100, 1_000, 10_000):
            row = []
            for shard in (16, 64, 256, 1024, 4096):
                found, why = simulate(hosts, 10**6, 64 << 10, shard, costs, cdn=cdn)
                row.append(f"{found:.1f} s, {why}")
            print(f"| {hosts:,} | {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "limit", "model"))
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["steady", "killed", "paused", "late"])
    parser.add_argument("--measured", type=json.loads, help="seconds of one worker and of two, such as [12.1, 8.0]")
    arguments = parser.parse_args()
    if arguments.what == "overhead":
        overhead(arguments.files, arguments.pairs)
    elif arguments.what == "limit":
        limit(arguments.only)
    else:
        model(arguments.measured)


if __name__ == "__main__":
    main()
