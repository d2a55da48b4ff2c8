"""Very many files, very large ones, and very long names: memory is bounded. Only in the long form."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit.releases.publish.publisher import publish
from perfkit.server.server import Server
from perfkit.transactions.tree import Tree as Managed
from tests.chaos.seeds import LONG, TIMEOUT_S, Cases
from tests.support.command import peak_mb
from tests.support.tools import ENVIRONMENT, unavailable
from tests.support.trees import tree_of

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(TIMEOUT_S),
    pytest.mark.skipif(not LONG, reason="takes minutes; PERFKIT_TEST_CHAOS=long runs it"),
]


def run(cases: Cases, command: str, *arguments: object, code: int = 0) -> float:
    """The peak of resident memory of a command in MB."""
    began = time.monotonic()
    found, peak = peak_mb(command, "--quiet", *arguments)
    assert found == code
    cases.ends[f"MB by {command}"] = max(cases.ends[f"MB by {command}"], round(peak))
    cases.ends[f"s by {command}"] += round(time.monotonic() - began)
    return peak


@pytest.fixture
def roomy(place: Path) -> Iterator[Path]:
    """A directory that is removed without recursion."""
    yield place
    subprocess.run(["find", place, "-mindepth", "1", "-delete"], check=True)


def test_50_000_urls(cases: Cases, roomy: Path) -> None:
    site = roomy / "site"
    site.mkdir()
    for number in range(50_000):
        (site / str(number)).write_bytes(b"%d" % number)
    with Server(site) as server:
        (roomy / "urls").write_text("".join(f"{server.url}{number}\n" for number in range(50_000)))
        peak = run(cases, "get", "-i", roomy / "urls", "-d", roomy / "out")
        synced = run(cases, "sync", "--type", "urls", roomy / "urls", roomy / "tree")
        again = run(cases, "sync", "--type", "urls", roomy / "urls", roomy / "tree")
    for directory in ("out", "tree"):
        assert len([name for name in os.listdir(roomy / directory) if name.isdigit()]) == 50_000
        assert (roomy / directory / "49999").read_bytes() == b"49999"
    assert peak < 150
    assert max(synced, again) < 90


def test_200_000_files(cases: Cases, roomy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a release may have by default."""
    monkeypatch.setitem(ENVIRONMENT, "PERFKIT_MAX_FILES", "200000")
    for directory in range(200):
        (roomy / f"src/{directory}").mkdir(parents=True)
        for number in range(1000):
            (roomy / f"src/{directory}/{number}").write_bytes(b"%d %d" % (directory, number))
    assert run(cases, "publish", roomy / "src", roomy / "site", "--version", "1") < 400
    with Server(roomy / "site") as server:
        peak = run(cases, "sync", server.url, roomy / "tree")
        (roomy / "src/7/7").write_bytes(b"changed")
        run(cases, "publish", roomy / "src", roomy / "site", "--version", "2")
        peak = max(peak, run(cases, "sync", server.url, roomy / "tree"))
    assert (roomy / "tree/7/7").read_bytes() == b"changed"
    assert (roomy / "tree/199/999").read_bytes() == b"199 999"
    run(cases, "verify", roomy / "tree")
    run(cases, "rollback", roomy / "tree")
    assert (roomy / "tree/7/7").read_bytes() == b"7 7"
    assert peak < 250


def test_100_000_entries_in_a_directory(cases: Cases, roomy: Path) -> None:
    (roomy / "src").mkdir()
    for number in range(100_000):
        (roomy / f"src/{number}").write_bytes(b"%d" % number)
    publish(str(roomy / "src"), str(roomy / "site"), version="1")
    with Server(roomy / "site") as server:
        assert run(cases, "sync", server.url, roomy / "tree") < 150
    assert len(os.listdir(roomy / "tree")) == 100_001


def test_sparse_file_of_20_gib(cases: Cases, tmp_path: Path) -> None:
    size = 20 << 30
    space = os.statvfs(tmp_path)
    if space.f_bavail * space.f_frsize < size * 1.2:
        unavailable("needs 24 GiB of free space")
    (tmp_path / "site").mkdir()
    with (tmp_path / "site/sparse").open("wb") as file:
        file.truncate(size)
    with Server(tmp_path / "site") as server:
        peak = run(cases, "get", f"{server.url}sparse", "-d", tmp_path / "out")
    assert (tmp_path / "out/sparse").stat().st_size == size
    assert peak < 80
    (tmp_path / "out/sparse").unlink()


def test_long_names_and_many_levels(cases: Cases, roomy: Path) -> None:
    """Names of 4,000 bytes, of components as long as they can be and of a thousand levels."""
    long, deep = "/".join(["n" * 249] * 16), "/".join(["d"] * 1000)
    with Managed(roomy / "src") as tree, tree.transaction() as tx:
        tx.write(f"{long[:4000]}", b"long")
        tx.write(f"{deep}/file", b"deep")
    publish(str(roomy / "src"), str(roomy / "site"), version="1")
    with Server(roomy / "site") as server:
        assert run(cases, "sync", server.url, roomy / "tree") < 80
    with Managed(roomy / "tree") as tree, tree.transaction() as tx:
        tx.move(long[:4000], "long")
        tx.move(f"{deep}/file", "deep")
    found = {name: data for name, data in tree_of(roomy / "tree").items() if len(name) < 10}
    assert found == {"long": b"long", "deep": b"deep"}
    refused = "x" * 300
    for name in (refused, "a/" * 2100 + "f"):
        digest = hashlib.sha256(b"").hexdigest()
        (roomy / "urls").write_text(f"http://127.0.0.1:1/x\t{name}\tsha256:{digest}\n")
        run(cases, "sync", roomy / "urls", roomy / "other", "--type", "urls", code=1)
