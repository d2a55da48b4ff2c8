"""Publishing: what a site holds serves every client, whatever happens to the publisher."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit import FileChangedError, LockedError, Toolkit, UnsafePathError
from perfkit.errors import ConfigError
from perfkit.releases.format.index import Index
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish import publisher
from perfkit.releases.publish import site as site_module
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.packing import PackWriter
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.site import History, Site
from perfkit.releases.publish.source_tree import SourceTree
from perfkit.transactions import lock
from tests.support.interrupts import interrupted
from tests.support.release_client import Client, manifest_of
from tests.support.tools import ENVIRONMENT
from tests.support.trees import FIRST, Tree, edited, lines, noise, write_tree


def files_of(site: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a server would serve, with inode and time."""
    return {
        str(path.relative_to(site)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in site.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_first_release_serves_by_either_index(tmp_path: Path) -> None:
    """Large and small frames both give every file back, and the counts are right."""
    release = publish(str(write_tree(tmp_path / "src", FIRST)), str(tmp_path / "site"), version="1.0")
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.solid) == client.install(client.pointer.fine) == FIRST
    assert (release.version, release.number, release.files) == ("1.0", 1, len(FIRST))
    assert release.bytes == sum(map(len, FIRST.values()))
    assert release.objects_written == len(list((tmp_path / "site/objects").iterdir()))
    assert client.pointer.deltas == ()


@pytest.mark.once
def test_releases_in_a_row_come_by_blocks_and_by_deltas(tmp_path: Path) -> None:
    """From each of five earlier releases deltas lead to the last; they are small, and moved files cost nothing."""
    trees, tree = [], FIRST
    for step in range(1, 7):
        trees.append(tree)
        publish(str(write_tree(tmp_path / "src", tree)), str(tmp_path / "site"), version=f"1.{step}", keep_deltas=2)
        tree = edited(tree, step)
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.solid) == client.install(client.pointer.fine) == trees[-1]
    for earlier in trees[:-1]:
        assert client.follow(earlier) == trees[-1]
    lengths = [len(client.pointer.chain(manifest_of(earlier).sha256.hex())) for earlier in trees[:-1]]
    assert lengths[-2:] == [1, 1]
    assert max(lengths) == 3  # five releases back in steps of two
    assert client.pointer.chain(manifest_of(trees[-2]).sha256.hex())[0].object.bytes < 5000  # 3,000 are new


@pytest.mark.once
def test_an_edit_of_a_large_file_adds_only_pieces_around_it(tmp_path: Path) -> None:
    """Pieces are cut by content, so the site keeps those that did not change, and so may a client."""
    content = bytearray(noise(3, 1_000_000))
    publish(str(write_tree(tmp_path / "src", {"big": bytes(content)})), str(tmp_path / "site"), version="1")
    content[300_000:300_010] = b"ab"
    publish(str(write_tree(tmp_path / "src", {"big": bytes(content)})), str(tmp_path / "site"), version="2")
    client = Client(tmp_path / "site")
    assert client.install(client.pointer.fine) == client.install(client.pointer.solid) == {"big": bytes(content)}
    index = Index.parse(client.packed(client.pointer.fine), client.manifest)
    fresh = [frame for frame in range(len(index)) if index.packs_of[frame] == len(index.packs) - 1]
    assert sum(map(index.sizes.__getitem__, fresh)) < 300_000


def test_publishing_the_same_tree_again_changes_nothing(tmp_path: Path) -> None:
    """Not a byte, not a time: the second run says so."""
    src, site = write_tree(tmp_path / "src", FIRST), tmp_path / "site"
    publish(str(src), str(site), version="1")
    before = files_of(site)
    release = publish(str(src), str(site), version="1")
    assert release.unchanged
    assert release.objects_written == 0
    assert files_of(site) == before


@pytest.mark.once
def test_a_tree_under_another_version_costs_no_content(tmp_path: Path) -> None:
    """Only pointer and history are new, the serial grows, and deltas go on to serve."""
    src, site = write_tree(tmp_path / "src", FIRST), tmp_path / "site"
    publish(str(src), str(site), version="1")
    second = edited(FIRST, 1)
    publish(str(write_tree(src, second)), str(site), version="2")
    release = publish(str(src), str(site), version="2-final")
    assert (release.number, release.objects_written) == (3, 1)
    assert Client(site).follow(FIRST) == second


