"""The cost of a further release follows what has changed: what is read, written, and stored twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from perfkit import ManifestError
from perfkit.progress.stage import Stage
from perfkit.releases.format.delta import Group
from perfkit.releases.format.draft import draft_bytes
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import compress, stored_content, zstd
from perfkit.releases.publish import binary_groups, delta_encoder, publisher, work_cache
from perfkit.releases.publish.large_files import LastRelease
from perfkit.releases.publish.manifest_patch import manifest_slices
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.similarity import SimilarityIndex
from perfkit.releases.publish.site import Site
from perfkit.releases.publish.source_tree import SourceTree
from perfkit.releases.publish.work_cache import WorkCache
from tests.support.release_client import Client
from tests.support.trees import lines, noise, write_tree

pytestmark = pytest.mark.once

MIB = 1 << 20


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., int]:
    """Publishes the same directory as the next version; returns the bytes written."""
    versions = iter(range(1, 100))
    return lambda **options: (
        publish(str(tmp_path / "src"), str(tmp_path / "site"), version=str(next(versions)), **options).bytes_written
    )


def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are hashed from now on."""
    names: list[str] = []
    hashed = SourceTree._entry

    def noted(self: SourceTree, name: str, *arguments: object) -> object:
        names.append(name)
        return hashed(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SourceTree, "_entry", noted)
    return names


