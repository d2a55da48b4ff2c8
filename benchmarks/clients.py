"""Clients without a command of their own, each used as its documentation recommends.

`python clients.py CLIENT JOB.json` does it and prints `{"seconds": S}`, from after the imports to the last byte.
A job is `{"files": [{"url", "name", "sha256" or null}], "dest": DIR, "segments": N}`; segments are the most connections
for one file, for those that have them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Job = dict[str, Any]

_STREAMS = 8  # also the maximum of perfkit
_CHUNK = 1 << 20


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    """Wall time; with `BENCH_CPU` set, processor time."""
    clock = time.process_time if os.environ.get("BENCH_CPU") else time.perf_counter
    began = clock()
    yield
    print(json.dumps({"seconds": clock() - began}))


def perfkit(job: Job) -> None:
    """perfkit as a library."""
    from perfkit import Request, Toolkit

    with contextlib.suppress(ImportError):  # what it loads with its first request; a build before 2026-12 has it not
        import perfkit.downloads.http.session  # noqa: F401

    requests = [(file["url"], file["name"]) for file in job["files"] if not file["sha256"]]
    checked = [
        Request(file["url"], file["name"], checksum=f"sha256:{file['sha256']}")
        for file in job["files"]
        if file["sha256"]
    ]
    with _clock(), Toolkit() as kit:
        kit.download_many([*requests, *checked], job["dest"])


def requests_threads(job: Job) -> None:
    """The usual handwritten solution: a pool of threads with one shared Session."""
    from concurrent.futures import ThreadPoolExecutor

    import requests
    from requests.adapters import HTTPAdapter

    def fetch(file: dict[str, str]) -> None:
        response = session.get(file["url"])
        response.raise_for_status()
        with open(os.path.join(job["dest"], file["name"]), "wb") as out:
            out.write(response.content)

    with _clock(), requests.Session() as session, ThreadPoolExecutor(_STREAMS) as pool:
        session.mount("http://", HTTPAdapter(pool_maxsize=_STREAMS))
        list(pool.map(fetch, job["files"]))


def requests_content(job: Job) -> None:
    """The shortest loop there is: `Session.get` and `content`, nothing written."""
    import requests

    with _clock(), requests.Session() as session:
        for file in job["files"]:
            _ = session.get(file["url"]).content


def requests_loop(job: Job) -> None:
    """The loop from the documentation of requests, in one Session, with chunks of 64 KiB."""
    import hashlib

    import requests

    with _clock(), requests.Session() as session:
        for file in job["files"]:
            digest = hashlib.sha256() if file["sha256"] else None
            with session.get(file["url"], stream=True) as response:
                response.raise_for_status()
                with open(os.path.join(job["dest"], file["name"]), "wb") as out:
                    for chunk in response.iter_content(64 << 10):
                        out.write(chunk)
                        if digest is not None:
                            digest.update(chunk)
            if digest is not None and digest.hexdigest() != file["sha256"]:
                sys.exit(f"{file['name']}: wrong checksum")


def pypdl(job: Job) -> None:
    """pypdl; its blocking `start` checks once a second whether it is done."""
    from pypdl import Pypdl

    tasks = [
        {
            "url": file["url"],
            "file_path": os.path.join(job["dest"], file["name"]),
            **({"hash_algorithms": "sha256"} if file["sha256"] else {}),
        }
        for file in job["files"]
    ]
    segments = job["segments"]
    with _clock():
        loader = Pypdl(max_concurrent=_STREAMS)
        done = dict(loader.start(tasks=tasks, multisegment=segments > 1, segments=segments, display=False, block=True))
        for file in job["files"]:
            if file["sha256"] and not done[file["url"]].validate_hash(file["sha256"], "sha256"):
                sys.exit(f"{file['name']}: wrong checksum")
    if loader.failed:
        sys.exit(f"failed: {loader.failed[:3]}")


def parfive(job: Job) -> None:
    """parfive; `chunksize` is given for each file, since 2.3 ignores the one in SessionConfig."""
    from parfive import Downloader

    with _clock():
        loader = Downloader(max_conn=_STREAMS, max_splits=job["segments"], progress=False, overwrite=True)
        for file in job["files"]:
            checksum = f"sha-256={file['sha256']}" if file["sha256"] else None
            loader.enqueue_file(
                file["url"], path=job["dest"], filename=file["name"], checksum=checksum, chunksize=_CHUNK
            )
        results = loader.download()
    if results.errors:
        sys.exit(f"failed: {results.errors[:3]}")


def pooch(job: Job) -> None:
    """pooch, which fetches one file after the other; a name without a hash in the registry is not hashed."""
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    with _clock():
        registry = {file["name"]: file["sha256"] for file in job["files"]}
        urls = {file["name"]: file["url"] for file in job["files"]}
        box = pooch.create(path=job["dest"], base_url="", registry=registry, urls=urls)
        loader = pooch.HTTPDownloader(chunk_size=_CHUNK)
        for name in registry:
            box.fetch(name, downloader=loader)


CLIENTS = {
    "perfkit": perfkit,
    "requests-threads": requests_threads,
    "requests": requests_loop,
    "requests-content": requests_content,
    "pypdl": pypdl,
    "parfive": parfive,
    "pooch": pooch,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