@pytest.mark.once
def test_each_pointer_is_of_another_second(tmp_path: Path) -> None:
    """nginx makes its ETag of a file's size and the second of its change; pointers tend to be of one size."""
    src, pointer = write_tree(tmp_path / "src", FIRST), tmp_path / "site/perfkit.json"
    seconds = []
    for version in "123":
        publish(str(src), str(tmp_path / "site"), version=version)
        seconds.append(int(pointer.stat().st_mtime))
    assert seconds == sorted(set(seconds))


@pytest.mark.once
def test_going_back_to_an_earlier_tree_is_a_release_too(tmp_path: Path) -> None:
    """The pointer's deltas never lead in a circle."""
    site = tmp_path / "site"
    second = edited(FIRST, 1)
    for number, tree in enumerate((FIRST, second, FIRST, second)):
        publish(str(write_tree(tmp_path / "src", tree)), str(site), version=str(number))
        client = Client(site)
        assert client.install(client.pointer.fine) == tree
    assert client.follow(FIRST) == second
    assert History.parse(Site(str(site)).get(client.pointer.history)).first == client.pointer.serial - 3


def test_what_a_killed_publisher_was_writing_is_removed(tmp_path: Path) -> None:
    """By the next one, and nothing else is."""
    site = tmp_path / "site"
    source = str(write_tree(tmp_path / "src", FIRST))
    publish(source, str(site), version="1")
    left = [site / ".new-0123456789abcdef", site / "objects/.new-fedcba9876543210"]
    others = [site / ".new-page", site / "objects/.newer"]
    for path in (*left, *others):
        path.write_bytes(b"begun")
    publish(source, str(site), version="2")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


@pytest.mark.once
def test_the_same_input_makes_the_same_site(tmp_path: Path) -> None:
    """Two publishers get the same objects, in processes with different hash seeds."""
    second = edited(FIRST, 1)
    write_tree(tmp_path / "one", FIRST)
    write_tree(tmp_path / "two", second)
    code = (
        "import sys; from perfkit.releases.publish.publisher import publish\n"
        "for tree in ('one', 'two'): publish(tree, sys.argv[1], version=tree)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, seed],
            cwd=tmp_path,
            check=True,
            timeout=100,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    ours, theirs = (Client(tmp_path / seed).pointer for seed in ("1", "2"))
    same = ours._replace(history=theirs.history, serial=theirs.serial)  # these have times in them
    assert same == theirs
    for ref in (ours.manifest.object, ours.solid.object, ours.fine.object, ours.deltas[0].object):
        assert (tmp_path / "1" / ref.path).read_bytes() == (tmp_path / "2" / ref.path).read_bytes()


def test_executable_files_are_distinguished(tmp_path: Path) -> None:
    """A change of the bit alone is a new release whose delta makes no content."""
    src, site = write_tree(tmp_path / "src", FIRST), tmp_path / "site"
    publish(str(src), str(site), version="1")
    (src / "README").chmod(0o755)
    publish(str(src), str(site), version="2")
    client = Client(site)
    assert [entry.name for entry in client.manifest if entry.executable] == ["README"]
    assert client.follow(FIRST) == FIRST


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("README"), os.mkfifo])
def test_links_and_special_files_are_refused_unless_excluded(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """The error names the file; with a pattern it is left out."""
    src = write_tree(tmp_path / "src", FIRST)
    make(src / "pkg" / "odd")
    with pytest.raises(UnsafePathError, match="pkg/odd"):
        publish(str(src), str(tmp_path / "site"), version="1")
    assert not (tmp_path / "site").exists()
    assert publish(str(src), str(tmp_path / "site"), version="1", exclude=["pkg/o*"]).files == len(FIRST)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("data"), lambda path: None])
def test_no_file_instead_of_one_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """The publisher neither waits for a FIFO's writer nor publishes an empty file."""
    src = write_tree(tmp_path / "src", FIRST)

    def replace(*found: object) -> None:
        (src / "README").unlink()
        make(src / "README")

    monkeypatch.setattr(SourceTree, "_check", replace)
    with pytest.raises(FileChangedError, match="README: it changed while it was being published"):
        publish(str(src), str(tmp_path / "site"), version="1")


