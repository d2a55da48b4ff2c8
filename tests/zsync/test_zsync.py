"""`.zsync` control files made by the real zsyncmake, the block matcher, and control files that attack."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.errors import FileChangedError, ManifestError, PerfkitError, UnsafePathError
from perfkit.zsync.control import Control, parse_control
from perfkit.zsync.recipe import Copy, Fetch, assemble, make_recipe, unpack_whole
from tests.support.tools import need

pytestmark = pytest.mark.once

np = pytest.importorskip("numpy")
URL = "https://host/dir/x.zsync"


def control_of(tmp_path: Path, data: bytes, *options: str, url: str = "x.tar") -> Control:
    need("zsyncmake")
    (tmp_path / "x.tar").write_bytes(data)
    command = ["zsyncmake", *options, "-u", url, "-o", "x.zsync", "x.tar"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    return parse_control((tmp_path / "x.zsync").read_bytes(), bases=(URL,))


def update(control: Control, old: Path, new: bytes, gap: int = 0) -> tuple[bytes, int]:
    """The file that comes about, and the bytes fetched for it."""
    with old.open("rb", buffering=0) as file:
        recipe = make_recipe(control, file, gap=gap)
        made = b"".join(assemble(control, recipe, file, lambda step: [new[step.start : step.end]]))
    return made, sum(step.end - step.start for step in fetches(recipe))


def fetches(recipe: list[Copy | Fetch]) -> list[Fetch]:
    return [step for step in recipe if isinstance(step, Fetch)]


def edited(old: bytes, rng: random.Random, edits: int) -> bytes:
    """Insertions, deletions and replacements at any offset."""
    new = bytearray(old)
    for _ in range(edits):
        at = rng.randrange(len(new))
        new[at : at + rng.randrange(300)] = rng.randbytes(rng.randrange(300))
    return bytes(new)


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096, 8192])
def test_an_edited_file_is_updated_by_few_bytes(tmp_path: Path, block_size: int) -> None:
    """Blocks are found wherever they moved to; what is fetched is about two blocks for each edit."""
    rng = random.Random(block_size)
    old = rng.randbytes(600_000) + bytes(100_000) + rng.randbytes(300_001)
    new = edited(old, rng, 8)
    (tmp_path / "old").write_bytes(old)
    control = control_of(tmp_path, new, "-b", str(block_size))
    assert control.block_size == block_size
    made, fetched = update(control, tmp_path / "old", new)
    assert made == new
    assert fetched <= 8 * 5 * block_size + 8 * 300


def test_a_match_over_windows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input is looked at in windows; nothing is lost at their borders."""
    monkeypatch.setattr("perfkit.zsync.matcher._WINDOW_BYTES", 1 << 20)
    rng = random.Random(3)
    new = rng.randbytes(3 << 20)
    (tmp_path / "old").write_bytes(rng.randbytes(777) + new)
    made, fetched = update(control_of(tmp_path, new), tmp_path / "old", new)
    assert made == new
    assert fetched == 0


