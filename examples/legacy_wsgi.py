"""One Toolkit for a plain WSGI application and its threads, as in legacy code. It prints:

    8 requests at once: {'200 OK'} with {'65536 bytes fetched'}
    from a worker thread with a queue: 65536 bytes
    a missing file: 502 Bad Gateway

To run it:  python examples/legacy_wsgi.py
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from perfkit import PerfkitError, Toolkit
from perfkit.server.server import Server

kit = Toolkit()  # one per process, used by all threads, also after a fork; its own threads start when needed


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """GET /NAME fetches NAME from the origin into a local directory."""
    url, dest = environ["app.origin"] + environ["PATH_INFO"].lstrip("/"), environ["app.files"]
    try:
        done = kit.download(url, f"{dest}/{threading.get_ident()}.bin", resume=False)
    except PerfkitError as error:  # any failure of perfkit
        start_response("502 Bad Gateway", [])
        return [str(error).encode()]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{done.bytes} bytes fetched".encode()]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Server(scratch) as server, kit:
        Path(scratch, "a.bin").write_bytes(os.urandom(65536))

        def visit(path: str, answers: list[tuple[str, str]]) -> None:
            environ: dict[str, Any] = {"PATH_INFO": path, "app.origin": server.url, "app.files": scratch}
            setup_testing_defaults(environ)
            status: list[str] = []
            body = b"".join(application(environ, lambda line, _: status.append(line)))
            answers.append((status[0], body.decode()))

        answers: list[tuple[str, str]] = []
        threads = [threading.Thread(target=visit, args=("/a.bin", answers)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses, bodies = ({answer[part] for answer in answers} for part in (0, 1))
        print(f"{len(answers)} requests at once: {statuses} with {bodies}")

        jobs: queue.Queue[str] = queue.Queue()
        worker = threading.Thread(
            target=lambda: print(
                "from a worker thread with a queue:", kit.download(jobs.get(), f"{scratch}/w.bin").bytes, "bytes"
            )
        )
        worker.start()
        jobs.put(f"{server.url}a.bin")
        worker.join()

        refused: list[tuple[str, str]] = []
        visit("/missing.bin", refused)
        print(f"a missing file: {refused[0][0]}")


if __name__ == "__main__":
    main()
