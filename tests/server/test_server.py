"""The embedded server, as curl and as raw sockets see it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from perfkit import ConfigError
from perfkit.server.conditional import Representation
from perfkit.server.server import Server
from tests.support.kits import SOON_S
from tests.support.tools import need

BODY = bytes(range(256)) * 40
SIZE = len(BODY)
MODIFIED_S = 1_700_000_000


@pytest.fixture
def filled_site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    root.mkdir()
    (root / "f").write_bytes(BODY)
    os.utime(root / "f", (MODIFIED_S, MODIFIED_S))
    (root / "empty").touch()
    (tmp_path / "secret").write_text("secret")
    return root


@pytest.fixture
def server(filled_site: Path) -> Iterator[Server]:
    with Server(filled_site) as server:
        yield server


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A connection on which every byte is in view; a context manager."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port_of(server)), 10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, target: str = "/f", method: str = "GET", **headers: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: x",
                 *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]  # fmt: skip
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return self.answer(with_body=method != "HEAD")

    def answer(self, *, with_body: bool = True) -> Answer:
        head = self.head()
        length = int(head.headers["content-length"]) if with_body and head.status != 304 else 0
        return Answer(head.status, head.headers, self._file.read(length))

    def head(self) -> Answer:
        version, status, *_ = self._file.readline().decode().split(" ")
        assert version == "HTTP/1.1"
        headers = {}
        while line := self._file.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        return Answer(int(status), headers, b"")

    def rest(self) -> bytes:
        return self._file.read()


def port_of(server: Server) -> int:
    return int(server.url.rstrip("/").rpartition(":")[2])


def ask(server: Server, target: str = "/f", method: str = "GET", **headers: str) -> Answer:
    with Client(server) as client:
        answer = client.ask(target, method, **headers)
        # The connection is still in step: what follows is the answer to the next question.
        assert client.ask("/empty").status == 200
    return answer


def curl(*arguments: str) -> bytes:
    need("curl")
    command = ["curl", "-sS", "--path-as-is", "--max-time", "20", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


# -- files and ranges -------------------------------------------------------------------------------------------------


def test_a_file_is_served_whole_with_a_validator(server: Server) -> None:
    """Whole, with a length, a strong validator, and the promise of ranges."""
    answer = ask(server)
    assert (answer.status, answer.body) == (200, BODY)
    assert re.fullmatch(r'"[0-9a-f-]+"', answer.headers["etag"])
    assert answer.headers["last-modified"] == formatdate(MODIFIED_S, usegmt=True)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "content-range" not in answer.headers
    assert "date" in answer.headers


def test_an_empty_file(server: Server) -> None:
    """It has no bytes, so no range of it is satisfiable."""
    answer = ask(server, "/empty")
    assert (answer.status, answer.body) == (200, b"")
    for wanted in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        answer = ask(server, "/empty", Range=wanted)
        assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(("wanted", "start", "end"), [
    ("bytes=0-0", 0, 1),
    ("bytes=0-", 0, SIZE),
    ("bytes=100-199", 100, 200),
    (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    (f"bytes=5-{SIZE}", 5, SIZE),
    ("bytes=5-99999999999999999999999", 5, SIZE),
    ("bytes=-1", SIZE - 1, SIZE),
    (f"bytes=-{SIZE * 2}", 0, SIZE),
    ("BYTES=1-2", 1, 3),
    ("bytes= 1-2", 1, 3),
])  # fmt: skip
def test_a_range_is_served_as_far_as_it_exists(wanted: str, start: int, end: int, server: Server) -> None:
    """206, with as much of the requested range as exists."""
    answer = ask(server, Range=wanted)
    assert (answer.status, answer.body) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", f"bytes={10**30}-"])
def test_a_range_that_there_is_nothing_of(wanted: str, server: Server) -> None:
    """416, with the size."""
    answer = ask(server, Range=wanted)
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("wanted", ["bytes=", "bytes=-", "bytes=2-1", "bytes=a-b", "lines=0-1", "bytes=0-1,4-5",
                                    "bytes=\xb2-", f"bytes={'9' * 5000}-", "bytes=-1-2", "bytes=+1-2"])  # fmt: skip
def test_anything_but_a_single_range_is_ignored(wanted: str, server: Server) -> None:
    """The whole file, as RFC 9110 section 14.2 has it."""
    answer = ask(server, Range=wanted)
    assert (answer.status, answer.body) == (200, BODY)


def test_head_has_the_headers_of_get_without_ranges(server: Server) -> None:
    """The headers of GET without its body; ranges are for GET alone."""
    want = ask(server)
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = ask(server, method="HEAD", **headers)
        assert (answer.status, answer.body) == (200, b"")
        assert {**answer.headers, "date": ""} == {**want.headers, "date": ""}
    assert ask(server, "/missing", "HEAD").status == 404
    assert ask(server, "/", "HEAD").status == 200


def test_conditions_are_about_the_file_as_it_is_now(server: Server) -> None:
    """RFC 9110 section 13: what is asked about is the file as it is now."""
    etag = ask(server).headers["etag"]
    same, other, before, after = etag, '"other"', formatdate(MODIFIED_S - 1, usegmt=True), formatdate(
        MODIFIED_S, usegmt=True)  # fmt: skip
    for status, headers in [
        (200, {"If_Match": same}), (200, {"If_Match": f"{other}, {same}"}), (200, {"If_Match": "*"}),
        (412, {"If_Match": other}), (412, {"If_Match": f"W/{same}"}),
        (304, {"If_None_Match": same}), (304, {"If_None_Match": f"W/{same}"}), (304, {"If_None_Match": "*"}),
        (304, {"If_None_Match": f"{other} ,{same}"}), (200, {"If_None_Match": other}),
        (304, {"If_Modified_Since": after}), (200, {"If_Modified_Since": before}),
        (200, {"If_Modified_Since": "yesterday"}),
        (200, {"If_Unmodified_Since": after}), (412, {"If_Unmodified_Since": before}),
        (200, {"If_None_Match": other, "If_Modified_Since": after}),  # the tag is the better judge
        (200, {"If_Match": same, "If_Unmodified_Since": before}),
        (412, {"If_Match": other, "If_None_Match": same}),
        (412, {"If_Match": other, "Range": "bytes=0-9"}), (304, {"If_None_Match": same, "Range": "bytes=0-9"}),
        (206, {"If_Match": same, "Range": "bytes=0-9"}),
    ]:  # fmt: skip
        answer = ask(server, **headers)
        assert answer.status == status, headers
        assert answer.body == {200: BODY, 206: BODY[:10]}.get(status, b"")
        assert answer.headers["etag"] == etag


def test_if_range(server: Server) -> None:
    """A range of this version, or the whole of another; a weak tag says nothing."""
    fresh = ask(server).headers
    for condition in (fresh["etag"], fresh["last-modified"]):
        assert ask(server, Range="bytes=1-2", If_Range=condition).status == 206
    for condition in ('"other"', f"W/{fresh['etag']}", formatdate(MODIFIED_S + 1, usegmt=True), "nonsense"):
        answer = ask(server, Range="bytes=1-2", If_Range=condition)
        assert (answer.status, answer.body) == (200, BODY)
        assert ask(server, Range=f"bytes={SIZE}-", If_Range=condition).status == 200


def test_dates_beyond_the_calendar(server: Server) -> None:
    """Times that file systems can store, but no date can express; and a date from a client that no clock can."""
    for seconds, year in ((3e11, "9999"), (-7e10, "0001")):
        assert year in Representation(1, '"x"', seconds).headers["Last-Modified"]
    assert ask(server, If_Modified_Since="Mon, 01 Jan 99999999999 00:00:00 GMT").status == 200


def test_another_version_has_another_tag(filled_site: Path, server: Server) -> None:
    """Also one of the same size and time: a file that replaces it is another file."""
    etag = ask(server).headers["etag"]
    (filled_site / "new").write_bytes(BODY[::-1])
    os.utime(filled_site / "new", (MODIFIED_S, MODIFIED_S))
    os.replace(filled_site / "new", filled_site / "f")
    answer = ask(server, If_None_Match=etag)
    assert (answer.status, answer.body) == (200, BODY[::-1])


def test_curl_agrees(filled_site: Path, server: Server, tmp_path: Path) -> None:
    """The most used client gets a file, parts of it, the rest of it, and the news that it is current."""
    url, etag, out = f"{server.url}f", tmp_path / "etag", tmp_path / "out"
    assert curl(url) == BODY
    assert curl("-r", "10-19", url) == BODY[10:20]
    assert curl("-r", "-5", url) == BODY[-5:]
    out.write_bytes(BODY[:1000])
    curl("-C", "-", "-o", str(out), url)
    assert out.read_bytes() == BODY
    curl("--etag-save", str(etag), "-o", str(out), url)
    assert curl("--etag-compare", str(etag), "-w", "%{http_code}", url) == b"304"
    assert curl("-z", formatdate(MODIFIED_S, usegmt=True), "-w", "%{http_code}", url) == b"304"
    assert b"Content-Length: 10240" in curl("-I", url)
    assert curl("-w", "%{num_connects}\n", "-o", str(out), "-o", str(out), url, url) == b"1\n0\n"


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = [b"two words", "Grüße 日本.txt".encode(), b"\xff\xfe not utf-8", b"100%25?#&;+.bin", b"\"<script>'&amp;", b"~",
         b"a\nb\r", b"-rf", b"...", b"a:b", b"back\\slash"]  # fmt: skip


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name == "href"]


def test_names_of_any_bytes(filled_site: Path, server: Server) -> None:
    """The index lists them, escaped, and its links lead to them."""
    for number, name in enumerate(NAMES):
        with open(os.path.join(os.fsencode(filled_site), name), "wb") as file:
            file.write(b"%d" % number)
    (filled_site / "sub dir").mkdir()
    index = ask(server, "/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    links = Links()
    links.feed(index.body.decode())
    assert links.tags == {"meta", "title", "ul", "li", "a"}
    assert {unquote_to_bytes(link) for link in links.found} == {*NAMES, b"f", b"empty", b"sub dir/"}
    by_name = {unquote_to_bytes(link): link for link in links.found}
    for number, name in enumerate(NAMES):
        assert ask(server, f"/{by_name[name]}").body == b"%d" % number
        assert curl(f"{server.url}{by_name[name]}") == b"%d" % number


def test_directories_have_an_index_and_redirect_to_it(filled_site: Path, server: Server) -> None:
    """A directory has an index under its name with a slash, and a redirect to it under that without."""
    (filled_site / "sub dir/deep").mkdir(parents=True)
    (filled_site / "sub dir/g").write_text("g")
    answer = ask(server, "/sub%20dir")
    assert (answer.status, answer.headers["location"]) == (301, "/sub%20dir/")
    assert ask(server, "/sub%20dir/").body.count(b"<li>") == 2
    assert curl("-L", f"{server.url}sub%20dir/deep").count(b"<li>") == 0
    assert ask(server, "/sub%20dir/g").body == b"g"
    assert ask(server, "/sub%20dir/g/").status == 404
    assert ask(server, "//sub%20dir//deep").headers["location"].startswith("/sub%20dir")  # and not to a host
    assert ask(server, "/f?query=1#fragment").status == 200


@pytest.mark.parametrize("target", [
    "/../secret", "/%2e%2e/secret", "/%2E%2E%2fsecret", "/sub/../../secret", "/sub/%2e./../secret", "/..",
    "/out/secret", "/out-file", "/out", "/sub/absolute", "//etc/passwd", "/%2fetc/passwd", "/f%00", "/f/../f", "/loop",
    "/http://[", "/pipe", "/device", "/site-twin/f", "/missing", "/" + "x" * 5000, "/" + "x/" * 3000,
])  # fmt: skip
def test_nothing_else_is_reachable(target: str, filled_site: Path, server: Server) -> None:
    """Neither .., however it is spelt, nor a link leads out of the root; only regular files are served."""
    (filled_site / "sub").mkdir()
    (filled_site / "out").symlink_to(filled_site.parent)
    (filled_site / "out-file").symlink_to("../secret")
    (filled_site / "sub/absolute").symlink_to(filled_site.parent / "secret")
    (filled_site / "loop").symlink_to("loop")
    os.mkfifo(filled_site / "pipe")
    (filled_site / "device").symlink_to("/dev/zero")
    (filled_site.parent / "site-twin").mkdir()
    (filled_site / "site-twin").symlink_to(filled_site.parent / "site-twin")
    (filled_site.parent / "site-twin/f").write_text("secret")
    answer = ask(server, target)
    assert answer.status == 404
    assert b"secret" not in answer.body


def test_links_inside_the_root(filled_site: Path, server: Server) -> None:
    """They are followed, and so is the root itself if it is one."""
    (filled_site / "link").symlink_to("f")
    assert ask(server, "/link").body == BODY
    (filled_site.parent / "root-link").symlink_to(filled_site)
    with Server(filled_site.parent / "root-link") as other:
        assert ask(other).body == BODY


def test_an_unreadable_file(filled_site: Path, server: Server) -> None:
    """An error status, and the connection stays open. Root reads everything."""
    (filled_site / "mine").write_text("x")
    (filled_site / "mine").chmod(0)
    assert ask(server, "/mine").status == (200 if os.access(filled_site / "mine", os.R_OK) else 404)


@pytest.mark.parametrize("raw", [
    b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /f HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /f HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"\x16\x03\x01\x00\xff\x00\r\n\r\n",
])  # fmt: skip
def test_invalid_requests(raw: bytes, server: Server) -> None:
    """An error and the end of the connection; the server goes on."""
    with Client(server) as client, contextlib.suppress(ConnectionError):
        client.send(raw)
        assert not re.search(rb"^HTTP/1\.1 [123]", client.rest())
    assert ask(server).status == 200


def test_a_line_that_is_too_long(server: Server) -> None:
    with Client(server) as client:
        client.send(b"GET /".ljust(65_537, b"x"))
        assert client.head().status == 414


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_a_request_is_not_the_next_one(server: Server, chunked: bool) -> None:
    """It is ignored (RFC 9110 section 9.3.1); the connection ends where its length is not known."""
    body = b"GET /empty HTTP/1.1\r\n\r\n"
    field = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    with Client(server) as client:
        client.send(b"GET /f HTTP/1.1\r\n%s\r\n\r\n" % field)
        client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        assert client.answer().body == BODY
        if chunked:
            with contextlib.suppress(ConnectionError):  # since the body was not read
                assert client.rest() == b""
        else:
            assert client.ask(Range="bytes=0-9").body == BODY[:10]


# -- connections ------------------------------------------------------------------------------------------------------


def test_many_at_once(filled_site: Path, server: Server) -> None:
    """Fifty clients, each with its own part, all open before the first has read."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(50)]
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda n: clients[n].ask(Range=f"bytes={n}-{n + 99}"), range(50)))
    assert [answer.body for answer in answers] == [BODY[n : n + 100] for n in range(50)]


