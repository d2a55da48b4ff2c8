"""The libraries that people test their HTTP with see perfkit's requests: responses, requests-mock, vcrpy."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import vcr

from perfkit import BatchError, HTTPStatusError, Toolkit, TransferError, TransferTimeoutError
from tests.support.fakes import MisbehavingServer
from tests.support.network import BODY

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

URL = "https://example.org/data/file.bin"


@pytest.fixture(params=["own", "session", "factory"])
def any_kit(request: pytest.FixtureRequest, make_kit: MakeKit) -> Toolkit:
    """With perfkit's own sessions, a caller's, and those of a factory."""
    given = {"own": None, "session": requests.Session(), "factory": requests.Session}[request.param]
    return make_kit(given)


# -- responses -------------------------------------------------------------------------------------------------------


@responses.activate
def test_responses_as_a_decorator(any_kit: Toolkit, tmp_path: Path) -> None:
    responses.get(URL, body=BODY, headers={"ETag": '"v1"'})
    download = any_kit.download(URL, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.bytes == len(BODY)
    assert download.version.etag == '"v1"'
    assert responses.calls[0].request.headers["Accept-Encoding"] == "identity"
    assert len(responses.calls) == 1


def test_responses_as_a_context(any_kit: Toolkit, tmp_path: Path) -> None:
    with responses.RequestsMock() as mock:
        mock.get(URL, body=b"hello")
        any_kit.download(URL, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"hello"


@pytest.mark.parametrize("url", ["https://example.org", "https://example.org/", "https://example.org/a%7eb?x=1&y=%2f"])
def test_urls_that_responses_knows(any_kit: Toolkit, tmp_path: Path, url: str) -> None:
    with responses.RequestsMock() as mock:
        mock.get(url, body=b"hello")
        any_kit.download(url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"hello"


def test_what_responses_does_not_know(any_kit: Toolkit, tmp_path: Path) -> None:
    """No network is asked; the error says which URL is not mocked."""
    with responses.RequestsMock(), pytest.raises(TransferError, match="Connection refused by Responses"):
        any_kit.download(URL, tmp_path / "f")


@pytest.mark.parametrize(("status", "requests_made"), [(404, 1), (403, 1), (503, 3), (500, 3)])
def test_error_statuses_by_responses(any_kit: Toolkit, tmp_path: Path, status: int, requests_made: int) -> None:
    with responses.RequestsMock() as mock:
        mock.get(URL, status=status)
        with pytest.raises(HTTPStatusError) as caught:
            any_kit.download(URL, tmp_path / "f")
        assert caught.value.status == status
        assert len(mock.calls) == requests_made


def test_a_retry_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    """Answers registered one after the other."""
    with responses.RequestsMock() as mock:
        mock.get(URL, status=503)
        mock.get(URL, body=requests.ConnectionError("broken"))
        mock.get(URL, body=BODY)
        assert any_kit.download(URL, tmp_path / "f").retries == 2
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_timeout_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    with responses.RequestsMock() as mock:
        mock.get(URL, body=requests.ReadTimeout("slow"))
        with pytest.raises(TransferTimeoutError):
            any_kit.download(URL, tmp_path / "f")
        assert len(mock.calls) == 3


def test_a_redirect_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    with responses.RequestsMock() as mock:
        mock.get(URL, status=302, headers={"Location": "https://cdn.example.net/f"})
        mock.get("https://cdn.example.net/f", body=BODY)
        any_kit.download(URL, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def answer_ranges(request: Any, body: bytes = BODY) -> tuple[int, dict[str, str], bytes]:
    """As a server that has them."""
    asked = request.headers.get("Range")
    if asked is None:
        return 200, {"ETag": '"v1"'}, body
    first, _, last = asked.removeprefix("bytes=").partition("-")
    part = body[int(first) : int(last) + 1 if last else None]
    return 206, {"ETag": '"v1"', "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"}, part


def test_ranges_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    """A callback can answer them: a part is fetched as it is from a server."""
    with responses.RequestsMock() as mock:
        mock.add_callback("GET", URL, callback=answer_ranges)
        any_kit.download(URL, tmp_path / "f")
        any_kit.download(URL, tmp_path / "part", byte_range=(1000, 3000))
    assert (tmp_path / "f").read_bytes() == BODY
    assert (tmp_path / "part").read_bytes() == BODY[1000:3000]


def test_a_file_that_is_current_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    with responses.RequestsMock() as mock:
        mock.get(URL, body=b"hello", headers={"ETag": '"v1"'})
        any_kit.download(URL, tmp_path / "f")
        mock.replace("GET", URL, status=304)
        assert any_kit.download(URL, tmp_path / "f").unchanged
        assert mock.calls[-1].request.headers["If-None-Match"] == '"v1"'


def test_many_files_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    with responses.RequestsMock() as mock:
        for number in range(20):
            mock.get(f"https://example.org/{number}", body=str(number), status=404 if number == 7 else 200)
        with pytest.raises(BatchError) as caught:
            any_kit.download_many([(f"https://example.org/{number}", str(number)) for number in range(20)], tmp_path)
    assert [number for number, each in enumerate(caught.value.results) if each.error] == [7]
    assert (tmp_path / "19").read_text() == "19"


def test_responses_lets_through(any_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_passthru(server.url)
        any_kit.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_sync_by_responses(any_kit: Toolkit, tmp_path: Path) -> None:
    """A whole release, from a directory."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.rules").write_text("alert\n" * 1000)
    any_kit.publish(tmp_path / "src", tmp_path / "site", version="1")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        for path in (tmp_path / "site").rglob("*"):
            if path.is_file():
                mock.add_callback(
                    "GET",
                    f"https://example.org/rules/{path.relative_to(tmp_path / 'site')}",
                    callback=functools.partial(answer_ranges, body=path.read_bytes()),
                )
        assert any_kit.sync("https://example.org/rules/", tmp_path / "tree").version == "1"
    assert (tmp_path / "tree/a.rules").read_text() == "alert\n" * 1000


