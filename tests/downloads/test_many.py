"""Many files: their order, names and failures."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfkit import (
    BatchError,
    ConfigError,
    HTTPStatusError,
    Toolkit,
    TransferError,
    UnsafePathError,
)
from perfkit.downloads import manager
from perfkit.downloads.retry import is_shortage
from perfkit.downloads.transfer import Transfer
from perfkit.server.server import Server
from tests.support.command import PERFKIT
from tests.support.fakes import Exchange, Start
from tests.support.network import BODY, serve_body


def test_many_files_in_input_order(kit: Toolkit, site: Path, out: Path) -> None:
    bodies = {f"d{n % 7}/f{n:03}": random.Random(n).randbytes(n * 50) for n in range(200)}
    for name, body in bodies.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_bytes(body)
    with Server(site) as server:
        results = kit.download_many(((server.url + name, name) for name in bodies), out)
    assert [result.url for result in results] == [server.url + name for name in bodies]
    assert [Path(result.path) for result in results] == [out / name for name in bodies]
    assert all((out / name).read_bytes() == body for name, body in bodies.items())
    left = [name for _, _, names in os.walk(out) for name in names if "perfkit" in name]
    assert left == []


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_a_file_that_is_done_leaves_nothing_to_collect(
    kit: Toolkit, misbehaving: Start, out: Path, status: str
) -> None:
    """A list of 50,000 files takes no more memory for waiting until cycles are looked for, nor for errors."""
    server = misbehaving(lambda x: x.respond(status, b"small"))
    gc.collect()
    gc.disable()
    try:
        results = list(kit.iter_downloads([(f"{server.url}/{n}", f"{n}") for n in range(60)], out))
        left = sum(type(each) is Transfer for each in gc.get_objects())  # isinstance asks lazy objects of Django
    finally:
        gc.enable()
    assert left <= 16, "at most the last one of each worker"
    assert all((result.error is None) == status.startswith("200") for _, result in results)


def test_one_failure_does_not_stop_the_others(kit: Toolkit, site: Path, out: Path) -> None:
    """The batch goes on to its end, and then reports every result, in input order."""
    (site / "good").write_bytes(b"good")
    with Server(site) as server, pytest.raises(BatchError) as caught:
        kit.download_many([server.url + "missing", server.url + "good", "ftp://x/y", (server.url, "../escape")], out)
    missing, good, ftp, escape = caught.value.results
    assert isinstance(missing.error, HTTPStatusError)
    assert missing.error.status == 404
    assert good.error is None
    assert isinstance(ftp.error, ConfigError)
    assert isinstance(escape.error, UnsafePathError)
    assert "3 of 4 failed" in str(caught.value)
    assert os.listdir(out) == ["good"]
    assert os.listdir(out.parent) == [name for name in os.listdir(out.parent) if name in ("site", "out")]


@pytest.mark.parametrize("item", [5, SimpleNamespace(url=5), ("https://x/y",)])
def test_an_item_of_another_type_has_a_result(kit: Toolkit, out: Path, item: Any) -> None:
    """One whose `url` was no text, as in yarl, was left out of the results without a word."""
    with pytest.raises(BatchError) as caught:
        kit.download_many([item], out)
    (result,) = caught.value.results
    assert isinstance(result.error, ConfigError)


@pytest.mark.parametrize(("descriptors", "durable"), [(24, "0"), (12, "0"), (18, "1")])
def test_few_descriptors_mean_fewer_connections(
    misbehaving: Start, tmp_path: Path, descriptors: int, durable: str
) -> None:
    """From a distant server, sixteen files at once would take some fifty descriptors. None of them fails."""

    def respond(x: Exchange) -> None:
        time.sleep(0.03)
        x.serve(BODY)

    server = misbehaving(respond)
    urls = [f"{server.url}/{number}" for number in range(40)]
    limited = ["sh", "-c", f'ulimit -n {descriptors}; exec env PERFKIT_DURABLE={durable} "$@"', "sh", *PERFKIT]
    run = subprocess.run([*limited, "get", "-d", tmp_path, *urls], check=False, capture_output=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert {name: (tmp_path / name).read_bytes() == BODY for name in os.listdir(tmp_path)} == {
        f"{number}": True for number in range(40)
    }


def test_errors_that_cause_each_other_are_no_shortage_of_descriptors() -> None:
    """`raise a from b`, where b was raised while a was handled, makes such a circle."""
    error, cause = TransferError("http://x/", "broken"), OSError(errno.EIO, "broken")
    error.__cause__, cause.__context__ = cause, error
    assert not is_shortage(error)
    cause.__cause__ = OSError(errno.EMFILE, "too many")
    assert is_shortage(error)


def test_a_stream_without_end_is_read_as_workers_get_free(kit: Toolkit, site: Path, out: Path) -> None:
    """The source is never far ahead of the results, and closing the iterator ends the rest."""
    (site / "f").write_bytes(b"x")
    taken = 0
    with Server(site) as server:

        def urls():  # type: ignore[no-untyped-def]
            nonlocal taken
            while True:
                taken += 1
                yield server.url + "f", f"{taken}"

        results = kit.iter_downloads(urls(), out)
        for _ in range(300):
            _, result = next(results)
            assert result.error is None
        results.close()  # type: ignore[attr-defined]
    assert taken <= 300 + 4 * 8 * 3


def test_a_source_that_raises_ends_the_batch(kit: Toolkit, site: Path, out: Path) -> None:
    """What the caller's own generator raises reaches the caller."""
    (site / "f").write_bytes(b"x")

    def urls(base: str):  # type: ignore[no-untyped-def]
        yield base + "f", "one"
        raise LookupError("mine")

    with Server(site) as server, pytest.raises(LookupError, match="mine"):
        kit.download_many(urls(server.url), out)


