"""`sync` from what the web serves already: archives, `.zsync` files and lists, with what it does for a release."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import (
    ConfigError,
    HTTPStatusError,
    IntegrityError,
    ManifestError,
    Toolkit,
    TransferError,
    UpdateError,
)
from perfkit.archives.members import Selection
from perfkit.downloads.http.semantics import Version
from perfkit.transactions import layout
from perfkit.updates.sources.remote_file import version_label
from tests.chaos.sources import PATHS, Sources
from tests.support.archive_tools import make_tar, make_zip
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import MakeKit
from tests.support.sites import Counting, replace
from tests.support.tools import need
from tests.support.trees import tree_of, write_tree

RNG = random.Random(5)
OLD = {
    **{f"pkg/f{number}": RNG.randbytes(3000) for number in range(60)},
    "pkg/big": RNG.randbytes(1_100_000),
    "pkg/empty": b"",
    "pkg/run.sh": b"#!/bin/sh\n",
    "README": b"hello " * 500,
}
NEW = {
    **OLD,
    "README": b"good day " * 500,
    "pkg/f7": RNG.randbytes(4000),
    "pkg/new": RNG.randbytes(5000),
    "pkg/big": OLD["pkg/big"][:1000] + b"edited" + OLD["pkg/big"][1006:],
}
del NEW["pkg/f9"]


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "pack.zip": make_zip,
    "pack.tar": make_tar,
    "pack.tar.gz": lambda files: make_tar(files, mode="w:gz"),
    "pack.tar.bz2": lambda files: make_tar(files, mode="w:bz2"),
    "pack.tar.xz": lambda files: make_tar(files, mode="w:xz"),
    "download.php": make_zip,  # detected by its content
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_whole_story(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, name: str) -> None:
    """Install, nothing new, update, back, forward, damage, repair: as with a release."""
    tree, url, make = tmp_path / "tree", counting.url + name, ARCHIVES[name]
    (site / name).write_bytes(make(OLD))
    first = kit.sync(url, tree)
    assert tree_of(tree) == OLD
    assert os.access(tree / "pkg/run.sh", os.X_OK)
    assert (first.added, first.generation) == (len(OLD), 1)
    again = kit.sync(url, tree)
    assert (again.requests, again.bytes_received, again.route, again.generation) == (1, 0, "none", 1)
    inodes = {path: path.stat().st_ino for path in tree.rglob("*") if path.is_file()}
    replace(site / name, make(NEW))
    report = kit.sync(url, tree)
    assert tree_of(tree) == NEW
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 3, 1, len(NEW) - 4)
    assert report.bytes_written == sum(len(NEW[each]) for each in ("README", "pkg/f7", "pkg/new", "pkg/big"))
    assert report.version != first.version
    assert all((tree / each).stat().st_ino == inodes[tree / each] for each in OLD if OLD[each] == NEW.get(each))
    assert kit.rollback(tree, hold=False).version == first.version
    assert tree_of(tree) == OLD
    kit.rollback(tree, to=2, hold=False)
    assert [each.label.get("version") for each in kit.history(tree)][-2:] == [first.version, report.version]
    (tree / "pkg/f3").unlink()
    (tree / "pkg/f4").write_bytes(b"damaged")
    verified = kit.verify(tree)
    assert (verified.missing, verified.changed) == (("pkg/f3",), ("pkg/f4",))
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree) == {**NEW, "pkg/f4.perfkit-local": b"damaged"}
    assert [path.name for path in (tree / ".perfkit/fetch").iterdir()] == []


def test_tar_zst(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """The same for zstd, made by its own program."""
    need("zstd")
    for files in (OLD, NEW):
        packed = subprocess.run(["zstd", "-q", "-c"], input=make_tar(files), stdout=subprocess.PIPE, check=True).stdout
        replace(site / "pack.tar.zst", packed)
        kit.sync(counting.url + "pack.tar.zst", tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == files


def test_a_zip_moves_only_what_changed(make_kit: MakeKit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Changed members, neighbours in one range, and the central directory; no file of the tree is read for it."""
    kit = make_kit(segments=1)
    (site / "pack.zip").write_bytes(make_zip(OLD))
    kit.sync(counting.url + "pack.zip", tmp_path / "tree")
    new = {**NEW, "pkg/big": OLD["pkg/big"]}
    data = make_zip(new)
    replace(site / "pack.zip", data)
    del counting.asked[:]
    report = kit.sync(counting.url + "pack.zip", tmp_path / "tree")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        changed = [each.compress_size for each in archive.infolist() if OLD.get(each.filename) != new[each.filename]]
        central = len(data) - archive.start_dir
    assert report.bytes_received <= 1.1 * (sum(changed) + central + (64 << 10))
    assert report.route == "zip"
    assert report.requests == len(counting.asked) <= 2 + len(changed)


