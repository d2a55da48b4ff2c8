"""`sync` with mirrors: the pointer from the first that responds, files from any; those that are down or behind do no
harm, and get no secrets.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import ConfigError, HTTPStatusError, StaleSourceError, Toolkit, TransferError
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import Counting, Origin
from tests.support.trees import ONE, TWO, noise, tree_of, write_tree

pytestmark = pytest.mark.once

DEAD = "http://127.0.0.1:1/"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Origin]:
    """A server beside `origin`, of a site that nothing was copied to yet."""
    (tmp_path / "mirror").mkdir()
    with Origin(tmp_path / "mirror") as mirror:
        yield mirror


def copy(origin: Origin, mirror: Origin) -> None:
    shutil.copytree(origin.site, mirror.site, dirs_exist_ok=True)


def objects(origin: Origin) -> list[str]:
    return [path for path, _ in origin.sent if path.startswith("objects/")]


@pytest.fixture
def quick_kit(make_kit: Callable[..., Toolkit]) -> Toolkit:
    """It gives a dead server up at once."""
    return make_kit(retries=0)


def test_a_dead_origin(quick_kit: Toolkit, origin_v1: Origin, mirror: Origin, tmp_path: Path) -> None:
    """Its mirror has all; the tree still follows the origin, with its serials."""
    copy(origin_v1, mirror)
    first = quick_kit.sync(DEAD, tmp_path / "tree", mirrors=[f"{mirror.url}/"])
    assert (first.version, tree_of(tmp_path / "tree")) == ("1", ONE)
    assert quick_kit.status(tmp_path / "tree").source == DEAD
    assert quick_kit.sync(DEAD, tmp_path / "tree", mirrors=[f"{mirror.url}/perfkit.json"]).route == "none"
    with pytest.raises(TransferError):
        quick_kit.sync(DEAD, tmp_path / "tree")
    with pytest.raises(TransferError, match=":1/"):  # of all failures, that of the origin
        quick_kit.sync(DEAD, tmp_path / "tree", mirrors=[f"{mirror.url}/none/"])


def test_objects_come_from_any(quick_kit: Toolkit, origin_v1: Origin, mirror: Origin, tmp_path: Path) -> None:
    """A server that lacks them is no obstacle. Where all do, the release is not there yet: nothing new."""
    copy(origin_v1, mirror)
    shutil.move(origin_v1.site / "objects", tmp_path / "objects")
    quick_kit.sync(origin_v1.url, tmp_path / "tree", mirrors=[mirror.url])
    assert (tree_of(tmp_path / "tree"), bool(objects(mirror))) == (ONE, True)
    shutil.move(tmp_path / "objects", origin_v1.site / "objects")
    origin_v1.publish(TWO, "2")
    shutil.copy(origin_v1.site / "perfkit.json", mirror.site)
    shutil.move(origin_v1.site / "objects", tmp_path / "objects")
    report = quick_kit.sync(origin_v1.url, tmp_path / "tree", mirrors=[mirror.url])
    assert (report.version, tree_of(tmp_path / "tree")) == ("1", ONE)
    with pytest.raises(StaleSourceError, match="lacks a file"):
        quick_kit.sync(origin_v1.url, tmp_path / "tree")
    with pytest.raises(StaleSourceError, match="lacks a file"):  # nothing is installed, so this is no success
        quick_kit.sync(origin_v1.url, tmp_path / "new", mirrors=[mirror.url])
    shutil.move(tmp_path / "objects", origin_v1.site / "objects")
    assert quick_kit.sync(origin_v1.url, tmp_path / "tree", mirrors=[mirror.url]).version == "2"


def test_a_mirror_that_is_behind(quick_kit: Toolkit, origin_v1: Origin, mirror: Origin, tmp_path: Path) -> None:
    """An older release than the installed one is nothing new; the next mirror may have a newer one."""
    copy(origin_v1, mirror)
    origin_v1.publish(TWO, "2")
    tree = tmp_path / "tree"
    quick_kit.sync(origin_v1.url, tree)
    both = [mirror.url]
    report = quick_kit.sync(mirror.url, tmp_path / "elsewhere")  # behind, for those who have nothing newer
    assert report.version == "1"
    shutil.move(origin_v1.site, tmp_path / "away")
    behind = quick_kit.sync(origin_v1.url, tree, mirrors=both)
    assert (behind.version, behind.route, behind.held, tree_of(tree)) == ("2", "none", None, TWO)
    assert quick_kit.status(tree).failed_s is None
    shutil.move(tmp_path / "away", origin_v1.site)
    origin_v1.publish(ONE, "3")
    assert quick_kit.sync(origin_v1.url, tree, mirrors=both).version == "3"
    copy(mirror, origin_v1)  # the origin itself goes back
    assert quick_kit.sync(origin_v1.url, tree, mirrors=both).version == "3"
    with pytest.raises(StaleSourceError, match="older release"):
        quick_kit.sync(origin_v1.url, tree)
    assert quick_kit.sync(origin_v1.url, tree, mirrors=both, allow_older=True).version == "1"


def test_the_other_answers_of_a_dying_mirror(
    quick_kit: Toolkit, origin_v1: Origin, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path
) -> None:
    """Errors and pages in place of the pointer."""
    answers = [
        lambda exchange: exchange.respond("200 OK", b"<html>parked", Content_Type="text/html"),
        lambda exchange: exchange.respond("403 Forbidden"),
        lambda exchange: exchange.hang_up(),
        lambda exchange: exchange.respond("200 OK", b'{"format": 99}'),
    ]
    for number, answer in enumerate(answers):
        server = misbehaving(answer)
        report = quick_kit.sync(f"{server.url}/", tmp_path / f"tree{number}", mirrors=[origin_v1.url])
        assert (report.version, tree_of(tmp_path / f"tree{number}")) == ("1", ONE)


def test_secrets_go_to_the_origin_only(
    make_kit: Callable[..., Toolkit], origin_v1: Origin, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path
) -> None:
    """Also where a mirror is asked first, since the origin has not responded."""
    gone = [True]

    def answer(exchange: Exchange) -> None:
        path = origin_v1.site / exchange.asked.path.lstrip("/")
        if exchange.server is home and gone:
            exchange.respond("503 Service Unavailable")
        elif path.is_file():
            exchange.serve(path.read_bytes(), etag=None)
        else:
            exchange.respond("404 Not Found")

    home, other = misbehaving(answer), misbehaving(answer)
    kit = make_kit(retries=0, auth=("me", "s3cret"), headers={"X-Token": "s3cret"})
    kit.sync(f"{home.url}/", tmp_path / "tree", mirrors=[other.url])
    assert (len(other.requests) > 1, tree_of(tmp_path / "tree")) == (True, ONE)
    gone.clear()
    kit.sync(f"{home.url}/", tmp_path / "other", mirrors=[other.url])
    for asked in home.requests:
        assert {"authorization", "x-token"} <= set(asked.headers)
    for asked in other.requests:
        assert not {"authorization", "x-token"} & set(asked.headers)


def test_mirrors_of_a_file(quick_kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """With a checksum, which tells whether they have the same; without one, it is refused before anything is asked."""
    (site / "model.onnx").write_bytes(data := noise(1, 100_000))
    promised = f"sha256:{hashlib.sha256(data).hexdigest()}"
    options = {"type": "file", "mirrors": [f"{counting.url}model.onnx"]}
    quick_kit.sync(f"{DEAD}model.onnx", tmp_path / "tree", checksums=promised, **options)  # type: ignore[arg-type]
    assert tree_of(tmp_path / "tree") == {"model.onnx": data}
    counting.asked.clear()
    with pytest.raises(ConfigError, match="mirrors are for sites, and for plain files with --checksums"):
        quick_kit.sync(f"{DEAD}model.onnx", tmp_path / "other", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not an http or https URL"):
        quick_kit.sync(f"{DEAD}model.onnx", tmp_path / "other", mirrors=["mirror.example"])
    assert counting.asked == []


def test_the_type_of_a_dead_source(quick_kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """A mirror tells it; a site that answers 404 is taken for a site, as without mirrors."""
    quick_kit.sync(f"{DEAD}rules", tmp_path / "tree", mirrors=[origin_v1.url])
    assert tree_of(tmp_path / "tree") == ONE
    write_tree(origin_v1.site, {})
    with pytest.raises((HTTPStatusError, TransferError)):
        quick_kit.sync(f"{DEAD}rules", tmp_path / "other", mirrors=[origin_v1.url])


def test_a_mirror_that_dies(
    make_kit: Callable[..., Toolkit],
    origin_v1: Origin,
    misbehaving: Callable[..., MisbehavingServer],
    tmp_path: Path,
) -> None:
    """It is tried again a few times for the pointer or for what is under way, and then no more than it has to be."""
    origin_v1.publish({f"{number}.bin": noise(number, 3000) for number in range(200)}, "2")

    def answer(exchange: Exchange) -> None:
        if "perfkit.json" in exchange.asked.path and alive:
            exchange.serve((origin_v1.site / "perfkit.json").read_bytes(), etag=None)
        else:
            exchange.respond("503 Service Unavailable")

    kit, alive = make_kit(retries=5, connections_per_host=1, workers=1), [True]
    server = misbehaving(answer)
    kit.sync(f"{server.url}/", tmp_path / "tree", mirrors=[origin_v1.url])
    asked = [each.path for each in server.requests]
    assert len(asked) == 1 + 2 * 3, asked  # the manifest, and what is fetched beside it
    alive.clear()
    server.requests.clear()
    assert kit.sync(f"{server.url}/", tmp_path / "other", mirrors=[origin_v1.url]).version == "2"
    assert len(server.requests) == 3
    assert tree_of(tmp_path / "other") == tree_of(tmp_path / "tree")


def test_a_mirror_that_asks_to_wait(
    quick_kit: Toolkit, origin_v1: Origin, misbehaving: Callable[..., MisbehavingServer], tmp_path: Path
) -> None:
    """For longer than it is worth: the next one is asked, also in the middle of a sync."""

    def answer(exchange: Exchange) -> None:
        if "perfkit.json" in exchange.asked.path:
            exchange.serve((origin_v1.site / "perfkit.json").read_bytes(), etag=None)
        else:
            exchange.respond("503 Service Unavailable", Retry_After="86400")

    server = misbehaving(answer)
    quick_kit.sync(f"{server.url}/", tmp_path / "tree", mirrors=[origin_v1.url])
    assert tree_of(tmp_path / "tree") == ONE


def test_repair_from_a_mirror(quick_kit: Toolkit, origin_v1: Origin, mirror: Origin, tmp_path: Path) -> None:
    """Of a tree whose source is gone, also if the mirror has a newer release by now."""
    tree = tmp_path / "tree"
    copy(origin_v1, mirror)
    quick_kit.sync(DEAD, tree, mirrors=[mirror.url])
    origin_v1.publish(TWO, "2")
    copy(origin_v1, mirror)
    (tree / "README").unlink()
    with pytest.raises(TransferError, match=":1/"):
        quick_kit.verify(tree, repair=True)
    with pytest.raises(TransferError, match=":1/"):
        quick_kit.verify(tree, repair=True, mirrors=[f"{mirror.url}/none/"])
    assert quick_kit.verify(tree, repair=True, mirrors=[f"{mirror.url}/none/", mirror.url]).repaired
    assert tree_of(tree) == ONE


def test_repair_a_file_from_a_mirror(quick_kit: Toolkit, counting: Counting, site: Path, tmp_path: Path) -> None:
    """If its checksum is known; else mirrors are refused."""
    (site / "model.onnx").write_bytes(data := noise(1, 100_000))
    promised, tree = f"sha256:{hashlib.sha256(data).hexdigest()}", tmp_path / "tree"
    mirrors = [f"{counting.url}model.onnx"]
    quick_kit.sync(f"{DEAD}model.onnx", tree, type="file", mirrors=mirrors, checksums=promised)
    (tree / "model.onnx").unlink()
    assert quick_kit.verify(tree, repair=True, mirrors=mirrors).repaired
    assert tree_of(tree) == {"model.onnx": data}
    quick_kit.sync(mirrors[0], tmp_path / "other", type="file")
    (tmp_path / "other/model.onnx").unlink()
    with pytest.raises(ConfigError, match="mirrors are for sites"):
        quick_kit.verify(tmp_path / "other", repair=True, mirrors=mirrors)
