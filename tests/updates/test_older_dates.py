"""A file that is put back to an older date, at a server that says 304 to every date from then on."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from tests.support.archive_tools import make_tar, make_zip
from tests.support.sites import publish
from tests.support.trees import tree_of, write_tree

pytestmark = pytest.mark.once

OLD, NEW = {"a": b"old" * 100}, {"a": b"new" * 100, "b": b"b"}
EARLIER_S, LATER_S = time.time() - 20_000, time.time() - 10_000


@contextlib.contextmanager
def http_server(root: Path) -> Iterator[tuple[str, list[int]]]:
    """Python's own server: no ETag, and a 304 that names no date; its URL, and the statuses that it sent."""
    statuses: list[int] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            statuses.append(int(code))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", statuses
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put(path: Path, data: bytes, modified_s: float) -> None:
    path.write_bytes(data)
    os.utime(path, (modified_s, modified_s))


def test_a_file_with_an_older_date_is_fetched(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    """The date that the answer names decides, in one request more; the file is not fetched again for it."""
    with http_server(site) as (url, statuses):
        put(site / "f", b"later" * 5000, LATER_S)
        kit.download(url + "f", tmp_path / "f")
        same = kit.download(url + "f", tmp_path / "f")
        assert (same.unchanged, same.bytes_received, same.requests) == (True, 0, 2)
        put(site / "f", b"earlier" * 5000, EARLIER_S)
        assert not kit.download(url + "f", tmp_path / "f").unchanged
        assert (tmp_path / "f").read_bytes() == b"earlier" * 5000
    assert statuses == [200, 304, 200, 304, 200]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_with_an_older_date_is_installed(kit: Toolkit, site: Path, tmp_path: Path, make: Any) -> None:
    with http_server(site) as (url, _):
        put(site / "pack", make(NEW), LATER_S)
        kit.sync(url + "pack", tmp_path / "tree")
        assert kit.sync(url + "pack", tmp_path / "tree").route == "none"
        put(site / "pack", make(OLD), EARLIER_S)
        kit.sync(url + "pack", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == OLD


def test_a_list_with_an_older_date_is_followed(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    """The list itself, and the files it names."""
    with http_server(site) as (url, _):
        put(site / "a", NEW["a"], LATER_S)
        put(site / "b", NEW["b"], LATER_S)
        put(site / "list", f"{url}a\n{url}b\n".encode(), LATER_S)
        kit.sync(url + "list", tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == NEW
        assert kit.sync(url + "list", tmp_path / "tree").bytes_received == 0
        put(site / "a", OLD["a"], EARLIER_S)
        put(site / "list", f"{url}a\n".encode(), EARLIER_S)
        kit.sync(url + "list", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == OLD


def test_a_pointer_with_an_older_date_is_followed(kit: Toolkit, tmp_path: Path) -> None:
    """A release that `rsync --times` brought from a machine with a slow clock."""
    site = publish(kit, tmp_path, OLD, "1")
    with http_server(site) as (url, _):
        os.utime(site / "perfkit.json", (LATER_S, LATER_S))
        kit.sync(url, tmp_path / "tree")
        write_tree(tmp_path / "src", NEW)
        kit.publish(tmp_path / "src", site, version="2")
        os.utime(site / "perfkit.json", (EARLIER_S, EARLIER_S))
        assert kit.sync(url, tmp_path / "tree").version == "2"
    assert tree_of(tmp_path / "tree") == NEW
