"""Which certificates are trusted, and what a setting that cannot be used leads to: an end at once, with its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter

from perfkit import ConfigError, TransferError
from tests.support.fakes import MisbehavingServer, Start
from tests.support.kits import MakeKit, fetch
from tests.support.network import BODY, server_context
from tests.support.tools import need


@pytest.fixture
def ca_dir(ca_file: str, tmp_path: Path) -> str:
    """A directory as c_rehash makes it."""
    need("openssl")
    found = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", ca_file], capture_output=True, text=True, check=True
    )
    (tmp_path / "certs").mkdir()
    (tmp_path / f"certs/{found.stdout.strip()}.0").write_bytes(Path(ca_file).read_bytes())
    return str(tmp_path / "certs")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environment(
    make: MakeKit,
    secure: MisbehavingServer,
    ca_file: str,
    ca_dir: str,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, ca_dir if name == "SSL_CERT_DIR" else ca_file)
    assert fetch(make(), f"{secure.url}/f", tmp_path) == BODY
    with pytest.raises(TransferError, match="certificate is not trusted"):
        fetch(make(trust_env=False), f"{secure.url}/f", tmp_path)


def test_requests_own_variable_goes_first(
    make: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca_file)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    assert fetch(make(), f"{secure.url}/f", tmp_path) == BODY


def test_a_directory(make: MakeKit, secure: MisbehavingServer, ca_dir: str, tmp_path: Path) -> None:
    assert fetch(make(ca_bundle=ca_dir), f"{secure.url}/f", tmp_path) == BODY


def test_settings_go_before_the_environment(
    make: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing.pem"))
    assert fetch(make(ca_bundle=ca_file), f"{secure.url}/f", tmp_path) == BODY


def test_what_the_system_trusts(
    make: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By truststore, which has OpenSSL look; here it looks where this variable says."""
    with pytest.raises(TransferError, match="certificate is not trusted"):
        fetch(make(ca_bundle="system"), f"{secure.url}/f", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    assert fetch(make(ca_bundle="system"), f"{secure.url}/f", tmp_path) == BODY


def test_the_system_checks_names(
    make: MakeKit,
    misbehaving: Start,
    authority: trustme.CA,
    ca_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    server = misbehaving(lambda x: x.serve(BODY), tls=server_context(authority, "example.org"))
    with pytest.raises(TransferError, match="certificate is not trusted"):
        fetch(make(ca_bundle="system"), f"{server.url}/f", tmp_path)


def test_without_truststore(
    make: MakeKit, secure: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "truststore", None)
    with pytest.raises(ConfigError, match=r"truststore: pip install 'perfkit\[system-trust\]'"):
        fetch(make(ca_bundle="system"), f"{secure.url}/f", tmp_path)


@pytest.fixture(params=["missing", "empty", "garbage", "loop"])
def bad_file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path of a file with certificates that cannot be used."""
    path = tmp_path / "bad.pem"
    if request.param == "loop":
        path.symlink_to(path)
    elif request.param != "missing":
        path.write_text("" if request.param == "empty" else "-----BEGIN CERTIFICATE-----\nAAAA\n")
    return str(path)


def connections(server: MisbehavingServer) -> int:
    return len(server._threads) - 1


@pytest.mark.parametrize(
    "setting", ["Config.ca_bundle", "Config.verify", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
)
def test_a_bundle_that_cannot_be_used(
    make: MakeKit,
    secure: MisbehavingServer,
    tmp_path: Path,
    setting: str,
    bad_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """File and setting are named, before anything is sent; nothing is tried again."""
    options: dict[str, Any] = {}
    if setting.startswith("Config."):
        options[setting.removeprefix("Config.")] = bad_file
    else:
        monkeypatch.setenv(setting, bad_file)
    with pytest.raises(ConfigError) as caught:
        fetch(make(**options), f"{secure.url}/f", tmp_path)
    assert setting in str(caught.value)
    assert bad_file in str(caught.value)
    assert connections(secure) == 0


def test_a_bundle_of_the_session_that_cannot_be_used(
    make_kit: MakeKit, secure: MisbehavingServer, tmp_path: Path, bad_file: str
) -> None:
    session = requests.Session()
    session.verify = bad_file
    with pytest.raises(ConfigError, match=r"session\.verify.*bad\.pem"):
        fetch(make_kit(session), f"{secure.url}/f", tmp_path)
    assert connections(secure) == 0


def test_a_client_certificate_that_cannot_be_used(
    make: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path, bad_file: str
) -> None:
    for cert in (bad_file, (bad_file, bad_file)):
        with pytest.raises(ConfigError, match=r"client_cert.*bad\.pem"):
            fetch(make(ca_bundle=ca_file, client_cert=cert), f"{secure.url}/f", tmp_path)
    assert connections(secure) == 0


def test_a_client_certificate_of_the_session_that_cannot_be_used(
    make_kit: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path, bad_file: str
) -> None:
    session = requests.Session()
    session.verify = ca_file
    session.cert = bad_file
    with pytest.raises(ConfigError, match=r"session\.cert.*bad\.pem"):
        fetch(make_kit(session), f"{secure.url}/f", tmp_path)
    assert connections(secure) == 0


def test_a_key_of_another_certificate(
    make: MakeKit, secure: MisbehavingServer, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    one, other = authority.issue_cert("one@example.org"), authority.issue_cert("other@example.org")
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    cert = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match=r"client_cert.*cert\.pem and .*key\.pem"):
        fetch(make(ca_bundle=ca_file, client_cert=cert), f"{secure.url}/f", tmp_path)
    assert connections(secure) == 0


class Counting(HTTPAdapter):
    sent = 0

    def send(self, *args: Any, **options: Any) -> requests.Response:
        self.sent += 1
        return super().send(*args, **options)


@pytest.mark.parametrize("setting", ["verify", "cert"])
def test_a_mounted_adapter_that_finds_no_file(
    make_kit: MakeKit, secure: MisbehavingServer, tmp_path: Path, setting: str
) -> None:
    """requests says so itself; there is one attempt."""
    session = requests.Session()
    adapter = Counting()
    session.mount("https://", adapter)
    setattr(session, setting, str(tmp_path / "nothing.pem"))
    with pytest.raises(TransferError, match=r"nothing\.pem") as caught:
        fetch(make_kit(session), f"{secure.url}/f", tmp_path)
    assert not caught.value.transient
    assert adapter.sent == 1


def test_a_mounted_adapter_and_an_empty_bundle(make_kit: MakeKit, secure: MisbehavingServer, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    session = requests.Session()
    adapter = Counting()
    session.mount("https://", adapter)
    session.verify = str(tmp_path / "empty.pem")
    with pytest.raises(TransferError) as caught:
        fetch(make_kit(session), f"{secure.url}/f", tmp_path)
    assert not caught.value.transient
    assert adapter.sent == 1
    assert os.path.exists(session.verify)


def test_another_certificate_after_a_failure(
    make_kit: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path
) -> None:
    """What is mended works with the same Toolkit."""
    session = requests.Session()
    session.verify = str(tmp_path / "later.pem")
    kit = make_kit(session)
    with pytest.raises(ConfigError, match="No such file"):
        fetch(kit, f"{secure.url}/f", tmp_path)
    (tmp_path / "later.pem").write_bytes(Path(ca_file).read_bytes())
    assert fetch(kit, f"{secure.url}/f", tmp_path) == BODY