def test_an_unpacked_archive_is_taken_over(make_kit: MakeKit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Files that stand there already, from another tool, are compared by CRC-32 and not fetched."""
    kit = make_kit(segments=1)
    (site / "pack.zip").write_bytes(make_zip(OLD))
    shutil.unpack_archive(site / "pack.zip", tmp_path / "tree")
    (tmp_path / "tree/README").unlink()
    report = kit.sync(counting.url + "pack.zip", tmp_path / "tree")
    assert (report.added, report.unchanged) == (1, len(OLD) - 1 - 1)  # the zip has no mode for run.sh before
    assert report.bytes_received < 100_000
    assert tree_of(tmp_path / "tree") == OLD


@pytest.mark.parametrize("name", ["pack.zip", "pack.tar.gz"])
def test_chosen_members(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, name: str) -> None:
    """Directories are cut off, members left out; the choice is part of what is installed."""
    (site / name).write_bytes(ARCHIVES[name]({f"top-1/{member}": data for member, data in OLD.items()}))
    tree, chosen = tmp_path / "tree", Selection(strip_components=1, include=("pkg",), exclude=("pkg/f*",))
    kit.sync(counting.url + name, tree, selection=chosen)
    expected = {member: OLD[member] for member in ("pkg/big", "pkg/empty", "pkg/run.sh")}
    assert tree_of(tree) == expected
    assert kit.sync(counting.url + name, tree, selection=chosen).requests == 1
    (tree / "pkg/big").unlink()
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree) == expected
    kit.sync(counting.url + name, tree, selection=Selection(strip_components=1))
    assert tree_of(tree) == OLD


@pytest.mark.parametrize("kind", ["no ranges", "weak ETag", "ranges fail later"])
def test_a_zip_without_ranges_comes_whole(
    kit: Toolkit, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path, kind: str
) -> None:
    """From servers that have none, that could mix versions, or that lie about them."""
    data = make_zip(OLD)

    def answer(exchange: Exchange) -> None:
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if kind == "no ranges" or (kind == "ranges fail later" and exchange.asked.range not in ((0, 16 << 10), None)):
            exchange.asked.headers.pop("range", None)
        exchange.serve(data, etag=f"W/{etag}" if kind == "weak ETag" else etag)

    server = misbehaving(answer)
    report = kit.sync(f"{server.url}/pack.zip", tmp_path / "tree")
    assert report.route == "whole"
    assert tree_of(tmp_path / "tree") == OLD
    data = make_zip(NEW)
    kit.sync(f"{server.url}/pack.zip", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == NEW


@pytest.mark.parametrize("name", ["pack.zip", "pack.tar.gz"])
def test_a_change_at_the_origin_in_the_middle(
    kit: Toolkit, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path, name: str
) -> None:
    """Two versions are never mixed: the sync begins anew with the second one, once."""
    versions = [ARCHIVES[name](files) for files in (OLD, NEW)]
    changed_after = 2

    def answer(exchange: Exchange) -> None:
        number = 0 if exchange.number < changed_after else 1
        exchange.serve(versions[number], etag=f'"v{number}"')

    server = misbehaving(answer)
    kit.sync(f"{server.url}/{name}", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == NEW


def test_a_damaged_archive_changes_nothing(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Not even when most of it is fine; and the next sync gets the mended one."""
    for name in ("pack.zip", "pack.tar.gz"):
        tree, make = tmp_path / name, ARCHIVES[name]
        (site / name).write_bytes(make(OLD))
        kit.sync(counting.url + name, tree)
        data = bytearray(make(NEW))
        data[len(data) // 2] ^= 1
        replace(site / name, bytes(data))
        with pytest.raises(ManifestError):
            kit.sync(counting.url + name, tree)
        assert tree_of(tree) == OLD
        replace(site / name, make(NEW))
        kit.sync(counting.url + name, tree)
        assert tree_of(tree) == NEW


def test_repair_needs_the_same_version(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """An origin that has moved on can't mend the old tree; sync can."""
    (site / "pack.zip").write_bytes(make_zip(OLD))
    kit.sync(counting.url + "pack.zip", tmp_path / "tree")
    (tmp_path / "tree/README").unlink()
    replace(site / "pack.zip", make_zip(NEW))
    with pytest.raises(UpdateError, match="has changed since it was installed; run sync"):
        kit.verify(tmp_path / "tree", repair=True)
    kit.sync(counting.url + "pack.zip", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == NEW


# -- what is what -----------------------------------------------------------------------------------------------------


def test_what_is_none_of_these_is_an_error(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Nothing is guessed, and no tree is made of it."""
    (site / "page.html").write_text("<html>https://example.org/")
    (site / "empty").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("remember the milk")
    for source, error, words in (
        (counting.url + "page.html", TransferError, "404"),
        (counting.url + "empty", TransferError, "404"),
        (counting.url + "none.zip", HTTPStatusError, "404"),
        (str(tmp_path / "notes.txt"), ConfigError, "neither a list"),
        (str(tmp_path / "none.txt"), ConfigError, "No such file"),
        (str(tmp_path), ConfigError, "Is a directory"),
    ):
        with pytest.raises(error, match=words):
            kit.sync(source, tmp_path / "tree")
    for source, words in ((str(tmp_path / "none.txt"), "No such file"), (str(tmp_path), "Is a directory")):
        with pytest.raises(ConfigError, match=words):
            kit.sync(source, tmp_path / "tree", type="urls")
    with pytest.raises(ConfigError, match="unknown source type"):
        kit.sync(counting.url, tmp_path / "tree", type="rar")
    assert not (tmp_path / "tree").exists() or tree_of(tmp_path / "tree") == {}


def test_a_list_from_a_pipe(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """It can't be read twice, so its type has to be given."""
    (site / "a").write_bytes(b"1")
    read_end, write_end = os.pipe()
    source = f"/dev/fd/{read_end}"
    with open(read_end, "rb"):
        with open(write_end, "wb") as file:
            file.write(f"{counting.url}a\n".encode())
            with pytest.raises(ConfigError, match=f"^{source} is a pipe, which can be read only once; give its type"):
                kit.sync(source, tmp_path / "tree")
        kit.sync(source, tmp_path / "tree", type="urls")
    assert tree_of(tmp_path / "tree") == {"a": b"1"}


def test_names_that_are_not_text(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """A path may have any bytes, and so may an argument; both are recorded in the tree."""
    (site / "pack.tar").write_bytes(make_tar({"a": b"1", "b": b"2"}))
    (site / "c").write_bytes(b"3")
    path = tmp_path / os.fsdecode(b"urls-\xff")
    path.write_text(f"{counting.url}c\n")
    for _ in range(2):
        assert kit.sync(path, tmp_path / "tree").version.startswith("urls-? ")
    kit.sync(counting.url + "pack.tar", tmp_path / "tree", selection=Selection(exclude=("\udcff", "b")))
    assert tree_of(tmp_path / "tree") == {"a": b"1"}
    assert kit.rollback(tmp_path / "tree").version.startswith("urls-? ")
    assert kit.verify(tmp_path / "tree").intact
    assert kit.history(tmp_path / "tree")[1].label["source"] == str(path)


@pytest.mark.parametrize("kind", ["zip", "tar", "zsync", "metalink", "urls", "release"])
def test_a_type_that_does_not_fit(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, kind: str) -> None:
    """The user's word is taken, and the content then fails to be that; the error names the source."""
    (site / "picture").write_bytes(b"\x89PNG" + RNG.randbytes(5000))
    for run in (kit.plan, kit.sync):
        with pytest.raises((ManifestError, TransferError), match=f"{counting.url}picture"):
            run(counting.url + "picture", tmp_path / "tree", type=kind)
    assert tree_of(tmp_path / "tree") == {}


@pytest.mark.parametrize("kind", ["zip", "tar", "zsync"])
def test_another_type_where_releases_were_installed(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, kind: str
) -> None:
    kit.publish(write_tree(tmp_path / "src", {"a": b"1"}), site, version="1")
    kit.sync(counting.url, tmp_path / "tree")
    with pytest.raises(ConfigError, match=f"releases of {counting.url} .* a source of type {kind} is newer"):
        kit.sync(counting.url, tmp_path / "tree", type=kind)
    assert tree_of(tmp_path / "tree") == {"a": b"1"}


def test_a_selection_is_for_archives(kit: Toolkit, tmp_path: Path) -> None:
    """And for releases; a list has no members."""
    (tmp_path / "urls.txt").write_text("https://example.org/a\n")
    with pytest.raises(ConfigError, match="only parts of releases and archives"):
        kit.sync(tmp_path / "urls.txt", tmp_path / "tree", selection=Selection(strip_components=1))


# -- zsync ------------------------------------------------------------------------------------------------------------


def zsyncmake(site: Path, data: bytes, *options: str) -> None:
    """The file `x.tar` of the site, and its control file."""
    need("zsyncmake")
    replace(site / "x.tar", data)
    command = ["zsyncmake", *options, "-u", "x.tar", "-o", "x.tar.zsync~", "x.tar"]
    subprocess.run(command, check=True, cwd=site, capture_output=True)
    (site / "x.tar.zsync~").replace(site / "x.tar.zsync")


def test_zsync_the_whole_story(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """The file that stands there is the seed; a few blocks are fetched; then as with a release."""
    pytest.importorskip("numpy")
    old, new, tree, url = make_tar(OLD), make_tar(NEW), tmp_path / "tree", counting.url + "x.tar.zsync"
    zsyncmake(site, old)
    first = kit.sync(url, tree)
    assert (first.route, tree_of(tree)) == ("whole", {"x.tar": old})
    assert kit.sync(url, tree).requests == 1
    zsyncmake(site, new)
    report = kit.sync(url, tree)
    assert (report.route, report.changed, tree_of(tree)) == ("zsync", 1, {"x.tar": new})
    assert report.bytes_received < 100_000
    kit.rollback(tree, hold=False)
    assert tree_of(tree) == {"x.tar": old}
    kit.rollback(tree, to=2, hold=False)
    (tree / "x.tar").write_bytes(b"damaged")
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree)["x.tar"] == new


def test_a_standing_file_is_the_seed(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Also an unmanaged one, which is then kept aside."""
    pytest.importorskip("numpy")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/x.tar").write_bytes(make_tar(OLD))
    zsyncmake(site, make_tar(NEW))
    report = kit.sync(counting.url + "x.tar.zsync", tmp_path / "tree")
    assert report.route == "zsync"
    assert tree_of(tmp_path / "tree") == {"x.tar": make_tar(NEW), "x.tar.perfkit-local": make_tar(OLD)}


def test_zsync_looks_again_where_the_file_is_wrong(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path
) -> None:
    """A block that only looks like the old one costs another request, and not the whole file."""
    pytest.importorskip("numpy")
    old = random.Random(5).randbytes(300_000)
    old, new = (old[:100_000] + each + old[100_004:] for each in (b"1221", b"2112"))
    zsyncmake(site, old)
    kit.sync(counting.url + "x.tar.zsync", tmp_path / "tree")
    zsyncmake(site, new)
    report = kit.sync(counting.url + "x.tar.zsync", tmp_path / "tree")
    assert (report.route, tree_of(tmp_path / "tree")) == ("zsync", {"x.tar": new})
    assert report.bytes_received < 20_000


@pytest.mark.parametrize("case", ["no ranges", "no numpy", "other bytes"])
def test_zsync_falls_back_to_the_whole_file(
    kit: Toolkit,
    misbehaving: Callable[..., MisbehavingServer],
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """Where ranges don't work, the matcher's package is missing, or SHA-1 says that the pieces are not the file."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x.tar").write_bytes(make_tar(OLD))
    zsyncmake(site, make_tar(NEW))

    whole = False

    def answer(exchange: Exchange) -> None:
        nonlocal whole
        data = (site / exchange.asked.path.lstrip("/")).read_bytes()
        whole = whole or (exchange.asked.path == "/x.tar" and exchange.asked.range is None)
        if exchange.asked.path == "/x.tar" and not whole:
            if case == "no ranges":
                exchange.asked.headers.pop("range")
            elif case == "other bytes":
                data = bytes(len(data))
        exchange.serve(data, etag=f'"{len(data)}"')

    if case == "no numpy":
        monkeypatch.setitem(__import__("sys").modules, "perfkit.zsync.matcher", None)
    report = kit.sync(f"{misbehaving(answer).url}/x.tar.zsync", tree)
    assert report.route == "whole"
    assert tree_of(tree)["x.tar"] == make_tar(NEW)


def test_zsync_of_a_gzip_file_is_a_whole_download(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Both forms: the file unpacked, and the gzip file itself."""
    need("zsyncmake")
    data = RNG.randbytes(50_000) + b"text " * 20_000
    (site / "x").write_bytes(data)
    subprocess.run(["gzip", "-9", "-k", "x"], check=True, cwd=site)
    packed = (site / "x.gz").read_bytes()
    for number, (arguments, expected) in enumerate(((["x.gz"], {"x.gz": packed}), (["-z", "x"], {"x": data}))):
        command = ["zsyncmake", "-u", "x.gz", "-o", f"{number}.zsync", *arguments]
        subprocess.run(command, check=True, cwd=site, capture_output=True)
        report = kit.sync(f"{counting.url}{number}.zsync", tmp_path / str(number))
        assert (report.route, tree_of(tmp_path / str(number))) == ("whole", expected)


@pytest.mark.parametrize("size", [0, 2047, 2048, 300_000])
def test_zsync_with_a_gzip_file_too(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, size: int) -> None:
    """What zsyncmake makes without a URL: one of each, and too many blocks. The gzip file alone will do."""
    need("zsyncmake")
    data = RNG.randbytes(size)
    (site / "x").write_bytes(data)
    subprocess.run(["gzip", "-k", "x"], check=True, cwd=site)
    subprocess.run(["zsyncmake", "-o", "x.zsync", "x.gz"], check=True, cwd=site, capture_output=True)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/x").write_bytes(b"old" + data)
    report = kit.sync(f"{counting.url}x.zsync", tmp_path / "tree")
    assert (report.route, tree_of(tmp_path / "tree")["x"]) == ("zsync", data)
    assert report.bytes_received < 10_000
    (site / "x").unlink()
    report = kit.sync(f"{counting.url}x.zsync", tmp_path / "other")
    assert (report.route, tree_of(tmp_path / "other")) == ("whole", {"x": data})


# -- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PATHS, "file"])
def test_what_others_can_read_has_no_secrets(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, kind: str
) -> None:
    """Neither the version, which is shown and kept for years, nor any other record that is not the owner's alone."""
    sources = Sources(site, counting.url)
    url = sources.urls.get(kind, f"{counting.url}large.bin").replace("//", "//me:s3cret@", 1)
    for number in (1, 2):
        sources.offer("zsync" if kind == "file" else kind, number)
        report = kit.sync(url if kind == "release" else f"{url}?token=s3cret", tmp_path / "tree", type=kind)
        assert "s3cret" not in report.version
    records = [path for path in (tmp_path / "tree/.perfkit").rglob("*") if path.is_file()]
    assert len(records) > 4
    assert not [each for each in records if each.stat().st_mode & 0o077 and b"s3cret" in each.read_bytes()]


def test_a_version_without_a_name() -> None:
    """It has no more of the URL than may be shown, and no control characters of a server's ETag or of a name."""
    assert (
        version_label("https://me:s3cret@example.org/?token=s3cret", Version()) == "https://***@example.org/?token=***"
    )
    assert version_label("https://example.org/a%1b%5d0;b%00%0a", Version('"\x9b31mX"')) == "a?]0;b?? ?31mX"


# -- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_of_urls(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Each file is asked about by its validator; what changed, came and went changes at once."""
    for name in ("a", "b", "c"):
        (site / name).write_bytes(name.encode() * 1000)
    listed, tree = tmp_path / "urls.txt", tmp_path / "tree"
    listed.write_text(f"# files\n{counting.url}a\n{counting.url}b\tsub/b\n")
    first = kit.sync(listed, tree)
    assert tree_of(tree) == {"a": b"a" * 1000, "sub/b": b"b" * 1000}
    again = kit.sync(listed, tree)
    assert (again.requests, again.bytes_received, again.generation) == (2, 0, first.generation)
    replace(site / "b", b"new")
    listed.write_text(f"{counting.url}b\tsub/b\n{counting.url}c\n")
    report = kit.sync(listed, tree)
    assert (report.added, report.changed, report.removed, report.bytes_received) == (1, 1, 1, 1003)
    assert tree_of(tree) == {"sub/b": b"new", "c": b"c" * 1000}
    kit.rollback(tree, hold=False)
    assert tree_of(tree) == {"a": b"a" * 1000, "sub/b": b"b" * 1000}
    kit.rollback(tree, to=2, hold=False)
    (tree / "c").write_bytes(b"damaged")
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree)["c"] == b"c" * 1000


def test_the_record_of_an_earlier_perfkit_is_read(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """An object for each file, by name: its validators still hold, and a repair finds the URLs."""
    for name in ("a", "b"):
        (site / name).write_bytes(name.encode() * 1000)
    listed, tree = tmp_path / "urls.txt", tmp_path / "tree"
    listed.write_text(f"{counting.url}a\n{counting.url}b\tsub/b\n")
    first = kit.sync(listed, tree)
    files = {}
    for name in ("a", "b"):
        with urllib.request.urlopen(counting.url + name) as answer:
            validators = {"etag": answer.headers["ETag"], "last_modified": answer.headers["Last-Modified"]}
        fields = {"url": counting.url + name, "mirrors": [], "checksum": None, "size": None, **validators}
        files["sub/b" if name == "b" else name] = fields
    release = tree / layout.RELEASE
    release.write_text(json.dumps({**json.loads(release.read_text()), "state": {"files": files}}))
    again = kit.sync(listed, tree)
    assert (again.requests, again.bytes_received, again.generation) == (2, 0, first.generation)
    (tree / "sub/b").write_bytes(b"damaged")
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree)["sub/b"] == b"b" * 1000


def test_a_record_edited_by_hand(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """JSON may spell what no text or whole number is: it is an error of ours, or the next sync fetches again."""
    (site / "pack.tar").write_bytes(make_tar({"a": b"1"}))
    kit.publish(write_tree(tmp_path / "src", {"a": b"1"}), site, version="1")
    for source, key, value, error in (
        (counting.url + "pack.tar", "selection", {"strip_components": float("inf")}, ManifestError),
        (counting.url, "pointer", "\ud800", None),
    ):
        tree = tmp_path / key
        kit.sync(source, tree)
        release = tree / layout.RELEASE
        record = json.loads(release.read_text())
        release.write_text(json.dumps({**record, "state": {**record["state"], key: value}}))
        with contextlib.nullcontext() if error is None else pytest.raises(error, match="damaged"):
            assert kit.sync(source, tree).unchanged == 1


def test_a_list_of_many_urls_is_synced_in_order(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """More than one block of the record holds: each file has its own content, and its own validator the next time."""
    listed, tree = tmp_path / "urls.txt", tmp_path / "tree"
    names = [f"{number * 7 % 150}" for number in range(150)]
    for name in names:
        (site / name).write_text(f"content of {name}")
    listed.write_text("".join(f"{counting.url}{name}\tdir/{name}\n" for name in names))
    kit.sync(listed, tree)
    assert tree_of(tree) == {f"dir/{name}": f"content of {name}".encode() for name in names}
    replace(site / "77", b"new")
    listed.write_text("".join(f"{counting.url}{name}\tdir/{name}\n" for name in reversed(names)))
    again = kit.sync(listed, tree)
    assert (again.requests, again.bytes_received, again.changed) == (150, 3, 1)


def test_a_list_whose_first_file_comes_last(
    make_kit: MakeKit, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path
) -> None:
    """Each file has its own content, and its own validator the next time."""
    names = [f"/{number}" for number in range(100)]

    def answer(exchange: Exchange) -> None:
        path = exchange.asked.path
        if path == "/0":
            server.wait_for(len(names))
        if exchange.asked.headers.get("if-none-match") == f'"{path}"':
            exchange.respond("304 Not Modified")
        else:
            exchange.serve(path.encode(), etag=f'"{path}"')

    server, kit, listed = misbehaving(answer), make_kit(adaptive=False), tmp_path / "urls.txt"
    listed.write_text("".join(f"{server.url}{name}\n" for name in names))
    kit.sync(listed, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {name[1:]: name.encode() for name in names}
    assert kit.sync(listed, tmp_path / "tree").bytes_received == 0


def test_a_list_from_a_url(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """It is requested conditionally too, and URLs in it may be relative once its type is known."""
    (site / "a").write_bytes(b"a" * 1000)
    (site / "urls.txt").write_text("a\n")
    kit.sync(counting.url + "urls.txt", tmp_path / "tree", type="urls")
    again = kit.sync(counting.url + "urls.txt", tmp_path / "tree")
    assert (again.requests, again.route) == (2, "none")
    assert tree_of(tmp_path / "tree") == {"a": b"a" * 1000}


def test_one_failed_url_changes_nothing(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """All in one transaction: the others are not put in place alone, and not fetched again the next time."""
    (site / "a").write_bytes(b"a" * 100_000)
    (tmp_path / "urls.txt").write_text(f"{counting.url}a\n{counting.url}none\n")
    with pytest.raises(HTTPStatusError):
        kit.sync(tmp_path / "urls.txt", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {}
    (site / "none").write_bytes(b"there")
    assert kit.sync(tmp_path / "urls.txt", tmp_path / "tree").bytes_received == 5
    assert tree_of(tmp_path / "tree") == {"a": b"a" * 100_000, "none": b"there"}


def metalink(*files: str) -> str:
    return f'<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">{"".join(files)}</metalink>'


def test_a_metalink_document(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Mirrors, sizes and hashes; a file that has its SHA-256 is not requested."""
    data = RNG.randbytes(50_000)
    (site / "a").write_bytes(data)
    text = metalink(
        f'<file name="sub/a"><size>{len(data)}</size><hash type="sha-256">{hashlib.sha256(data).hexdigest()}</hash>'
        f'<url priority="1">{counting.url}gone</url><url priority="2">{counting.url}a</url></file>'
    )
    (tmp_path / "pack.meta4").write_text(text)
    kit.sync(tmp_path / "pack.meta4", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"sub/a": data}
    assert kit.sync(tmp_path / "pack.meta4", tmp_path / "tree").requests == 0
    (site / "a").write_bytes(data[::-1])
    with pytest.raises(IntegrityError):
        kit.sync(tmp_path / "pack.meta4", tmp_path / "other")
    assert tree_of(tmp_path / "other") == {}


def test_a_size_that_lies(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Longer or shorter than the list says: an error, before the tree is touched."""
    (site / "a").write_bytes(bytes(1000))
    for size in (999, 1001):
        (tmp_path / "x.meta4").write_text(
            metalink(f'<file name="a"><size>{size}</size><url>{counting.url}a</url></file>')
        )
        with pytest.raises(IntegrityError):
            kit.sync(tmp_path / "x.meta4", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {}
