"""A release as a source: which route is taken, what follows one that fails, and an origin that changes under a sync."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import IntegrityError, ManifestError, StaleSourceError, Toolkit, TransferError
from perfkit.releases.format.pointer import MAX_POINTER_BYTES, Pointer
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.release_client import Client
from tests.support.sites import publish
from tests.support.trees import FIRST, Tree, edited, lines, noise, tree_of, write_tree

pytestmark = pytest.mark.once

SECOND = edited(FIRST, 1)
THIRD = edited(SECOND, 2)

Hook = Callable[[str, Exchange], bool]


def serving(site: Path, hook: Hook) -> Callable[[Exchange], None]:
    """A static file server, correct but for what the hook answers itself."""

    def handle(exchange: Exchange) -> None:
        name = exchange.asked.path.lstrip("/")
        if hook(name, exchange):
            return
        try:
            body = (site / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            exchange.respond("404 Not Found")
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if exchange.asked.headers.get("if-none-match") == etag:
            exchange.respond("304 Not Modified", ETag=etag)
        else:
            exchange.serve(body, etag=etag)

    return handle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with two releases, and a tree in which the first is installed."""
    home = tmp_path_factory.mktemp("made")
    with Toolkit() as kit:
        with Server(publish(kit, home, FIRST, "1")) as server:
            kit.sync(server.url, home / "tree")
        publish(kit, home, SECOND, "2")
    return home


@pytest.fixture
def second(made: Path, tmp_path: Path) -> Path:
    """The same, for one test; returns the site."""
    shutil.copytree(made / "tree", tmp_path / "tree", symlinks=True)
    return shutil.copytree(made / "site", tmp_path / "site")


@pytest.mark.once
def test_one_edited_file_does_not_end_the_delta(kit: Toolkit, tmp_path: Path) -> None:
    """What needs the old content comes by blocks, all else by the delta, and the edit is kept."""
    first: Tree = {"a": noise(1, 3 << 18), "b": noise(2, 3 << 18)}  # too large to share a frame
    second: Tree = {name: data[:99] + b"edit" + data[99:] for name, data in first.items()}
    tree = tmp_path / "tree"
    with Server(publish(kit, tmp_path, first, "1")) as server:
        kit.sync(server.url, tree)
        publish(kit, tmp_path, second, "2")
        (tree / "a").write_bytes(b"mine\n")
        report = kit.sync(server.url, tree)
    assert report.route == "delta+blocks"
    assert report.saved_as == {"a": "a.perfkit-local"}
    assert tree_of(tree) == {**second, "a.perfkit-local": b"mine\n"}
    assert 3 << 18 < report.bytes_received < 5 << 18


@pytest.mark.once
@pytest.mark.parametrize("start", ["installed", "nothing"])
def test_every_object_gone_in_turn(make_kit: Callable[..., Toolkit], tmp_path: Path, second: Path, start: str) -> None:
    """A route without its object is followed by the next; where none is left, the error says so and nothing is done."""
    kit = make_kit()
    client = Client(second)
    fine, solid = ({ref.sha256 for ref in client.packs(index)} for index in (client.pointer.fine, client.pointer.solid))
    needed = {client.pointer.manifest.object.sha256, *(fine & solid)}
    right = 0
    with Server(second) as server:
        for number, path in enumerate(sorted((second / "objects").iterdir())):
            dest = tmp_path / f"tree{number}"
            if start == "installed":
                kit.copy_tree(tmp_path / "tree", dest)
            data = path.read_bytes()
            path.unlink()
            try:
                kit.sync(server.url, dest)
                assert tree_of(dest) == SECOND
                right += 1
            except (ManifestError, TransferError):
                assert tree_of(dest) == (FIRST if start == "installed" else {})
                assert path.name in needed
            path.write_bytes(data)
    assert right >= 4


