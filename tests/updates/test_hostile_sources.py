"""Archives, control files and lists that attack, through `sync`: a typed error, and the tree as it was."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import ManifestError, PerfkitError, Toolkit, UnsafePathError
from perfkit.server.server import Server
from tests.support.archive_tools import add, make_tar, make_zip, raw_zip
from tests.support.sites import replace
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

GOOD = {"a": b"good", "pkg/b": b"also good" * 100}
HOSTILE_NAMES = ["/etc/passwd", "../up", "a/../../up", "a\\b", "c:/x", "nul", "a//b", ".perfkit/x", "new\nline"]
COLLIDING = [("x", "X"), ("é", "e\u0301"), ("x", "x/b")]


def tar_of(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, fields in members:
            add(archive, name, data, **fields)
    return out.getvalue()


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 0x10
    return bytes(changed)


ZIP, TAR = make_zip({**GOOD, "new": os.urandom(3000)}), make_tar({**GOOD, "new": os.urandom(3000)}, mode="w:gz")

ATTACKS: dict[str, bytes] = {
    **{f"zip name {name!r}": raw_zip([{"name": "good"}, {"name": name}]) for name in HOSTILE_NAMES},
    **{f"tar name {name!r}": tar_of(("good", b"", {}), (name, b"x", {})) for name in HOSTILE_NAMES},
    **{f"zip collision {pair}": raw_zip([{"name": name} for name in pair]) for pair in COLLIDING},
    **{f"tar collision {pair}": tar_of(*((name, b"", {}) for name in pair)) for pair in COLLIDING},
    "zip link": raw_zip([{"name": "link", "mode": 0o120777, "data": b"/etc"}]),
    "zip file through a link": raw_zip([{"name": "link", "mode": 0o120777, "data": b"/tmp"}, {"name": "link/evil"}]),
    "zip device": raw_zip([{"name": "device", "mode": 0o020666}]),
    "zip duplicate": raw_zip([{"name": "x"}, {"name": "x", "data": b"other"}]),
    "zip overlap": raw_zip([{"name": "x", "data": b"x" * 1000}, {"name": "y", "offset": 20}]),
    "zip quine": raw_zip([{"name": "x", "data": b"x" * 1000}, {"name": "y", "offset": 0}]),
    "zip encrypted": raw_zip([{"name": "x", "flags": 1}]),
    "zip claims less": raw_zip([{"name": "x", "method": 8, "size": 3}]),
    "zip claims more": raw_zip([{"name": "x", "method": 8, "size": 5}]),
    "zip wrong CRC": raw_zip([{"name": "x", "crc": 1}]),
    "zip local name": raw_zip([{"name": "x", "local_name": b"y"}]),
    "zip deep": raw_zip([{"name": "/".join("d" * 70)}]),
    "zip bomb": make_zip({"zeros": bytes(3 << 20)}),
    "zip bomb that claims little": raw_zip([{"name": "x", "method": 8, "data": bytes(3 << 20), "size": 10}]),
    "zip of many": make_zip({f"f{number}": b"" for number in range(101)}),
    "zip cut": ZIP[:-40],
    "zip cut in front": ZIP[40:],
    "zip bit flipped": flipped(ZIP, 1500),
    "tar link": tar_of(("link", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"})),
    "tar hard link": tar_of(("link", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})),
    "tar file through a link": tar_of(("link", b"", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}),
                                      ("link/evil", b"x", {})),
    "tar device": tar_of(("device", b"", {"type": tarfile.CHRTYPE})),
    "tar pipe": tar_of(("pipe", b"", {"type": tarfile.FIFOTYPE})),
    "tar duplicate": tar_of(("x", b"1", {}), ("x", b"2", {})),
    "tar deep": make_tar({"/".join("d" * 100): b""}, directories=False),
    "tar bomb": gzip.compress(make_tar({"zeros": bytes(8 << 20)})),
    "tar of many": make_tar({f"f{number}": b"" for number in range(101)}),
    "tar cut": TAR[:-100],
    "tar with a size that lies": tar_of(("x", b"1", {}))[:512],
    "tar bit flipped": flipped(TAR, 1500),
    "tar header bit flipped": flipped(make_tar(GOOD, directories=False), 1024 + 5),
}  # fmt: skip


@pytest.fixture
def served_site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory that is served, and its URL."""
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        yield tmp_path / "site", server.url


