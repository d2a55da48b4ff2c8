"""`perfkit keygen`, and the options that take keys, from the first release to a downloaded file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from perfkit.cli import main
from perfkit.minisign.secret_keys import SecretKey
from perfkit.server.server import Server
from tests.support.command import BODY, get, the_object
from tests.support.sites import Origin

Capture = pytest.CaptureFixture[str]


def keygen(capsys: Capture, name: str) -> str:
    """Make a key pair; returns the public key."""
    assert main(["keygen", name, "--json"]) == 0
    return str(the_object(capsys.readouterr().out)["public_key"])


def test_keygen_overwrites_no_file(tmp_path: Path, capsys: Capture) -> None:
    """The secret key is the user's own; neither file is ever overwritten."""
    line = keygen(capsys, "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key.pub").read_text().endswith(f"\n{line}\n")
    before = (tmp_path / "key").read_bytes()
    assert main(["keygen", "key"]) == 2
    assert "key exists already" in capsys.readouterr().err
    (tmp_path / "other.pub").touch()
    assert main(["keygen", "other"]) == 2
    assert (tmp_path / "key").read_bytes() == before
    assert not (tmp_path / "other").exists()
    assert str(SecretKey.read(tmp_path / "key").public) == line


def test_a_signed_release(cli_origin: Origin, capsys: Capture) -> None:
    """publish, sync with a key and with its file, a threshold, another key."""
    first, second = keygen(capsys, "first"), keygen(capsys, "second")
    publish = ["publish", "src", "site", "--version", "2", "--expires", "14d"]
    assert main([*publish, "--sign-key", "first"]) == 0
    assert main(["sync", cli_origin.url, "tree", "--public-key", first, "--public-key", second]) == 0
    assert main([*publish, "--sign-key", "first"]) == 0
    assert "its expiry is renewed" in capsys.readouterr().err
    assert main(["sync", cli_origin.url, "tree", "--dry-run", "--public-key", second]) == 1
    assert "not signed by the key" in capsys.readouterr().err
    both = ["--public-key", "first.pub", "--public-key", "second.pub", "--threshold", "2"]
    assert main(["sync", cli_origin.url, "tree", *both]) == 1
    assert main([*publish, "--sign-key", "first", "--sign-key", "second"]) == 0
    assert main(["sync", cli_origin.url, "tree", *both]) == 0


def test_an_expired_release_is_behind(cli_origin: Origin, capsys: Capture) -> None:
    """The exit code is that of a source that is behind."""
    pointer = cli_origin.site / "perfkit.json"
    pointer.write_bytes(pointer.read_bytes().rstrip(b"}\n") + b',"expires":1}\n')
    assert main(["sync", cli_origin.url, "tree"]) == 4
    assert "--allow-expired" in capsys.readouterr().err
    assert main(["sync", cli_origin.url, "tree", "--allow-expired"]) == 0


def test_signed_files(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """`get` verifies those on the command line and those of a list."""
    line = keygen(capsys, "key")
    key = SecretKey.read("key")
    for name in "ab":
        (tmp_path / f"site/{name}.bin.minisig").write_bytes(key.sign(BODY, "x"))
    (tmp_path / "list").write_text("".join(f"{file_server.url}{name}.bin\n" for name in "bc"))
    code, found, errors = get(capsys, "--public-key", line, f"{file_server.url}a.bin", "-i", "list", "-d", "out")
    assert code == 1
    assert ["error" in each for each in sorted(found["files"], key=lambda each: each["url"])] == [False, False, True]
    assert "c.bin.minisig" in errors[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("options", [
    ["--public-key", "nothing"], ["--threshold", "2"], ["--threshold", "0"],
])  # fmt: skip
def test_wrong_usage(options: list[str], capsys: Capture) -> None:
    assert main(["sync", "http://127.0.0.1:9/", "tree", *options]) == 2
    assert "perfkit: error: " in capsys.readouterr().err
