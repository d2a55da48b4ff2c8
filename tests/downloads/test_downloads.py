"""Downloads from servers that behave: what arrives, over how many connections, and what is told of it."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import (
    BatchError,
    CallbackProgress,
    Config,
    ConfigError,
    HTTPStatusError,
    IntegrityError,
    Request,
    Snapshot,
    Toolkit,
    TransferError,
    UnsafePathError,
)
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer, http_date

BODY = random.Random(1).randbytes(3 << 20)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site"
    path.mkdir()
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def serve_body(x: Exchange) -> None:
    x.serve(BODY)


# -- segments --------------------------------------------------------------------------------------------------------


def test_a_large_file_comes_in_segments(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Idle workers share the file while the first stream is under way."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(4)))
    download = make_kit().download(f"{server.url}/file", out / "file", checksum=SHA256)
    assert (out / "file").read_bytes() == BODY
    assert download.segments == 4
    assert download.checksum == SHA256
    assert download.bytes == len(BODY)
    assert all(each.method == "GET" for each in server.requests)
    assert "range" not in server.requests[0].headers, "shared caches would not store the answer"
    assert all(each.headers["if-match"] == '"v1"' for each in server.requests[1:])
    assert all(each.headers["accept-encoding"] == "identity" for each in server.requests)


def test_work_is_taken_from_the_largest_remaining_segment(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """The second connection takes half of the rest, the third half of the larger half."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(3)))
    make_kit(workers=3).download(f"{server.url}/file", out / "file")
    starts = [each.range[0] if each.range else 0 for each in server.requests[:3]]
    assert starts[0] == 0
    assert abs(starts[1] - len(BODY) / 2) < len(BODY) / 4  # the halves move while the first stream reads
    assert 0 < starts[2] != starts[1]
    assert (out / "file").read_bytes() == BODY


