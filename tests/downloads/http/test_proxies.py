"""Proxies: which requests go by one, what is said of one that does not work, and URLs as they are spelt."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3.contrib

from perfkit import ConfigError, TransferError
from perfkit.downloads.http import connection
from perfkit.downloads.http.session import bypasses_proxy
from tests.support.fakes import MisbehavingServer, Start
from tests.support.kits import MakeKit, fetch
from tests.support.network import BODY, Proxy, SocksProxy, server_context, unheard


@pytest.fixture(params=["own", "session"])
def make_single(request: pytest.FixtureRequest, make_kit: MakeKit) -> MakeKit:
    """Kits without segments, with perfkit's own sessions, and with a caller's."""
    given = requests.Session() if request.param == "session" else None
    return lambda **options: make_kit(given, segments=1, **options)


# -- NO_PROXY --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "by_proxy"),
    [
        ("127.0.0.1", False),
        ("127.0.0.0/8", False),
        ("127.0.0.1:{port}", False),
        ("127.0.0.1:1", True),
        ("example.org, 127.0.0.1:{port}", False),
        ("[::1]", True),
        ("::1/128", True),
        ("10.0.0.0/8", True),
        ("*", False),
        ("127.0.0.0/8:{port}", False),
        ("[127.0.0.1]", False),
        ("", True),
        (",,", True),
        ("[", True),
    ],
)
def test_no_proxy(
    make_single: MakeKit,
    misbehaving: Start,
    proxy: Proxy,
    tmp_path: Path,
    entries: str,
    by_proxy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", entries.format(port=server.url.rpartition(":")[2]))
    assert fetch(make_single(), f"{server.url}/f", tmp_path) == BODY
    assert len(proxy.asked) == by_proxy


@pytest.fixture
def server6() -> Iterator[MisbehavingServer]:
    class Server6(MisbehavingServer):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._listener.close()
            self._listener = socket.create_server(("::1", 0), family=socket.AF_INET6)

        @property
        def url(self) -> str:
            return f"http://[::1]:{self._listener.getsockname()[1]}"

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with Server6(lambda x: x.serve(BODY)) as server:
        yield server


@pytest.mark.parametrize(
    ("entries", "by_proxy"),
    [
        ("::1", False),
        ("[::1]", False),
        ("[::1]:{port}", False),
        ("[::1]:1", True),
        ("::/64", False),
        ("fd00::/8", True),
        ("0:0:0:0:0:0:0:1", False),
        ("127.0.0.1", True),
        ("::/64, example.org", False),
    ],
)
def test_no_proxy_for_ipv6(
    make_single: MakeKit,
    server6: MisbehavingServer,
    proxy: Proxy,
    tmp_path: Path,
    entries: str,
    by_proxy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The proxy of these tests cannot reach it: that the proxy was asked is enough."""
    port = server6.url.rpartition(":")[2]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", entries.format(port=port))
    if by_proxy:
        with pytest.raises(TransferError, match="the proxy cannot be used"):
            fetch(make_single(retries=0), f"{server6.url}/f", tmp_path)
    else:
        assert fetch(make_single(), f"{server6.url}/f", tmp_path) == BODY


def test_a_name_with_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """requests itself knows names, with their ports and domains; ours are addresses only."""
    monkeypatch.setenv("no_proxy", "example.org:8000,10.0.0.0/8")
    assert not bypasses_proxy("http://example.org:8000/")
    assert bypasses_proxy("http://10.1.2.3/")


