"""Names that must not be written to, and what others have put beside a download: left alone, refused or removed."""

from __future__ import annotations

import json
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import Request, Toolkit, TransferError
from perfkit.downloads.destination import BatchPaths
from perfkit.downloads.file_origin import digest_of, read_origin
from perfkit.filesystem.paths import is_reserved
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.hostile import bounded

pytestmark = pytest.mark.once

BODY = random.Random(18).randbytes(3 << 20)
Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

PRIVATE = [
    "f.perfkit-part",
    "f.perfkit-part.json",
    "f.perfkit-part.json~",
    "F.PerfKit-PART",
    "f.perf\u212ait-part.JSON",
]


def once_begun(part: Path, action: Callable[[], object]) -> Callable[[], None]:
    """For `serve`: does something in the middle of a body, when the client has seen the headers."""

    def pause() -> None:
        deadline_s = time.monotonic() + 100
        while not part.exists() and time.monotonic() < deadline_s:
            time.sleep(0.005)
        action()

    return pause


# -- perfkit's own names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIVATE)
def test_a_server_names_a_file_as_perfkit_names_its_own(kit: Toolkit, misbehaving: Start, out: Path, name: str) -> None:
    """It could be the partial file of another download, with a journal to it."""
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    server = misbehaving(lambda x: x.serve(b"abc", Content_Disposition=f"attachment; filename*=UTF-8''{quoted}"))
    with pytest.raises(TransferError, match="perfkit itself uses") as caught:
        kit.download(f"{server.url}/given", f"{out}/")
    assert not caught.value.transient
    assert os.listdir(out) == []


@pytest.mark.parametrize("name", PRIVATE)
def test_a_url_or_a_list_names_a_file_so(kit: Toolkit, misbehaving: Start, out: Path, name: str) -> None:
    server = misbehaving(lambda x: x.serve(b"abc"))
    url = f"{server.url}/{name}"
    requests: list[Any] = [url, (url, name), Request(url, f"a/{name}")]
    for error in (each.error for _, each in kit.iter_downloads(requests, out)):
        assert isinstance(error, TransferError)
        assert "perfkit itself uses" in str(error)
    assert not [each for each in out.rglob("*") if each.is_file()]
    assert not server.requests


@pytest.mark.parametrize("name", ["perfkit-part", "f.perfkit-party", "f.part", "perfkit", "f.perfkit-part.txt", "f~"])
def test_names_that_anyone_may_give(name: str) -> None:
    assert not is_reserved(name)


# -- a name of the server's --------------------------------------------------------------------------------------------


def test_the_paths_of_a_batch_take_little_memory() -> None:
    paths = BatchPaths()
    with bounded(1):
        for number in range(20_000):
            paths.take("", f"/{number}")
    with pytest.raises(TransferError, match="another file of this batch"):
        paths.take("", "/19999")


