"""What is secret stays with the origin that it was given for: on redirects, on mirrors, with any session."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar

from perfkit import Request, Toolkit
from perfkit.downloads.http.session import Cookies
from tests.support.fakes import MisbehavingServer
from tests.support.network import BODY, server_context

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]


class Token(requests.auth.AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Auth"] = "s3cret"
        return request


def no_session() -> tuple[Any, dict[str, Any]]:
    return None, {"auth": ("s3cret", "s3cret"), "headers": {"X-Key": "s3cret", "Cookie": "a=s3cret"}}


def session() -> tuple[Any, dict[str, Any]]:
    made = requests.Session()
    made.auth = Token()
    made.headers.update({"X-Key": "s3cret", "Authorization": "Bearer s3cret"})
    made.params = {"key": "s3cret"}
    made.cookies.set("a", "s3cret")
    return made, {}


def factory() -> tuple[Any, dict[str, Any]]:
    return (lambda: session()[0]), {}


def session_and_settings() -> tuple[Any, dict[str, Any]]:
    return session()[0], {**no_session()[1], "auth": Token()}


@pytest.fixture(params=[no_session, session, factory, session_and_settings])
def kit_with_secret(request: pytest.FixtureRequest, make_kit: MakeKit) -> Toolkit:
    given, options = request.param()
    return make_kit(given, **options)


def has_secret(server: MisbehavingServer) -> list[bool]:
    return [
        "s3cret" in f"{each.path} {each.headers}" or "Basic" in each.headers.get("authorization", "")
        for each in server.requests
    ]


def test_redirects_carry_secrets_to_the_first_origin_only(
    kit_with_secret: Toolkit, misbehaving: Start, tmp_path: Path
) -> None:
    """The first origin gets all, the other one nothing; back at the first one, it gets them again."""
    there = misbehaving(
        lambda x: x.respond("302 Found", Location=f"{home.url}/back") if "away" in x.asked.path else x.serve(BODY)
    )

    def handler(x: Any) -> None:
        if x.asked.path.startswith("/f"):
            return x.respond("302 Found", Location=f"{there.url}/f")
        if x.asked.path.startswith("/g"):
            return x.respond("302 Found", Location=f"{there.url}/away")
        x.serve(BODY)

    home = misbehaving(handler)
    kit_with_secret.download(f"{home.url}/f", tmp_path / "f")
    kit_with_secret.download(f"{home.url}/g", tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == BODY
    assert has_secret(there) == [False] * len(there.requests)
    assert len(there.requests) >= 2
    assert has_secret(home) == [True] * len(home.requests)
    assert len(home.requests) >= 3


def test_mirrors_of_another_origin_get_no_secrets(kit_with_secret: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Another origin's mirror gets nothing, the same origin's does."""
    home = misbehaving(lambda x: x.respond("404 Not Found"))
    mirror = misbehaving(lambda x: x.serve(BODY))
    kit_with_secret.download(f"{home.url}/f", tmp_path / "f", mirrors=[f"{home.url}/g", f"{mirror.url}/f"])
    assert (tmp_path / "f").read_bytes() == BODY
    assert has_secret(home) == [True, True]
    assert has_secret(mirror) == [False] * len(mirror.requests)
    assert mirror.requests


@pytest.mark.parametrize("with_session", [False, True])
def test_secrets_of_a_request(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool) -> None:
    there = misbehaving(lambda x: x.serve(BODY))
    home = misbehaving(
        lambda x: (
            x.respond("302 Found", Location=f"{there.url}/f") if x.asked.path == "/f" else x.respond("404 Not Found")
        )
    )
    kit = make_kit(requests.Session() if with_session else None)
    secret = {"auth": Token(), "headers": {"X-Key": "s3cret"}}
    kit.download(Request(f"{home.url}/f", **secret), tmp_path / "f")  # type: ignore[arg-type]
    kit.download(f"{home.url}/g", tmp_path / "g", mirrors=[f"{there.url}/f"], **secret)  # type: ignore[arg-type]
    assert has_secret(home) == [True, True]
    assert has_secret(there) == [False] * len(there.requests)
    assert len(there.requests) >= 2


