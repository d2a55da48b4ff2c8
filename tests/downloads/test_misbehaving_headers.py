"""Servers with odd statuses, redirects and headers: right bytes or a typed error, and no wrong file."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import (
    HTTPStatusError,
    Request,
    Toolkit,
    TransferError,
    TransferTimeoutError,
)
from tests.support.fakes import Exchange, MisbehavingServer, http_date
from tests.support.kits import SHORT_TIMEOUTS
from tests.support.misbehaviour import BODY, assert_fails, assert_right, fetch
from tests.support.tools import first_everywhere

pytestmark = pytest.mark.usefixtures("bounded_time")


Start = Callable[..., MisbehavingServer]


# -- statuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", first_everywhere("429 Too Many Requests", "503 Service Unavailable"))
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: str, form: str) -> None:
    """Both forms are obeyed: the next request comes no sooner."""
    times: list[float] = []

    def handler(x: Exchange) -> None:
        times.append(time.time())
        if x.number == 1:
            x.respond(status, Retry_After="1" if form == "seconds" else http_date(2))
        else:
            x.serve(BODY[:1000])

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path, BODY[:1000])
    assert times[1] - times[0] >= 0.95


def test_retry_after_holds_for_the_whole_host(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path
) -> None:
    """One file is told to wait; the others of that host wait too, and those of another host do not."""
    busy = misbehaving(lambda x: x.respond("429 Too Many Requests", Retry_After="600"))
    free = misbehaving(lambda x: x.serve(b"y"))
    names = [(f"{busy.url}/{n}", f"busy{n}") for n in range(5)] + [(f"{free.url}/{n}", f"free{n}") for n in range(5)]
    with contextlib.closing(make_kit(workers=1, retry_after_cap_s=1000.0).iter_downloads(names, tmp_path)) as results:
        assert sorted(index for index, _ in itertools.islice(results, 5)) == [5, 6, 7, 8, 9]
    assert len(busy.requests) == 1


def test_absurd_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A day is not waited for: the error says what was asked."""
    server = misbehaving(lambda x: x.respond("503 Service Unavailable", Retry_After="86400"))
    error = assert_fails(kit, server, tmp_path, HTTPStatusError)
    assert "86400" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-3", "1e99", "Wed, 99 Foo 2026 99:99:99 GMT"])
def test_unreadable_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path, value: str) -> None:
    """Nonsense is as if it were not there."""
    server = misbehaving(lambda x: x.respond("503 Nope", Retry_After=value) if x.number == 1 else x.serve(b"abc"))
    fetch(kit, server, tmp_path)
    assert_right(tmp_path, b"abc")


@pytest.mark.parametrize("status", [500, 502, 504, 408])
def test_server_errors_are_retried(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: int) -> None:
    """A hiccup costs a retry."""
    server = misbehaving(lambda x: x.respond(f"{status} Hiccup") if x.number < 3 else x.serve(b"abc"))
    assert fetch(kit, server, tmp_path).retries == 2
    assert_right(tmp_path, b"abc")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_final_errors_are_not(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: int) -> None:
    """Asking again would not help."""
    server = misbehaving(lambda x: x.respond(f"{status} No", b"<html>no</html>"))
    error = assert_fails(kit, server, tmp_path, HTTPStatusError)
    assert isinstance(error, HTTPStatusError)
    assert error.status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["205 Reset", "299 Odd", "304 Not Modified", "101 Switching", "999 X"])
def test_odd_statuses(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: str) -> None:
    """What is no answer to a GET of a file becomes no file."""
    server = misbehaving(lambda x: x.respond(status))
    with pytest.raises(TransferError):
        fetch(kit, server, tmp_path)
    assert os.listdir(tmp_path) == []


# -- redirects ---------------------------------------------------------------------------------------------------------