def test_a_file_that_appears_while_the_body_comes(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The server may not replace it."""
    pause = once_begun(out / "given.perfkit-part", lambda: (out / "theirs").write_bytes(b"mine"))
    server = misbehaving(lambda x: x.serve(BODY, pause=pause, Content_Disposition='attachment; filename="theirs"'))
    with pytest.raises(TransferError, match="a file from elsewhere has that name"):
        kit.download(f"{server.url}/given", f"{out}/")
    assert (out / "theirs").read_bytes() == b"mine"
    assert os.listdir(out) == ["theirs"]


def test_an_earlier_download_that_is_edited_while_the_body_comes(
    kit: Toolkit, misbehaving: Start, out: Path, tmp_path: Path
) -> None:
    """The server's own file may be replaced by a later version, but not any more when it was edited meanwhile."""
    edit = once_begun(out / "given.perfkit-part", lambda: (out / "theirs").write_bytes(b"mine"))

    def handler(x: Exchange) -> None:
        body, etag = BODY + bytes([len(server.requests)]), f'"v{len(server.requests)}"'
        x.serve(
            body, etag=etag, pause=edit if x.number == 3 else None, Content_Disposition='attachment; filename="theirs"'
        )

    server = misbehaving(handler)
    single: Any = {"segments": 1}
    kit.download(f"{server.url}/given", f"{out}/", **single)
    kit.download(f"{server.url}/given", f"{out}/", **single)
    assert (out / "theirs").read_bytes() == BODY + b"\x02"
    with pytest.raises(TransferError, match="a file from elsewhere has that name"):
        kit.download(f"{server.url}/given", f"{out}/", **single)
    assert (out / "theirs").read_bytes() == b"mine"


# -- devices and the like ----------------------------------------------------------------------------------------------


def special(path: Path, kind: str) -> None:
    if kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make a device")
    elif kind == "link":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("checksum", [None, f"sha256:{'0' * 64}"])
@pytest.mark.parametrize("kind", ["fifo", "device", "link"])
def test_a_destination_that_is_no_file(
    kit: Toolkit, misbehaving: Start, out: Path, kind: str, checksum: str | None, resume: bool
) -> None:
    """Refused before anything is requested, and left as it is; nobody waits for a FIFO's other end."""
    server = misbehaving(lambda x: x.serve(BODY))
    special(out / "f", kind)
    before = sorted((each.name, each.lstat().st_mode) for each in out.iterdir())
    with pytest.raises(FileExistsError, match="a device, FIFO or socket"):
        kit.download(f"{server.url}/f", out / "f", checksum=checksum, resume=resume)
    assert sorted((each.name, each.lstat().st_mode) for each in out.iterdir()) == before
    assert not server.requests


def test_a_fifo_that_appears_while_the_body_comes(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(
        lambda x: x.serve(BODY, pause=once_begun(out / "f.perfkit-part", lambda: os.mkfifo(out / "f")))
    )
    with pytest.raises(FileExistsError, match="a device, FIFO or socket"):
        kit.download(f"{server.url}/f", out / "f", segments=1)
    assert stat.S_ISFIFO((out / "f").stat().st_mode)


# -- beside a download -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["perfkit-part", "perfkit-part.json", "perfkit-part.json~"])
@pytest.mark.parametrize("kind", ["fifo", "hard link"])
def test_what_others_put_beside_a_download(
    make_kit: MakeKit, misbehaving: Start, out: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    """Nothing is written into it, and nobody waits for it, while journals are written too."""
    (tmp_path / "precious").write_bytes(b"mine")
    server = misbehaving(lambda x: x.serve(BODY) if x.number > 1 else cut_off(x))
    if kind == "fifo":
        os.mkfifo(out / f"f.{suffix}")
    else:
        os.link(tmp_path / "precious", out / f"f.{suffix}")
    with pytest.raises(TransferError):
        make_kit(retries=0, workers=1).download(f"{server.url}/f", out / "f")
    assert (out / "f.perfkit-part.json").is_file()
    assert (out / "f.perfkit-part").stat().st_size > len(BODY) // 3
    assert make_kit().download(f"{server.url}/f", out / "f").resumed_from > 0
    assert (out / "f").read_bytes() == BODY
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert os.listdir(out) == ["f"]


def cut_off(x: Exchange) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[: len(BODY) // 2])
    x.hang_up()


@pytest.mark.parametrize("which", ["perfkit-part", "perfkit-part.json"])
def test_what_another_user_left(make_kit: MakeKit, misbehaving: Start, out: Path, which: str) -> None:
    """Is not continued: who wrote it could have put other bytes there, or may change them later."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    server = misbehaving(lambda x: x.serve(BODY) if x.number > 1 else cut_off(x))
    with pytest.raises(TransferError):
        make_kit(retries=0, workers=1).download(f"{server.url}/f", out / "f")
    os.chown(out / f"f.{which}", 1, 1)
    assert make_kit().download(f"{server.url}/f", out / "f").resumed_from == 0
    assert (out / "f").read_bytes() == BODY
    assert (out / "f").stat().st_uid == 0


# -- what is kept on disk of a URL -------------------------------------------------------------------------------------


def test_nothing_secret_is_kept(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Neither in the journal, which others can't read, nor with the file; and both are still found by the URL."""
    server = misbehaving(lambda x: x.serve(BODY) if x.number > 1 else cut_off(x))
    url = f"{server.url.replace('//', '//me:s3cret@')}/f?token=s3cret"
    with pytest.raises(TransferError):
        make_kit(retries=0, workers=1).download(url, out / "f")
    journal = out / "f.perfkit-part.json"
    assert "s3cret" not in journal.read_text()
    assert server.url not in journal.read_text()
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert make_kit().download(url, out / "f").resumed_from > 0
    attributes = {name: os.getxattr(out / "f", name) for name in os.listxattr(out / "f")}
    assert "s3cret" not in repr(attributes)
    assert set(json.loads(attributes["user.perfkit.origin"])) == {
        "source",
        "etag",
        "last_modified",
        "size",
        "mtime_ns",
    }
    assert read_origin(str(out / "f"), digest_of(url)) is not None
    assert read_origin(str(out / "f"), digest_of(url.replace("token=s3cret", "token=other"))) is None