@pytest.mark.parametrize("seed", range(6))
def test_no_window_hides_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Small windows and strides find as much as large ones, whatever begins in one and ends in another."""
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(200, 30_000)) for _ in range(40)]
    old = b"".join(pieces)
    moved = [edited(piece, rng, 1) if rng.random() < 0.2 else piece for piece in pieces]
    moved[7:19] = reversed(moved[7:19])
    new = b"".join(moved)
    (tmp_path / "old").write_bytes(old)
    control = control_of(tmp_path, new, "-b", "512")
    made, fetched = update(control, tmp_path / "old", new)
    assert made == new
    for name, size in (("_WINDOW_BYTES", 20_000), ("_STRIDE", 4096), ("_RUN_BYTES", 8192), ("_BATCH_BYTES", 4096)):
        monkeypatch.setattr(f"perfkit.zsync.matcher.{name}", size)
    assert update(control, tmp_path / "old", new) == (new, fetched)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 2048, 5000, 100_000])
def test_every_size_is_made_again(tmp_path: Path, size: int) -> None:
    """From nothing, from itself, from something else, from less and from more; with an end that fills no block."""
    rng = random.Random(size)
    new = rng.randbytes(size)
    control = control_of(tmp_path, new, "-b", "512")
    for old in (b"", new, rng.randbytes(size), new[: size // 2], new + b"more"):
        (tmp_path / "old").write_bytes(old)
        assert update(control, tmp_path / "old", new)[0] == new
        assert update(control, tmp_path / "old", new)[1] == size or old
    (tmp_path / "old").write_bytes(new)
    assert update(control, tmp_path / "old", new)[1] == 0


def test_an_empty_file_needs_nothing() -> None:
    """No blocks, no steps."""
    header = HEADER.replace("Length: 1000", "Length: 0").replace(SHA1, hashlib.sha1(b"").hexdigest())
    assert update(parse_control(header.encode(), bases=(URL,)), Path(os.devnull), b"") == (b"", 0)


def test_repetitions_are_one_block(tmp_path: Path) -> None:
    """A file of zeros and of short periods: found once, used everywhere, in no time."""
    new = bytes(3 << 20) + b"ab" * (1 << 19) + b"abc" * (1 << 18)
    (tmp_path / "old").write_bytes(b"x" + new[100_000:])
    made, fetched = update(control_of(tmp_path, new), tmp_path / "old", new)
    assert made == new
    assert fetched <= 6 * 2048


def test_a_period_that_shifts_is_found_twice(tmp_path: Path) -> None:
    """What has been found is not found again instead of what has not."""
    new = b"ab" * 100_000 + b"-" + b"ab" * 100_000
    control = control_of(tmp_path, new, "-b", "2048")
    for pairs in (200_000, 50_000):  # more and less than is wanted of it in one place
        (tmp_path / "old").write_bytes(b"x" + b"ab" * pairs)
        made, fetched = update(control, tmp_path / "old", new)
        assert made == new
        assert fetched <= 3 * 2048


def test_what_moved_inside_a_run_is_found(tmp_path: Path) -> None:
    """Between two stretches that stand where they did, one that does not, and one that is new."""
    rng = random.Random(12)
    old = rng.randbytes(500_000)
    new = old[:200_000] + rng.randbytes(777) + old[200_000:250_000] + old[250_777:]
    (tmp_path / "old").write_bytes(old)
    made, fetched = update(control_of(tmp_path, new, "-b", "1024"), tmp_path / "old", new)
    assert made == new
    assert fetched <= 5 * 1024


def test_a_change_that_the_weak_checksum_hides(tmp_path: Path) -> None:
    """Inside a run it is found if SHA-1 says so, and a strict search tells which blocks match."""
    old = bytearray(random.Random(13).randbytes(300_000))
    old[150_000:150_004], new = b"1221", bytearray(old)
    new[150_000:150_004] = b"2112"  # neither the sum of the bytes changes, nor that of the sums
    (tmp_path / "old").write_bytes(old)
    control = control_of(tmp_path, bytes(new), "-b", "1024")
    with (tmp_path / "old").open("rb", buffering=0) as file:
        assert make_recipe(control, file, gap=0) == [Copy(0, 300_000)]
        with pytest.raises(ManifestError, match="SHA-1"):
            list(assemble(control, make_recipe(control, file, gap=0), file, lambda _: ()))
        (fetch,) = fetches(make_recipe(control, file, gap=0, strict=True))
    assert fetch == (146 * 1024, 147 * 1024)


def test_a_file_of_too_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched whole: to search for its blocks would take memory without bound."""
    data = random.Random(1).randbytes(100_000)
    (tmp_path / "old").write_bytes(data)
    control = control_of(tmp_path, data, "-b", "2048")
    with (tmp_path / "old").open("rb", buffering=0) as file:
        assert fetches(make_recipe(control, file, gap=0)) == []
        monkeypatch.setattr("perfkit.zsync.recipe._BLOCKS", 10)
        assert make_recipe(control, file, gap=0) == [Fetch(0, 100_000)]


def test_fetches_are_coalesced(tmp_path: Path) -> None:
    """A gap that is cheaper to fetch than to skip is fetched."""
    old = random.Random(1).randbytes(400_000)
    new = bytearray(old)
    for start in (100_000, 166_000):
        new[start : start + 60_000] = bytes(60_000)
    (tmp_path / "old").write_bytes(old)
    control = control_of(tmp_path, bytes(new), "-b", "2048")
    with (tmp_path / "old").open("rb") as file:
        assert len(fetches(make_recipe(control, file, gap=0))) == 2
        assert len(fetches(make_recipe(control, file, gap=8000))) == 1
    assert update(control, tmp_path / "old", bytes(new), gap=8000)[0] == new