def test_a_pointer_replaced_in_the_middle_of_a_sync(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """The old release's objects are gone when they are requested: the new release is installed, and no mixture."""
    pointer = Client(second).pointer
    objects = {delta.object.path for delta in pointer.deltas} | {pointer.manifest.object.path}
    before = shutil.copytree(second, tmp_path / "before")
    publish(kit, tmp_path, THIRD, "3")
    for path in objects:
        (second / path).unlink()
    sites = {"now": before}

    def replace_the_site(name: str, exchange: Exchange) -> bool:
        if name in objects:
            sites["now"] = second
        serving(sites["now"], lambda name, exchange: False)(exchange)
        return True

    with MisbehavingServer(serving(before, replace_the_site)) as server:
        report = kit.sync(server.url, tmp_path / "tree")
    assert report.version == "3"
    assert tree_of(tmp_path / "tree") == THIRD


def test_a_site_that_lost_an_object_is_asked_once_more_and_no_more(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """Without a newer release, the error is raised after one more request for the pointer, and says what it is."""
    pointers = itertools.count()

    def lose_objects(name: str, exchange: Exchange) -> bool:
        if name == "perfkit.json":
            next(pointers)
            return False
        exchange.respond("404 Not Found")
        return True

    behind = pytest.raises(StaleSourceError, match=r"offers 2, but lacks a file of it: .*404")
    with MisbehavingServer(serving(second, lose_objects)) as server, behind as caught:
        kit.sync(server.url, tmp_path / "tree")
    assert caught.value.transient
    assert pickle.loads(pickle.dumps(caught.value)).transient
    assert next(pointers) == 2
    assert tree_of(tmp_path / "tree") == FIRST


def test_an_edge_that_is_behind_another(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """The pointer of one has the new release, all else comes from one that has the old: no "nothing to do"."""
    older = shutil.copytree(second, tmp_path / "older")
    publish(kit, tmp_path, THIRD, "3")
    newer = (second / "perfkit.json").read_bytes()
    pointers = itertools.count()

    def answer(name: str, exchange: Exchange) -> bool:
        if name != "perfkit.json" or next(pointers):
            return False
        exchange.respond("200 OK", newer)
        return True

    with MisbehavingServer(serving(older, answer)) as server:
        with pytest.raises(StaleSourceError, match="offers 3, and then the older 2"):
            kit.sync(server.url, tmp_path / "tree")
        assert kit.sync(server.url, tmp_path / "tree").version == "2"
    assert tree_of(tmp_path / "tree") == SECOND


@pytest.mark.parametrize("told", [True, False])
def test_a_pointer_without_end_is_refused(
    kit: Toolkit, tmp_path: Path, misbehaving: Callable[..., MisbehavingServer], told: bool
) -> None:
    """Whether its size is declared or not, no more than the format allows is read."""
    sent = 0

    def endless(exchange: Exchange) -> None:
        nonlocal sent
        exchange.head("200 OK", **({"Content_Length": str(1 << 40)} if told else {"Connection": "close"}))
        try:
            while sent < 1000 * MAX_POINTER_BYTES:
                exchange.send(b" " * MAX_POINTER_BYTES)
                sent += MAX_POINTER_BYTES
        except OSError:
            pass  # the client has had enough
        exchange.keep = False

    with pytest.raises(IntegrityError, match="too large"):
        kit.sync(misbehaving(endless).url, tmp_path / "tree")
    assert sent < 1000 * MAX_POINTER_BYTES


def test_forward_again_after_a_rollback_costs_the_pointer(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """The history has the files, and the manifest too."""
    with Server(second) as server:
        kit.sync(server.url, tmp_path / "tree")
        kit.rollback(tmp_path / "tree", hold=False)
        report = kit.sync(server.url, tmp_path / "tree")
    assert (report.requests, report.bytes_received, report.route) == (1, 0, "local")
    assert tree_of(tmp_path / "tree") == SECOND


def test_back_to_before_the_first_install_and_on(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """Generation 0 has no version and no managed file; from there a sync installs anew, from what is kept."""
    (tmp_path / "tree/notes").write_bytes(b"unmanaged\n")
    report = kit.rollback(tmp_path / "tree", to=0, hold=False)
    assert (report.version, report.previous_version, report.generation) == ("", "1", 0)
    assert tree_of(tmp_path / "tree") == {"notes": b"unmanaged\n"}
    with Server(second) as server:
        report = kit.sync(server.url, tmp_path / "tree")
        assert (report.version, report.previous_version, report.removed) == ("2", None, 0)
        assert tree_of(tmp_path / "tree") == {**SECOND, "notes": b"unmanaged\n"}
        assert kit.rollback(tmp_path / "tree", to=0, hold=False).version == ""
        assert tree_of(tmp_path / "tree") == {"notes": b"unmanaged\n"}
        assert kit.sync(server.url, tmp_path / "tree").requests == 1


def test_what_an_interrupted_sync_fetched_is_not_fetched_again(
    kit: Toolkit, tmp_path: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when some files are made and others are not: the ranges wanted next are others, and are here."""
    from perfkit.updates.staging import StagingArea

    finish, made = StagingArea._finish, itertools.count()

    def finish_three(self: StagingArea, digest: bytes) -> None:
        finish(self, digest)
        if next(made) == 2:
            raise KeyboardInterrupt

    with Server(second) as server:
        monkeypatch.setattr(StagingArea, "_finish", finish_three)
        with pytest.raises(KeyboardInterrupt):
            kit.sync(server.url, tmp_path / "fresh")
        monkeypatch.undo()
        assert tree_of(tmp_path / "fresh") == {}
        report = kit.sync(server.url, tmp_path / "fresh")
    assert report.bytes_received < 2_000  # of 125 kB: another index is asked
    assert tree_of(tmp_path / "fresh") == SECOND


@pytest.mark.once
def test_a_chain_that_costs_more_than_blocks_is_not_taken(kit: Toolkit, tmp_path: Path) -> None:
    """Three deltas of one large file, each time new: blocks bring the last, by the plan and by the sync."""
    trees: list[Tree] = [{"a": lines(1, 3000), "large": noise(number, 300_000)} for number in range(4)]
    tree = tmp_path / "tree"
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        for number, each in enumerate(trees):
            kit.publish(write_tree(tmp_path / "src", each), tmp_path / "site", version=str(number), keep_deltas=1)
            if number == 0:
                kit.sync(server.url, tree)
        pointer = Pointer.parse((tmp_path / "site/perfkit.json").read_bytes())
        plan = kit.plan(server.url, tree)
        assert plan.route == "blocks"
        assert 300_000 < plan.bytes < 320_000
        report = kit.sync(server.url, tree)
    assert report.route == "blocks"
    assert report.bytes_received < 330_000 < sum(delta.object.bytes for delta in pointer.deltas)
    assert tree_of(tree) == trees[-1]


def test_a_plan_has_the_cost_of_a_delta(kit: Toolkit, tmp_path: Path, second: Path) -> None:
    """What is planned is what is then taken, and a plan fetches no content."""
    with Server(second) as server:
        plan = kit.plan(server.url, tmp_path / "tree")
        report = kit.sync(server.url, tmp_path / "tree")
    delta = Client(second).pointer.deltas[0].object
    assert (plan.route, plan.bytes, plan.requests) == ("delta", delta.bytes, 1)
    assert plan.seconds > 0
    assert report.route == "delta"


def test_a_release_published_again_counts(kit: Toolkit, tmp_path: Path) -> None:
    """Back at the first tree under its old name, and nothing to do: the pointer between is old all the same."""
    site = publish(kit, tmp_path, FIRST, "1")
    with Server(site) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        between = (site / "perfkit.json").read_bytes()
        publish(kit, tmp_path, FIRST, "1")
        report = kit.sync(server.url, tmp_path / "tree")
        assert (report.route, report.generation) == ("none", 1)
        (site / "perfkit.json").write_bytes(between)
        with pytest.raises(StaleSourceError, match="older release"):
            kit.sync(server.url, tmp_path / "tree")


def test_a_repair_brings_the_installed_release(kit: Toolkit, tmp_path: Path) -> None:
    """And not the newer one that the site offers by now."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        (tmp_path / "tree/pkg/b.py").write_bytes(b"damaged")
        (tmp_path / "tree/README").unlink()
        report = kit.verify(tmp_path / "tree", repair=True)
    assert (report.version, report.changed, report.missing) == ("1", ("pkg/b.py",), ("README",))
    assert report.repaired is not None
    assert report.repaired.version == "1"
    assert tree_of(tmp_path / "tree") == {**FIRST, "pkg/b.py.perfkit-local": b"damaged"}
    assert kit.verify(tmp_path / "tree").intact


def test_a_pointer_is_requested_conditionally_without_extended_attributes(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has its version too; also for a dry run, whose stage is empty, and after the stage was cleared."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes here")

    tree = tmp_path / "tree"
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tree)
        monkeypatch.setattr(os, "setxattr", refuse)
        monkeypatch.setattr(os, "getxattr", refuse)
        for _ in range(2):
            report = kit.sync(server.url, tree)
            assert (report.route, report.requests, report.bytes_received) == ("none", 1, 0)
            shutil.rmtree(tree / ".perfkit/fetch")
        publish(kit, tmp_path, SECOND, "2")
        assert kit.sync(server.url, tree).version == "2"
        assert kit.sync(server.url, tree).bytes_received == 0
        kit.rollback(tree, hold=False)
        assert kit.sync(server.url, tree).version == "2"
        assert tree_of(tree) == SECOND


def test_a_damaged_record_is_asked_about_again(kit: Toolkit, tmp_path: Path) -> None:
    """What is recorded of the pointer is not needed for a sync, which mends it."""
    tree = tmp_path / "tree"
    record = tree / ".perfkit/release"
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tree)
        good = json.loads(record.read_bytes())
        record.write_text(json.dumps({**good, "state": {"pointer": "{}", "origin": good["state"]["origin"]}}))
        (tree / "README").unlink()
        assert kit.sync(server.url, tree).version == "1"
        assert json.loads(record.read_bytes())["state"]["pointer"] == good["state"]["pointer"]
    assert tree_of(tree) == FIRST
