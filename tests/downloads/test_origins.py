"""Mirrors, checksums, headers and secrets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perfkit import (
    HTTPStatusError,
    IntegrityError,
    Request,
    Toolkit,
)
from perfkit.downloads.http.semantics import Version
from tests.support.fakes import Exchange, Start
from tests.support.kits import MakeKit
from tests.support.network import BODY, SHA256, serve_body, unheard

# -- mirrors and checksums ---------------------------------------------------------------------------------------------


def test_mirrors_in_order(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """A dead origin and one that refuses; the third has it, and the bytes are checked."""
    refusing, good = misbehaving(lambda x: x.respond("404 Not Found")), misbehaving(serve_body)
    mirrors = [f"{refusing.url}/f", f"{good.url}/f"]
    with unheard() as (host, port):
        download = kit.download(f"http://{host}:{port}/f", out / "f", mirrors=mirrors, checksum=SHA256)
    assert (out / "f").read_bytes() == BODY
    assert len(refusing.requests) == 1
    assert download.version == Version()  # no other server's, which would mean something else at the first
    assert kit.download(f"{good.url}/f", out / "g").version != Version()


def test_a_mirror_finishes_what_the_origin_began(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """With a checksum, ranges are kept across servers."""

    def dies(x: Exchange) -> None:
        if x.number > 1:
            return x.respond("404 Not Found")
        x.head("200 OK", Content_Length=str(len(BODY)), ETag='"a"')
        x.send(BODY[: 2 * len(BODY) // 3])
        return x.hang_up()

    origin, mirror = misbehaving(dies), misbehaving(lambda x: x.serve(BODY, etag='"b"'))
    download = kit.download(f"{origin.url}/f", out / "f", mirrors=[f"{mirror.url}/f"], checksum=SHA256)
    assert (out / "f").read_bytes() == BODY
    assert download.bytes_received < 4 * len(BODY) // 3


def test_a_mirror_with_other_bytes(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The origin is wrong, the mirror right: the checksum decides, and the wrong bytes are never published."""
    bad, good = misbehaving(lambda x: x.serve(BODY[::-1])), misbehaving(serve_body)
    kit.download(f"{bad.url}/f", out / "f", mirrors=[f"{good.url}/f"], checksum=SHA256)
    assert (out / "f").read_bytes() == BODY


def test_a_mirror_after_a_file_that_is_too_large(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The size of one server's file does not count at the next."""
    origin, mirror = misbehaving(lambda x: x.serve(BODY + b"more")), misbehaving(lambda x: x.serve(BODY))
    kit.download(f"{origin.url}/f", out / "f", mirrors=[f"{mirror.url}/f"], max_bytes=len(BODY))
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


# -- headers and secrets -----------------------------------------------------------------------------------------------


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
