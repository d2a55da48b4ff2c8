"""Downloads over TLS as it is served in the world: by nginx, with certificates of an authority of our own."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import trustme

from perfkit import Config, HTTPStatusError, Toolkit, TransferError
from perfkit.cli import main
from tests.support.partial_files import held
from tests.support.tools import need
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

MakeKit = Callable[..., Toolkit]

BODY = random.Random(3).randbytes(4 << 20)

# A request's X-Rate header is the most that nginx sends it in a second.
CONFIG = """\
{user}
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    log_format json escape=json '{{"uri":"$request_uri","status":$status,"range":"$http_range",'
        '"if_range":"$http_if_range","if_none_match":"$http_if_none_match","connection":"$connection",'
        '"client":"$ssl_client_s_dn"}}';
    access_log {home}/access.log json;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    root {home}/www;
    limit_rate $http_x_rate;
    ssl_certificate {home}/good.pem;
    ssl_certificate_key {home}/good.pem;
    server {{ listen 127.0.0.1:{ports[0]} ssl; }}
    server {{
        listen 127.0.0.1:{ports[1]} ssl;
        ssl_certificate {home}/expired.pem;
        ssl_certificate_key {home}/expired.pem;
    }}
    server {{
        listen 127.0.0.1:{ports[2]} ssl;
        ssl_client_certificate {home}/ca.pem;
        ssl_verify_client on;
    }}
}}
"""


@dataclass(frozen=True)
class Authority:
    """Makes certificates, one file each."""

    home: Path
    signer: trustme.CA

    @property
    def ca(self) -> str:
        path = self.home / "ca.pem"
        self.signer.cert_pem.write_to_path(str(path))
        return str(path)

    def issue(self, name: str, identity: str, **options: Any) -> str:
        path = self.home / f"{name}.pem"
        self.signer.issue_cert(identity, **options).private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)


class TlsNginx:
    """nginx over `www`, inside a `with` block, on sockets that are ours and listen before it starts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.www = home / "www"
        self.www.mkdir(parents=True)
        authority = Authority(home, trustme.CA())
        self.ca = authority.ca
        authority.issue("good", "127.0.0.1")
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        authority.issue("expired", "127.0.0.1", not_before=long_ago, not_after=long_ago + datetime.timedelta(days=9))
        self.client = authority.issue("client", "me@example.org", common_name="me")

    def __enter__(self) -> TlsNginx:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            ports = [each.getsockname()[1] for each in sockets]
            self.url, self.expired, self.asking = (f"https://127.0.0.1:{port}" for port in ports)
            user = "user root;" if os.geteuid() == 0 else ""  # it has to read what pytest made for its user alone
            (self.home / "nginx.conf").write_text(CONFIG.format(home=self.home, ports=ports, user=user))
            descriptors = [each.fileno() for each in sockets]
            inherited = "".join(f"{descriptor};" for descriptor in descriptors)
            command = [
                shutil.which("nginx") or "",
                "-p",
                f"{self.home}/",
                "-c",
                f"{self.home}/nginx.conf",
                "-e",
                f"{self.home}/error.log",
            ]
            self._process = subprocess.Popen(command, pass_fds=descriptors, env={**os.environ, "NGINX": inherited})
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(100)

    def serve(self, name: str, body: bytes, *, second: int = 0) -> str:
        """The URL of a file with this content, changed in this second of 2024."""
        path = self.www / name
        path.write_bytes(body)
        os.utime(path, (1_704_067_200 + second,) * 2)
        return f"{self.url}/{name}"

    def log(self) -> list[dict[str, Any]]:
        """Every request, in the order they ended. Stops nginx, which only then has logged all of them."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(100)
        return [json.loads(line) for line in (self.home / "access.log").read_text().splitlines()]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[TlsNginx]:
    need("nginx")
    with TlsNginx(tmp_path / "nginx") as server:
        yield server


def test_four_connections_fetch_one_file(nginx: TlsNginx, make_kit: MakeKit, tmp_path: Path) -> None:
    """Four connections each fetch a part of one file."""
    url = nginx.serve("f", BODY)
    kit = make_kit(ca_bundle=nginx.ca, headers={"X-Rate": "256k"})
    done = kit.download(url, tmp_path / "f", checksum=f"sha256:{hashlib.sha256(BODY).hexdigest()}")
    assert (tmp_path / "f").read_bytes() == BODY
    assert done.segments == 4
    requests = nginx.log()
    assert {each["status"] for each in requests} == {200, 206}
    assert len({each["range"] for each in requests}) >= 4
    assert len({each["connection"] for each in requests}) >= 4


def test_connections_are_kept(nginx: TlsNginx, make_kit: MakeKit, tmp_path: Path) -> None:
    """A handshake costs more than a small file: sixty files take no more of them than there are workers."""
    urls = [nginx.serve(f"f{number}", b"%d" % number) for number in range(60)]
    make_kit(ca_bundle=nginx.ca).download_many(urls, tmp_path / "out")
    assert [(tmp_path / f"out/f{number}").read_bytes() for number in range(60)] == [b"%d" % n for n in range(60)]
    requests = nginx.log()
    assert len(requests) == 60
    assert len({each["connection"] for each in requests}) <= 4


def test_resumption_after_a_kill(nginx: TlsNginx, tmp_path: Path, warm_python: WarmPython) -> None:
    """The next run fetches only what the journal of the killed one does not have, of the same version."""
    url = nginx.serve("f", BODY)
    command = ["-m", "perfkit", "get", "--json", "--segments", "1", "-o", str(tmp_path / "f"), url]
    environment = {**os.environ, "PERFKIT_CA_BUNDLE": nginx.ca}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = warm_python.start(*command, "--header", "X-Rate: 1m", env=environment, **quiet)
    try:
        wait_until(lambda: held(tmp_path / "f") >= 256 << 10, killed)  # less would not be worth a comparison
    finally:
        killed.kill()
        killed.wait()
    ran = subprocess.run(warm_python.python(*command), env=environment, capture_output=True, text=True, check=True)
    (done,) = json.loads(ran.stdout)["files"]
    assert (tmp_path / "f").read_bytes() == BODY
    assert done["resumed_from"] > 0
    assert done["bytes_received"] == len(BODY) - done["resumed_from"]
    last = nginx.log()[-1]
    assert (last["status"], last["range"]) == (206, f"bytes={done['resumed_from']}-")
    assert last["if_range"]


def test_conditional_refresh(nginx: TlsNginx, make_kit: MakeKit, tmp_path: Path) -> None:
    """A file that is current costs one answer without a body; one that changed is fetched."""
    kit, url = make_kit(ca_bundle=nginx.ca), nginx.serve("f", b"one")
    assert not kit.download(url, tmp_path / "f").unchanged
    again = kit.download(url, tmp_path / "f")
    assert (again.unchanged, again.bytes_received) == (True, 0)
    nginx.serve("f", b"two", second=1)
    assert not kit.download(url, tmp_path / "f").unchanged
    assert (tmp_path / "f").read_bytes() == b"two"
    requests = nginx.log()
    assert [each["status"] for each in requests] == [200, 304, 200]
    assert [bool(each["if_none_match"]) for each in requests] == [False, True, True]


def test_a_client_certificate(nginx: TlsNginx, make_kit: MakeKit, tmp_path: Path) -> None:
    """nginx lets those in who have one; the others learn what it says."""
    nginx.serve("f", BODY)
    make_kit(ca_bundle=nginx.ca, client_cert=nginx.client).download(f"{nginx.asking}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    with pytest.raises(HTTPStatusError) as caught:
        make_kit(ca_bundle=nginx.ca).download(f"{nginx.asking}/f", tmp_path / "g")
    assert (caught.value.status, caught.value.transient) == (400, False)
    assert not (tmp_path / "g").exists()
    assert "CN=me" in nginx.log()[0]["client"]


@pytest.mark.parametrize("wrong", ["authority", "expired"])
def test_a_certificate_that_is_not_to_be_trusted(
    nginx: TlsNginx, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, at once and for good; not a byte of HTTP goes out."""
    nginx.serve("f", BODY)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", trustme.CA())
    monkeypatch.setenv("PERFKIT_CA_BUNDLE", other.ca if wrong == "authority" else nginx.ca)
    base = nginx.url if wrong == "authority" else nginx.expired
    with Toolkit(Config.from_env()) as kit, pytest.raises(TransferError) as caught:
        kit.download(f"{base}/f", tmp_path / "f")
    assert not caught.value.transient
    assert main(["get", "-d", str(tmp_path / "out"), f"{base}/f"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("perfkit: error: ")] == errors[:1]
    assert "certificate is not trusted" in errors[0]
    assert ("expired" in errors[0]) == (wrong == "expired")
    assert not (tmp_path / "f").exists()
    assert list((tmp_path / "out").iterdir()) == []
    assert nginx.log() == []
