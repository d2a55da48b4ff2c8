"""`perfkit.testing`, as a user's own tests would have it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import BatchError, Config, HTTPStatusError, IntegrityError, Toolkit, TransferError, TransferTimeoutError
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.transport import Get, Response, Transport
from perfkit.testing import FakeOrigin

URL = "https://example.org/big.bin"
BODY = os.urandom(3_000_000)
EAGER = Config(backoff_base_s=0, retries=2)


def refresh(source: str, dest: Path) -> str:
    """A user's code, which makes its own Toolkit."""
    with Toolkit() as kit:
        report = kit.sync(source, dest)
        return f"{report.version}: +{report.added} ~{report.changed}"


def test_code_that_syncs(perfkit_origin: FakeOrigin, tmp_path: Path) -> None:
    """Releases follow each other, by deltas, and the requests can be inspected."""
    files = {f"{number}.rules": f"alert {number}\n" * 50 for number in range(20)}
    perfkit_origin.publish("https://example.org/rules", files, version="1")
    assert refresh("https://example.org/rules/", tmp_path / "tree") == "1: +20 ~0"
    perfkit_origin.requests.clear()
    perfkit_origin.publish("https://example.org/rules", {**files, "7.rules": "drop 7\n"}, version="2")
    assert refresh("https://example.org/rules/", tmp_path / "tree") == "2: +0 ~1"
    assert (tmp_path / "tree/7.rules").read_text() == "drop 7\n"
    assert perfkit_origin.requests[0].url == "https://example.org/rules/perfkit.json"
    assert {asked.status for asked in perfkit_origin.requests} <= {200, 206}


def test_failures_are_retried(tmp_path: Path) -> None:
    """A busy server, a broken connection, a timeout: the file is whole, in as many retries."""
    with FakeOrigin() as origin, Toolkit(EAGER, transport=origin) as kit:
        for number, failure in enumerate(({"status": 503}, {"after_bytes": 5}, {})):
            url = f"https://example.org/{number}"
            origin.add(url, "hello, world")
            origin.fail(url, times=2, **failure)  # type: ignore[arg-type]
            done = kit.download(url, tmp_path / "f", resume=False)
            assert (tmp_path / "f").read_text() == "hello, world"
            assert done.retries == 2
        assert [asked.status for asked in origin.requests] == [503, 503, 200, 200, 206, 206, None, None, 200]


@pytest.mark.parametrize(("failure", "error"), [
    ({"status": 403}, HTTPStatusError), ({"after_bytes": 0}, TransferError), ({}, TransferTimeoutError),
])  # fmt: skip
def test_failures_that_stay(failure: dict[str, int], error: type[Exception], tmp_path: Path) -> None:
    """The error that the real thing would give."""
    with FakeOrigin() as origin, Toolkit(EAGER, transport=origin) as kit:
        origin.add(URL, b"body")
        origin.fail(URL, times=99, **failure)  # type: ignore[arg-type]
        with pytest.raises(error):
            kit.download(URL, tmp_path)
        assert not list(tmp_path.glob("*.bin"))


def hold_bodies(origin: FakeOrigin, requests: int) -> Callable[[Config], Transport]:
    """The origin's transport, except that no body begins before so many requests were made.

    A body in memory takes no time: without this, the first request may have all of it before another thread starts.
    """
    reached = threading.Event()

    def make(config: Config) -> Transport:
        transport: Any = origin(config)
        send = transport.open

        def open_held(request: Get, cancel: Cancel) -> Response:
            response = send(request, cancel)
            read = response.read1
            response.read1 = lambda most: read(most) if reached.wait(100) else pytest.fail("no other request came")
            if len(origin.requests) >= requests:
                reached.set()
            return response  # type: ignore[no-any-return]

        transport.open = open_held
        return transport  # type: ignore[no-any-return]

    return make


