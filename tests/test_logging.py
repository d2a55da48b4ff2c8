"""What perfkit logs: enough to follow its work, and never a secret."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import BatchError, ConfigError, PerfkitError, Request, Toolkit
from perfkit.cli import main
from perfkit.redact import redacted, redacted_text
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.waiting import wait_until

Start = Callable[..., MisbehavingServer]
HUSH = "hush4711"  # no log and no message may have it
KEY = {"Authorization": f"Bearer {HUSH}", "X-Api-Key": HUSH}


def secret_url(server: MisbehavingServer, name: str = "f") -> str:
    """A URL with all that may be secret in one."""
    return f"{server.url.replace('//', f'//me:{HUSH}@')}/{name}?token={HUSH}&X-Amz-Signature={HUSH}"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that is logged, by all loggers, at the lowest level."""
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    return caplog


def everything(log: pytest.LogCaptureFixture, error: BaseException | None) -> str:
    """The log, and the error in each form in which it may come to light."""
    told = [log.text]
    if error is not None:
        told += [str(error), repr(error), *traceback.format_exception(error)]
    return "\n".join(told)


def moved(x: Exchange) -> None:
    x.respond("302 Found", Location=f"http://127.0.0.1:1/g?sig={HUSH}")


def round_and_round(x: Exchange) -> None:
    x.respond("302 Found", Location=f"/g?sig={HUSH}")


