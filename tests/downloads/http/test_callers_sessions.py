"""`Toolkit(session=...)`: what the caller's session is set up to do is done, and the session stays as it was."""

from __future__ import annotations

import base64
import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from perfkit import BatchError, ConfigError, HTTPStatusError, Toolkit, TransferError
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer, Start
from tests.support.kits import MakeKit, fetch
from tests.support.network import BODY, Proxy, server_context

Give = Callable[[requests.Session], Any]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# -- what it is set up with ------------------------------------------------------------------------------------------


def test_auth_headers_cookies_and_params(make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path) -> None:
    """All go with each request, those of segments too."""
    session = requests.Session()
    session.auth = ("me", "word")
    session.headers["X-Team"] = "rules"
    session.headers["User-Agent"] = "mine/1"
    session.cookies.set("who", "me")
    session.params = {"key": "a b"}
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(3)))
    kit = make_kit(give(session))
    assert fetch(kit, f"{server.url}/f?x=1", tmp_path) == BODY
    assert len(server.requests) >= 3
    for each in server.requests:
        assert each.path == "/f?x=1&key=a+b"
        assert each.headers["authorization"] == basic("me", "word")
        assert each.headers["x-team"] == "rules"
        assert each.headers["user-agent"] == "mine/1"
        assert each.headers["cookie"] == "who=me"
        assert each.headers["accept-encoding"] == "identity"


def test_what_config_says_goes_before_it(make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path) -> None:
    session = requests.Session()
    session.auth = ("me", "word")
    session.headers["X-Team"] = "rules"
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(give(session), auth=("other", "one"), headers={"x-team": "other"})
    fetch(kit, f"{server.url}/f", tmp_path)
    assert server.requests[0].headers["authorization"] == basic("other", "one")
    assert server.requests[0].headers["x-team"] == "other"


def test_a_cookie_that_a_server_sets(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Is kept in the session's jar, as by `session.get`, and sent with what follows."""

    def handler(x: Exchange) -> None:
        x.serve(b"a", **({"Set_Cookie": "seen=yes"} if x.number == 1 else {}))

    session = requests.Session()
    server = misbehaving(handler)
    kit = make_kit(session)
    kit.download_many([(f"{server.url}/a", "a")], tmp_path)
    kit.download_many([(f"{server.url}/b", "b")], tmp_path)
    assert server.requests[1].headers["cookie"] == "seen=yes"
    assert session.cookies["seen"] == "yes"


def test_hooks_are_called_with_each_response(make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path) -> None:
    """Are called with each answer, redirects included."""
    seen = []
    session = requests.Session()
    session.hooks["response"].append(lambda response, **_: seen.append(response.status_code))
    server = misbehaving(lambda x: x.respond("302 Found", Location="/g") if x.asked.path == "/f" else x.serve(b"short"))
    assert fetch(make_kit(give(session)), f"{server.url}/f", tmp_path) == b"short"
    assert seen == [302, 200 if server.requests[1].range is None else 206]


def test_a_hook_that_reads_the_body(make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path) -> None:
    """As logging hooks do; the file is whole all the same."""
    seen = []
    session = requests.Session()
    session.hooks["response"].append(lambda response, **_: seen.append(response.content))
    server = misbehaving(lambda x: x.serve(BODY))
    assert fetch(make_kit(give(session), segments=1), f"{server.url}/f", tmp_path) == BODY
    assert seen == [BODY]


def test_a_hook_that_puts_another_answer_in_its_place(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    def again(response: requests.Response, **options: Any) -> requests.Response:
        if response.status_code != 401:
            return response
        _ = response.content
        response.request.headers["Authorization"] = "Bearer new"
        return response.connection.send(response.request, **options)  # type: ignore[no-any-return, attr-defined]

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("authorization") != "Bearer new":
            return x.respond("401 Unauthorized", b"no")
        x.serve(BODY)

    session = requests.Session()
    session.hooks["response"].append(again)
    server = misbehaving(handler)
    assert fetch(make_kit(session, segments=1), f"{server.url}/f", tmp_path) == BODY
    assert len(server.requests) == 2
    assert len(server._threads) - 1 == 1  # the connection of the first answer carries the second request


def raise_for_status(response: requests.Response, **_: Any) -> None:
    response.raise_for_status()


@pytest.fixture
def strict() -> requests.Session:
    """A session that raises for every error status, as many a company's does."""
    session = requests.Session()
    session.hooks["response"].append(raise_for_status)
    return session


def test_raise_for_status(
    make_kit: MakeKit, misbehaving: Start, give: Give, strict: requests.Session, tmp_path: Path
) -> None:
    """An error status is perfkit's error, as without the hook."""
    server = misbehaving(lambda x: x.respond("404 Not Found"))
    with pytest.raises(HTTPStatusError) as caught:
        make_kit(give(strict)).download(f"{server.url}/f", tmp_path / "f")
    assert caught.value.status == 404
    assert len(server.requests) == 1


def test_raise_for_status_and_a_busy_server(
    make_kit: MakeKit, misbehaving: Start, give: Give, strict: requests.Session, tmp_path: Path
) -> None:
    """A 503 is retried."""
    server = misbehaving(lambda x: x.respond("503 Service Unavailable") if x.number < 3 else x.serve(BODY))
    assert fetch(make_kit(give(strict)), f"{server.url}/f", tmp_path) == BODY


def test_raise_for_status_and_a_file_that_is_current(
    make_kit: MakeKit, strict: requests.Session, tmp_path: Path
) -> None:
    """A 304 leaves the file alone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/f").write_bytes(BODY)
    kit = make_kit(strict)
    with Server(str(tmp_path / "site")) as server:
        assert not kit.download(f"{server.url}/f", tmp_path / "f").unchanged
        assert kit.download(f"{server.url}/f", tmp_path / "f").unchanged


def test_raise_for_status_and_a_file_that_changes(
    make_kit: MakeKit, misbehaving: Start, strict: requests.Session, tmp_path: Path
) -> None:
    """A 412 to a segment's request begins the file anew."""
    bodies = {'"v1"': BODY, '"v2"': BODY[::-1]}
    first = threading.Event()

    def handler(x: Exchange) -> None:
        if x.number == 1:
            first.set()
            return x.serve(bodies['"v1"'], etag='"v1"', pause=lambda: x.server.wait_for(2))
        x.serve(bodies['"v2"'], etag='"v2"')

    server = misbehaving(handler)
    download = make_kit(strict).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY[::-1]
    assert download.bytes == len(BODY)
    assert server.requests[1].headers["if-match"] == '"v1"'


def test_raise_for_status_and_an_empty_file(
    make_kit: MakeKit, misbehaving: Start, strict: requests.Session, tmp_path: Path
) -> None:
    """A 416 to a range of it says that it is empty."""

    def handler(x: Exchange) -> None:
        if x.asked.range:
            return x.respond("416 Range Not Satisfiable", Content_Range="bytes */0")
        x.serve(b"")

    server = misbehaving(handler)
    assert fetch(make_kit(strict), f"{server.url}/f", tmp_path) == b""


def test_a_hook_that_fails(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Ends the download with its own words, and is not tried again."""

    def refuse(response: requests.Response, **_: Any) -> None:
        raise ValueError("not on a Friday")

    session = requests.Session()
    session.hooks["response"].append(refuse)
    server = misbehaving(lambda x: x.serve(BODY))
    with pytest.raises(TransferError, match="not on a Friday"):
        make_kit(session).download(f"{server.url}/f", tmp_path / "f")
    assert len(server.requests) == 1


# -- TLS and proxies -------------------------------------------------------------------------------------------------


def test_verify_and_cert(
    make_kit: MakeKit, misbehaving: Start, give: Give, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    """The session's bundle and its client certificate."""
    mine = authority.issue_cert("me@example.org")
    mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "me.pem"))
    server = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority, clients=True))
    session = requests.Session()
    session.verify = ca_file
    with pytest.raises(TransferError):
        make_kit(give(session), retries=0).download(f"{server.url}/f", tmp_path / "f")
    session.cert = str(tmp_path / "me.pem")
    assert fetch(make_kit(give(session)), f"{server.url}/f", tmp_path) == BODY


