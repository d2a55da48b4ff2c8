"""What tests of misbehaving servers expect: the right bytes, or a typed error and no file."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from perfkit import (
    Download,
    Toolkit,
)
from tests.support.fakes import Exchange, MisbehavingServer

BODY = random.Random(4).randbytes(1 << 20)
OTHER = random.Random(5).randbytes(1 << 20)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


def fetch(kit: Toolkit, server: MisbehavingServer, where: Path, **options: object) -> Download:
    return kit.download(f"{server.url}/file", where / "file", **options)  # type: ignore[arg-type]


def assert_right(where: Path, body: bytes = BODY) -> None:
    assert (where / "file").read_bytes() == body
    assert os.listdir(where) == ["file"], "partial files stay behind"


def assert_fails(
    kit: Toolkit, server: MisbehavingServer, where: Path, error: type[Exception], **options: object
) -> Exception:
    """The download fails, the old file stays, and nothing else does."""
    (where / "file").write_bytes(b"old")
    with pytest.raises(error) as caught:
        fetch(kit, server, where, **options)
    assert (where / "file").read_bytes() == b"old"
    assert os.listdir(where) == ["file"], "partial files stay behind"
    return caught.value


def cut_at_half(x: Exchange) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[: len(BODY) // 2])
    x.hang_up()
