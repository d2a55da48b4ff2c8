"""The way to the server: TLS, proxies, credentials, and one pool of connections for all threads."""

from __future__ import annotations

import base64
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from perfkit import ConfigError, HTTPStatusError, Toolkit, TransferError, TransferTimeoutError
from tests.support.fakes import Exchange, MisbehavingServer, Start
from tests.support.kits import MakeKit, fetch
from tests.support.network import Proxy, server_context
from tests.support.tools import unavailable
from tests.support.waiting import wait_until

BODY = b"bytes" * 1000  # too small for segments


@pytest.fixture
def small_secure(misbehaving: Start, authority: trustme.CA) -> MisbehavingServer:
    """Serves BODY over TLS."""
    return misbehaving(lambda x: x.serve(BODY), tls=server_context(authority))


# -- TLS -------------------------------------------------------------------------------------------------------------


def test_an_unknown_authority_is_refused(kit: Toolkit, small_secure: MisbehavingServer, tmp_path: Path) -> None:
    """A clear error, at once and for good: no retry makes a certificate better."""
    with pytest.raises(TransferError, match=r"certificate is not trusted.*; if you trust .*, set ca_bundle") as caught:
        kit.download(f"{small_secure.url}/f", tmp_path / "f")
    assert not caught.value.transient
    assert small_secure.requests == []
    assert len(small_secure._threads) == 2  # one connection, and the listener


def test_another_name_is_refused(
    make_kit: MakeKit, misbehaving: Start, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    server = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority, "example.org"))
    with pytest.raises(TransferError, match="certificate is not trusted") as caught:
        make_kit(ca_bundle=ca_file).download(f"{server.url}/f", tmp_path / "f")
    assert "set ca_bundle" not in str(caught.value)  # that would not help