def test_the_reference_client_fetches_no_less(tmp_path: Path) -> None:
    """`zsync` with the same seed says how much it has; we have as much, less what one block may differ."""
    need("zsync", "zsyncmake")
    rng = random.Random(11)
    old = rng.randbytes(1_000_000)
    new = edited(old, rng, 20)
    (tmp_path / "old").write_bytes(old)
    control = control_of(tmp_path, new, url="http://127.0.0.1:1/x.tar")
    command = [shutil.which("zsync") or "", "-i", "old", "-o", "made", "x.zsync"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    part = (tmp_path / "made.part").read_bytes() if (tmp_path / "made.part").exists() else b""
    assert part, said
    blocks = range(0, len(new), control.block_size)
    theirs = sum(part[at : at + control.block_size] != new[at : at + control.block_size] for at in blocks)
    _, fetched = update(control, tmp_path / "old", new)
    assert fetched <= (theirs + 1) * control.block_size


@pytest.mark.parametrize("option", ["-z", None])
def test_gzip_aware_forms_are_recognised(tmp_path: Path, option: str | None) -> None:
    """Made of a .gz, or with -z: no delta, but a whole download that can be verified."""
    need("zsyncmake")
    data = random.Random(2).randbytes(50_000) + b"text " * 20_000
    (tmp_path / "x").write_bytes(data)
    subprocess.run(["gzip", "-9", "-k", "x"], check=True, cwd=tmp_path)
    command = ["zsyncmake", *([option] if option else []), "-u", "x.gz", "-o", "x.zsync", "x" if option else "x.gz"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    control = parse_control((tmp_path / "x.zsync").read_bytes(), bases=(URL,))
    assert (control.urls, control.gzip_urls) == ((), ("https://host/dir/x.gz",))
    assert (control.keep_gzip, control.filename) == ((False, "x") if option else (True, "x.gz"))
    assert b"".join(unpack_whole(control, io.BytesIO((tmp_path / "x.gz").read_bytes()))) == data
    with pytest.raises(ManifestError, match="SHA-1"):
        list(unpack_whole(control, io.BytesIO(gzip.compress(data[::-1]))))
    with pytest.raises(ManifestError, match="larger than"):
        list(unpack_whole(control, io.BytesIO(gzip.compress(data + b"!"))))


SHA1 = hashlib.sha1(b"x" * 1000).hexdigest()
HEADER = (
    "zsync: 0.6.2\nFilename: x\nMTime: Tue, 24 Nov 2026 21:11:40 +0000\nBlocksize: 512\nLength: 1000\n"
    f"Hash-Lengths: 1,4,16\nURL: x\nSHA-1: {SHA1}\n\n"
)
SUMS = bytes(40)


def test_a_wrong_result_is_refused() -> None:
    """Whatever the blocks say, the SHA-1 decides, also on a range that ends early."""
    control = parse_control(HEADER.encode() + SUMS, bases=(URL,))
    assert update(control, Path(os.devnull), b"x" * 1000)[0] == b"x" * 1000
    for wrong in (b"y" * 1000, b"x" * 999):
        with pytest.raises(ManifestError, match="SHA-1"):
            update(control, Path(os.devnull), wrong)


def test_an_old_file_cut_short_is_an_error(tmp_path: Path) -> None:
    """Between matching and copying."""
    new = random.Random(4).randbytes(50_000)
    (tmp_path / "old").write_bytes(new)
    control = control_of(tmp_path, new)
    with (tmp_path / "old").open("r+b", buffering=0) as file:
        recipe = make_recipe(control, file, gap=0)
        assert recipe == [Copy(0, 50_000)]
        file.truncate(1000)
        with pytest.raises(FileChangedError):
            list(assemble(control, recipe, file, lambda _: ()))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("zsync: ", "rsync: ", ManifestError),
        ("Filename: x", "Filename: ../x", UnsafePathError),
        ("Filename: x", "Filename: /etc/passwd", UnsafePathError),
        ("Filename: x", "Filename: a/b", UnsafePathError),
        ("Filename: x\n", "", ManifestError),
        ("Filename: x\n", "Filename: x\nFilename: y\n", ManifestError),
        ("Blocksize: 512", "Blocksize: 500", ManifestError),
        ("Blocksize: 512", "Blocksize: 0", ManifestError),
        ("Blocksize: 512", "Blocksize: -512", ManifestError),
        ("Length: 1000", "Length: 99999999999999999999", ManifestError),
        ("Length: 1000", "Length: 5000", ManifestError),
        ("Length: 1000", "Length: ten", ManifestError),
        ("1,4,16", "3,4,16", ManifestError),
        ("1,4,16", "1,5,16", ManifestError),
        ("1,4,16", "1,4,17", ManifestError),
        ("1,4,16", "1,4,2", ManifestError),
        ("URL: x\n", "", ManifestError),
        ("URL: x\n", "Z-URL: x\nZ-Map2: 99999999999\n", ManifestError),
        ("SHA-1: ", "SHA-1: zz", ManifestError),
        ("\n\n", "\n", ManifestError),
        ("MTime: ", "MTime\x00 ", ManifestError),
    ],
)
def test_control_files_that_attack_are_refused(old: str, new: str, error: type[Exception]) -> None:
    """Names that lead outside, numbers that can't be, lines that are missing or doubled."""
    assert parse_control(HEADER.encode() + SUMS, bases=(URL,)).filename == "x"
    with pytest.raises(error):
        parse_control(HEADER.replace(old, new, 1).encode() + SUMS, bases=(URL,))