@pytest.mark.parametrize("handler", [
    lambda x: x.respond("404 Not Found"),
    lambda x: x.respond("503 Busy"),
    lambda x: x.respond("302 Found", Location=f"ftp://host/g?sig={HUSH}"),
    lambda x: x.respond("302 Found", Location=f"http://me:{HUSH}@[/g"),
    lambda x: x.send(b"nonsense\r\n\r\n"),
    lambda x: x.head("200 OK", Content_Length="1000"),
    lambda x: x.serve(b"not what was promised"),
    Exchange.stall,
    moved,
    round_and_round,
])  # fmt: skip
def test_no_secret_in_logs_and_errors(
    handler: Callable[[Exchange], None],
    misbehaving: Start,
    make_kit: Callable[..., Toolkit],
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Whatever goes wrong, and with a mirror to go on to."""
    server = misbehaving(handler)
    kit = make_kit(retries=1, read_timeout_s=0.2, headers={"Cookie": HUSH}, max_redirects=3)
    request = Request(
        secret_url(server), "f", checksum=f"sha256:{'0' * 64}", headers=KEY, mirrors=(secret_url(server, "mirror"),)
    )
    with pytest.raises(BatchError) as caught:
        kit.download_many([request], tmp_path)
    (failed,) = caught.value.results
    assert HUSH not in everything(log, failed.error)
    assert HUSH not in everything(log, caught.value)
    assert "/mirror?token=***&X-Amz-Signature=***" in log.text
    assert failed.error.url == request.mirrors[0]  # who needs it has it
    # A server that is slower than the time-out reads the requests later.
    wait_until(lambda: any(HUSH in asked.headers.get("authorization", "") for asked in server.requests))


def test_no_secret_in_what_the_command_says(
    misbehaving: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Errors on the terminal are errors in somebody's log."""
    server = misbehaving(lambda x: x.respond("404 Not Found"))
    for arguments in (["get", "--quiet", "-d", str(tmp_path)], ["sync", "--quiet"]):
        where = [str(tmp_path / "tree")] if arguments[0] == "sync" else []
        assert main([*arguments, secret_url(server), *where]) == 1
        err = capsys.readouterr().err
        assert "404" in err
        assert HUSH not in err
    assert main(["get", f"ftp://me:{HUSH}@host/"]) == 2
    assert HUSH not in capsys.readouterr().err


def test_a_download_can_be_followed(
    misbehaving: Start, kit: Toolkit, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Requests with their ranges and answers, tries, and the end."""
    answers = iter(["503 Busy", "200 OK"])
    server = misbehaving(lambda x: x.respond(next(answers), b"12345"))
    kit.download(f"{server.url}/f", tmp_path)
    ours = [record for record in log.records if record.name.startswith("perfkit.downloads")]
    told = "\n".join(record.getMessage() for record in ours)
    assert f"GET {server.url}/f, all: status 503" in told
    assert "again in 0.0" in told
    assert f"GET {server.url}/f, all: status 200" in told
    assert f"{server.url}/f: 5 bytes in 2 requests" in told
    assert {record.levelname for record in ours} == {"DEBUG"}


def test_an_update_can_be_followed(kit: Toolkit, log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """What was decided, the route that was taken, and the commit."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_text("a")
    kit.publish(tmp_path / "src", tmp_path / "site", version="7")
    with Server(tmp_path / "site") as server:
        kit.sync(server.url, tmp_path / "tree")
    assert "offers 7: 0 files unchanged, 0 from the tree or its history, 1 to fetch, 0 to remove" in log.text
    assert "requests; route: blocks" in log.text
    assert "tree: committed in " in log.text


def test_no_secret_in_the_history(kit: Toolkit, tmp_path: Path) -> None:
    """Which is shown by `perfkit history --json`."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_text("a")
    kit.publish(tmp_path / "src", tmp_path / "site", version="7")
    with Server(tmp_path / "site") as server:
        kit.sync(server.url.replace("//", f"//me:{HUSH}@"), tmp_path / "tree")
    assert kit.history(tmp_path / "tree")[-1].label["source"] == server.url.replace("//", "//***@")


def test_silent_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No handler of our own, and no print."""
    assert logging.getLogger("perfkit").handlers == []
    (tmp_path / "f").write_bytes(b"x")
    with Server(tmp_path) as server, Toolkit() as kit:
        kit.download(f"{server.url}f", tmp_path / "copy")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("url", "shown"), [
    ("https://h/p/f.bin", "https://h/p/f.bin"),
    ("https://me:pw@h:8443/p", "https://***@h:8443/p"),
    ("https://me:p@w@h/p@q", "https://***@h/p@q"),
    ("https://token@h", "https://***@h"),
    ("https://h/p?a=1&b=2;c=3", "https://h/p?a=***&b=***;c=***"),
    ("https://h/p?bare", "https://h/p?***"),
    ("https://h/p?", "https://h/p?"),
    ("https://h?a=b@c#d", "https://h?a=***#***"),
    ("/p?sig=s", "/p?sig=***"),
    ("//me:pw@h/p", "//***@h/p"),
    ("p@q", "p@q"),
])  # fmt: skip
def test_redacted(url: str, shown: str) -> None:
    """Scheme, host and path stay."""
    assert redacted(url) == shown
    assert redacted(shown) == shown


def test_redacted_text() -> None:
    """Every URL in it, and nothing else."""
    assert redacted_text("see https://u:p@h/f?x=1: a=b, 'http://h/?q=2', or not") == (
        "see https://***@h/f?x=***: a=b, 'http://h/?q=***', or not"
    )


@pytest.mark.parametrize("kind", [PerfkitError, ConfigError])
def test_all_errors_mask_urls(kind: type[Exception]) -> None:
    """Wherever in its text."""
    error = kind(f"can't read https://me:{HUSH}@h/f?{hashlib.sha256().hexdigest()}")
    assert str(error) == "can't read https://***@h/f?***"
    assert repr(error) == f"{kind.__name__}({str(error)!r})"


def test_a_bug_is_logged_without_the_secret(
    kit: Toolkit, log: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misbehaving: Start
) -> None:
    """With its traceback, under the redacted URL."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("perfkit.downloads.transfer.PartialFile", broken)
    with pytest.raises(ZeroDivisionError):
        kit.download(secret_url(misbehaving(Exchange.stall)), tmp_path / "f")
    assert "a bug in perfkit" in log.text
    assert HUSH not in log.text
