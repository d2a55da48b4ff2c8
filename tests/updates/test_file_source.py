"""`sync` of one plain file: recognised, revalidated, decompressed, checked and rolled back as any tree."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import CheckFailedError, ConfigError, IntegrityError, ManifestError, StagedTree, Toolkit, UpdateError
from perfkit.releases.format.zstd import compress
from tests.support.archive_tools import make_tar, make_zip
from tests.support.fakes import Exchange, MisbehavingServer, Start, http_date
from tests.support.sites import Counting, Origin, replace
from tests.support.trees import ONE, noise, tree_of

OLD, NEW = noise(1, 200_000), noise(2, 200_000)


def test_a_file_is_a_tree(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """Recognised by being nothing else; asked about by its validator; with history, verification and repair."""
    url, tree = counting.url + "GeoLite2-City.mmdb", tmp_path / "tree"
    (site / "GeoLite2-City.mmdb").write_bytes(OLD)
    first = kit.sync(url, tree)
    assert (first.added, first.route, tree_of(tree)) == (1, "file", {"GeoLite2-City.mmdb": OLD})
    assert first.version.startswith("GeoLite2-City.mmdb 20")
    again = kit.sync(url, tree)
    assert (again.requests, again.bytes_received, again.route) == (1, 0, "none")
    replace(site / "GeoLite2-City.mmdb", NEW)
    second = kit.sync(url, tree)
    assert (second.changed, tree_of(tree)) == (1, {"GeoLite2-City.mmdb": NEW})
    (tree / "GeoLite2-City.mmdb").unlink()
    assert kit.verify(tree).missing == ("GeoLite2-City.mmdb",)
    assert kit.verify(tree, repair=True).intact
    assert tree_of(tree) == {"GeoLite2-City.mmdb": NEW}
    kit.rollback(tree)
    assert tree_of(tree) == {"GeoLite2-City.mmdb": OLD}
    assert kit.sync(url, tree).held == second.version


def test_a_repair_needs_the_same_version(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    (site / "model.onnx").write_bytes(OLD)
    kit.sync(counting.url + "model.onnx", tmp_path / "tree")
    (tmp_path / "tree/model.onnx").unlink()
    replace(site / "model.onnx", NEW)
    with pytest.raises(UpdateError, match="has changed since it was installed; run sync"):
        kit.verify(tmp_path / "tree", repair=True)


@pytest.mark.parametrize("etag", ['W/"1"', None])
@pytest.mark.parametrize("name", ["model.onnx", "model.zip", "model.tar"])
def test_a_date_that_moves_on(kit: Toolkit, misbehaving: Start, tmp_path: Path, name: str, etag: str | None) -> None:
    """As that of a file of the future: no sync adds a generation, and with an ETag none fetches the file again."""
    archive = {"model.zip": make_zip({"a": OLD}), "model.tar": make_tar({"a": OLD})}
    body = [archive.get(name, OLD)]

    def answer(exchange: Exchange) -> None:
        now = http_date(exchange.number)
        exchange.serve(body[0], etag=etag, Last_Modified=now, Date=now)

    url, tree = f"{misbehaving(answer).url}/{name}", tmp_path / "tree"
    first = kit.sync(url, tree)
    for _ in range(2):
        again = kit.sync(url, tree)
        assert (again.generation, again.version, again.route) == (1, first.version, "none")
        assert not again.generation_is_new
        if etag:
            assert again.requests == 1
    assert [each.number for each in kit.history(tree)] == [0, 1]
    if etag:
        next(path for path in tree.iterdir() if path.name != ".perfkit").unlink()
        assert kit.verify(tree, repair=True).intact
    archive = {"model.zip": make_zip({"a": NEW}), "model.tar": make_tar({"a": NEW})}
    etag, body[0] = etag and 'W/"2"', archive.get(name, NEW)
    assert kit.sync(url, tree).changed == 1
    assert list(tree_of(tree).values()) == [NEW]


def test_a_check_sees_the_file_first(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """A file that it refuses is not asked for again."""
    (site / "model.onnx").write_bytes(OLD)

    def refuse(staged: StagedTree) -> None:
        assert (Path(staged.path) / "model.onnx").read_bytes() == OLD
        raise ValueError("no model")

    with pytest.raises(CheckFailedError, match="no model"):
        kit.sync(counting.url + "model.onnx", tmp_path / "tree", check=refuse)
    report = kit.sync(counting.url + "model.onnx", tmp_path / "tree", check=refuse)
    assert (report.held is not None, report.requests, tree_of(tmp_path / "tree")) == (True, 1, {})


@pytest.mark.parametrize(
    ("suffix", "compressed"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", lambda data: compress(data, level=3)),
    ],
)
def test_a_decompressed_file_stays_so(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, suffix: str, compressed: Callable[[bytes], bytes]
) -> None:
    """Later syncs and repairs do so without being told; what is stored is what is inside."""
    name, tree = f"feed.csv.{suffix}", tmp_path / "tree"
    (site / name).write_bytes(compressed(OLD))
    assert kit.plan(counting.url + name, tree, decompress=True).added == ("feed.csv",)
    kit.sync(counting.url + name, tree, decompress=True)
    assert tree_of(tree) == {"feed.csv": OLD}
    assert kit.sync(counting.url + name, tree).requests == 1
    replace(site / name, compressed(NEW))
    kit.sync(counting.url + name, tree)
    assert tree_of(tree) == {"feed.csv": NEW}
    (tree / "feed.csv").unlink()
    assert kit.verify(tree, repair=True).intact
    kit.sync(counting.url + name, tree, decompress=False)
    assert tree_of(tree) == {name: (site / name).read_bytes()}


def test_what_can_not_be_decompressed(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain data, damage, a bomb, and sources of other types: nothing is changed, and the next sync fetches anew."""
    monkeypatch.setattr("perfkit.archives.limits.RATIO_FROM_BYTES", 1 << 20)
    for name, content, words in (
        ("plain.gz", OLD, "is not compressed; sync it without --decompress"),
        ("cut.gz", gzip.compress(OLD)[:-10], "truncated"),
        ("bomb.gz", gzip.compress(bytes(2 << 20)), "a decompression bomb"),
    ):
        (site / name).write_bytes(content)
        with pytest.raises(ManifestError, match=words):
            kit.sync(counting.url + name, tmp_path / "tree", type="file", decompress=True)
    replace(site / "cut.gz", gzip.compress(OLD))
    kit.sync(counting.url + "cut.gz", tmp_path / "tree", type="file", decompress=True)
    assert tree_of(tmp_path / "tree") == {"cut": OLD}
    (site / "pack.tar.gz").write_bytes(make_tar(mode="w:gz"))
    with pytest.raises(ConfigError, match="only plain files can be decompressed"):
        kit.sync(counting.url + "pack.tar.gz", tmp_path / "other", decompress=True)
    kit.sync(counting.url + "pack.tar.gz", tmp_path / "other", type="file", decompress=True)
    assert tree_of(tmp_path / "other") == {"pack.tar": make_tar()}


