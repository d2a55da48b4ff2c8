"""A disk that says no: clear errors, the old file intact, nothing left but what can be resumed."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import PerfkitError, Toolkit, TransferError, UnsafePathError
from perfkit.downloads import partial_file
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.tools import mounted, need, need_root, unavailable
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

BODY = random.Random(21).randbytes(3 << 20)

Start = Callable[..., MisbehavingServer]


def serve(x: Exchange) -> None:
    x.serve(BODY)


def chunked(x: Exchange) -> None:
    """No length beforehand, so that only the write finds out."""
    x.head("200 OK", Transfer_Encoding="chunked")
    for start in range(0, len(BODY), 1 << 16):
        piece = BODY[start : start + (1 << 16)]
        x.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    x.send(b"0\r\n\r\n")


@pytest.mark.parametrize("handler", [serve, chunked])
def test_a_full_disk(kit: Toolkit, misbehaving: Start, small_disk: Path, handler: Callable[[Exchange], None]) -> None:
    """ENOSPC as such, raised before the transfer where the size is known; it is not retried."""
    (small_disk / "file").write_bytes(b"old")
    server = misbehaving(handler)
    with pytest.raises(OSError, match="No space left on device") as caught:
        kit.download(f"{server.url}/f", small_disk / "file")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{small_disk}/file")
    assert not isinstance(caught.value, PerfkitError)
    assert (small_disk / "file").read_bytes() == b"old"
    assert os.listdir(small_disk) == ["file"]
    assert len(server.requests) == 1


def test_a_disk_that_fills_up_in_the_middle(
    make_kit: Callable[..., Toolkit], misbehaving: Start, small_disk: Path
) -> None:
    """What has come is kept, and the next run goes on from it when there is room again."""
    body, ballast = BODY[: 1500 << 10], small_disk / "ballast"

    def fill() -> None:
        part = small_disk / "file.perfkit-part"
        deadline = time.monotonic() + 100
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)  # until the client has seen that there is room, and begun
        ballast.write_bytes(bytes(900 << 10))

    def handler(x: Exchange) -> None:
        x.serve(body, pause=fill if x.number == 1 else None)

    kit, server = make_kit(workers=1), misbehaving(handler)
    with pytest.raises(OSError, match="space"):
        kit.download(f"{server.url}/f", small_disk / "file")
    assert not (small_disk / "file").exists()
    ballast.unlink()
    kit.download(f"{server.url}/f", small_disk / "file")
    assert (small_disk / "file").read_bytes() == body
    assert os.listdir(small_disk) == ["file"]


def test_nothing_is_kept_of_what_could_not_be_synced(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync(2) reports a loss only once: the next run would take the rest for the whole file."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kit, server = make_kit(durable=True), misbehaving(serve)
    with monkeypatch.context() as patched:
        patched.setattr(partial_file, "sync_file", fail)
        with pytest.raises(OSError, match="No space"):
            kit.download(f"{server.url}/f", tmp_path / "file")
    assert os.listdir(tmp_path) == []
    assert kit.download(f"{server.url}/f", tmp_path / "file").resumed_from == 0
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_file_system_that_reports_at_close_what_it_lost(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does beyond a quota: the old file stays."""
    close = os.close

    def fail(descriptor: int) -> None:
        lost = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) in ("file", "file.perfkit-part")
        close(descriptor)
        if lost:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (tmp_path / "file").write_bytes(b"old")
    kit, server = make_kit(), misbehaving(serve)
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fail)
        with pytest.raises(OSError, match="quota"):
            kit.download(f"{server.url}/f", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_read_only_file_system(kit: Toolkit, misbehaving: Start, small_disk: Path) -> None:
    (small_disk / "file").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"[Rr]ead-only") as caught:
        kit.download(f"{misbehaving(lambda x: x.serve(b'new')).url}/f", small_disk / "file")
    assert caught.value.errno == errno.EROFS
    assert (small_disk / "file").read_bytes() == b"old"