def test_every_cut_is_seen() -> None:
    """A control file that ends anywhere too early."""
    data = HEADER.encode() + SUMS
    for length in range(len(data)):
        with pytest.raises(ManifestError):
            parse_control(data[:length], bases=(URL,))


@given(st.lists(st.tuples(st.integers(0, len(HEADER) + 39), st.binary(min_size=1, max_size=6)), min_size=1, max_size=5))
def test_fuzzed_control_files_give_typed_errors(edits: list[tuple[int, bytes]]) -> None:
    """Whatever a control file says, nothing but our own errors comes out."""
    data = bytearray(HEADER.encode() + SUMS)
    for position, piece in edits:
        data[position : position + len(piece)] = piece
    try:
        parse_control(bytes(data), bases=(URL,))
    except PerfkitError:
        pass


def test_md4_and_rsum_are_those_of_the_specification() -> None:
    """MD4 by RFC 1320, for whole chunks; rsum as rcksum/rsum.c of zsync has it."""
    from perfkit.zsync.block_sums import md4, rsum

    text = np.frombuffer(b"." + b"a" * 64 + b"\0" * 64, np.uint8)
    assert bytes(md4(text, np.array([1, 65]), 64)[0]).hex() == "52f5076fabd22680234a3fa9f9dc5732"
    data = random.Random(9).randbytes(4096)
    a = sum(data) & 0xFFFF
    b = sum((4096 - index) * byte for index, byte in enumerate(data)) & 0xFFFF
    assert bytes(rsum(np.frombuffer(data, np.uint8).reshape(1, -1))[0]) == bytes([a >> 8, a & 255, b >> 8, b & 255])


@pytest.mark.parametrize("lengths", [(1, 4, 16), (1, 2, 4), (2, 2, 3), (2, 3, 5), (2, 4, 16), (1, 3, 8)])
def test_every_length_of_checksums_is_matched(tmp_path: Path, lengths: tuple[int, int, int]) -> None:
    """As zsyncmake chooses them for small and for large files."""
    from perfkit.zsync.block_sums import md4, rsum
    from perfkit.zsync.matcher import find_blocks

    sequence, rsum_bytes, strong_bytes = lengths
    new = random.Random(8).randbytes(64 * 512)
    blocks = np.frombuffer(new, np.uint8).reshape(-1, 512)
    strong = md4(blocks.reshape(-1), np.arange(64) * 512, 512)[:, :strong_bytes]
    sums = np.hstack((rsum(blocks)[:, 4 - rsum_bytes :], strong)).tobytes()
    control = parse_control(HEADER.encode() + SUMS, bases=(URL,))
    control = control._replace(sums=sums, rsum_bytes=rsum_bytes, strong_bytes=strong_bytes, sequence=sequence)
    (tmp_path / "old").write_bytes(b"shifted" + new[512 * 10 :] + b"." * 99 + new[: 512 * 10])
    with (tmp_path / "old").open("rb") as file:
        where = find_blocks(file.fileno(), control)
    assert where.tolist() == [7 + 54 * 512 + 99 + n * 512 if n < 10 else 7 + (n - 10) * 512 for n in range(64)]