def test_one_connection_if_segments_are_off(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    assert make_kit(segments=1).download(f"{server.url}/file", out / "file").segments == 1
    assert len(server.requests) == 1


def test_a_straggler_is_hedged(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """One connection crawls at the end: a second try at its range finishes the file, and the crawl is cut."""
    crawling = threading.Event()

    def handler(x: Exchange) -> None:
        start = x.asked.range[0] if x.asked.range else 0
        if start > len(BODY) // 4 and not crawling.is_set():
            crawling.set()
            end = (x.asked.range or (0, None))[1] or len(BODY)
            x.head(
                "206 Partial Content",
                Content_Length=str(end - start),
                ETag='"v1"',
                Content_Range=f"bytes {start}-{end - 1}/{len(BODY)}",
            )
            x.drip(BODY[start:end], 0.001)
        else:
            x.serve(BODY, pause=lambda: crawling.wait(5))

    server = misbehaving(handler)
    kit = make_kit(workers=2, segments=3, stall_window_s=60.0, min_segment_bytes=1 << 20, read_timeout_s=20.0)
    download = kit.download(f"{server.url}/file", out / "file", checksum=SHA256)
    assert crawling.is_set()
    assert download.seconds < 15
    assert (out / "file").read_bytes() == BODY


def test_chunked_body(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """No length beforehand; the chunked coding itself tells the end."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        for start in range(0, len(BODY), 100_000):
            piece = BODY[start : start + 100_000]
            x.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        x.send(b"0\r\n\r\n")

    download = kit.download(f"{misbehaving(handler).url}/file", out / "file")
    assert (out / "file").read_bytes() == BODY
    assert download.length_known


def test_a_body_that_ends_with_its_connection(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """Nothing tells whether it is whole, and the result says so."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Connection="close")
        x.send(BODY)
        x.hang_up()

    download = kit.download(f"{misbehaving(handler).url}/file", out / "file")
    assert (out / "file").read_bytes() == BODY
    assert not download.length_known
    assert download.checksum is None


def test_empty_files(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """No range of an empty file can be satisfied, and none is asked for."""
    server = misbehaving(lambda x: x.respond("416 Range Not Satisfiable" if x.asked.range else "200 OK"))
    download = kit.download(f"{server.url}/file", out / "file")
    assert (out / "file").read_bytes() == b""
    assert (download.bytes, download.error) == (0, None)


# -- many files ------------------------------------------------------------------------------------------------------


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


def test_one_failure_does_not_stop_the_others(kit: Toolkit, site: Path, out: Path) -> None:
    """The batch ends, then tells of everything, in input order."""
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


def test_the_same_destination_twice(kit: Toolkit, site: Path, out: Path) -> None:
    """One gets it; the other is told why not."""
    (site / "f").write_bytes(b"x")
    with Server(site) as server, pytest.raises(BatchError) as caught:
        kit.download_many([(server.url + "f", "same"), (server.url + "f?2", "same")], out)
    errors = [result.error for result in caught.value.results]
    assert errors[0] is None
    assert isinstance(errors[1], TransferError)
    assert (out / "same").read_bytes() == b"x"


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


# -- what is there already -------------------------------------------------------------------------------------------


def test_refresh_asks_whether_the_file_changed(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """A 304 leaves the file alone; a new version replaces it."""
    version = ['"v1"', BODY]

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("if-none-match") == version[0]:
            x.head("304 Not Modified", ETag=str(version[0]))
        else:
            x.serve(version[1], etag=version[0])  # type: ignore[arg-type]

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", out / "f")
    inode = (out / "f").stat().st_ino
    count = len(server.requests)
    again = kit.download(f"{server.url}/f", out / "f")
    assert (again.unchanged, again.bytes_received, again.bytes, again.requests) == (True, 0, len(BODY), 1)
    assert len(server.requests) == count + 1
    assert (out / "f").stat().st_ino == inode
    version[:] = ['"v2"', BODY[::-1]]
    assert not kit.download(f"{server.url}/f", out / "f").unchanged
    assert (out / "f").read_bytes() == BODY[::-1]


def test_refresh_by_date_where_there_is_no_tag(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    modified = http_date(-3600)

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("if-modified-since") == modified:
            x.head("304 Not Modified")
        else:
            x.serve(BODY, etag=None, Last_Modified=modified, Date=http_date(0))

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", out / "f")
    assert kit.download(f"{server.url}/f", out / "f").unchanged


def test_a_file_touched_by_others_is_fetched_anew(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The conditional request speaks for the file that was downloaded, not for one edited since."""
    server = misbehaving(serve_body)
    kit.download(f"{server.url}/f", out / "f")
    (out / "f").write_bytes(b"edited")
    kit.download(f"{server.url}/f", out / "f")
    assert (out / "f").read_bytes() == BODY
    assert not any("if-none-match" in each.headers for each in server.requests)


def test_a_file_that_has_the_checksum_is_not_requested(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    (out / "f").write_bytes(BODY)
    same = kit.download(f"{server.url}/f", out / "f", checksum=SHA256)
    assert (same.unchanged, same.requests) == (True, 0)
    assert server.requests == []


def test_no_resume_fetches_everything(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    (out / "f").write_bytes(BODY)
    assert not kit.download(f"{server.url}/f", out / "f", checksum=SHA256, resume=False).unchanged
    assert server.requests


def test_the_mode_of_a_replaced_file_stays(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    (out / "f").write_bytes(b"old")
    (out / "f").chmod(0o640)
    kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    assert (out / "f").stat().st_mode & 0o777 == 0o640


def test_the_mode_of_a_new_file_follows_the_umask(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    before = os.umask(0o027)
    try:
        kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    finally:
        os.umask(before)
    assert (out / "f").stat().st_mode & 0o777 == 0o640


# -- mirrors and checksums -------------------------------------------------------------------------------------------


def test_mirrors_in_order(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """A dead origin and one that refuses; the third has it, and the bytes are checked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}/f"
    refusing, good = misbehaving(lambda x: x.respond("404 Not Found")), misbehaving(serve_body)
    mirrors = [f"{refusing.url}/f", f"{good.url}/f"]
    kit.download(dead, out / "f", mirrors=mirrors, checksum=SHA256)
    assert (out / "f").read_bytes() == BODY
    assert len(refusing.requests) == 1


def test_a_mirror_finishes_what_the_origin_began(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """With a checksum, ranges are kept across servers."""

    def dies(x: Exchange) -> None:
        if x.number > 1:
            return x.respond("404 Not Found")
        x.head("200 OK", Content_Length=str(len(BODY)), ETag='"a"')
        x.send(BODY[: 2 << 20])
        return x.hang_up()

    origin, mirror = misbehaving(dies), misbehaving(lambda x: x.serve(BODY, etag='"b"'))
    download = kit.download(f"{origin.url}/f", out / "f", mirrors=[f"{mirror.url}/f"], checksum=SHA256)
    assert (out / "f").read_bytes() == BODY
    assert download.bytes_received < len(BODY) + (1 << 20)


def test_a_mirror_with_other_bytes(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The origin is wrong, the mirror right: the checksum decides, and the wrong bytes are never published."""
    bad, good = misbehaving(lambda x: x.serve(BODY[::-1])), misbehaving(serve_body)
    kit.download(f"{bad.url}/f", out / "f", mirrors=[f"{good.url}/f"], checksum=SHA256)
    assert (out / "f").read_bytes() == BODY


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5", "SHA-1", "blake2b", "sha3-256"])
def test_checksums_of_every_kind(kit: Toolkit, misbehaving: Start, out: Path, algorithm: str) -> None:
    name = algorithm.lower().replace("-1", "1").replace("-", "_")
    right = hashlib.new(name, BODY).hexdigest()
    server = misbehaving(serve_body)
    assert kit.download(f"{server.url}/f", out / "f", checksum=f"{algorithm}:{right.upper()}").checksum
    wrong_sum = f"{algorithm}:{'0' * len(right)}"
    with pytest.raises(IntegrityError, match=right) as caught:
        kit.download(f"{server.url}/g", out / "g", checksum=wrong_sum)
    assert caught.value.actual.endswith(right)
    assert os.listdir(out) == ["f"]


# -- headers and secrets ---------------------------------------------------------------------------------------------


def test_headers_and_auth_go_to_their_origin_only(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """A redirect to another origin sees neither the caller's headers, nor its password, nor the netrc's."""
    store = misbehaving(serve_body)
    origin = misbehaving(
        lambda x: x.respond("302 Found", Location=f"{store.url.replace('127.0.0.1', 'localhost')}/blob")
    )
    request = Request(f"{origin.url}/f", "f", headers={"X-Token": "secret", "Cookie": "a=b"}, auth=("me", "word"))
    kit = make_kit(headers={"X-Config": "secret too"})
    kit.download_many([request], out)
    first, second = origin.requests[0].headers, store.requests[0].headers
    assert first["x-token"] == "secret"
    assert first["x-config"] == "secret too"
    assert first["authorization"].startswith("Basic ")
    assert not {"x-token", "x-config", "authorization", "cookie"} & set(second)
    assert (out / "f").read_bytes() == BODY


def test_a_redirect_inside_the_origin_keeps_headers(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    def handler(x: Exchange) -> None:
        if x.asked.path == "/f":
            x.respond("307 Temporary", Location="/real")
        else:
            x.serve(BODY)

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", out / "f", headers={"X-Token": "secret"})
    assert all(each.headers["x-token"] == "secret" for each in server.requests)


def test_mirrors_of_other_origins_get_no_secrets(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    origin, mirror = misbehaving(lambda x: x.respond("500 No")), misbehaving(serve_body)
    kit.download(f"{origin.url}/f", out / "f", mirrors=[f"{mirror.url}/f"], headers={"X-Token": "secret"})
    assert "x-token" in origin.requests[0].headers
    assert not any("x-token" in each.headers for each in mirror.requests)


def test_password_in_the_url(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """It is sent as Basic authentication, and shown nowhere."""
    server = misbehaving(lambda x: x.respond("403 Forbidden"))
    with pytest.raises(HTTPStatusError) as caught:
        kit.download(server.url.replace("//", "//me:secret@") + "/f", out / "f")
    assert server.requests[0].headers["authorization"] == "Basic bWU6c2VjcmV0"
    assert "secret" not in str(caught.value)


def test_cookies_of_a_server_come_back_to_it(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """As in a requests session."""

    def handler(x: Exchange) -> None:
        if "cookie" not in x.asked.headers and x.number == 1:
            x.respond("302 Found", Location="/again", Set_Cookie="session=7; Path=/")
        else:
            x.serve(BODY)

    server = misbehaving(handler)
    make_kit(workers=1).download(f"{server.url}/f", out / "f")
    assert server.requests[1].headers["cookie"] == "session=7"


# -- the rate limit --------------------------------------------------------------------------------------------------


def test_rate_limit_changes_while_running(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """So slow that it would take minutes, until the limit is lifted."""
    lifted: list[int] = []

    def lift(snapshot: Snapshot) -> None:
        if not lifted and snapshot.received_bytes:
            lifted.append(snapshot.received_bytes)
            kit.set_rate_limit(None)

    kit = make_kit(progress=CallbackProgress(lift), rate_limit=20_000)
    download = kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    assert lifted[0] < 100_000
    assert download.seconds < 30
    assert (out / "f").read_bytes() == BODY


def test_rate_limit_of_one_transfer(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """It slows its own file and no other."""
    server = misbehaving(serve_body)
    body_s = 0.5
    slow = Request(f"{server.url}/slow", "slow", rate_limit=int(len(BODY) / body_s))
    slow_result, fast_result = make_kit().download_many([slow, (f"{server.url}/fast", "fast")], out)
    assert slow_result.seconds > 0.8 * body_s
    assert fast_result.seconds < slow_result.seconds


def test_rate_limit_holds_together(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Several files share one limit: it takes at least as long as the limit says."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY[: 1 << 19]))
    kit = make_kit(rate_limit=4 << 20)
    results = kit.download_many([(f"{server.url}/{n}", str(n)) for n in range(4)], out)
    assert max(result.seconds for result in results) > 0.8 * (2 << 20) / (4 << 20)


# -- one Toolkit, many callers ---------------------------------------------------------------------------------------


def test_many_threads_share_one_toolkit(kit: Toolkit, site: Path, out: Path) -> None:
    """Each caller gets its own results and its own errors."""
    for n in range(20):
        (site / f"{n}").write_bytes(bytes([n]) * 1000)
    failures: list[BaseException] = []

    def caller(number: int) -> None:
        try:
            here = out / str(number)
            results = kit.download_many([(f"{server.url}{n}", f"{n}") for n in range(20)], here)
            assert [result.bytes for result in results] == [1000] * 20
            assert all((here / f"{n}").read_bytes() == bytes([n]) * 1000 for n in range(20))
            with pytest.raises(HTTPStatusError):
                kit.download(f"{server.url}missing-{number}", here / "missing")
        except BaseException as error:
            failures.append(error)

    with Server(site) as server:
        threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_two_callers_one_destination(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """The second is refused while the first is at it."""
    begun, release = threading.Event(), threading.Event()

    def handler(x: Exchange) -> None:
        begun.set()
        x.serve(BODY, pause=lambda: release.wait(10))

    kit, server = make_kit(segments=1), misbehaving(handler)
    thread = threading.Thread(target=kit.download, args=(f"{server.url}/f", out / "f"))
    thread.start()
    begun.wait(5)
    try:
        with pytest.raises(TransferError, match="destination"):
            kit.download(f"{server.url}/g", out / "f")
    finally:
        release.set()
        thread.join()
    assert (out / "f").read_bytes() == BODY


def test_after_a_fork(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The child of a process with a Toolkit in use can use it too (gunicorn, Celery prefork)."""
    server = misbehaving(serve_body)
    kit.download(f"{server.url}/f", out / "parent")
    child = os.fork()
    if child == 0:  # pragma: no branch
        try:
            kit.download(f"{server.url}/f", out / "child")
            kit.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (out / "child").read_bytes() == BODY
    kit.download(f"{server.url}/f", out / "parent2")
    assert (out / "parent2").read_bytes() == BODY


def test_fork_in_the_middle_of_a_download(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """The parent's transfer goes on in the parent; the child starts clean."""
    half, release = threading.Event(), threading.Event()

    def handler(x: Exchange) -> None:
        if x.asked.path == "/slow":
            half.set()
            x.serve(BODY, pause=lambda: release.wait(10))
        else:
            x.serve(BODY)

    kit, server = make_kit(segments=1), misbehaving(handler)
    thread = threading.Thread(target=kit.download, args=(f"{server.url}/slow", out / "slow"))
    thread.start()
    assert half.wait(5)
    child = os.fork()
    if child == 0:
        try:
            kit.download(f"{server.url}/f", out / "child")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    thread.join()
    assert (out / "slow").read_bytes() == BODY
    assert (out / "child").read_bytes() == BODY


def test_a_closed_toolkit(out: Path) -> None:
    """It says so, and may be closed again."""
    kit = Toolkit(Config())
    kit.close()
    kit.close()
    with pytest.raises(ConfigError, match="closed"):
        kit.download("http://127.0.0.1:9/", out / "f")


def test_without_a_with_block(misbehaving: Start, out: Path) -> None:
    kit = Toolkit()
    try:
        kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    finally:
        kit.close()
    assert (out / "f").read_bytes() == BODY


def test_progress_that_raises_ends_the_work(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """A callback's exception reaches the caller; nothing goes on behind its back."""

    def refuse(snapshot: Snapshot) -> None:
        if snapshot.received_bytes:
            raise RuntimeError("enough")

    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.stopped.wait(10)))
    with pytest.raises(RuntimeError, match="enough"):
        make_kit(progress=CallbackProgress(refuse), segments=1).download(f"{server.url}/f", out / "f")
    assert not (out / "f").exists()


def test_progress_adds_up(make_kit: MakeKit, site: Path, out: Path) -> None:
    """The last snapshot has all files and all bytes."""
    seen: list[Snapshot] = []
    for n in range(30):
        (site / f"{n}").write_bytes(b"x" * 10_000)
    with Server(site) as server:
        kit = make_kit(progress=CallbackProgress(seen.append))
        kit.download_many([(f"{server.url}{n}", f"{n}") for n in range(30)], out)
        kit.download_many(((f"{server.url}{n}", f"{n}") for n in range(30)), out / "again")
    last = seen[-1]
    assert (last.files_done, last.files_total, last.received_bytes, last.total_bytes) == (30, 30, 300_000, 300_000)