@pytest.fixture(autouse=True)
def tight_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of megabytes and not of gigabytes."""
    for name, value in (("MEMBERS", 100), ("RATIO_FROM_BYTES", 1 << 20), ("RATIO", 100)):
        monkeypatch.setattr(f"perfkit.archives.limits.{name}", value)


def inside(tree: Path) -> dict[str, bytes]:
    """All of a tree, what perfkit says of it included, but the lock, the cache and the stage."""
    own = [tree / ".perfkit" / name for name in ("manifest", "release")]
    return {**tree_of(tree), **{path.name: path.read_bytes() for path in own if path.exists()}}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_tree_is_as_it_was(kit: Toolkit, served_site: tuple[Path, str], tmp_path: Path, attack: str) -> None:
    """Whether something was installed before or not; and a good archive is taken afterwards."""
    directory, url = served_site
    kind = attack.partition(" ")[0]
    path, source = directory / f"pack.{kind}", f"{url}pack.{kind}"
    good: Callable[[dict[str, bytes]], bytes] = make_zip if kind == "zip" else make_tar
    path.write_bytes(good(GOOD))
    kit.sync(source, tmp_path / "tree", type=kind)
    before = inside(tmp_path / "tree")
    replace(path, ATTACKS[attack])
    with pytest.raises((ManifestError, UnsafePathError)):
        kit.sync(source, tmp_path / "tree", type=kind)
    assert inside(tmp_path / "tree") == before
    with pytest.raises((ManifestError, UnsafePathError)):
        kit.sync(source, tmp_path / "fresh", type=kind)
    assert inside(tmp_path / "fresh") == {}
    left = sum(each.stat().st_size for each in (tmp_path / "fresh").glob(".perfkit/fetch/*"))
    assert left <= len(ATTACKS[attack]) + 10_000
    replace(path, good({**GOOD, "new": b"fine"}))
    for tree in ("tree", "fresh"):
        kit.sync(source, tmp_path / tree, type=kind)
        assert tree_of(tmp_path / tree) == {**GOOD, "new": b"fine"}
    assert not (tmp_path / "up").exists()


ZSYNC = (
    b"zsync: 0.6.2\nFilename: %b\nBlocksize: 2048\nLength: %b\nHash-Lengths: 2,2,5\nURL: x\n"
    b"SHA-1: da39a3ee5e6b4b0d3255bfef95601890afd80709\n\n"
)

METALINK = b'<metalink xmlns="urn:ietf:params:xml:ns:metalink">'

TEXTS: dict[str, tuple[str, bytes]] = {
    "control file with a path": ("zsync", ZSYNC % (b"../x", b"0")),
    "control file with an absolute path": ("zsync", ZSYNC % (b"/x", b"0")),
    "control file of a petabyte": ("zsync", ZSYNC % (b"x", b"999999999999999999")),
    "control file without its sums": ("zsync", ZSYNC % (b"x", b"5000")),
    "control file whose SHA-1 lies": ("zsync", ZSYNC % (b"x", b"0")),
    "control file cut": ("zsync", (ZSYNC % (b"x", b"0"))[:60]),
    "list with a path": ("urls", b"https://example.org/x\t../x\n"),
    "list with an absolute path": ("urls", b"https://example.org/x\t/etc/x\n"),
    "list of a file in itself": ("urls", b"https://example.org/x\tx\nhttps://example.org/y\tx/y\n"),
    "list with a duplicate": ("urls", b"https://example.org/x\thttps\nhttps://example.org/y\tHTTPS\n"),
    "list with another scheme": ("urls", b"file:///etc/passwd\tx\n"),
    "list that is no text": ("urls", b"\xff\xfe\x00"),
    "metalink with a path": ("metalink", b'%b<file name="../x"><url>http://a.test/</url></file></metalink>' % METALINK),
    "metalink with entities": ("metalink", b'<!DOCTYPE x [<!ENTITY a "aaaa">]>%b</metalink>' % METALINK),
    "metalink cut": ("metalink", b"%b<file" % METALINK),
}  # fmt: skip


@pytest.mark.parametrize("attack", TEXTS)
def test_control_files_and_lists(kit: Toolkit, served_site: tuple[Path, str], tmp_path: Path, attack: str) -> None:
    """They name files too, and sizes."""
    directory, url = served_site
    kind, data = TEXTS[attack]
    (directory / "source").write_bytes(data)
    (directory / "x").write_bytes(b"not empty")
    with pytest.raises(PerfkitError):
        kit.sync(f"{url}source", tmp_path / "tree", type=kind)
    assert inside(tmp_path / "tree") == {}
    assert os.listdir(tmp_path / "tree/.perfkit") == ["last-sync"]