def test_nothing_fails_once_the_release_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the sync of the directory nor the removal of unused files: that would say that it is not published."""
    src, real = write_tree(tmp_path / "src", FIRST), site_module.sync_directory_at

    def sync_directory(path: str) -> None:
        if (Path(path) / "perfkit.json").exists():
            raise OSError(errno.EIO, "Input/output error", path)
        real(path)

    monkeypatch.setattr(site_module, "sync_directory_at", sync_directory)
    monkeypatch.setattr(Site, "prune", lambda site, *args, **options: sync_directory(site.root))
    publish(str(src), str(tmp_path / "site"), version="1")
    assert json.loads((tmp_path / "site/perfkit.json").read_bytes())["version"] == "1"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_secret_key_is_not_published(tmp_path: Path) -> None:
    """Nor read, whatever leads to it."""
    src = write_tree(tmp_path / "src", FIRST)
    (src / "release.key").write_bytes(b"")
    (tmp_path / "link.key").symlink_to(src / "release.key")
    for key in (src / "release.key", tmp_path / "link.key", os.path.relpath(src / "release.key")):
        with Toolkit() as kit, pytest.raises(ConfigError, match="which is published"):
            kit.publish(src, tmp_path / "site", version="1", sign_key=key)
    assert not (tmp_path / "site").exists()
    with Toolkit() as kit, pytest.raises(ConfigError, match="which is published"):
        kit.promote(src, channel="stable", version="1", sign_key=src / "release.key")


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    src = write_tree(tmp_path / "src", FIRST)
    for site, version, keep in (
        (src / "site", "1", 3),
        (tmp_path / "s", "", 3),
        (tmp_path / "s", "a\nb", 3),
        (tmp_path / "s", "1", -1),
    ):
        with pytest.raises(ConfigError):
            publish(str(src), str(site), version=version, keep_deltas=keep)
    for option, value in (("level", 0), ("level", 23), ("keep_releases", 0), ("grace_s", -1.0)):
        with pytest.raises(ConfigError, match=option):
            publish(str(src), str(tmp_path / "s"), version="1", **{option: value})
    with pytest.raises(ConfigError):
        publish(str(tmp_path / "none"), str(tmp_path / "s"), version="1")
    assert not (tmp_path / "s").exists()


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    """A tree that no Mac could hold is refused."""
    with pytest.raises(UnsafePathError, match="case"):
        publish(str(write_tree(tmp_path / "src", {"a/B": b"1", "a/b": b"2"})), str(tmp_path / "site"), version="1")


@pytest.mark.once
def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """The error names the directory, though write(2) does not; no half object stays, however it was buffered."""
    for size in (4000, 3 << 20):
        (small_disk / "ballast").write_bytes(bytes((2 << 20) - (16 << 10)) if size == 4000 else b"")
        source = write_tree(tmp_path / f"{size}", {f"{number}": os.urandom(size) for number in range(4)})
        with pytest.raises(OSError, match="No space left on device") as caught:
            publish(str(source), str(small_disk / f"site{size}"), version="1")
        assert str(caught.value.filename).startswith(f"{small_disk}/site{size}")
        assert not [*small_disk.rglob(".new-*")]


@pytest.mark.once
def test_a_publisher_killed_at_any_step_leaves_the_site_as_it_was(place: Path) -> None:
    """At each rename, fsync and removal: the old release or the new one is whole, and publishing again works."""
    site, src = place / "site", write_tree(place / "src", FIRST)
    publish(str(src), str(site), version="1")
    second = edited(FIRST, 1)
    write_tree(src, second)
    seen = set()
    with killed_publisher(src, site) as publish_until:
        for step in range(1, 200):
            if not publish_until(step):
                break
            client = Client(site)
            tree = client.install(client.pointer.fine)
            assert tree == client.install(client.pointer.solid) == (second if client.pointer.version == "2" else FIRST)
            seen.add(client.pointer.version)
    assert step > 10
    assert seen == {"1", "2"}
    client = Client(site)
    assert client.install(client.pointer.fine) == second
    assert client.follow(FIRST) == second


@contextlib.contextmanager
def killed_publisher(src: Path, site: Path) -> Iterator[Callable[[int], bool]]:
    """Publish in processes that die at their `step`-th change of the disk; False from one that came to its end."""
    command = [sys.executable, "-m", "tests.support.crash_publisher"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def publish_until(step: int) -> bool:
            process.stdin.write(f"{step} {src} {site}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield publish_until
        process.stdin.close()


@pytest.mark.once
def test_two_publishers_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one fails at once, and the first one's release is complete."""
    src, site = write_tree(tmp_path / "src", FIRST), tmp_path / "site"
    reached, go_on = threading.Event(), threading.Event()
    finish = PackWriter.finish

    def waiting(self: PackWriter) -> None:
        reached.set()
        assert go_on.wait(100)
        finish(self)

    monkeypatch.setattr(PackWriter, "finish", waiting)
    first = threading.Thread(target=publish, args=(str(src), str(site)), kwargs={"version": "1"})
    first.start()
    assert reached.wait(100)
    with pytest.raises(LockedError):
        publish(str(src), str(site), version="2")
    go_on.set()
    first.join(100)
    assert Client(site).pointer.version == "1"