@pytest.mark.parametrize("way", ["ca_bundle", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "verify"])
def test_ways_to_trust(
    make_kit: MakeKit,
    small_secure: MisbehavingServer,
    ca_file: str,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By setting, by environment as requests reads it, or not asking at all."""
    options: dict[str, object] = {}
    if way == "ca_bundle":
        options["ca_bundle"] = ca_file
    elif way == "verify":
        options["verify"] = False
    else:
        monkeypatch.setenv(way, ca_file)
    with pytest.warns() if way == "verify" else _nothing():
        assert fetch(make_kit(**options), f"{small_secure.url}/f", tmp_path) == BODY


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_bundle_that_is_not_there(make_kit: MakeKit, small_secure: MisbehavingServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        make_kit(ca_bundle=str(tmp_path / "nothing.pem")).download(f"{small_secure.url}/f", tmp_path / "f")


@pytest.mark.parametrize("shape", ["one file", "two files"])
def test_client_certificates(
    make_kit: MakeKit, misbehaving: Start, authority: trustme.CA, ca_file: str, tmp_path: Path, shape: str
) -> None:
    """A server that wants one gets it; without one there is an error."""
    server = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority, clients=True))
    mine = authority.issue_cert("me@example.org")
    mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    two = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    pair = str(tmp_path / "both.pem") if shape == "one file" else two
    assert fetch(make_kit(ca_bundle=ca_file, client_cert=pair), f"{server.url}/f", tmp_path) == BODY
    with pytest.raises(TransferError):
        make_kit(ca_bundle=ca_file, retries=0).download(f"{server.url}/f", tmp_path / "g")


def test_from_https_to_http(
    make_kit: MakeKit, misbehaving: Start, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    """Refused, unless it is allowed."""
    plain = misbehaving(lambda x: x.serve(BODY))
    server = misbehaving(lambda x: x.respond("302 Found", Location=f"{plain.url}/g"), tls=server_context(authority))
    with pytest.raises(TransferError, match="allow_downgrade"):
        make_kit(ca_bundle=ca_file).download(f"{server.url}/f", tmp_path / "f")
    assert plain.requests == []
    assert fetch(make_kit(ca_bundle=ca_file, allow_downgrade=True), f"{server.url}/f", tmp_path) == BODY


# -- one pool --------------------------------------------------------------------------------------------------------


def test_connections_are_shared(
    make_kit: MakeKit, small_secure: MisbehavingServer, ca_file: str, tmp_path: Path
) -> None:
    """Sixty files, from three callers, over no more connections than there are workers."""
    kit = make_kit(ca_bundle=ca_file, workers=3)

    def caller(name: str) -> None:
        kit.download_many([(f"{small_secure.url}/{n}", f"{name}{n}") for n in range(20)], tmp_path)

    threads = [threading.Thread(target=caller, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(small_secure.requests) == 60
    assert len(small_secure._threads) - 1 <= 3


def test_after_a_fork_connections_are_new(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A socket shared by two processes would mix their answers."""
    server = misbehaving(lambda x: x.serve(BODY))
    fetch(kit, f"{server.url}/f", tmp_path)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if fetch(kit, f"{server.url}/f", tmp_path / "..") == BODY else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert len(server._threads) - 1 == 2
    fetch(kit, f"{server.url}/f", tmp_path)
    assert len(server._threads) - 1 == 2


# -- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["http_proxy", "HTTP_PROXY", "all_proxy", "proxies"])
def test_a_proxy(
    make_kit: MakeKit, misbehaving: Start, proxy: Proxy, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment or the settings; the request line has the whole URL."""
    server = misbehaving(lambda x: x.serve(BODY))
    if way != "proxies":
        monkeypatch.setenv(way, f"http://{proxy.address}")
    kit = make_kit(proxies={"http": f"http://{proxy.address}"} if way == "proxies" else {})
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert proxy.asked == [f"GET {server.url}/f"]


def test_a_tunnel_for_https(
    make_kit: MakeKit,
    small_secure: MisbehavingServer,
    ca_file: str,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CONNECT with the proxy's password, which the server never sees; wrong, it is an error."""
    monkeypatch.setenv("https_proxy", f"http://me:word@{proxy.address}")
    proxy.password = "Basic " + base64.b64encode(b"me:word").decode()
    assert fetch(make_kit(ca_bundle=ca_file), f"{small_secure.url}/f", tmp_path) == BODY
    assert proxy.asked == [f"CONNECT {small_secure.url.removeprefix('https://')}"]
    assert "proxy-authorization" not in small_secure.requests[0].headers
    proxy.password = "Basic other"
    with pytest.raises(TransferError, match="407"):
        make_kit(ca_bundle=ca_file).download(f"{small_secure.url}/f", tmp_path / "g")


@pytest.fixture
def real_proxy(tmp_path: Path) -> Iterator[str]:
    """proxy.py, somebody else's proxy."""
    if importlib.util.find_spec("proxy") is None:
        unavailable("needs proxy.py")
    port = tmp_path / "port"
    command = [
        sys.executable,
        "-m",
        "proxy",
        "--hostname",
        "127.0.0.1",
        "--port",
        "0",
        "--port-file",
        str(port),
        "--num-workers",
        "1",
        "--num-acceptors",
        "1",
        "--log-level",
        "c",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            wait_until(lambda: port.exists() and port.read_text().strip(), process)
            yield f"http://127.0.0.1:{port.read_text().split()[0]}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its own children with it; asked to end, it takes ten seconds


def test_a_real_proxy(
    make_kit: MakeKit,
    misbehaving: Start,
    small_secure: MisbehavingServer,
    ca_file: str,
    real_proxy: str,
    tmp_path: Path,
) -> None:
    """Forwarding and a tunnel, with segments, through proxy.py."""
    body = os.urandom(3 << 20)
    server = misbehaving(lambda x: x.serve(body))
    kit = make_kit(ca_bundle=ca_file, proxies={"http": real_proxy, "https": real_proxy}, min_segment_bytes=1 << 18)
    assert fetch(kit, f"{server.url}/f", tmp_path) == body
    assert fetch(kit, f"{small_secure.url}/f", tmp_path) == BODY
    assert any("proxy.py" in each.headers.get("via", "") for each in server.requests)


def test_proxy_authentication_in_the_clear(make_kit: MakeKit, misbehaving: Start, proxy: Proxy, tmp_path: Path) -> None:
    proxy.password = "Basic " + base64.b64encode(b"me:word").decode()
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(proxies={"http": f"http://me:word@{proxy.address}"})
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    with pytest.raises(HTTPStatusError, match="407"):
        make_kit(proxies={"http": f"http://{proxy.address}"}).download(f"{server.url}/f", tmp_path / "g")


@pytest.mark.parametrize("how", ["no_proxy", "trust_env"])
def test_no_proxy(
    make_kit: MakeKit, misbehaving: Start, proxy: Proxy, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    if how == "no_proxy":
        monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(make_kit(trust_env=how != "trust_env"), f"{server.url}/f", tmp_path) == BODY
    assert proxy.asked == []


# -- who asks --------------------------------------------------------------------------------------------------------


def test_netrc_is_used_for_its_host(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Used for its host, unless the caller has other credentials or trusts no environment."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = misbehaving(lambda x: x.serve(BODY))
    for options in ({}, {"auth": ("other", "one")}, {"trust_env": False}):
        fetch(make_kit(segments=1, **options), f"{server.url}/f", tmp_path)
    sent = [each.headers.get("authorization") for each in server.requests]
    assert sent == [
        "Basic " + base64.b64encode(b"me:word").decode(),
        "Basic " + base64.b64encode(b"other:one").decode(),
        None,
    ]


def test_a_url_without_a_path(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    fetch(kit, server.url, tmp_path)
    fetch(kit, f"{server.url}?a=b", tmp_path)
    assert [each.path for each in server.requests] == ["/", "/?a=b"]


def test_a_url_to_be_quoted(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Spaces, umlauts and dots go out as requests sends them."""
    server = misbehaving(lambda x: x.serve(BODY))
    fetch(kit, f"{server.url}/a/../b ä?q=ö#part", tmp_path)
    assert server.requests[0].path == "/b%20%C3%A4?q=%C3%B6"


def test_an_idle_connection_that_spoke_is_not_used(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A connection that the server closed while idle is not used for the next request."""

    def handler(x: Exchange) -> None:
        x.serve(BODY)
        x.hang_up()

    server = misbehaving(handler)
    for _ in range(3):
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert len(server.requests) == 3


def test_a_server_that_is_silent(make: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """The error names the setting that decides."""
    server = misbehaving(lambda x: x.stall())
    with pytest.raises(TransferTimeoutError, match="sent nothing for longer than read_timeout_s"):
        make(read_timeout_s=0.3, retries=0).download(f"{server.url}/f", tmp_path / "f")


def test_ipv6(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A literal in brackets."""

    def handler(x: Exchange) -> None:
        x.serve(BODY)

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        thread = threading.Thread(target=_answer_once, args=(listener,))
        thread.start()
        assert fetch(kit, f"http://[::1]:{listener.getsockname()[1]}/f", tmp_path) == BODY
        thread.join()


def _answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        asked = connection.recv(65536)
        assert b"Host: [::1]:" in asked
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)


def test_closed_while_an_error_is_kept(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """The traceback of an error refers to the pool of connections; `close` ends those in it all the same."""

    def refuse_first(x: Exchange) -> None:
        x.hang_up() if x.number == 1 else x.serve(BODY)

    kit, server = make_kit(retries=0), misbehaving(refuse_first)
    with pytest.raises(TransferError) as caught:
        kit.download(f"{server.url}/f", tmp_path / "f")
    assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    kit.close()
    for thread in server._threads[1:]:  # each ends with its connection
        thread.join(100)
        assert not thread.is_alive()
    assert caught.value
