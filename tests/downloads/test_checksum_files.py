"""Checksums that are looked up: how they are written, which one is a file's, and what is requested for them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import (
    BatchError,
    ConfigError,
    HTTPStatusError,
    IntegrityError,
    Request,
    Toolkit,
    TransferError,
    TransferTimeoutError,
)
from perfkit.downloads.checksum_files import CHECKSUM_FILE_BYTES, ChecksumFile, parse_line, read_checksum_file
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.tools import need

pytestmark = pytest.mark.once

BODY = b"content"
MD5, SHA1, SHA256, SHA512 = (hashlib.new(name, BODY).hexdigest() for name in ("md5", "sha1", "sha256", "sha512"))
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize(
    ("line", "name", "checksum"),
    [
        (f"{SHA256}  a.iso", "a.iso", f"sha256:{SHA256}"),
        (f"{SHA256} *a.iso\r\n", "a.iso", f"sha256:{SHA256}"),
        (f"\ufeff{SHA256.upper()}  ./d/a b.iso", "./d/a b.iso", f"sha256:{SHA256}"),
        (f"{SHA256}\ta.iso", "a.iso", f"sha256:{SHA256}"),
        (f"{SHA256} a.iso", "a.iso", f"sha256:{SHA256}"),
        (f"{MD5}   a", " a", f"md5:{MD5}"),
        (f"{SHA1}  a", "a", f"sha1:{SHA1}"),
        (f"{SHA512}  a", "a", f"sha512:{SHA512}"),
        (f"\\{SHA256}  a\\\\b\\nc\\rd", "a\\b\nc\rd", f"sha256:{SHA256}"),
        (f"{SHA256}  a\\nb", "a\\nb", f"sha256:{SHA256}"),
        (f"SHA256 (a (1).iso) = {SHA256}", "a (1).iso", f"sha256:{SHA256}"),
        (f"\\MD5 (a\\\\b) = {MD5}", "a\\b", f"md5:{MD5}"),
        (f"SHA2-256(a.iso)= {SHA256}", "a.iso", f"sha256:{SHA256}"),
        (f"BLAKE2b (a) = {SHA512}", "a", f"blake2b:{SHA512}"),
        (f" {SHA256} ", "", f"sha256:{SHA256}"),
        ("# comment", None, None),
        ("-----BEGIN PGP SIGNED MESSAGE-----", None, None),
        ("Hash: SHA256", None, None),
        (f"{SHA256[:-1]}  a", None, None),
        (f"SHA999 (a) = {SHA512}", None, None),
        ("", None, None),
    ],
)
def test_a_line(line: str, name: str | None, checksum: str | None) -> None:
    """Forms of GNU, BSD and openssl; escapes only where a backslash begins the line."""
    listed = parse_line(line)
    assert (listed and listed.name, listed and str(listed.checksum)) == (name, checksum)


@pytest.mark.parametrize("command", [["sha256sum"], ["sha256sum", "--tag"], ["md5sum", "-b"], ["b2sum", "--tag"]])
def test_what_coreutils_write(tmp_path: Path, command: list[str]) -> None:
    """Odd names included."""
    need(command[0])
    names = ["plain", "with space", "back\\slash", "(x) = y", "new\nline", "ünï"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    made = subprocess.run([*command, "--", *names], cwd=tmp_path, capture_output=True, text=True, check=True)
    listed = [parse_line(line) for line in made.stdout.splitlines()]
    assert [each and each.name for each in listed] == names
    algorithm = {"sha256sum": "sha256", "md5sum": "md5", "b2sum": "blake2b"}[command[0]]
    assert [each and each.checksum.hex for each in listed] == [
        hashlib.new(algorithm, name.encode()).hexdigest() for name in names
    ]


@pytest.mark.parametrize(
    ("text", "where", "url"),
    [
        (f"{OTHER}  b.iso\n{SHA256}  a.iso\n", "https://h/SHA256SUMS", "https://h/a.iso?x=/b.iso"),
        (f"{OTHER}  x/a.iso\n{SHA256}  ./y/a.iso\n", "https://h/SHA256SUMS", "https://h/y/a.iso"),
        (f"{OTHER}  a.iso\n{SHA256}  y/a.iso\n", "https://h/SHA256SUMS", "https://h/y/a.iso"),
        (f"MD5 (a.iso) = {MD5}\nSHA256 (a.iso) = {SHA256}\n", "https://h/CHECKSUM", "https://h/a.iso"),
        (f"{SHA256}\n", "https://h/whatever", "https://h/a.iso"),
        (f"{SHA256}  build/out.iso\n", "https://h/a.iso.sha256?v=1", "https://h/a.iso"),
        (f"{SHA256}  /home/me/a.iso\n", "/tmp/x", "https://h/a.iso"),
        (f"{SHA256}  a b+ü.iso\n", "https://h/SUMS", "https://h/a%20b+%C3%BC.iso"),
        (f"{SHA256}  a.iso\n{SHA256}  d/a.iso\n", "https://h/SUMS", "https://h/q/a.iso"),
    ],
)
def test_which_is_a_files(text: str, where: str, url: str) -> None:
    """By the longest name that its URL ends in, and then the strongest checksum."""
    assert str(ChecksumFile(text, where).find(url)) == f"sha256:{SHA256}"


def test_what_is_no_files(tmp_path: Path) -> None:
    """It is never guessed, and no secret of a URL is shown."""
    with pytest.raises(ConfigError, match=r"no checksum for 'a\.iso'"):
        ChecksumFile(f"{SHA256}  b.iso\n", "https://h/SHA256SUMS").find("https://h/a.iso")
    with pytest.raises(ConfigError, match=r"no checksum for 'a\.iso'"):
        ChecksumFile(f"{SHA256}\n{OTHER}  b.iso", "https://h/SHA256SUMS").find("https://h/a.iso")
    with pytest.raises(ConfigError, match=r"several checksums for 'a\.iso'"):
        ChecksumFile(f"{SHA256}  x/a.iso\n{OTHER}  y/a.iso", "https://h/SHA256SUMS").find("https://h/a.iso")
    with pytest.raises(ConfigError, match="has no checksums") as raised:
        ChecksumFile("<html>not found", "https://me:s3cret@h/SHA256SUMS?token=s3cret")
    assert "s3cret" not in str(raised.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_checksum_file(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Is a directory"):
        read_checksum_file(str(tmp_path))


@pytest.mark.once
@given(st.text(), st.sampled_from(["", f"{SHA256}  ", "SHA256 (", f"\\{SHA256} *"]))
def test_fuzzed_lines(text: str, start: str) -> None:
    """Any text is a line or none, in linear time."""
    for line in (start + text, f"{start}{text}) = {SHA256}"):
        parse_line(line)


class Site:
    """Serves files by path, and counts what is asked."""

    def __init__(self, start: Callable[..., MisbehavingServer]) -> None:
        self.files: dict[str, bytes] = {}
        self.failures = 0  # of the next requests
        self._server = start(self._answer)
        self.url = f"{self._server.url}/"

    @property
    def asked(self) -> list[str]:
        return [asked.path for asked in self._server.requests]

    def sent(self, name: str) -> list[str]:
        return [asked.headers.get(name, "") for asked in self._server.requests]

    def _answer(self, exchange: Exchange) -> None:
        body = self.files.get(exchange.asked.path.partition("?")[0])
        if self.failures:
            self.failures -= 1
            exchange.respond("503 Service Unavailable")
        elif body is None:
            exchange.respond("404 Not Found")
        else:
            exchange.serve(body, etag=None)


@pytest.fixture
def sums(misbehaving: Callable[..., MisbehavingServer]) -> Site:
    """A site with three files and their checksums."""
    site = Site(misbehaving)
    site.files = {"/a": BODY, "/b": BODY, "/c": b"other"}
    site.files["/SHA256SUMS"] = f"{SHA256}  a\n{SHA256}  b\n{OTHER}  c\n".encode()
    return site


def test_the_sidecar_is_asked_first(kit: Toolkit, sums: Site, out: Path) -> None:
    """And the file only if it differs; a failure of the first request is cured by another."""
    sums.failures = 1
    done = kit.download(f"{sums.url}a", out / "a", checksum=f"{sums.url}SHA256SUMS")
    assert (done.checksum, done.requests, sums.asked) == (f"sha256:{SHA256}", 3, ["/SHA256SUMS", "/SHA256SUMS", "/a"])
    sums.failures = 1
    again = kit.download(f"{sums.url}a", out / "a", checksum=f"{sums.url}SHA256SUMS")
    assert (again.unchanged, sums.asked[3:]) == (True, ["/SHA256SUMS", "/SHA256SUMS"])
    sums.files.update({"/a": b"other", "/SHA256SUMS": f"{OTHER}  a\n".encode()})
    kit.download(f"{sums.url}a", out / "a", checksum=f"{sums.url}SHA256SUMS")
    assert (out / "a").read_bytes() == b"other"


def test_a_batch_fetches_it_once(kit: Toolkit, sums: Site, out: Path) -> None:
    requests = [Request(f"{sums.url}{name}", checksum=f"{sums.url}SHA256SUMS") for name in "abc"]
    assert [done.bytes for done in kit.download_many(requests, out)] == [7, 7, 5]
    assert sorted(sums.asked) == ["/SHA256SUMS", "/a", "/b", "/c"]


def test_what_goes_wrong(kit: Toolkit, sums: Site, out: Path) -> None:
    """Each file has its error, and none is written."""
    sums.files["/SHA256SUMS"] = f"{OTHER}  a\n".encode()
    sums.files["/large"] = bytes(CHECKSUM_FILE_BYTES + 1)
    kinds = [
        ("a", "SHA256SUMS", IntegrityError, "checksum mismatch"),
        ("b", "SHA256SUMS", TransferError, "no checksum for 'b'"),
        ("c", "none", HTTPStatusError, "404"),
        ("c", "c", TransferError, "has no checksums"),
        ("b", "large", TransferError, "larger than"),
    ]
    requests = [
        Request(f"{sums.url}{name}", str(number), checksum=f"{sums.url}{where}")
        for number, (name, where, _, _) in enumerate(kinds)
    ]
    with pytest.raises(BatchError) as raised:
        kit.download_many(requests, out)
    for result, (_, _, kind, words) in zip(raised.value.results, kinds, strict=True):
        assert (type(result.error), words in str(result.error)) == (kind, True), result.error
    assert list(out.iterdir()) == []
    for wrong in ("https://[/SHA256SUMS", "https://h/\nx", "sha256:5"):
        with pytest.raises(ConfigError):
            Request("https://h/a", checksum=wrong)


def test_secrets_go_to_the_files_origin_only(
    kit: Toolkit, sums: Site, misbehaving: Callable[..., MisbehavingServer], out: Path
) -> None:
    elsewhere = Site(misbehaving)
    elsewhere.files = sums.files
    secret = {"X-Token": "s3cret"}
    kit.download(f"{sums.url}a", out / "a", checksum=f"{sums.url}SHA256SUMS", headers=secret)
    kit.download(f"{sums.url}b", out / "b", checksum=f"{elsewhere.url}SHA256SUMS?token=s3cret", headers=secret)
    assert (sums.sent("x-token"), elsewhere.sent("x-token")) == (["s3cret"] * 3, [""])
    assert "s3cret" not in repr(Request("https://h/a", checksum="https://u:s3cret@h/SHA256SUMS?token=s3cret"))


def test_a_sidecar_that_drips(
    make_kit: Callable[..., Toolkit], misbehaving: Callable[..., MisbehavingServer], out: Path
) -> None:
    """It is a stall as for any file."""

    def answer(exchange: Exchange) -> None:
        exchange.head("200 OK", Content_Length="1000")
        exchange.drip(b"0" * 1000, 0.02)

    url = misbehaving(answer).url
    kit = make_kit(retries=0, stall_window_s=0.1)
    with pytest.raises(TransferTimeoutError, match="bytes in"):
        kit.download(f"{url}/a", out / "a", checksum=f"{url}/SHA256SUMS")