def test_verify_false(make_kit: MakeKit, secure: MisbehavingServer, give: Give, tmp_path: Path) -> None:
    session = requests.Session()
    with pytest.raises(TransferError, match="certificate is not trusted"):
        make_kit(give(session)).download(f"{secure.url}/f", tmp_path / "f")
    session.verify = False
    with pytest.warns():
        assert fetch(make_kit(give(session)), f"{secure.url}/f", tmp_path) == BODY


@pytest.mark.parametrize("way", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_bundle_of_the_environment(
    make_kit: MakeKit,
    secure: MisbehavingServer,
    give: Give,
    ca_file: str,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counts, unless the session does not trust the environment."""
    monkeypatch.setenv(way, ca_file)
    session = requests.Session()
    assert fetch(make_kit(give(session)), f"{secure.url}/f", tmp_path) == BODY
    session.trust_env = False
    with pytest.raises(TransferError, match="certificate is not trusted"):
        make_kit(give(session)).download(f"{secure.url}/f", tmp_path / "f")


@pytest.mark.parametrize("way", ["session", "environment"])
def test_proxies_of_session_and_environment(
    make_kit: MakeKit,
    misbehaving: Start,
    secure: MisbehavingServer,
    give: Give,
    proxy: Proxy,
    ca_file: str,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session's and those of the environment, forwarding and by a tunnel."""
    session = requests.Session()
    session.verify = ca_file
    address = f"http://{proxy.address}"
    if way == "session":
        session.proxies = {"http": address, "https": address}
    else:
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("https_proxy", address)
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(give(session), segments=1)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert fetch(kit, f"{secure.url}/f", tmp_path) == BODY
    assert proxy.asked == [f"GET {server.url}/f", f"CONNECT {secure.url.removeprefix('https://')}"]


@pytest.mark.parametrize("who", ["session", "config"])
def test_trust_env(
    make_kit: MakeKit,
    misbehaving: Start,
    proxy: Proxy,
    give: Give,
    tmp_path: Path,
    who: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either of session and settings leaves out the environment: no proxy, no netrc."""
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    session = requests.Session()
    server = misbehaving(lambda x: x.serve(BODY))
    fetch(make_kit(give(session), segments=1), f"{server.url}/f", tmp_path)
    assert len(proxy.asked) == 1
    assert server.requests[0].headers["authorization"] == basic("me", "word")
    session.trust_env = who == "config"
    fetch(make_kit(give(session), segments=1, trust_env=who == "session"), f"{server.url}/f", tmp_path)
    assert len(proxy.asked) == 1
    assert "authorization" not in server.requests[1].headers


# -- the session itself ----------------------------------------------------------------------------------------------


def test_the_session_is_not_modified(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """After any number of requests it has the settings and adapters that it had, and still follows redirects."""
    session = requests.Session()
    session.headers["X-Team"] = "rules"
    session.params = {"key": "value"}
    before = {name: copy.copy(value) for name, value in vars(session).items()}
    server = misbehaving(
        lambda x: x.respond("302 Found", Location="/g") if x.asked.path.startswith("/f") else x.serve(BODY)
    )
    with Toolkit(session=session) as kit:
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
        assert session.get(f"{server.url}/f").content == BODY
    assert vars(session) == before
    assert session.get(f"{server.url}/f").content == BODY
    session.close()


def test_what_is_set_later_counts(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    session = requests.Session()
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(session, segments=1)
    fetch(kit, f"{server.url}/f", tmp_path)
    session.headers["X-Team"] = "rules"
    session.auth = ("me", "word")
    fetch(kit, f"{server.url}/f", tmp_path)
    assert "x-team" not in server.requests[0].headers
    assert server.requests[1].headers["x-team"] == "rules"
    assert server.requests[1].headers["authorization"] == basic("me", "word")


class LoggingIn(requests.Session):
    """Asks for a token once, and keeps it in an attribute."""

    token: str | None = None
    logins = 0

    def request(self, method: str, url: Any, *args: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        if self.token is None:
            self.logins += 1
            self.token = f"t{self.logins}"
        options["headers"] = {**options.get("headers", {}), "Authorization": f"Bearer {self.token}"}
        return super().request(method, url, *args, **options)


def test_a_session_class_of_ones_own(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """What it remembers while it sends, it still knows at the next request."""
    session = LoggingIn()
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(session, segments=1, workers=1)
    kit.download_many([(f"{server.url}/{number}", str(number)) for number in range(3)], tmp_path)
    assert [each.headers["authorization"] for each in server.requests] == ["Bearer t1"] * 3
    assert session.logins == 1


def test_a_factory_makes_one_session_for_each_thread(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    made: list[tuple[int, requests.Session]] = []

    class Noting(requests.Session):
        users: set[int]

        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            self.users.add(threading.get_ident())
            return super().send(request, **options)

    def factory() -> Noting:
        session = Noting()
        session.users = set()
        made.append((threading.get_ident(), session))
        return session

    server = misbehaving(lambda x: x.serve(b"small", pause=lambda: x.server.wait_for(3)))
    kit = make_kit(factory, workers=3)
    kit.download_many([(f"{server.url}/{number}", str(number)) for number in range(12)], tmp_path)
    assert len(made) == 3
    assert [session.users for _, session in made] == [{ident} for ident, _ in made]  # type: ignore[attr-defined]


def test_a_class_is_a_factory(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    assert fetch(make_kit(requests.Session), f"{server.url}/f", tmp_path) == BODY


def test_a_session_that_the_factory_gave_others_too(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """It may hand out one that the program uses itself: that one still follows redirects and has its adapters."""
    session = requests.Session()
    adapters = dict(session.adapters)
    server = misbehaving(lambda x: x.respond("302 Found", Location="/g") if x.asked.path == "/f" else x.serve(BODY))
    with Toolkit(session=lambda: session) as kit:
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
        assert session.get(f"{server.url}/f").content == BODY
    assert dict(session.adapters) == adapters
    session.close()


@pytest.mark.parametrize("made", [None, 3, object()])
def test_a_factory_that_makes_something_else(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, made: object
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    with pytest.raises(ConfigError, match="session"):
        make_kit(lambda: made).download(f"{server.url}/f", tmp_path / "f")
    assert server.requests == []


def test_many_files_by_one_session(make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path) -> None:
    """From several threads at once, over connections that are kept."""
    session = requests.Session()
    session.headers["X-Team"] = "rules"
    server = misbehaving(
        lambda x: x.serve(x.asked.path.encode()) if x.asked.path != "/7" else x.respond("404 Not Found")
    )
    kit = make_kit(give(session), workers=4)
    with pytest.raises(BatchError) as caught:
        kit.download_many([(f"{server.url}/{number}", str(number)) for number in range(50)], tmp_path)
    assert [number for number, each in enumerate(caught.value.results) if each.error] == [7]
    assert all((tmp_path / str(n)).read_bytes() == f"/{n}".encode() for n in range(50) if n != 7)
    assert len(server._threads) - 1 <= 5  # an error status may cost a connection
    assert all(each.headers["x-team"] == "rules" for each in server.requests)