def test_unchanged_files_are_not_read_again(
    again: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with the size and mtime that it had is, since its ctime differs; without the rows, or with damaged ones, all
    are. One that has just been written has no row."""
    tree = {f"{number}": b"%04d" % number for number in range(20)}
    src = write_tree(tmp_path / "src", tree)
    wait_for_tick(src)
    again()
    names = read_names(monkeypatch)
    before = (src / "3").stat()
    (src / "3").write_bytes(b"abcd")
    os.utime(src / "3", ns=(before.st_atime_ns, before.st_mtime_ns))
    again()
    assert names == ["3"]
    again()
    assert set(names) == {"3"}
    rows = tmp_path / "site/.perfkit-publish.files"
    for damaged in (b"", rows.read_bytes()[:100], b"{}\n" + bytes(1000)):
        rows.write_bytes(damaged)
        names.clear()
        again(expires_s=100)
        assert len(names) == 20
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.fine) == tree | {"3": b"abcd"}


def wait_for_tick(directory: Path) -> None:
    """Until the file system gives a later time than its files have."""
    latest = max(path.stat().st_ctime_ns for path in directory.iterdir())
    clock = directory.parent / "clock"
    while not clock.exists() or clock.stat().st_mtime_ns <= latest:
        clock.write_bytes(b"")


def test_a_site_of_an_earlier_perfkit_says_what_to_do(again: Callable[..., int], tmp_path: Path) -> None:
    """Its history lacks the packs of each release."""
    write_tree(tmp_path / "src", {"a": b"a"})
    again()
    site = Site(str(tmp_path / "site"))
    pointer = site.pointer()
    assert pointer is not None
    record = json.loads(site.get(pointer.history))
    del record["solid"]
    site.replace_pointer(pointer._replace(history=site.put(json.dumps(record).encode())))
    with pytest.raises(ManifestError, match=r"site: history: .*an earlier perfkit .*publish to a new directory"):
        again()


def test_files_of_another_file_system_are_read(
    again: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is not known, so that no row can be trusted."""
    write_tree(tmp_path / "src", {"a": b"1"})
    monkeypatch.setattr(publisher, "_clock_ns", lambda src, site: 0)
    again()
    names = read_names(monkeypatch)
    again()
    assert names == ["a"]
    assert not (tmp_path / "site/.perfkit-publish.files").exists()


def test_the_old_tree_is_not_searched_for_a_few_bytes(
    again: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many small files, too: reading them all takes far longer than sending what is new in one."""
    searched = []
    monkeypatch.setattr(
        delta_encoder, "_indexed", lambda old, *, binary: searched.append(old) or SimilarityIndex(total_bytes=0)
    )
    for changed in (0, 1, 200):
        write_tree(
            tmp_path / "src",
            {f"{number}.txt": b"%d is new: %d\n" % (number, number < changed) for number in range(200)},
        )
        again(keep_deltas=1)
        assert bool(searched) == (changed == 200)


def test_a_large_file_that_changes_is_not_written_again(again: Callable[..., int], tmp_path: Path) -> None:
    """By either index, and by a delta whose equal ranges take no bytes."""
    content = lines(1, 60_000)
    assert len(content) > 1.5 * MIB
    write_tree(tmp_path / "src", {"big": content})
    again(level=3)
    changed = content[: 5 * MIB // 4] + b"something else\n" + content[5 * MIB // 4 :]
    write_tree(tmp_path / "src", {"big": changed})
    assert again(level=3) < 100_000
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.fine) == client.install(client.pointer.solid) == {"big": changed}
    assert client.follow({"big": content}) == {"big": changed}
    assert client.pointer.deltas[0].object.bytes < 2_000


def test_a_large_file_whose_parts_change_places(again: Callable[..., int], tmp_path: Path) -> None:
    """What it has kept, wherever that is now and however often, is not written again."""
    src = write_tree(tmp_path / "src", {"large": b""})
    parts = [noise(MIB, number) for number in range(4)]
    (src / "large").write_bytes(b"".join(parts))
    again()
    content = b"".join([parts[2], b"new", parts[0], parts[2], parts[1], parts[3][: MIB // 2], parts[3]])
    (src / "large").write_bytes(content)
    assert again() < MIB
    client = Client(tmp_path / "site")
    assert {client.install(index)["large"] for index in (client.pointer.fine, client.pointer.solid)} == {content}


@pytest.mark.parametrize("size", [0, 1, 200, 256, 3000, 70_000, 131_072])
def test_content_that_a_frame_stores_as_it_is(size: int) -> None:
    """It needs no decoder, unless the frame is written in another way."""
    content = noise(1, size)
    plain = compress(content)
    assert stored_content(plain, size) == content
    assert stored_content(plain, size + 1) is None
    assert stored_content(b"?" + plain[1:], size) is None
    assert stored_content(compress(lines(1, 100)), len(lines(1, 100))) is None
    checked = zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
    assert stored_content(checked, size) is None


@pytest.mark.parametrize("damage", ["pack", "index", "half new", "another release"])
def test_a_large_file_that_cannot_be_compared_while_it_is_hashed(
    again: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Another publisher may have replaced the release by then, and removed what only that one needed."""
    src, site = write_tree(tmp_path / "src", {"large": b""}), tmp_path / "site"
    contents = [noise(1, 5 * MIB // 4)]
    for _ in range(2):
        (src / "large").write_bytes(contents[-1])
        again()
        contents.append(contents[-1][:-1000] + noise(len(contents), 1000))
    if damage == "half new":
        contents[-1] = contents[-1][: MIB // 2] + noise(3, 3 * MIB // 4)
    (src / "large").write_bytes(contents[-1])
    compared = LastRelease.hash

    def hash_file(self: LastRelease, name: str, file: BinaryIO, shown: Stage) -> tuple[int, bytes] | None:
        pointer = Client(site).pointer
        missing = {"pack": Client(site).packs(pointer.fine)[0], "index": pointer.fine.object}.get(damage)
        if missing is not None:
            (site / missing.path).rename(tmp_path / "missing")
        found = compared(self, name, file, shown)
        if missing is not None:
            (tmp_path / "missing").rename(site / missing.path)
        assert (name in self.pieces) == (damage == "another release")
        if damage == "another release":
            (src / "large").rename(tmp_path / "latest")
            (src / "large").write_bytes(noise(4, MIB // 2))
            monkeypatch.setattr(LastRelease, "hash", compared)
            again()
            (tmp_path / "latest").replace(src / "large")
        return found

    monkeypatch.setattr(LastRelease, "hash", hash_file)
    again()
    client = Client(site)
    assert client.install(client.pointer.fine) == client.install(client.pointer.solid) == {"large": contents[-1]}


def test_a_large_file_that_repeats_itself(again: Callable[..., int], tmp_path: Path) -> None:
    """Equal pieces have one tag, of which the one at the same place counts."""
    content = b"".join(noise(1, 100_000) + noise(number, 40_000) for number in range(2, 26))
    write_tree(tmp_path / "src", {"big": content, "zeros": bytes(MIB)})
    again()
    changed = content[:100_000] + b"something else" + content[100_000:]
    write_tree(tmp_path / "src", {"big": changed, "zeros": bytes(MIB) + b"."})
    again()
    client = Client(tmp_path / "site")
    before = {"big": content, "zeros": bytes(MIB)}
    after = {"big": changed, "zeros": bytes(MIB) + b"."}
    assert client.follow(before) == client.install(client.pointer.fine) == client.install(client.pointer.solid) == after
    assert client.pointer.deltas[0].object.bytes < 2_000


def test_what_does_not_compress_is_stored_once(again: Callable[..., int], tmp_path: Path) -> None:
    """Small frames serve first installs as well; large ones are made of the rest."""
    tree = {"noise": noise(1, 2 * MIB), "text": lines(1, 5000)}
    write_tree(tmp_path / "src", tree)
    assert again() < 2.2 * MIB
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.solid) == client.install(client.pointer.fine) == tree


def test_a_site_does_not_grow_by_its_tree(again: Callable[..., int], tmp_path: Path) -> None:
    """Releases that change a little of a large file, with all that is kept for clients of the last day."""
    content = bytearray(noise(2, 2 * MIB))
    for number in range(6):
        content[number * 300_000 : number * 300_000 + 5_000] = noise(number + 10, 5_000)
        write_tree(tmp_path / "src", {"big": bytes(content)})
        again(keep_deltas=0)
    assert sum(path.stat().st_size for path in (tmp_path / "site/objects").iterdir()) < 1.6 * len(content)
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.solid) == client.install(client.pointer.fine) == {"big": bytes(content)}


def test_a_delta_does_not_hold_the_list_of_files_several_times() -> None:
    """Not while it is drafted, and not while parts of it wait for a thread."""
    count, digests = 50_000, noise(1, 32 * 50_000)
    names = [f"{number:05}" for number in range(count)]
    columns = [1] * count, [False] * count, (digests[at : at + 32] for at in range(0, len(digests), 32))
    manifest = Manifest.of_columns(names, *columns)
    tracemalloc.start()
    try:
        draft = draft_bytes(manifest, range(0, count, 100))
        assert tracemalloc.get_traced_memory()[1] < 1.7 * len(draft)
        held = tracemalloc.get_traced_memory()[0]
        waiting = list(manifest_slices(manifest.raw, draft))
        assert tracemalloc.get_traced_memory()[0] - held < 64 << 10
    finally:
        tracemalloc.stop()
    assert sum(make().length for make in waiting) == len(draft)


def test_the_compressor_of_a_long_list_of_files_takes_little_memory() -> None:
    """There is one for each thread. Counted in a process of its own, since the C library allocates it."""
    code = """
import os, re
from perfkit.releases.publish.manifest_patch import manifest_slices

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

first, *_ = manifest_slices(os.urandom(4 << 20), os.urandom(4 << 20))
before = peak_kib()
first()
print(peak_kib() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 40 << 10


def test_deltas_from_several_releases_share_their_work(
    again: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what differs between the earlier releases is compressed, or compared, once more."""
    compared, encoded = [], []
    covers, frame, prefixed = binary_groups._covers, delta_encoder._predicted_frame, delta_encoder._prefixed_frame
    monkeypatch.setattr(
        binary_groups, "_covers", lambda before, content: compared.append(content) or covers(before, content)
    )
    monkeypatch.setattr(
        delta_encoder, "_predicted_frame", lambda content, *others: encoded.append(content) or frame(content, *others)
    )
    monkeypatch.setattr(
        delta_encoder, "_prefixed_frame", lambda content, prefix: encoded.append(content) or prefixed(content, prefix)
    )
    monkeypatch.setattr(delta_encoder, "MAX_GROUP_BYTES", 20_000)
    text, program = lines(1, 400), b"\0" + noise(2, 50_000)
    for version in range(3):
        tree = {"a.txt": text, "notes.txt": b"%d\n" % version * 9000, "program": program}
        write_tree(tmp_path / "src", tree)
        again(keep_deltas=0)
    changed = {"a.txt": text + b"one more line\n", "notes.txt": b"3\n" * 9000, "program": program + b"more"}
    write_tree(tmp_path / "src", changed)
    again(keep_deltas=3)
    client = Client(tmp_path / "site")
    assert len(client.pointer.deltas) == 3
    assert client.follow(tree) == changed
    assert len(compared) == 1
    assert {content for content in encoded if encoded.count(content) > 1} == {changed["notes.txt"]}
    assert set(encoded) > {changed["notes.txt"]}


def test_what_deltas_share_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_cache, "_KEPT_BYTES", 100)
    made: list[bytes] = []

    def make(content: bytes) -> tuple[bytes, int]:
        made.append(content)
        return content * 60, 7

    cache = WorkCache()
    for content in (b"a", b"b", b"a", b"b"):
        assert cache.get(partial(make, content), "", [content]) == (content * 60, 7)
    assert made == [b"a", b"b", b"b"]


def test_what_two_threads_make_at_once_takes_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_cache, "_KEPT_BYTES", 130)
    both, made = threading.Barrier(2), []

    def make_both(content: bytes) -> tuple[bytes, int]:
        both.wait(100)
        return content * 60, 7

    def make(content: bytes) -> tuple[bytes, int]:
        made.append(content)
        return content * 40, 7

    cache = WorkCache()
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(cache.get, partial(make_both, b"a"), "", [b"a"]) for _ in range(2)]
        assert [each.result() for each in asked] == [(b"a" * 60, 7)] * 2
    for _ in range(2):
        assert cache.get(partial(make, b"b"), "", [b"b"]) == (b"b" * 40, 7)
    assert made == [b"b"]


def test_progress_of_a_delta_begins_before_all_is_compared() -> None:
    found: list[int] = []

    def tasks() -> Iterator[Callable[[], tuple[Group, bytes]]]:
        for number in range(3):
            found.append(number)
            yield lambda: (Group((), (), 0), b"")

    class AtOnce(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(fn(*arguments))
            return future

    results = delta_encoder._results(tasks(), AtOnce())
    next(results)
    assert found == [0]
    assert len(list(results)) == 2