def test_segments_resumption_and_freshness(tmp_path: Path) -> None:
    """Ranges and validators are honoured as a good server does."""
    origin = FakeOrigin()
    origin.add(URL, BODY)
    segmented = Config(min_segment_bytes=100_000, adaptive=False)
    with Toolkit(segmented, transport=hold_bodies(origin, requests=2)) as kit:
        assert kit.download(URL, tmp_path / "f").segments > 1
        assert (tmp_path / "f").read_bytes() == BODY
        assert kit.download(URL, tmp_path / "f").unchanged
        origin.add(URL, BODY[::-1])
        assert not kit.download(URL, tmp_path / "f").unchanged
        assert (tmp_path / "f").read_bytes() == BODY[::-1]
    origin.fail(URL, after_bytes=1_000_000, times=1)
    origin.fail(URL, status=500, times=99)
    with Toolkit(Config(retries=0, segments=1), transport=origin) as kit, pytest.raises(TransferError):
        kit.download(URL, tmp_path / "g")
    origin.clear_failures(URL)
    with Toolkit(transport=origin) as kit:
        assert kit.download(URL, tmp_path / "g").resumed_from > 0
    assert (tmp_path / "g").read_bytes() == BODY[::-1]


def test_what_is_not_there_and_what_is_wrong(tmp_path: Path) -> None:
    """404 for all that was not added, removed or lies outside a mounted directory; checksums count."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a b").write_text("a")
    (tmp_path / "secret").write_text("s")
    origin = FakeOrigin()
    origin.mount("https://example.org/m", tmp_path / "site")
    origin.add("https://example.org/gone", "x")
    origin.remove("https://example.org/gone")
    names = ["m/a b", "m/../secret", "m/%2e%2e/secret", "gone", "m/nothing"]
    with Toolkit(transport=origin) as kit:
        with pytest.raises(BatchError) as caught:
            kit.download_many(
                [(f"https://example.org/{name}", str(n)) for n, name in enumerate(names)], tmp_path / "out"
            )
        assert [isinstance(each.error, HTTPStatusError) for each in caught.value.results] == [False, *[True] * 4]
        wrong = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
        with pytest.raises(IntegrityError):
            kit.download("https://example.org/m/a%20b", tmp_path / "b", checksum=wrong)


def test_a_site_appears_while_another_is_asked(tmp_path: Path) -> None:
    """The test publishes while the code under test syncs in another thread."""

    class Mounted(type(tmp_path)):  # type: ignore[misc]
        def __truediv__(self, name: str) -> Path:
            origin.mount(f"https://two.example/{name}", tmp_path)
            return tmp_path / name

    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        origin._mounts = {f"https://one.example/{number}/": Mounted(tmp_path) for number in range(2)}
        (tmp_path / "f").write_bytes(b"abc")
        assert kit.download("https://one.example/1/f", tmp_path / "got").bytes == 3


def test_what_was_sent(tmp_path: Path) -> None:
    """Headers can be looked at."""
    origin = FakeOrigin()
    origin.add(URL, "x")
    with Toolkit(transport=origin) as kit:
        kit.download(URL, tmp_path, headers={"X-Key": "k"})
    assert [asked.headers["x-key"] for asked in origin.requests] == ["k"]


def test_nothing_is_left(tmp_path: Path) -> None:
    """The scratch directory of releases goes, and Toolkits are real ones again."""
    real = Toolkit.default_transport
    with FakeOrigin() as origin, origin.installed():
        origin.publish("https://example.org/", {"a": "a"}, version="1")
        scratch = origin._scratch
        assert scratch is not None
        assert Toolkit.default_transport is origin
    assert not scratch.exists()
    assert Toolkit.default_transport is real


@pytest.mark.once
def test_the_fixture_comes_with_the_package(tmp_path: Path) -> None:
    """A project that has perfkit installed has the fixture; other tests don't pay for it."""
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n"
        "def test_cost():\n"
        "    assert 'requests' not in sys.modules and 'perfkit.testing' not in sys.modules\n"
        "def test_use(perfkit_origin, tmp_path):\n"
        "    from perfkit import Toolkit\n"
        "    perfkit_origin.add('https://h/f', 'x')\n"
        "    with Toolkit() as kit:\n"
        "        assert kit.download('https://h/f', tmp_path).bytes == 1\n"
    )
    others = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "requests_mock")]
    # In a folder of its own, or it would remove what earlier runs of the suite left in the shared one.
    command = [sys.executable, "-m", "pytest", "-q", "--basetemp", str(tmp_path / "scratch"), *others, "."]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout
