"""Other people's packages for requests: adapters of requests-toolbelt, tracing, a cache, OAuth 2."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from cachecontrol import CacheControl
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from requests_oauthlib import OAuth2Session
from requests_toolbelt.adapters.host_header_ssl import HostHeaderSSLAdapter
from requests_toolbelt.adapters.source import SourceAddressAdapter
from requests_toolbelt.adapters.ssl import SSLAdapter
from requests_toolbelt.auth.guess import GuessAuth
from requests_toolbelt.sessions import BaseUrlSession

from perfkit import TransferError
from tests.support.fakes import Exchange, MisbehavingServer, Start, http_date
from tests.support.kits import MakeKit, fetch
from tests.support.network import BODY, server_context

# -- requests-toolbelt -----------------------------------------------------------------------------------------------


def test_a_source_address(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Each connection comes from the address that the adapter says."""
    seen = set()

    def handler(x: Exchange) -> None:
        seen.add(x.connection.getpeername()[0])
        x.serve(BODY, pause=lambda: x.server.wait_for(3))

    session = requests.Session()
    session.mount("http://", SourceAddressAdapter("127.0.0.9"))
    server = misbehaving(handler)
    kit = make_kit(session)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert seen == {"127.0.0.9"}
    assert len(server.requests) >= 3
    session.close()


def test_a_certificate_of_the_host_header(
    make_kit: MakeKit, misbehaving: Start, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    """An address is asked as the host of its certificate."""
    server = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority, "files.example.org"))
    session = requests.Session()
    session.verify = ca_file
    session.headers["Host"] = "files.example.org"
    with pytest.raises(TransferError, match="certificate is not trusted"):
        make_kit(session).download(f"{server.url}/f", tmp_path / "f")
    session.mount("https://", HostHeaderSSLAdapter())
    assert fetch(make_kit(session), f"{server.url}/f", tmp_path) == BODY
    assert {each.headers["host"] for each in server.requests} == {"files.example.org"}
    session.close()


def test_a_tls_version(make_kit: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path) -> None:
    import ssl

    session = requests.Session()
    session.verify = ca_file
    session.mount("https://", SSLAdapter(ssl.PROTOCOL_TLSv1_2))
    with pytest.warns(match="deprecated"):
        assert fetch(make_kit(session, segments=1), f"{secure.url}/f", tmp_path) == BODY
    session.close()


def test_guessing_auth(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Basic or Digest, as the server asks."""

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("authorization") == "Basic bWU6d29yZA==":
            return x.serve(BODY)
        x.respond("401 Unauthorized", b"no", WWW_Authenticate='Basic realm="r"')

    server = misbehaving(handler)
    assert fetch(make_kit(auth=GuessAuth("me", "word"), segments=1), f"{server.url}/f", tmp_path) == BODY


def test_a_session_with_a_base_url(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Whole URLs pass through it as they are."""
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(BaseUrlSession(base_url="https://api.example.org/v1/"), segments=1)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY


# -- OpenTelemetry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    RequestsInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    RequestsInstrumentor().uninstrument()
    provider.shutdown()


@pytest.mark.parametrize("way", ["own", "session", "factory"])
def test_one_span_for_each_request(
    make_kit: MakeKit, misbehaving: Start, spans: InMemorySpanExporter, tmp_path: Path, way: str
) -> None:
    """Segments, a redirect and a retry: what the server counts is what is traced, and the trace goes along."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            return x.respond("302 Found", Location="/g")
        if x.number == 2:
            return x.respond("500 Internal Server Error")
        x.serve(BODY, pause=lambda: x.server.wait_for(5))

    server = misbehaving(handler)
    given = {"own": None, "session": requests.Session(), "factory": requests.Session}[way]
    assert fetch(make_kit(given), f"{server.url}/f?token=s3cret", tmp_path) == BODY
    codes = {
        f"{each.context.span_id:016x}": each.attributes.get("http.status_code") for each in spans.get_finished_spans()
    }
    assert [[*codes.values()].count(code) for code in (302, 500)] == [1, 1]
    sent = [each.headers["traceparent"].split("-")[2] for each in server.requests]
    assert len(sent) == len(set(sent)) >= 5
    assert {span for span, code in codes.items() if code} <= set(sent) <= set(codes)  # some may have been given up


def test_a_failure_is_traced(
    make_kit: MakeKit, misbehaving: Start, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    server = misbehaving(lambda x: x.reset())
    with pytest.raises(TransferError):
        make_kit(retries=0).download(f"{server.url}/f", tmp_path / "f")
    assert [each.status.is_ok for each in spans.get_finished_spans()] == [False]


# -- CacheControl ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_cache(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, coding: str) -> None:
    """The second download is served from it, and so is one by the session itself."""

    def handler(x: Exchange) -> None:
        fresh = {"Cache_Control": "max-age=3600", "Date": http_date(0)}
        if coding == "length":
            return x.respond("200 OK", BODY, **fresh)
        x.head("200 OK", Transfer_Encoding="chunked", **fresh)
        x.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))

    server = misbehaving(handler)
    session = CacheControl(requests.Session())
    kit = make_kit(session, segments=1)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert session.get(f"{server.url}/f").content == BODY
    assert len(server.requests) == 1
    session.close()


def test_a_cache_before_a_server_with_ranges(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """The first request for a file is without a range, so that a cache can keep the answer."""
    server = misbehaving(lambda x: x.serve(BODY, Cache_Control="max-age=3600", Date=http_date(0)))
    session = CacheControl(requests.Session())
    kit = make_kit(session, segments=1)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert len(server.requests) == 1
    session.close()


# -- OAuth 2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def insecure_oauth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the servers of these tests are on loopback


@pytest.mark.usefixtures("insecure_oauth")
def test_an_oauth2_token(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Is added to each request, and to none of another origin."""
    there = misbehaving(lambda x: x.serve(BODY))
    server = misbehaving(
        lambda x: (
            x.respond("302 Found", Location=f"{there.url}/f")
            if x.asked.path == "/away"
            else x.serve(BODY, pause=lambda: x.server.wait_for(3))
        )
    )
    session = OAuth2Session(client_id="me", token={"access_token": "t1", "token_type": "Bearer"})
    kit = make_kit(session)
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert fetch(kit, f"{server.url}/away", tmp_path) == BODY
    assert {each.headers.get("authorization") for each in server.requests} == {"Bearer t1"}
    assert {each.headers.get("authorization") for each in there.requests} == {None}


@pytest.mark.usefixtures("insecure_oauth")
def test_an_oauth2_token_is_refreshed(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Once, when it has expired; the session has the new one."""
    saved: list[dict[str, Any]] = []

    def tokens(x: Exchange) -> None:
        new = {"access_token": "t2", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "r2"}
        x.respond("200 OK", json.dumps(new).encode(), Content_Type="application/json")

    issuer = misbehaving(tokens)
    server = misbehaving(lambda x: x.serve(BODY))
    old = {
        "access_token": "t1",
        "token_type": "Bearer",
        "refresh_token": "r1",
        "expires_in": -30,
        "expires_at": time.time() - 30,
    }
    session = OAuth2Session(
        client_id="me", token=old, auto_refresh_url=f"{issuer.url}/token", token_updater=saved.append
    )
    kit = make_kit(session, workers=1)
    kit.download_many([(f"{server.url}/{number}", str(number)) for number in range(3)], tmp_path)
    assert [each.headers["authorization"] for each in server.requests] == ["Bearer t2"] * 3
    assert len(issuer.requests) == len(saved) == 1
    assert session.token["access_token"] == "t2"
    assert os.listdir(tmp_path)