def test_redirect_loop(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Round and round is an error."""
    server = misbehaving(lambda x: x.respond("302 Found", Location="/file"))
    assert_fails(kit, server, tmp_path, TransferError)
    assert len(server.requests) <= 25


@pytest.mark.parametrize("location", ["ftp://example/x", "file:///etc/passwd", "http://[", "http://", "javascript:1"])
def test_redirect_to_nowhere(kit: Toolkit, misbehaving: Start, tmp_path: Path, location: str) -> None:
    """Only http and https are followed."""
    server = misbehaving(lambda x: x.respond("302 Found", Location=location))
    assert_fails(kit, server, tmp_path, TransferError)


def test_redirect_to_a_link_that_expires(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A signed link dies in the middle: the original URL is resolved again, and the download goes on."""

    def handler(x: Exchange) -> None:
        if x.asked.path == "/file":
            links = sum(asked.path == "/file" for asked in x.server.requests)
            return x.respond("302 Found", Location=f"/signed-{links}")
        if x.asked.path == "/signed-1":
            if x.server.requests.count(x.asked) == 1 and x.asked.range is None:
                x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
                x.send(BODY[:400_000])
                return x.hang_up()
            return x.respond("403 Forbidden", b"expired")
        return x.serve(BODY)

    server = misbehaving(handler)
    result = fetch(kit, server, tmp_path)
    assert_right(tmp_path)
    assert result.bytes_received < len(BODY) * 1.3
    assert any(asked.path == "/signed-2" for asked in server.requests)


def test_secrets_stay_with_their_origin(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Authorization, cookies and headers of the caller's own do not follow a redirect to another origin."""
    other = misbehaving(lambda x: x.serve(b"abc"))
    first = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/there"))
    headers = {"Authorization": "Bearer s", "Cookie": "s=1", "X-Api-Key": "s", "Accept": "text/x"}
    fetch(kit, first, tmp_path, headers=headers)
    assert_right(tmp_path, b"abc")
    assert {name: first.requests[0].headers[name.lower()] for name in headers} == headers
    leaked = set(other.requests[0].headers) & {"authorization", "cookie", "x-api-key"}
    assert not leaked
    assert other.requests[0].headers["accept"] == "text/x"


def test_secrets_stay_when_segments_go_straight_to_the_target(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Later segments skip the redirect, and take no secrets along either."""
    other = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(2)))
    first = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/there"))
    assert fetch(kit, first, tmp_path, headers={"X-Api-Key": "s"}).segments > 1
    assert_right(tmp_path)
    assert all("x-api-key" not in asked.headers for asked in other.requests)
    assert len(other.requests) > 1


def test_request_auth_stays_with_its_origin(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Credentials of one request go to its URL, and neither to mirrors elsewhere nor along redirects."""
    mirror = misbehaving(lambda x: x.serve(b"abc"))
    first = misbehaving(lambda x: x.respond("404 Not Found"))
    request = Request(f"{first.url}/file", "file", mirrors=(f"{mirror.url}/file",), auth=("me", "secret"))
    kit.download_many([request], tmp_path)
    assert first.requests[0].headers["authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    assert "authorization" not in mirror.requests[0].headers


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="/etc/cron.d/evil"', "evil"),
        ('attachment; filename="..\\\\..\\\\evil.exe"', "evil.exe"),
        ('attachment; filename="C:\\\\Windows\\\\x.dll"', "x.dll"),
        ('attachment; filename=".bashrc"', "bashrc"),
        ('attachment; filename="CON"', "given"),
        ('attachment; filename="a\tb\x01c.txt"', "abc.txt"),
        ('attachment; filename=".."', "given"),
        ('attachment; filename=""', "given"),
        ("attachment; filename*=UTF-8''%e2%82%ac%20rates.txt", "\u20ac rates.txt"),
        ("attachment; filename*=UTF-8''..%2F..%2Fevil", "evil"),
        ("attachment; filename*=UTF-8''%00evil%0a", "evil"),
        ("attachment; filename*=nonsense", "nonsense"),
        ('attachment; filename="' + "x" * 3000 + '.bin"', "x" * 196 + ".bin"),
        ("attachment; filename=x" * 500, "given"),
        ('inline; filename="ok.txt"', "ok.txt"),
        ("attachment; filename*=UTF-8''..; filename=\"ok.txt\"", "ok.txt"),
        ("attachment; filename*=UTF-8''%FF%FE; filename=\"ok.txt\"", "ok.txt"),
        ("attachment; filename*=UTF-8''bill%E2%80%AEfdp.exe", "billfdp.exe"),
        ("attachment; filename*=UTF-8''a%C2%9B2Jb%E2%81%A6.txt", "a2Jb.txt"),
        ('attachment; filename="a\x9b2Jb.txt"', "a2Jb.txt"),
    ],
)
def test_hostile_content_disposition(kit: Toolkit, misbehaving: Start, tmp_path: Path, sent: str, name: str) -> None:
    """A name from the server is a plain file name inside the directory, or is not used."""
    server = misbehaving(lambda x: x.serve(b"abc", Content_Disposition=sent))
    result = kit.download(f"{server.url}/given", f"{tmp_path}/")
    assert os.listdir(tmp_path) == [name]
    assert result.path == str(tmp_path / name)


def test_content_disposition_does_not_overwrite(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The server may not choose to replace a file that did not come from it."""
    (tmp_path / "precious").write_bytes(b"mine")
    server = misbehaving(lambda x: x.serve(b"abc", Content_Disposition='attachment; filename="precious"'))
    with pytest.raises(TransferError, match="precious"):
        kit.download(f"{server.url}/given", f"{tmp_path}/")
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("shape", ["one line", "many lines"])
def test_a_megabyte_of_headers(kit: Toolkit, misbehaving: Start, tmp_path: Path, shape: str) -> None:
    """Refused, not stored."""

    def handler(x: Exchange) -> None:
        if shape == "one line":
            x.send(b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * (1 << 20) + b"\r\n\r\n")
        else:
            lines = b"".join(b"X-%d: yyyyyyyyyyyyyyyy\r\n" % n for n in range(40_000))
            x.send(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


def test_headers_that_take_long_to_read(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """As many blanks as a head may have are read in no time, and the file is whole."""
    began_s = time.process_time()
    url = misbehaving(lambda x: x.serve(BODY, **{"X-Blank": "a" + " " * 60_000 + "b"})).url
    assert Path(kit.download(url, tmp_path / "file").path).read_bytes() == BODY
    assert time.process_time() - began_s < 2.0


@pytest.mark.parametrize("what", first_everywhere(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 100 Continue\r\n\r\n"))
def test_headers_that_never_end(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, what: bytes
) -> None:
    """Headers that drip, or interim answers without end, are a time-out."""

    def handler(x: Exchange) -> None:
        while not x.server.stopped.wait(0.02):
            x.send(what if what.endswith(b"\r\n\r\n") else (what if x.keep else b"y"))
            x.keep = False

    assert_fails(
        make_kit(**{**SHORT_TIMEOUTS, "retries": 0, "connect_timeout_s": 1.0}),
        misbehaving(handler),
        tmp_path,
        TransferTimeoutError,
    )


@pytest.mark.parametrize("data", [b"\0\1\2garbage\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/9.9 abc\r\n\r\n", b""])
def test_garbage_instead_of_http(kit: Toolkit, misbehaving: Start, tmp_path: Path, data: bytes) -> None:
    """Not HTTP is a typed error."""

    def handler(x: Exchange) -> None:
        x.send(data)
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)
