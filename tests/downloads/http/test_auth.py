"""`auth` as a pair and as any `requests.auth.AuthBase`: in the settings, in a request and in a caller's session."""

from __future__ import annotations

import hashlib
import itertools
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.auth import AuthBase, HTTPBasicAuth, HTTPDigestAuth, HTTPProxyAuth

from perfkit import CallbackProgress, Request, Toolkit, TransferError
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.network import BODY

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

BASIC = "Basic bWU6d29yZA=="  # me:word


@pytest.mark.parametrize("auth", [("me", "word"), HTTPBasicAuth("me", "word")])
@pytest.mark.parametrize("way", ["config", "request", "download", "session"])
def test_basic_auth_from_anywhere_is_sent(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, way: str, auth: Any
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    session = requests.Session()
    session.auth = auth
    kit = make_kit(session if way == "session" else None, segments=1, **({"auth": auth} if way == "config" else {}))
    url = f"{server.url}/f"
    if way == "request":
        kit.download(Request(url, auth=auth), tmp_path / "f")
    elif way == "download":
        kit.download(url, tmp_path / "f", auth=auth)
    else:
        kit.download(url, tmp_path / "f")
    assert [each.headers.get("authorization") for each in server.requests] == [BASIC]


@pytest.mark.parametrize("with_session", [False, True])
def test_not_latin_1(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool) -> None:
    """Goes as UTF-8 (RFC 7617), which requests alone cannot send; a byte of a command line that is not, as it is."""
    server = misbehaving(lambda x: x.serve(BODY))
    session = requests.Session() if with_session else None
    for password in ("ß", "\udcff"):
        kit = make_kit(session, auth=("łucja", password), segments=1)
        kit.download(f"{server.url}/f", tmp_path / "f", resume=False)
    sent = [each.headers["authorization"] for each in server.requests]
    assert sent == ["Basic xYJ1Y2phOsOf", "Basic xYJ1Y2phOv8="]


@pytest.mark.parametrize("with_session", [False, True])
def test_a_request_goes_before_the_settings(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(requests.Session() if with_session else None, auth=("other", "one"), segments=1)
    kit.download(f"{server.url}/f", tmp_path / "f", auth=("me", "word"))
    assert server.requests[0].headers["authorization"] == BASIC


@pytest.mark.parametrize("with_session", [False, True])
def test_a_header_goes_before_netrc(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, with_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login net password rc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(requests.Session() if with_session else None, segments=1)
    kit.download(f"{server.url}/f", tmp_path / "f", headers={"Authorization": "Bearer t"})
    assert server.requests[0].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("with_session", [False, True])
@pytest.mark.parametrize("target", ["/f?sig=%7e&a=%2F", "/a/../f?", "/%2e/f"])
def test_an_auth_object_signs_what_is_sent(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, target: str, with_session: bool
) -> None:
    """The URL as it was spelt, in each request of a segmented download."""

    def handler(x: Exchange) -> None:
        signed = hashlib.sha256(f"GET {x.asked.path}".encode()).hexdigest()
        if x.asked.headers.get("x-signature") != signed:
            return x.respond("403 Forbidden")
        x.serve(BODY, pause=lambda: x.server.wait_for(3))

    server = misbehaving(handler)
    session = requests.Session() if with_session else None
    make_kit(session, auth=SignsTarget()).download(server.url + target, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert {each.path for each in server.requests} == {target}
    assert len(server.requests) >= 3


class SignsTarget(AuthBase):
    """Signs the method and the target, as cloud storage wants it."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        target = "/" + str(request.url).split("/", 3)[3]
        request.headers["X-Signature"] = hashlib.sha256(f"{request.method} {target}".encode()).hexdigest()
        return request


def test_proxy_auth_by_an_object(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Any AuthBase: this one of requests sets another header."""
    server = misbehaving(lambda x: x.serve(BODY))
    make_kit(auth=HTTPProxyAuth("me", "word"), segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert server.requests[0].headers["proxy-authorization"] == BASIC


# -- HTTP Digest (RFC 7616) ------------------------------------------------------------------------------------------


class Digest:
    """Lets a handler answer who has the password. Each nonce may be used with rising counts only."""

    def __init__(self, serve: Callable[[Exchange], object]) -> None:
        self._serve = serve
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._nonces = itertools.count()
        self.refused = 0

    def __call__(self, x: Exchange) -> None:
        if self._knows(x):
            self._serve(x)
            return
        with self._lock:
            nonce = f"n{next(self._nonces)}"
            self._counts[nonce] = 0
            self.refused += 1
        x.respond(
            "401 Unauthorized",
            b"who are you?",
            WWW_Authenticate=f'Digest realm="r", nonce="{nonce}", qop="auth", algorithm=SHA-256',
        )

    def _knows(self, x: Exchange) -> bool:
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', x.asked.headers.get("authorization", "")))
        if "nonce" not in said or said["uri"] != x.asked.path:
            return False
        with self._lock:
            if int(said["nc"], 16) <= self._counts.get(said["nonce"], 1 << 32):
                return False
            self._counts[said["nonce"]] = int(said["nc"], 16)
        whole = [
            _sha256("me:r:word"),
            said["nonce"],
            said["nc"],
            said["cnonce"],
            "auth",
            _sha256(f"GET {x.asked.path}".replace(" ", ":")),
        ]
        return said["response"] == _sha256(":".join(whole))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(params=["config", "session", "session's"])
def digest_kit(request: pytest.FixtureRequest, make_kit: MakeKit) -> Callable[..., Toolkit]:
    """Makes kits with a Digest password: of perfkit's own sessions, or of a caller's by settings or by itself."""

    def make(**options: Any) -> Toolkit:
        if request.param == "config":
            return make_kit(auth=HTTPDigestAuth("me", "word"), **options)
        session = requests.Session()
        if request.param == "session":
            return make_kit(session, auth=HTTPDigestAuth("me", "word"), **options)
        session.auth = HTTPDigestAuth("me", "word")
        return make_kit(session, **options)

    return make


def test_digest_with_segments(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Each thread is asked for the password once, and goes on counting."""
    handler = Digest(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(6), pause_at=0))
    server = misbehaving(handler)
    download = digest_kit(workers=3).download(f"{server.url}/f?a=b", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.segments == 3
    assert download.retries == 0
    assert handler.refused <= 3


@pytest.mark.parametrize("end", ["server", "close"])
def test_digest_with_resumption(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path, end: str) -> None:
    """A download that broke off half way, or was closed there, goes on from there in another run."""
    half, going_on = threading.Event(), threading.Event()

    def pause(x: Exchange) -> None:
        half.set()
        if end == "server":
            x.connection.shutdown(socket.SHUT_WR)
        else:
            x.stall()

    server = misbehaving(Digest(lambda x: x.serve(BODY, pause=None if going_on.is_set() else lambda: pause(x))))
    arrived = threading.Event()
    shown = CallbackProgress(lambda now: arrived.set() if now.received_bytes >= len(BODY) // 2 else None)
    kit = digest_kit(progress=shown, segments=1, retries=0)
    failed: list[TransferError] = []

    def first() -> None:
        try:
            kit.download(f"{server.url}/f", tmp_path / "f")
        except TransferError as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert half.wait(100)
    if end == "close":
        assert arrived.wait(100)
        kit.close()
    thread.join(100)
    assert len(failed) == 1
    going_on.set()
    download = digest_kit(segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.resumed_from >= len(BODY) // 4
    assert download.retries == 0


def test_digest_in_one_run_with_a_break(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    broken = threading.Event()

    def serve(x: Exchange) -> None:
        if not broken.is_set():
            return x.serve(BODY, pause=lambda: (broken.set(), x.reset()))
        x.serve(BODY)

    server = misbehaving(Digest(serve))
    download = digest_kit(segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.retries == 1


def test_digest_with_many_files(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    handler = Digest(lambda x: x.serve(x.asked.path.encode()))
    server = misbehaving(handler)
    digest_kit(workers=4).download_many([(f"{server.url}/{n}", str(n)) for n in range(40)], tmp_path)
    assert all((tmp_path / str(n)).read_text() == f"/{n}" for n in range(40))
    assert handler.refused <= 4
    assert len(server._threads) - 1 <= 4  # the answer to the refusal comes over the same connection


def test_digest_with_sync(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """A release, then another: pointer, manifest, packs and deltas."""
    (tmp_path / "src").mkdir()
    for number in range(20):
        (tmp_path / f"src/{number}.rules").write_text(f"alert {number}\n" * 100)
    site = tmp_path / "site"

    def serve(x: Exchange) -> None:
        path = site / x.asked.path.lstrip("/")
        content = path.read_bytes() if path.is_file() else None
        if content is None:
            return x.respond("404 Not Found")
        x.serve(content, etag=f'"{hashlib.sha256(content).hexdigest()}"')

    server = misbehaving(Digest(serve))
    kit = digest_kit()
    kit.publish(tmp_path / "src", site, version="1")
    assert kit.sync(server.url + "/", tmp_path / "tree").added == 20
    (tmp_path / "src/7.rules").write_text("drop 7\n")
    kit.publish(tmp_path / "src", site, version="2")
    assert kit.sync(server.url + "/", tmp_path / "tree").changed == 1
    assert (tmp_path / "tree/7.rules").read_text() == "drop 7\n"


def test_digest_with_a_wrong_password(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Ends with the 401 that came last, after two requests."""
    server = misbehaving(Digest(lambda x: x.serve(BODY)))
    with pytest.raises(TransferError, match="401"):
        make_kit(auth=HTTPDigestAuth("me", "other")).download(f"{server.url}/f", tmp_path / "f")
    assert len(server.requests) == 2


def test_digest_after_a_redirect(digest_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Within the origin it goes along."""
    server = misbehaving(
        Digest(lambda x: x.respond("302 Found", Location="/g") if x.asked.path == "/f" else x.serve(BODY))
    )
    digest_kit(segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


# -- a handshake of several steps, as Kerberos and NTLM have it ------------------------------------------------------


class Negotiate(AuthBase):
    """Answers challenges in a response hook, as requests-kerberos does, and checks what the server says in the end."""

    def __init__(self) -> None:
        self.verified = 0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.register_hook("response", self._answer)
        return request

    def _answer(self, response: requests.Response, **options: Any) -> requests.Response:
        while response.status_code == 401:
            challenge = response.headers["WWW-Authenticate"].partition(" ")[2] or "begin"
            _ = response.content
            response.raw.release_conn()
            request = response.request.copy()
            request.headers["Authorization"] = f"Negotiate {challenge}-answered"
            following = response.connection.send(request, **options)  # type: ignore[attr-defined]
            following.history.append(response)
            response = following
        assert response.headers["WWW-Authenticate"] == "Negotiate mutual"
        self.verified += 1
        return response


@pytest.mark.parametrize("way", ["config", "session", "factory"])
def test_a_handshake(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, way: str) -> None:
    """Two steps for each request, segments included, each on one connection, whose cookies count."""
    steps: dict[int, str] = {}
    out_of_turn: list[str] = []

    def handler(x: Exchange) -> None:
        said = x.asked.headers.get("authorization", "")
        step, steps[id(x.connection)] = steps.get(id(x.connection), ""), said
        if said == "Negotiate begin-answered" and step == "":
            return x.respond("401 Unauthorized", b"go on", WWW_Authenticate="Negotiate second")
        if said == "Negotiate second-answered" and step == "Negotiate begin-answered":
            steps[id(x.connection)] = ""
            return x.serve(BODY, pause=lambda: x.server.wait_for(9), pause_at=0, WWW_Authenticate="Negotiate mutual")
        steps[id(x.connection)] = ""
        if said:
            out_of_turn.append(said)
        x.respond("401 Unauthorized", b"who?", WWW_Authenticate="Negotiate")

    auth = Negotiate()

    def factory() -> requests.Session:
        made = requests.Session()
        made.auth = auth
        return made

    server = misbehaving(handler)
    kit = (
        make_kit(auth=auth, workers=3)
        if way == "config"
        else make_kit(factory if way == "factory" else factory(), workers=3)
    )
    download = kit.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.segments == 3
    assert download.retries == 0
    assert not out_of_turn
    assert auth.verified >= 3  # or more: a slow range is split, and one that others have fetched is given up