@pytest.mark.parametrize("with_session", [False, True])
def test_a_mirror_has_credentials_of_its_own(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its URL, and those that netrc has for its host."""
    (tmp_path / "netrc").write_text("machine localhost login net password rc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    home = misbehaving(lambda x: x.respond("404 Not Found"))
    mirror = misbehaving(lambda x: x.serve(BODY) if x.number > 1 else x.respond("404 Not Found"))
    kit = make_kit(requests.Session() if with_session else None, auth=("me", "word"), segments=1)
    port = mirror.url.rpartition(":")[2]
    kit.download(
        f"{home.url}/f", tmp_path / "f", mirrors=[f"http://you:own@127.0.0.1:{port}/f", f"http://localhost:{port}/f"]
    )
    asked = [each.headers["authorization"] for each in (*home.requests, *mirror.requests)]
    assert asked == ["Basic bWU6d29yZA==", "Basic eW91Om93bg==", "Basic bmV0OnJj"]


@pytest.mark.parametrize("with_session", [False, True])
def test_cookies_go_to_their_own_host(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool
) -> None:
    """One that a server set, or that was set for a domain, is sent there, also after a redirect; and nowhere else."""
    there = misbehaving(lambda x: x.serve(BODY, Set_Cookie="there=1"))
    port = there.url.rpartition(":")[2]
    home = misbehaving(lambda x: x.respond("302 Found", Location=f"http://localhost:{port}/f", Set_Cookie="home=1"))
    given = None
    if with_session:
        given = requests.Session()
        given.cookies.set("mine", "1", domain="localhost.local")
        given.cookies.set("all", "s3cret")
    kit = make_kit(given, segments=1)
    for _ in range(2):
        kit.download(f"{home.url}/f", tmp_path / "f", resume=False)
    mine = {"mine=1"} if with_session else set()
    everywhere = {"all=s3cret"} if with_session else set()
    asked = [set(each.headers.get("cookie", "").split("; ")) - {""} for each in (*home.requests, *there.requests)]
    assert asked == [everywhere, everywhere | {"home=1"}, mine, mine | {"there=1"}]


def set_by(url: str, *cookies: str) -> RequestsCookieJar:
    """What perfkit's own sessions keep of the cookies that an answer from there sets."""
    jar = Cookies()
    head = http.client.HTTPMessage()
    for each in cookies:
        head["Set-Cookie"] = each
    answer = SimpleNamespace(_original_response=SimpleNamespace(msg=head))
    extract_cookies_to_jar(jar, requests.Request("GET", url).prepare(), answer)  # type: ignore[no-untyped-call]
    return jar


@pytest.mark.parametrize(
    ("host", "domain", "kept"),
    [
        ("files.example.org", "", True),
        ("files.example.org", "files.example.org", True),
        ("files.example.org", "example.org", True),
        ("files.example.org", "org", False),
        ("files.example.org", "other.org", False),
        ("files.example.co.uk", "example.co.uk", True),
        ("files.example.co.uk", "co.uk", False),
        ("example.com.au", "com.au", False),
    ],
)
def test_cookies_for_many_hosts(host: str, domain: str, kept: bool) -> None:
    """A server sets none for hosts of strangers, as far as that can be told without the Public Suffix List."""
    jar = set_by(f"https://{host}/", f"a=b; Domain={domain}" if domain else "a=b")
    assert bool(list(jar)) is kept


def test_cookies_are_bounded() -> None:
    """Those that are there can still be changed."""
    jar = set_by("https://a.example.org/", *[f"n{number}=1" for number in range(2000)], "n0=2")
    assert len(list(jar)) == 500
    assert jar.get("n0") == "2"


def test_params_are_for_the_url_that_was_asked_for(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """As requests has it: a redirect within the origin is followed as the server spelt it."""
    server = misbehaving(
        lambda x: x.respond("302 Found", Location="/g?sig=1") if x.asked.path.startswith("/f") else x.serve(BODY)
    )
    given = requests.Session()
    given.params = {"key": "1"}
    make_kit(given, segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert [each.path for each in server.requests] == ["/f?key=1", "/g?sig=1"]


@pytest.mark.parametrize("with_session", [False, True])
def test_the_same_host_over_tls(
    make_kit: MakeKit, misbehaving: Start, authority: trustme.CA, ca_file: str, tmp_path: Path, with_session: bool
) -> None:
    """Another port is another origin, https or not."""
    secure = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority))
    home = misbehaving(lambda x: x.respond("302 Found", Location=f"{secure.url}/f"))
    given, options = session() if with_session else no_session()
    make_kit(given, ca_bundle=ca_file, **options).download(f"{home.url}/f", tmp_path / "f")
    assert has_secret(home) == [True]
    assert has_secret(secure) == [False] * len(secure.requests)
    assert secure.requests
