"""One reading of a URL: what is accepted, every parser reads alike, and trust is decided on what is sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import idna
import pytest
import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from perfkit import ConfigError, Request, Toolkit, TransferError
from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.urls import as_sent, credentials_in, is_loopback, origin_of, unsigned
from tests.support.fakes import MisbehavingServer
from tests.support.network import BODY

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

# Those that need more than a look.
ODD = [
    "http://a.example\\@b.example/",
    "http://a.example\\b.example/",
    "http://a.example\t.b.example/",
    "http://a.example\n/f",
    "http://a.example/f\r\nX: y",
    "http://a.example\x00/",
    "http://a.example\x7f/",
    " http://a.example/",
    "http:a.example/",
    "http:/a.example/",
    "http:///a.example/",
    "http://",
    "http://@/",
    "http://:80/",
    "http://user:pa/ss@a.example/",
    "http://user:pa#ss@a.example/",
    "http://us[er:word@a.example/",
    "http://u[x]:p@a.example/",
    "http://a.example:port/",
    "http://a.example:0/",
    "http://a.example:65536/",
    "http://a.example:-1/",
    "http://a.example:+80/",
    "http://a.example:８０/",
    "http://a.example:80:90/",
    "http://a b.example/",
    "http://a%2eexample/",
    "http://a,b/",
    "http://[::1/",
    "http://::1/",
    "http://[1.2.3.4]/",
    "http://[::1].example/",
    "http://[::1]a:80/",
    "http://[fe80::1%25e h]/",
    "http://a\u2100b.example/",
    "http://a\uff0fb.example/",
    "http://a\uff20b.example/",
    "http://\u200b/",
    "http://\ud800.example/",
    "ftp://a.example/",
    "httpſ://a.example/",
    "file:///etc/hostname",
    "a.example/f",
    "",
]


@pytest.mark.parametrize("url", ODD)
def test_what_programs_read_differently_is_refused(url: str) -> None:
    for read in (origin_of, as_sent, Request):
        with pytest.raises(ConfigError, match="is not an http or https URL"):
            read(url)
    with pytest.raises(ConfigError):
        Request("http://a.example/", mirrors=(url,))


@pytest.mark.parametrize(
    ("url", "sent", "origin"),
    [
        ("HTTPS://A.Example", "https://a.example/", ("https", "a.example", 443)),
        ("http://a.example:/?", "http://a.example/?", ("http", "a.example", 80)),
        ("http://a.example:0080/%7e#x", "http://a.example:80/%7e", ("http", "a.example", 80)),
        ("https://a.example:80/", "https://a.example:80/", ("https", "a.example", 80)),
        ("http://a_b-c.example./x", "http://a_b-c.example./x", ("http", "a_b-c.example.", 80)),
        ("http://me@home:wo:rd@a.example/", "http://me%40home:wo:rd@a.example/", ("http", "a.example", 80)),
        ("http://mé:100%@a.example/", "http://m%C3%A9:100%25@a.example/", ("http", "a.example", 80)),
        ("http://a.example/@b.example", "http://a.example/@b.example", ("http", "a.example", 80)),
        ("http://a.example?@b.example/", "http://a.example/?@b.example/", ("http", "a.example", 80)),
        ("http://a.example#@b.example/", "http://a.example/", ("http", "a.example", 80)),
        ("http://a.example/\\b", "http://a.example/%5Cb", ("http", "a.example", 80)),
        ("http://a.example//b.example/", "http://a.example//b.example/", ("http", "a.example", 80)),
        ("http://bücher.example/ä b", "http://xn--bcher-kva.example/%C3%A4%20b", ("http", "xn--bcher-kva.example", 80)),
        ("http://ａ。Example/", "http://a.example/", ("http", "a.example", 80)),
        ("http://[2001:DB8::1]:81/", "http://[2001:db8::1]:81/", ("http", "2001:db8::1", 81)),
        ("http://[fe80::1%25Eth0]/", "http://[fe80::1%25Eth0]/", ("http", "fe80::1%25Eth0", 80)),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/", ("http", "127.0.0.1", 8000)),
    ],
)
def test_the_form_that_is_sent(url: str, sent: str, origin: tuple[str, str, int]) -> None:
    assert as_sent(url) == as_sent(sent) == sent
    assert origin_of(url) == origin_of(sent) == origin
    assert credentials_in(url) == credentials_in(sent)
    assert unsigned(url) == unsigned(sent)


def readings(url: str) -> set[tuple[str, int | None]]:
    """The host and port that urllib.parse and urllib3 find, of those that find any."""
    found = set()
    try:
        parts = urlsplit(url)
        found.add((_in_ascii((parts.hostname or "").strip("[]")), parts.port))
    except ValueError:
        pass
    try:
        other = parse_url(url)
        found.add(((other.host or "").strip("[]").lower(), other.port))
    except LocationParseError:
        pass
    return found


def _in_ascii(host: str) -> str:
    return host if host.isascii() else idna.encode(host, uts46=True).decode()


def test_parsers_agree_on_all_that_is_accepted() -> None:
    """On the URL as it was given, and on the form that is sent: made from pieces that URLs are read by."""
    pieces = ["a", "b.c", "@", ":", "/", "//", "\\", "?", "#", "[", "]", "::1", "%40", "%", " ", "\t", "\n", "é", "ａ"]
    pieces += ["80", "0", ";", "&", ".", "_", "~", "\u2100", "\x00", "x@", "http://", "。", "[::1]"]
    chosen, accepted = random.Random(18), 0
    for _ in range(40_000):
        url = chosen.choice(["http://", "https://", "HTTP://"]) + "".join(
            chosen.choices(pieces, k=chosen.randint(1, 7))
        )
        try:
            sent, (scheme, host, port) = as_sent(url), origin_of(url)
        except ConfigError:
            continue
        accepted += 1
        for each in (url, sent):
            ports = {scheme: {"http": 80, "https": 443}[scheme]}
            assert {(name, number or ports[scheme]) for name, number in readings(each)} == {(host, port)}, url
        assert as_sent(sent) == sent
        assert urlsplit(sent).hostname == host
        request = requests.PreparedRequest()
        request.prepare_url(sent, None)
        assert str(request.url).partition("/")[0] == f"{scheme}:"
        assert urlsplit(str(request.url)).hostname == host
    assert accepted > 4000


@pytest.mark.parametrize(
    ("there", "shares"),
    [
        ("http://a.example/x", True),
        ("http://a.example:80/", True),
        ("https://a.example/", True),
        ("https://a.example:8443/", False),
        ("http://a.example:81/", False),
        ("http://b.a.example/", False),
        ("http://a.example./", False),
    ],
)
def test_who_shares_secrets(there: str, shares: bool) -> None:
    """Scheme, host and port, or the usual port of https instead of the usual one of http; never the way back."""
    assert may_have_secrets(there, home="http://a.example/f") is shares
    assert may_have_secrets("http://a.example/f", home="https://a.example/f") is False


@pytest.mark.parametrize("with_session", [False, True])
@pytest.mark.parametrize(
    "location", ["{there}\\@{home}/g", "http://{home}\\@{there}/g", "//{home}\\@{there}/g", "http://[{there}/"]
)
def test_a_redirect_that_is_read_differently(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, location: str, with_session: bool
) -> None:
    """Nobody is asked, whoever may be meant."""
    there = misbehaving(lambda x: x.serve(BODY))
    home = misbehaving(lambda x: x.respond("302 Found", Location=odd) if x.asked.path == "/f" else x.serve(BODY))
    odd = location.format(there=there.url, home=home.url.removeprefix("http://"))
    kit = make_kit(requests.Session() if with_session else None, auth=("me", "s3cret"))
    with pytest.raises(TransferError, match="invalid redirect URL") as caught:
        kit.download(f"{home.url}/f", tmp_path / "f")
    assert len(home.requests) == 1
    assert not there.requests
    assert not caught.value.transient


@pytest.mark.parametrize("with_session", [False, True])
def test_netrc_stays_with_the_origin_that_was_asked_for(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect's target gets nothing of it, though netrc has its host, and though the port alone differs."""
    (tmp_path / "netrc").write_text("default login net password rc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    there = misbehaving(lambda x: x.serve(BODY))
    home = misbehaving(lambda x: x.respond("302 Found", Location=f"{there.url}/f"))
    kit = make_kit(requests.Session() if with_session else None)
    kit.download(f"{home.url}/f", tmp_path / "f")
    kit.download(f"{there.url}/g", tmp_path / "g")
    assert {each.headers.get("authorization") for each in home.requests} == {"Basic bmV0OnJj"}
    assert {(each.path, each.headers.get("authorization")) for each in there.requests} == {
        ("/f", None),
        ("/g", "Basic bmV0OnJj"),
    }


@pytest.mark.parametrize("with_session", [False, True])
def test_netrc_is_not_asked_about_what_a_document_names(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login net password rc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    there = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(requests.Session() if with_session else None, segments=1)
    request: Any = Request(f"{there.url}/f", home="http://list.example/list")
    kit.download(request, tmp_path / "f")
    kit.download(Request(f"{there.url}/g", home=f"{there.url}/list"), tmp_path / "g")
    assert [each.headers.get("authorization") for each in there.requests] == [None, "Basic bmV0OnJj"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.example.org", "localhost.example.org", "10.0.0.1", "::2", ""])
def test_names_of_other_machines(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("signature", "kept"),
    [
        ("X-Amz-Algorithm=A&X-Amz-Credential=A%2F20261128&X-Amz-Date=d&X-Amz-Expires=9&X-Amz-Signature=s", ""),
        ("X-Amz-SignedHeaders=host&x-amz-security-token=t&X-Amz-Signature=s&versionId=7", "?versionId=7"),
        ("AWSAccessKeyId=A&Expires=1790000000&Signature=s%3D", ""),
        ("X-Goog-Algorithm=G&X-Goog-Credential=c&X-Goog-Date=d&X-Goog-Expires=9&X-Goog-Signature=s", ""),
        ("X-Goog-SignedHeaders=h&X-Goog-Signature=s&generation=3", "?generation=3"),
        ("GoogleAccessId=a&Expires=1790000000&Signature=s", ""),
        ("sv=2024-11-04&st=2026-11-28&se=2026-11-29&sr=b&sp=r&spr=https&sig=s%3D&snapshot=4", "?snapshot=4"),
        ("Policy=p&Signature=s&Key-Pair-Id=K", ""),
        ("page=2&Expires=1790000000&Signature=s&Key-Pair-Id=K&Hash-Algorithm=SHA256", "?page=2"),
        ("Expires=5&Signature=s", "?Expires=5&Signature=s"),
        ("sp=2&sr=1&st=0", "?sp=2&sr=1&st=0"),
        ("sig=5", "?sig=5"),
        ("", "?"),
    ],
)
def test_what_a_signature_adds(signature: str, kept: str) -> None:
    """The parameters of S3, Google Cloud Storage, Azure and CloudFront; the same names mean other things elsewhere."""
    assert unsigned(f"https://me:pw@bucket.example/a%2Fb?{signature}#top") == f"https://bucket.example/a%2Fb{kept}"