def test_a_name_with_a_port_in_use(
    make_single: MakeKit, misbehaving: Start, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    port = server.url.rpartition(":")[2]
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    for entry, asked in ((f"localhost:{port}", 0), ("localhost:1", 1)):
        monkeypatch.setenv("no_proxy", entry)
        assert fetch(make_single(), f"http://localhost:{port}/f", tmp_path) == BODY
        assert len(proxy.asked) == asked


# -- a proxy that does not work --------------------------------------------------------------------------------------


@pytest.fixture
def dead_port() -> Iterator[int]:
    with unheard() as (_, port):
        yield port


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("way", ["http", "https", "socks5", "socks5h", "socks4"])
def test_a_proxy_that_is_down(make_single: MakeKit, tmp_path: Path, dead_port: int, scheme: str, way: str) -> None:
    """Is named as the proxy, with its address; its password is not shown."""
    pytest.importorskip("socks")
    address = f"{way}://me:s3cret@127.0.0.1:{dead_port}"
    kit = make_single(proxies={"http": address, "https": address}, retries=0)
    with pytest.raises(TransferError, match="the proxy cannot be used") as caught:
        kit.download(f"{scheme}://127.0.0.1:1/f", tmp_path / "f")
    assert f"127.0.0.1 port {dead_port}" in str(caught.value) or f"127.0.0.1:{dead_port}" in str(caught.value)
    assert caught.value.transient
    assert "s3cret" not in str(caught.value)


def test_a_proxy_of_an_unknown_name(make_single: MakeKit, tmp_path: Path) -> None:
    kit = make_single(proxies={"http": "http://nothing.invalid:3128"}, retries=0)
    with pytest.raises(TransferError, match=r"the proxy cannot be used.*nothing\.invalid"):
        kit.download("http://127.0.0.1:1/f", tmp_path / "f")


def test_a_server_behind_a_proxy_that_is_down(
    make_single: MakeKit, proxy: Proxy, tmp_path: Path, dead_port: int
) -> None:
    """The proxy is not to blame."""
    kit = make_single(proxies={"http": f"http://{proxy.address}"}, retries=0)
    with pytest.raises(TransferError) as caught:
        kit.download(f"http://127.0.0.1:{dead_port}/f", tmp_path / "f")
    assert "the proxy cannot be used" not in str(caught.value)


@pytest.fixture
def socks() -> Iterator[SocksProxy]:
    pytest.importorskip("socks")
    proxy = SocksProxy()
    yield proxy
    proxy.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("way", "asked"), [("socks5", "address 127.0.0.1"), ("socks5h", "name localhost")])
def test_a_socks_proxy(
    make_kit: MakeKit,
    misbehaving: Start,
    authority: trustme.CA,
    socks: SocksProxy,
    ca_file: str,
    tmp_path: Path,
    way: str,
    asked: str,
    tls: bool,
) -> None:
    """With segments and a password; with socks5h, the proxy resolves the name."""
    context = server_context(authority, "localhost") if tls else None
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(2)), tls=context)
    address = f"{way}://me:word@{socks.address}"
    kit = make_kit(ca_bundle=ca_file, proxies={"http": address, "https": address})
    url = server.url.replace("127.0.0.1", "localhost")
    assert fetch(kit, f"{url}/f", tmp_path) == BODY
    assert len(socks.asked) >= 2
    assert set(socks.asked) == {f"{asked}:{url.rpartition(':')[2]}"}
    assert set(socks.credentials) == {"me:word"}


@pytest.mark.parametrize(
    ("way", "host", "reason"),
    [("socks5h", "127.0.0.1", "Connection refused"), ("socks5", "nothing.invalid", "not known|resolution")],
)
def test_a_server_behind_a_socks_proxy_that_is_down(
    make_single: MakeKit, socks: SocksProxy, tmp_path: Path, dead_port: int, way: str, host: str, reason: str
) -> None:
    """The proxy is not to blame, nor if this machine doesn't know the server's name."""
    kit = make_single(proxies={"http": f"{way}://me:word@{socks.address}"}, retries=0)
    with pytest.raises(TransferError, match=reason) as caught:
        kit.download(f"http://{host}:{dead_port}/f", tmp_path / "f")
    assert "the proxy cannot be used" not in str(caught.value)