def test_a_url_without_a_name(kit: Toolkit, counting: Counting, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends in no file name"):
        kit.sync(counting.url, tmp_path / "tree", type="file")
    assert counting.asked == []


def test_a_site_without_its_slash_is_no_file(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """Even where the server answers its URL with something else than a page."""
    origin.publish(ONE, "1")
    (origin.site / "rules").mkdir()
    origin.site.rename(origin.root / "published")
    origin.site.mkdir()
    (origin.root / "published").rename(origin.site / "rules")

    kit.sync(origin.url.rstrip("/") + "/rules", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == ONE


def test_a_page_in_place_of_the_file(
    kit: Toolkit, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path
) -> None:
    """A login or an apology with status 200 is not installed, whatever was before."""
    answers = [(OLD, "application/octet-stream")]

    def answer(exchange: Exchange) -> None:
        body, kind = answers[-1]
        if exchange.asked.path != "/model.onnx":
            exchange.respond("404 Not Found")
        else:
            exchange.serve(body, etag=f'"{len(answers)}"', Content_Type=kind)

    url = misbehaving(answer).url + "/model.onnx"
    kit.sync(url, tmp_path / "tree")
    answers.append((b"\n<!DOCTYPE html>\n<title>Please log in</title>", "text/html; charset=utf-8"))
    with pytest.raises(ManifestError, match="HTML page in place of the file"):
        kit.sync(url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"model.onnx": OLD}
    answers.append((NEW, "text/html"))  # what PHP says of everything
    kit.sync(url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"model.onnx": NEW}


def sums(**files: bytes) -> str:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name.replace('_', '.')}\n" for name, data in files.items())


def test_checksums_are_asked_first(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """The file is not asked for while its checksum stays, and refused if it has another; repaired by the checksum."""
    url, tree, where = counting.url + "feed.csv.gz", tmp_path / "tree", counting.url + "SHA256SUMS"
    (site / "feed.csv.gz").write_bytes(old := gzip.compress(OLD))
    (site / "SHA256SUMS").write_text(sums(feed_csv_gz=old, other=b""))
    first = kit.sync(url, tree, checksums=where, type="file", decompress=True)
    assert [path for path, _ in counting.asked][:2] == ["/SHA256SUMS", "/feed.csv.gz"]
    assert tree_of(tree) == {"feed.csv": OLD}
    counting.asked.clear()
    (site / "feed.csv.gz").touch()
    again = kit.sync(url, tree, checksums=where)
    assert (again.requests, again.route, counting.asked) == (1, "none", [("/SHA256SUMS", "")])
    (tree / "feed.csv").unlink()
    assert kit.verify(tree, repair=True).intact
    replace(site / "feed.csv.gz", new := gzip.compress(NEW))
    with pytest.raises(IntegrityError, match="checksum mismatch"):
        kit.sync(url, tmp_path / "other", type="file", checksums=where)
    (tree / "feed.csv").unlink()
    with pytest.raises(IntegrityError, match="checksum mismatch"):
        kit.verify(tree, repair=True)
    (tmp_path / "sums").write_text(sums(feed_csv_gz=new))
    assert kit.sync(url, tree, checksums=tmp_path / "sums").version != first.version
    assert tree_of(tree) == {"feed.csv": NEW}
    assert kit.sync(url, tree).unchanged == 1  # without a checksum it is asked about by its validator


def test_wrong_checksums(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """They are found before the file is asked for."""
    (site / "a").write_bytes(OLD)
    (tmp_path / "sums").write_text(sums(b=OLD))
    for where, words in (
        (tmp_path / "sums", "no checksum for 'a'"),
        (tmp_path / "none", "No such file"),
        ("sha256:5", "No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            kit.sync(counting.url + "a", tmp_path / "tree", type="file", checksums=where)
    with pytest.raises(ConfigError, match="checksums are for plain files"):
        kit.sync(counting.url, tmp_path / "tree", checksums=tmp_path / "sums")
    assert counting.asked == []
    kit.sync(counting.url + "a", tmp_path / "tree", type="file", checksums=f"md5:{hashlib.md5(OLD).hexdigest()}")
    assert tree_of(tmp_path / "tree") == {"a": OLD}


def test_the_scheme_of_a_source_ignores_case(kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """RFC 3986 section 3.1: `HTTP://` begins a URL, not a path, and names the same source as `http://`."""
    url = counting.url.replace("http:", "HTTP:")
    (site / "f").write_bytes(OLD)
    (site / "list").write_text(f"{url}f\n")
    for name in ("f", "list"):
        kit.sync(url + name, tmp_path / name)
        assert tree_of(tmp_path / name) == {"f": OLD}
    assert kit.sync(counting.url + "f", tmp_path / "f").requests == 1
