"""`--header` and `--user`: the same for every command that asks an origin, which alone is told."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit.cli import main
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import Origin
from tests.support.trees import ONE, tree_of

Start = Callable[..., MisbehavingServer]
SECRET = "s3cret:colon"
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.mark.parametrize(("options", "expected"), [
    (["--user", f"me:{SECRET}"], f"Basic {BASIC}"),
    (["--header", f"authorization: Bearer {SECRET}"], f"Bearer {SECRET}"),
])  # fmt: skip
def test_of_every_command(
    options: list[str],
    expected: str,
    cli_origin: Origin,
    misbehaving: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mirror elsewhere is not told; nothing of it is printed or kept."""

    def serve(exchange: Exchange) -> None:
        path = cli_origin.site / exchange.asked.path.lstrip("/")
        return exchange.serve(path.read_bytes(), etag=None) if path.is_file() else exchange.respond("404 Not Found")

    def answer(exchange: Exchange) -> None:
        if exchange.asked.headers.get("authorization") != expected:
            return exchange.respond("401 Unauthorized")
        return serve(exchange)

    server, mirror = misbehaving(answer), misbehaving(serve)
    for command in (["releases"], ["get"], ["sync", "--dry-run"], ["sync"]):
        url = f"{server.url}/perfkit.json" if command == ["get"] else f"{server.url}/"
        places = [url, "tree"] if "sync" in command else [url]
        assert main([*command, *places, "--json"]) == 1
        assert main([*command, *places, "--json", *options]) == 0
    assert tree_of(tmp_path / "tree") == ONE
    (tmp_path / "tree/README").unlink()
    assert main(["verify", "tree", "--repair", "--json"]) == 1
    assert main(["verify", "tree", "--repair", "--json", *options]) == 0
    assert tree_of(tmp_path / "tree") == ONE
    assert main(["sync", "http://127.0.0.1:1/", "other", "--mirror", f"{mirror.url}/", "--json", *options]) == 0
    assert mirror.requests
    assert not [each for each in mirror.requests if "authorization" in each.headers]
    printed = capsys.readouterr()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("**/.perfkit/**/*") if path.is_file())
    for secret in (SECRET, BASIC):
        assert secret not in printed.out + printed.err
        assert secret.encode() not in kept


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--user", "s3cret", "USER:PASSWORD"),
    ("--header", "s3cret", "'Name: value'"),
    ("--header", "Range: s3cret", "Range"),
])  # fmt: skip
@pytest.mark.parametrize("command", [["get"], ["releases"], ["sync", "tree"]], ids=lambda command: command[0])
def test_bad_usage(command: list[str], option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], "http://127.0.0.1:1/", *command[1:], option, value]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "s3cret" not in err