def test_a_socks_proxy_without_pysocks(
    make_single: MakeKit, misbehaving: Start, tmp_path: Path, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt, and what to install."""
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks", raising=False)
    monkeypatch.delattr(urllib3.contrib, "socks", raising=False)
    connection.socks_pool_classes.cache_clear()
    kit = make_single(proxies={"http": f"socks5://127.0.0.1:{dead_port}"})
    with pytest.raises(ConfigError, match=r"SOCKS proxy needs PySocks: pip install 'perfkit\[socks\]'"):
        kit.download("http://127.0.0.1:1/f", tmp_path / "f")


@pytest.mark.parametrize(
    "address",
    ["http://", "http://:3128", "ftp://127.0.0.1:1", "http://127.0.0.1:port", "http://me:s3cret@127.0.0.1:port"],
)
def test_a_proxy_that_cannot_be_one(make_single: MakeKit, tmp_path: Path, address: str) -> None:
    """Ends at once, whatever the retries, with its name but not its password."""
    kit = make_single(proxies={"http": address}, retries=1000, backoff_base_s=10.0)
    with pytest.raises(ConfigError, match=r"the proxy .* cannot be used") as caught:
        kit.download("http://127.0.0.1:1/f", tmp_path / "f")
    assert address.rpartition("@")[2].removeprefix("http://") in str(caught.value)
    assert "s3cret" not in str(caught.value)


# -- URLs as they are spelt ------------------------------------------------------------------------------------------

SPELLINGS = [
    "/f",
    "/a/b.c/d-e_f~",
    "/a/",
    "/",
    "/f?a=b&c=d/e",
    "/f?",
    "/a//b",
    "/%7e",
    "/%2E/a",
    "/f?a=%41",
    "/f?sig=a%2fb%3D",
    "/a/../b",
    "/./a",
    "/%e4",
    "/a;b=c,d",
    "/f?a=b?c=d",
]


@pytest.mark.parametrize("by_proxy", [False, True])
@pytest.mark.parametrize("target", SPELLINGS)
def test_urls_as_they_are_spelt(
    make_single: MakeKit, misbehaving: Start, proxy: Proxy, tmp_path: Path, target: str, by_proxy: bool
) -> None:
    """By the caller, and by the server in a redirect."""
    server = misbehaving(
        lambda x: x.respond("302 Found", Location=target) if x.asked.path.endswith("/from") else x.serve(b"short")
    )
    kit = make_single(**({"proxies": {"http": f"http://{proxy.address}"}} if by_proxy else {}))
    fetch(kit, f"{server.url}{target}#part", tmp_path)
    fetch(kit, f"{server.url}/from", tmp_path)
    before = server.url if by_proxy else ""
    assert [each.path for each in server.requests] == [f"{before}{each}" for each in (target, "/from", target)]


@pytest.mark.parametrize("target", ["/f?x=%7e", "/%2E/a"])
def test_a_redirect_to_another_origin_is_spelt_as_the_server_did(
    make_single: MakeKit, misbehaving: Start, tmp_path: Path, target: str
) -> None:
    there = misbehaving(lambda x: x.serve(BODY))
    server = misbehaving(lambda x: x.respond("302 Found", Location=there.url + target))
    fetch(make_single(), f"{server.url}/f", tmp_path)
    assert [each.path for each in there.requests] == [target]


@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ("/f?", "/f?k=v"),
        ("/f?a=%41", "/f?a=%41&k=v"),
        ("/%7e", "/%7e?k=v"),
        ("", "/?k=v"),
        ("/f#x", "/f?k=v"),
    ],
)
def test_with_params_of_a_session(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, params: str, asked: str
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    session = requests.Session()
    session.params = {"k": "v"}
    fetch(make_kit(session, segments=1), server.url + params, tmp_path)
    assert [each.path for each in server.requests] == [asked]


@pytest.mark.parametrize("auth", [("me", "word"), requests.auth.HTTPBasicAuth("me", "word")])
def test_with_a_password(make_single: MakeKit, misbehaving: Start, tmp_path: Path, auth: Any) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    fetch(make_single(auth=auth), f"{server.url}/%7e?", tmp_path)
    fetch(make_single(), f"{server.url.replace('//', '//me:word@')}/%7e?", tmp_path)
    assert [each.path for each in server.requests] == ["/%7e?", "/%7e?"]
    assert [each.headers["authorization"] for each in server.requests] == ["Basic bWU6d29yZA=="] * 2