def test_requests_in_a_row(server: Server) -> None:
    """Several requests sent before the first answer is read are answered in order (pipelining)."""
    with Client(server) as client:
        client.send(b"".join(b"GET /f HTTP/1.1\r\nRange: bytes=%d-%d\r\n\r\n" % (n, n) for n in range(5)))
        assert [client.answer().body for _ in range(5)] == [BODY[n : n + 1] for n in range(5)]


def test_http_1_0(server: Server) -> None:
    """An old client gets its file, and the end of the connection."""
    with Client(server) as client:
        client.send(b"GET /f HTTP/1.0\r\n\r\n")
        assert client.rest().endswith(BODY)


BIG = 64 << 20  # more than all socket buffers of a loopback connection hold


def test_a_file_that_grows_while_it_is_sent(filled_site: Path, server: Server) -> None:
    """What was promised is sent, and not more."""
    os.truncate(filled_site / "f", BIG)
    with Client(server) as client:
        client.send(b"GET /f HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n")
        head = client.head()
        with open(filled_site / "f", "ab") as file:
            file.write(b"more")
        assert len(client._file.read(int(head.headers["content-length"]))) == BIG
        assert client.answer().headers["content-length"] == "0"


def test_a_file_that_shrinks_while_it_is_sent(filled_site: Path, server: Server) -> None:
    """The connection ends early, so that no client takes the rest of something else for it."""
    os.truncate(filled_site / "f", BIG)
    with Client(server) as client:
        client.send(b"GET /f HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n")
        client.head()
        os.truncate(filled_site / "f", BIG // 2)
        assert len(client.rest()) <= BIG // 2
    assert ask(server, "/empty").status == 200


def test_a_client_that_leaves_in_the_middle(filled_site: Path, server: Server) -> None:
    """Nobody else notices."""
    os.truncate(filled_site / "f", BIG)
    for _ in range(3):
        with Client(server) as client:
            client.send(b"GET /f HTTP/1.1\r\n\r\n")
            client.head()
    assert ask(server, Range="bytes=0-9").body == BODY[:10]


def test_a_limited_connection(filled_site: Path) -> None:
    """A slow link sends no faster than it should, on each connection by itself."""
    with Server(filled_site, bytes_per_s=SIZE * 5) as server, Client(server) as one, Client(server) as two:
        began = time.monotonic()
        for client in (one, two):
            client.send(b"GET /f HTTP/1.1\r\n\r\n")
        assert one.answer().body == two.answer().body == BODY
        assert time.monotonic() - began > 0.15


def test_close_is_quick(filled_site: Path) -> None:
    """Idle connections, stuck readers and half a request don't hold it up; its port is free afterwards."""
    os.truncate(filled_site / "f", BIG)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(filled_site))
        idle, stuck, half, slow = (stack.enter_context(Client(server)) for _ in range(4))
        idle.ask("/empty")
        stuck.send(b"GET /f HTTP/1.1\r\n\r\n")
        stuck.head()
        half.send(b"GET /f HT")
        slow.send(b"GET /f HTTP/1.1\r\nRange: bytes=0-\r\n\r\n")
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < SOON_S
        with Server(filled_site, port=port_of(server)) as again:
            assert ask(again, "/empty").status == 200


def test_close_ends_a_wait(filled_site: Path) -> None:
    """Waiting threads return when the server ends."""
    with Server(filled_site) as server:
        waiting = threading.Thread(target=server.wait)
        waiting.start()
        server.close()
        waiting.join(100)
        assert not waiting.is_alive()


def test_an_ipv6_address(filled_site: Path) -> None:
    with Server(filled_site, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        with socket.create_connection(("::1", port_of(server)), 10) as connection:
            connection.sendall(b"GET /f HTTP/1.0\r\n\r\n")
            assert connection.makefile("rb").read().endswith(BODY)


def test_never_started(filled_site: Path) -> None:
    """A server that was made and not entered can be closed, and holds its port until then."""
    server = Server(filled_site)
    with pytest.raises(ConfigError, match="--port 0"):
        Server(filled_site, port=port_of(server))
    server.close()
    Server(filled_site, port=port_of(server)).close()


def test_no_directory(filled_site: Path) -> None:
    for path in (filled_site / "f", filled_site / "missing"):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            Server(path)