def download_as_nobody(warm: WarmPython, url: str, dest: Path) -> str:
    """In another process, which root steps down for; returns what it prints: an errno, or nothing."""
    program = (
        "import os, sys, perfkit.downloads.http.session\nfrom perfkit import Toolkit\n"
        "if os.geteuid() == 0: os.setegid(65534), os.seteuid(65534)\n"
        "try:\n    Toolkit().download(sys.argv[1], sys.argv[2])\n"
        "except PermissionError as error:\n    print(error.errno)"
    )
    command = warm.python("-c", program, url, dest)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_permission_denied(misbehaving: Start, open_path: Path, warm_python: WarmPython) -> None:
    """As a user who may not write there."""
    closed = open_path / "closed"
    closed.mkdir()
    (closed / "file").write_bytes(b"old")
    closed.chmod(0o555)
    said = download_as_nobody(warm_python, f"{misbehaving(serve).url}/f", closed / "file")
    closed.chmod(0o755)
    assert said == f"{errno.EACCES}\n"
    assert os.listdir(closed) == ["file"]
    assert (closed / "file").read_bytes() == b"old"


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_what_root_has_left(misbehaving: Start, open_path: Path, mode: int, warm_python: WarmPython) -> None:
    """In a directory of another user's, by a `sudo perfkit get` that was interrupted: it does not lock the owner out,
    unless they may not even read it.
    """
    need_root("to work in another user's directory")
    home = open_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    (home / "file.perfkit-part").write_bytes(b"left")
    (home / "file.perfkit-part").chmod(mode)
    (home / "file.perfkit-part.json").write_bytes(b"{}")
    (home / "file.perfkit-part.json").chmod(0o600)
    said = download_as_nobody(warm_python, f"{misbehaving(serve).url}/f", home / "file")
    if mode == 0o600:
        assert said == f"{errno.EACCES}\n"
    else:
        assert os.listdir(home) == ["file"]
        assert (home / "file").read_bytes() == BODY


def test_the_destination_becomes_a_directory(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Made by somebody else in the middle: an error, and the directory stays."""
    dest = tmp_path / "file"
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: dest.mkdir(exist_ok=True)))
    with pytest.raises(IsADirectoryError):
        kit.download(f"{server.url}/f", dest)
    assert dest.is_dir()


def test_a_named_directory(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (_, download), *_ = kit.iter_downloads([(f"{misbehaving(serve).url}/f", "file")], tmp_path)
    assert isinstance(download.error, IsADirectoryError)
    assert os.listdir(tmp_path) == ["file"]


def test_a_parent_that_is_a_file(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file"):
        kit.download(f"{misbehaving(serve).url}/f", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_dangling_symlink(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The name is replaced; nothing is written where it points."""
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    kit.download(f"{misbehaving(serve).url}/f", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["file"]
    assert not (tmp_path / "file").is_symlink()


def test_a_partial_name_that_is_a_symlink(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A trap: it is not followed."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "file.perfkit-part").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        kit.download(f"{misbehaving(serve).url}/f", tmp_path / "file")
    assert (tmp_path / "precious").read_bytes() == b"mine"


@pytest.mark.parametrize(("length", "fits"), [(255, True), (256, False)])
def test_long_names(kit: Toolkit, misbehaving: Start, tmp_path: Path, length: int, fits: bool) -> None:
    """The longest name that the system allows works; one byte more is the system's error."""
    name = "n" * length
    server = misbehaving(serve)
    if fits:
        kit.download(f"{server.url}/f", tmp_path / name)
        assert os.listdir(tmp_path) == [name]
    else:
        with pytest.raises(OSError, match="too long"):
            kit.download(f"{server.url}/f", tmp_path / name)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../up", "", "a\0b", "..", "a\\b", "C:x", "CON"])
def test_names_that_escape(kit: Toolkit, misbehaving: Start, tmp_path: Path, name: str) -> None:
    """Refused before any request."""
    server, out = misbehaving(serve), tmp_path / "out"
    (_, download), *_ = kit.iter_downloads([(f"{server.url}/f", name)], out)
    assert isinstance(download.error, UnsafePathError)
    assert server.requests == []
    assert os.listdir(tmp_path) in ([], ["out"])


@pytest.mark.parametrize("dest", ["a\0b", "a\0b/c"])
def test_a_destination_that_is_not_a_path(kit: Toolkit, misbehaving: Start, tmp_path: Path, dest: str) -> None:
    """An error at once, and no endless wait."""
    with pytest.raises((UnsafePathError, TransferError, ValueError)):
        kit.download(f"{misbehaving(serve).url}/f", f"{tmp_path}/{dest}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cause", ["mount point", "immutable"])
def test_a_file_that_cannot_be_replaced(kit: Toolkit, misbehaving: Start, tmp_path: Path, cause: str) -> None:
    """Named with the reason; what came is kept, and takes its place without another transfer."""
    need_root("to mount and to pin a file")
    server = misbehaving(serve)
    path, other = tmp_path / "file", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(b"old")
    with contextlib.ExitStack() as stack:
        if cause == "mount point":
            stack.enter_context(mounted(path, "--bind", other))
        else:
            need("chattr")
            if subprocess.run(["chattr", "+i", path], check=False).returncode:
                unavailable("the file system has no immutable files")
            stack.callback(subprocess.run, ["chattr", "-i", path], check=True)
        with pytest.raises(
            OSError, match=f"{cause}.*can't be replaced; .*file.perfkit-part has the new file"
        ) as caught:
            kit.download(f"{server.url}/f", path)
        assert caught.value.filename == str(path)
        assert path.read_bytes() == b"old"
    assert kit.download(f"{server.url}/f", path).bytes_received < len(BODY) // 10
    assert path.read_bytes() == BODY