@pytest.mark.parametrize("size", [20, 5_000_000])  # the larger one is hashed by another thread
@pytest.mark.parametrize("at", [0, -1])
def test_a_file_that_changes_while_it_is_packed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, at: int
) -> None:
    """What was hashed is what is packed, or nothing is released."""
    content = bytearray(noise(1, size))
    src, site = write_tree(tmp_path / "src", {**FIRST, "pkg/a.py": bytes(content)}), tmp_path / "site"
    keep = publisher.solid_order
    content[at] ^= 1

    def change(manifest: object, entries: object) -> list[int]:
        (src / "pkg/a.py").write_bytes(content)
        return keep(manifest, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(publisher, "solid_order", change)
    with pytest.raises(FileChangedError):
        publish(str(src), str(site), version="1")
    assert not (site / "perfkit.json").exists()
    assert list((site / "objects").glob(".new-*")) == []


@pytest.mark.parametrize("at", [0, 900_000, 1_499_999])
@pytest.mark.parametrize("unnoticed", [False, True])  # by its mtime, as a store to a mapping may be
def test_a_large_file_that_changes_again_while_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, unnoticed: bool
) -> None:
    """What it has kept from the last release is not read again, but it is not released in a mixture of two states."""
    content = bytearray(noise(1, 1_500_000))
    src, site = write_tree(tmp_path / "src", {"large": bytes(content)}), tmp_path / "site"
    publish(str(src), str(site), version="1")
    content[900_000:900_010] = b"new, once."
    (src / "large").write_bytes(content)
    keep, status = publisher.solid_order, (src / "large").stat()

    def change(manifest: object, entries: object) -> list[int]:
        with (src / "large").open("r+b") as file:
            file.seek(at)
            file.write(b"?")
        if unnoticed:
            os.utime(src / "large", ns=(status.st_atime_ns, status.st_mtime_ns))
        else:
            os.utime(src / "large", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        return keep(manifest, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(publisher, "solid_order", change)
    if unnoticed and at != 900_000:
        publish(str(src), str(site), version="2")
        client = Client(site)
        assert client.install(client.pointer.fine) == {"large": bytes(content)}
    else:
        with pytest.raises(FileChangedError):
            publish(str(src), str(site), version="2")
        assert Client(site).pointer.version == "1"


@pytest.mark.once
def test_old_objects_go_when_nobody_can_need_them(tmp_path: Path) -> None:
    """Not before their grace has passed since they fell out of use; the kept releases stay whole."""
    src, site = tmp_path / "src", tmp_path / "site"
    trees = [{"noise": noise(number, 20_000), "name": b"%d" % number} for number in range(5)]
    for number, tree in enumerate(trees[:4]):
        publish(str(write_tree(src, tree)), str(site), version=str(number), keep_releases=2)
    held = {path.name for path in (site / "objects").iterdir()}
    publish(str(write_tree(src, trees[4])), str(site), version="4", keep_releases=2, grace_s=0)
    left = {path.name for path in (site / "objects").iterdir()}
    assert held - left  # those of releases 0, 1 and 2
    client = Client(site)
    assert client.install(client.pointer.fine) == client.install(client.pointer.solid) == trees[4]
    assert publish(str(write_tree(src, trees[3])), str(site), version="5").number == 6


@pytest.mark.once
def test_the_grace_counts_from_when_an_object_fell_out_of_use(tmp_path: Path) -> None:
    """However old it is then. The log has that time; it may end in the middle of a line, and does not grow for ever."""
    src, site = tmp_path / "src", tmp_path / "site"
    log = site / ".perfkit-publish.retired"

    def publish_content(number: int) -> set[str]:
        tree = write_tree(src, {"file": noise(number, 5000)})
        publish(str(tree), str(site), version=str(number), keep_releases=1)
        return {path.name for path in (site / "objects").iterdir()}

    first = publish_content(0)
    for path in (site / "objects").iterdir():
        os.utime(path, (1, 1))
    assert first < publish_content(1)
    with log.open("a") as file:
        file.write("0" * 30)  # a publisher was killed here
    assert first < publish_content(2)
    rows = [line.split() for line in log.read_text().splitlines() if " " in line]
    assert {name for name, _ in rows} >= first
    log.write_text("".join(f"{name} 1\n" for name, _ in rows) + "1\n" * 200)  # a day passes, and many objects go
    assert not first & publish_content(3)
    assert len(log.read_text().splitlines()) < 50


@pytest.mark.once
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_site_can_be_read_by_a_server_of_another_user(tmp_path: Path, umask: int) -> None:
    """Files are 0644 and directories 0755, whatever the umask; a directory that exists keeps its mode."""
    src = str(write_tree(tmp_path / "src", FIRST))
    (tmp_path / "private").mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        publish(src, str(tmp_path / "site"), version="1")
        publish(src, str(tmp_path / "private"), version="1")
    finally:
        os.umask(before)
    found = [tmp_path / "site", *(tmp_path / "site").rglob("*")]
    assert {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in found} == {(True, 0o755), (False, 0o644)}
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


@pytest.mark.once
def test_a_delta_that_blocks_beat_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No delta is offered if it costs more than the new frames with their index and manifest."""
    publish(str(write_tree(tmp_path / "src", FIRST)), str(tmp_path / "site"), version="1")

    def padded(*arguments: object) -> None:
        arguments[1].write(bytes(1_000_000))  # type: ignore[attr-defined]

    monkeypatch.setattr(publisher, "encode_delta", padded)
    publish(str(write_tree(tmp_path / "src", edited(FIRST, 1))), str(tmp_path / "site"), version="2")
    assert Client(tmp_path / "site").pointer.deltas == ()


def test_old_contents_are_read_by_threads_at_once(tmp_path: Path) -> None:
    """Groups of a delta are made side by side, from the same packs."""
    tree = {f"file{number}": noise(number, 40_000) for number in range(60)}
    publish(str(write_tree(tmp_path / "src", tree)), str(tmp_path / "site"), version="1")
    client = Client(tmp_path / "site")
    index = Index.parse(client.packed(client.pointer.fine), client.manifest)
    contents = BlobReader(Site(str(tmp_path / "site")), client.manifest, index)
    with contextlib.closing(contents), ThreadPoolExecutor(8) as threads:
        found = list(threads.map(contents.read, contents.entries() * 5))
    assert found == [tree[client.manifest.name(entry)] for entry in contents.entries() * 5]


NAMES = st.sampled_from(["a", "b", "dir/a", "dir/b", "dir/sub/c.txt", "other/d"])
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.builds(lines, st.integers(0, 5), st.integers(0, 3000)),
    st.builds(noise, st.integers(0, 5), st.integers(0, 200_000)),
)


@pytest.mark.once
@settings(max_examples=8)
@given(trees=st.lists(st.dictionaries(NAMES, CONTENTS, max_size=5), min_size=2, max_size=3))
def test_any_trees_come_back_by_every_route(tmp_path_factory: pytest.TempPathFactory, trees: list[Tree]) -> None:
    """Whatever the trees, blocks give them back, and so do deltas where they are offered."""
    root = tmp_path_factory.mktemp("any")
    for number, tree in enumerate(trees):
        publish(str(write_tree(root / "src", tree)), str(root / "site"), version=str(number))
    client = Client(root / "site")
    assert client.install(client.pointer.fine) == client.install(client.pointer.solid) == trees[-1]
    for earlier in trees[:-1]:
        assert client.follow(earlier) in (None, trees[-1])


def test_facade_and_command_publish(tmp_path: Path) -> None:
    """`Toolkit.publish` and `perfkit publish --json` say the same."""
    src = write_tree(tmp_path / "src", FIRST)
    with Toolkit() as kit:
        release = kit.publish(src, tmp_path / "site", version="1")
    command = ["publish", str(src), str(tmp_path / "other"), "--version", "1", "--json", "--quiet"]
    said = subprocess.run([sys.executable, "-m", "perfkit", *command], capture_output=True, text=True, check=True)
    record = json.loads(said.stdout)
    assert record["manifest_sha256"] == release.manifest_sha256
    assert record["files"] == release.files
    assert said.stderr == ""
    assert Pointer.parse((tmp_path / "site/perfkit.json").read_bytes()).version == "1"


def test_an_interrupt_leaves_no_site_locked(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    """Nor a file that was being written; the next change of the site begins at once."""
    kit.publish(write_tree(tmp_path / "src", FIRST), site, version="1")

    def promote() -> None:
        kit.promote(site, channel="stable", version="1")

    for number in itertools.count(1):
        came = interrupted(promote, (site_module, lock), number)
        assert not [path.name for path in site.rglob(".new-*")], number
        promote()
        if not came:
            break
    assert number > 50