def test_a_source_that_has_nothing_just_now(kit: Toolkit, site: Path, out: Path) -> None:
    """It may say so with None, without waiting itself, and is asked again some ten times a second."""
    (site / "f").write_bytes(b"x")
    asked = 0

    def urls(base: str):  # type: ignore[no-untyped-def]
        nonlocal asked
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            asked += 1
            yield None
        yield base + "f"

    with Server(site) as server:
        [(index, result)] = kit.iter_downloads(urls(server.url), out)
    assert (index, result.error) == (0, None)
    assert asked < 10


def test_a_large_result_comes_at_once(
    kit: Toolkit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another file is under way, and no tick is due."""
    monkeypatch.setattr(manager, "_TICK_S", 600)
    come = threading.Event()

    def handler(x: Exchange) -> None:
        if x.asked.path == "/large":
            x.serve(bytes(100_000))
        else:
            x.respond("200 OK", b"in time" if come.wait(100) else b"too late")

    server = misbehaving(handler)
    results = kit.iter_downloads([f"{server.url}/large", f"{server.url}/other"], out)
    assert next(results)[1].bytes == 100_000
    come.set()
    assert [result.error for _, result in results] == [None]
    assert (out / "other").read_bytes() == b"in time"


def test_the_same_destination_twice(kit: Toolkit, site: Path, out: Path) -> None:
    """One gets it; the other has an error that says why not."""
    (site / "f").write_bytes(b"x")
    with Server(site) as server, pytest.raises(BatchError) as caught:
        kit.download_many([(server.url + "f", "same"), (server.url + "f?2", "same")], out)
    errors = [result.error for result in caught.value.results]
    assert errors[0] is None
    assert isinstance(errors[1], TransferError)
    assert (out / "same").read_bytes() == b"x"


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_few_threads(
    make_kit: Callable[..., Toolkit], site: Path, out: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Where the system refuses more threads, those that run do all the work; without any, an error says so."""
    started, start = 0, threading.Thread.start

    def few(thread: threading.Thread) -> None:
        nonlocal started
        if thread.name.startswith("perfkit_"):
            started += 1
            if started > threads:
                raise RuntimeError("can't start new thread")
        start(thread)

    names = [str(number) for number in range(30)]
    for name in names:
        (site / name).write_bytes(name.encode())
    with Server(site) as server:
        monkeypatch.setattr(threading.Thread, "start", few)
        kit, urls = make_kit(), [server.url + name for name in names]
        for _ in range(2):
            if threads:
                assert len(kit.download_many(urls, out)) == 30
            else:
                with pytest.raises(OSError, match="no thread can be started"):
                    kit.download_many(urls, out)
        kit.close()
    assert sorted(os.listdir(out)) == (sorted(names) if threads else [])


def test_a_server_with_room_for_one_connection(
    kit: Toolkit, site: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves a kept connection until that is closed, and the other requests only then."""
    monkeypatch.setattr("perfkit.downloads.http.transport._PATIENCE_S", 0.05)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    for number in range(8):
        (site / f"{number}").write_bytes(b"%d" % number)
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site)) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            got = kit.download_many([f"http://127.0.0.1:{server.server_port}/{number}" for number in range(8)], out)
        finally:
            kit.close()  # ends the kept connection, which the server would serve for ever
            server.shutdown()
            serving.join()
    assert [each.retries for each in got] == [0] * 8
    assert [(out / f"{number}").read_bytes() for number in range(8)] == [b"%d" % number for number in range(8)]


def test_a_result_is_there_whenever_the_caller_looks(
    kit: Toolkit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a worker's last step, where a loaded machine may run the caller."""

    class Open(dict[Transfer, int]):
        """Gives the caller time to look as soon as a transfer has gone."""

        def pop(self, transfer: Transfer, *default: Any) -> Any:
            index = super().pop(transfer, *default)
            time.sleep(0.1)
            return index

        def __delitem__(self, transfer: Transfer) -> None:
            super().__delitem__(transfer)
            time.sleep(0.1)

    class Batch(manager._Batch):
        def __init__(self, *, announced: bool) -> None:
            super().__init__(announced=announced)
            self.open = Open()

    monkeypatch.setattr(manager, "_Batch", Batch)
    monkeypatch.setattr(manager, "_TICK_S", 0.005)
    server = misbehaving(lambda x: x.respond("200 OK", b"small"))
    assert [result.bytes for result in kit.download_many([f"{server.url}/{n}" for n in range(3)], out)] == [5, 5, 5]


def test_an_empty_batch(kit: Toolkit, out: Path) -> None:
    assert kit.download_many([], out) == []


def test_names_from_urls_and_servers(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """Content-Disposition names the file (RFC 6266), or else the URL does, or else there is a plain name."""

    def handler(x: Exchange) -> None:
        headers = {"Content_Disposition": "attachment; filename*=UTF-8''na%C3%AFve.txt"} if "d?" in x.asked.path else {}
        x.respond("200 OK", b"x", **headers)

    url = misbehaving(handler).url
    results = kit.download_many([f"{url}/d?1", f"{url}/a%20b.txt", f"{url}/"], out)
    assert [os.path.basename(result.path) for result in results] == ["naïve.txt", "a b.txt", "download"]
    assert sorted(os.listdir(out)) == ["a b.txt", "download", "naïve.txt"]


def test_into_the_current_directory(
    kit: Toolkit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a destination, `download_many` writes here."""
    monkeypatch.chdir(out)
    kit.download_many([f"{misbehaving(serve_body).url}/f"])
    assert (out / "f").stat().st_size == len(BODY)


def test_into_a_new_directory(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """A destination with a slash at its end is a directory, and is made."""
    assert kit.download(f"{misbehaving(serve_body).url}/f", f"{out}/new/deep/").path == f"{out}/new/deep/f"