# -- requests-mock ---------------------------------------------------------------------------------------------------


@requests_mock.Mocker(kw="mock")
def decorated(kit: Toolkit, path: Path, mock: requests_mock.Mocker) -> list[Any]:
    mock.get(URL, content=BODY, headers={"ETag": '"v1"'})
    kit.download(URL, path)
    return mock.request_history


def test_requests_mock_as_a_decorator(any_kit: Toolkit, tmp_path: Path) -> None:
    history = decorated(any_kit, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert [each.url for each in history] == [URL]


def test_requests_mock_as_a_fixture(any_kit: Toolkit, requests_mock: requests_mock.Mocker, tmp_path: Path) -> None:
    requests_mock.get(URL, text="hello")
    any_kit.download(URL, tmp_path / "f")
    assert (tmp_path / "f").read_text() == "hello"
    assert requests_mock.call_count == 1


def test_requests_mock_for_one_session(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Only what is sent by it is mocked, and when it ends the session is as before."""
    server = misbehaving(lambda x: x.serve(BODY))
    session = requests.Session()
    kit = make_kit(session)
    with requests_mock.Mocker(session=session) as mock:
        mock.get(f"{server.url}/f", content=b"mocked")
        kit.download(f"{server.url}/f", tmp_path / "f")
        make_kit().download(f"{server.url}/f", tmp_path / "real")
    assert (tmp_path / "f").read_bytes() == b"mocked"
    assert (tmp_path / "real").read_bytes() == BODY
    kit.download(f"{server.url}/f", tmp_path / "f", resume=False)
    assert (tmp_path / "f").read_bytes() == BODY


def test_an_adapter_of_requests_mock(make_kit: MakeKit, tmp_path: Path) -> None:
    """Mounted, also for a scheme that is mocked: `mock://` is for sessions, https for perfkit."""
    session = requests.Session()
    adapter = requests_mock.Adapter()
    session.mount("https://", adapter)
    adapter.register_uri("GET", URL, content=BODY)
    make_kit(session).download(URL, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize(("status", "requests_made"), [(404, 1), (503, 3)])
def test_error_statuses_by_requests_mock(any_kit: Toolkit, tmp_path: Path, status: int, requests_made: int) -> None:
    with requests_mock.Mocker() as mock:
        mock.get(URL, status_code=status)
        with pytest.raises(HTTPStatusError) as caught:
            any_kit.download(URL, tmp_path / "f")
        assert caught.value.status == status
        assert mock.call_count == requests_made


def test_errors_by_requests_mock(any_kit: Toolkit, tmp_path: Path) -> None:
    with requests_mock.Mocker() as mock:
        mock.get(URL, [{"exc": requests.ConnectTimeout}, {"status_code": 503}, {"content": BODY}])
        assert any_kit.download(URL, tmp_path / "f").retries == 2
        mock.get(URL, exc=requests.ConnectTimeout)
        with pytest.raises(TransferTimeoutError):
            any_kit.download(URL, tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == BODY


def test_what_requests_mock_does_not_know(any_kit: Toolkit, tmp_path: Path) -> None:
    with requests_mock.Mocker(), pytest.raises(TransferError, match="No mock address"):
        any_kit.download(URL, tmp_path / "f")


def test_a_redirect_by_requests_mock(any_kit: Toolkit, tmp_path: Path) -> None:
    with requests_mock.Mocker() as mock:
        mock.get(URL, status_code=301, headers={"Location": "https://cdn.example.net/f"})
        mock.get("https://cdn.example.net/f", content=BODY)
        any_kit.download(URL, tmp_path / "f")
        assert [each.url for each in mock.request_history] == [URL, "https://cdn.example.net/f"]
    assert (tmp_path / "f").read_bytes() == BODY


def test_ranges_by_requests_mock(any_kit: Toolkit, tmp_path: Path) -> None:
    def answer(request: Any, context: Any) -> bytes:
        context.status_code, headers, body = answer_ranges(request)
        context.headers.update(headers)
        return body

    with requests_mock.Mocker() as mock:
        mock.get(URL, content=answer)
        any_kit.download(URL, tmp_path / "f")
        any_kit.download(URL, tmp_path / "part", byte_range=(1000, 3000))
    assert (tmp_path / "f").read_bytes() == BODY
    assert (tmp_path / "part").read_bytes() == BODY[1000:3000]


def test_requests_mock_lets_through(any_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    with requests_mock.Mocker(real_http=True):
        any_kit.download(f"{server.url}/f", tmp_path / "f")
    any_kit.download(f"{server.url}/f", tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == BODY


def test_after_requests_mock(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Which leaves an attribute in each session that it has seen: the next download goes out as before."""
    server = misbehaving(lambda x: x.serve(BODY))
    session = requests.Session()
    kit = make_kit(session, segments=1)
    with requests_mock.Mocker() as mock:
        mock.get(URL, content=BODY)
        kit.download(URL, tmp_path / "f")
    for _ in range(3):
        kit.download(f"{server.url}/f", tmp_path / "f", resume=False)
    assert (tmp_path / "f").read_bytes() == BODY
    assert len(server._threads) - 1 == 1


# -- vcrpy: one thread at a time, since it puts the real connections back, for all, while it makes one of its own ----


@pytest.fixture(params=["own", "session", "factory"])
def single(request: pytest.FixtureRequest, make_kit: MakeKit) -> Toolkit:
    given = {"own": None, "session": requests.Session(), "factory": requests.Session}[request.param]
    return make_kit(given, workers=1)


def test_vcr_records_and_replays(single: Toolkit, make_kit: MakeKit, tmp_path: Path) -> None:
    """Records what a server answers, and plays it when the server is gone."""
    cassette = str(tmp_path / "cassette.yaml")
    server = MisbehavingServer(
        lambda x: x.serve(b"hello", etag=None) if x.asked.path == "/f" else x.respond("404 Not Found")
    )
    url = server.url
    with server, vcr.use_cassette(cassette):
        single.download(f"{url}/f", tmp_path / "f")
        with pytest.raises(HTTPStatusError):
            single.download(f"{url}/g", tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == b"hello"
    assert len(server.requests) == 2
    (tmp_path / "f").unlink()
    with vcr.use_cassette(cassette, record_mode="none") as played, make_kit(workers=1) as other:
        other.download(f"{url}/f", tmp_path / "f")
        with pytest.raises(HTTPStatusError):
            other.download(f"{url}/g", tmp_path / "g")
        assert played.play_count == 2
    assert (tmp_path / "f").read_bytes() == b"hello"


def test_vcr_with_the_same_kit(single: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Connections that were kept before a cassette was put in carry nothing past it, and none of its are kept after."""
    cassette = str(tmp_path / "cassette.yaml")
    server = misbehaving(lambda x: x.serve(str(x.number).encode(), etag=None))
    url = f"{server.url}/f"

    def fetch() -> str:
        single.download(url, tmp_path / "f", resume=False)
        return (tmp_path / "f").read_text()

    assert fetch() == "1"
    with vcr.use_cassette(cassette):
        assert fetch() == "2"
    with vcr.use_cassette(cassette, record_mode="none"):
        assert fetch() == "2"
    assert fetch() == "3"


def test_vcr_with_redirects(single: Toolkit, tmp_path: Path) -> None:
    cassette = str(tmp_path / "cassette.yaml")
    server = MisbehavingServer(
        lambda x: x.respond("302 Found", Location="/g") if x.asked.path == "/f" else x.serve(BODY)
    )
    url = server.url
    with server, vcr.use_cassette(cassette):
        single.download(f"{url}/f", tmp_path / "f", resume=False)
    with vcr.use_cassette(cassette, record_mode="none"):
        single.download(f"{url}/f", tmp_path / "f", resume=False)
    assert (tmp_path / "f").read_bytes() == BODY


def test_what_is_not_on_the_cassette(single: Toolkit, tmp_path: Path) -> None:
    cassette = str(tmp_path / "cassette.yaml")
    with vcr.use_cassette(cassette, record_mode="none"), pytest.raises(TransferError, match="cassette"):
        single.download(URL, tmp_path / "f")


# -- threads ---------------------------------------------------------------------------------------------------------


def test_mocks_in_several_threads(make_kit: MakeKit, tmp_path: Path) -> None:
    """Workers' requests are seen, whichever thread they are sent by."""
    idents = set()
    both = threading.Barrier(2, timeout=100)

    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        idents.add(threading.get_ident())
        both.wait()
        return 200, {}, b"x"

    with responses.RequestsMock() as mock:
        mock.add_callback("GET", "https://example.org/a", callback=answer)
        mock.add_callback("GET", "https://example.org/b", callback=answer)
        make_kit().download_many(["https://example.org/a", "https://example.org/b"], tmp_path)
    assert len(idents) == 2
