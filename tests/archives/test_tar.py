"""Tar archives as streams: every compressor, odd headers, attacks, and what is written to disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.archives import limits
from perfkit.archives.members import Member, Selection
from perfkit.archives.tar import is_header, read_members
from perfkit.errors import FileChangedError, ManifestError, PerfkitError, UnsafePathError
from perfkit.updates.sources.tar_source import add_unless_equal
from tests.support.archive_tools import FILES, Drip, add, make_tar
from tests.support.tools import need
from tests.support.trees import write_tree


def unpack(data: bytes, selection: Selection = Selection()) -> dict[str, bytes]:
    members = read_members(Drip(data, 5000), selection=selection)
    return {member.name: b"".join(content) for member, content in members}


def built(build: Callable[[tarfile.TarFile], None], **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:  # type: ignore[call-overload]
        build(archive)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd")
    return bytes(module.compress(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip


@pytest.mark.parametrize("packer", PACKERS)
def test_every_compressor_is_undone(packer: str) -> None:
    """Contents come out as they went in, in order, with executable bits; one compressed in parts as well."""
    pack = PACKERS[packer]
    tar = make_tar()
    assert unpack(pack(tar)) == FILES
    executable = [member.name for member, _ in read_members(io.BytesIO(pack(tar))) if member.executable]
    assert executable == ["pkg/run.sh"]
    assert unpack(pack(tar[:70_000]) + pack(tar[70_000:])) == FILES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(format: int) -> None:
    """ustar, GNU and PAX, with names as long as each allows."""
    long = "d" * 120 + "/" + "n" * 90
    files = {**FILES, long: b"long"}
    if format != tarfile.USTAR_FORMAT:
        files["ü" * 100 + "/" + "x" * 200] = b"longer"
    assert unpack(make_tar(files, format=format)) == files


def test_archives_of_gnu_tar_are_read(tmp_path: Path) -> None:
    """As `tar` makes them, with a leading `./`."""
    need("tar")
    for name, data in FILES.items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(data)
    made = subprocess.run(["tar", "-C", tmp_path / "src", "-cz", "."], check=True, capture_output=True).stdout
    assert unpack(made) == FILES


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_labels_of_gnu_tar_are_no_members(tmp_path: Path, format: str) -> None:
    """A label need not be a valid name either."""
    need("tar")
    (tmp_path / "a").write_bytes(b"1")
    command = ["tar", "-C", tmp_path, f"--format={format}", "-V", "../rules: 30/11", "-c", "a"]
    assert unpack(subprocess.run(command, check=True, capture_output=True).stdout) == {"a": b"1"}


def test_incremental_archives_of_gnu_tar(tmp_path: Path) -> None:
    """They have two times in each header, where ustar has the beginning of a long name, and lists of directories."""
    need("tar")
    write_tree(tmp_path / "src", FILES)
    options = ["--format=gnu", f"--listed-incremental={tmp_path / 'snapshot'}"]
    made = subprocess.run(["tar", "-C", tmp_path / "src", *options, "-c", "."], check=True, capture_output=True).stdout
    assert unpack(made) == FILES


def test_sizes_beyond_octal_are_read() -> None:
    """A PAX size, and a size in base 256, may be larger than eleven octal digits can say."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big")
        info.size = 9 << 30
        members = read_members(io.BytesIO(info.tobuf(format=format) + b"begins"))
        member, content = next(members)
        assert member == Member("big", 9 << 30, False)
        assert next(content) == b"begins"
        with pytest.raises(ManifestError, match="truncated"):
            next(content)


def test_contents_may_be_left() -> None:
    """A content that nobody reads is skipped, one half read too; reading on later gives nothing."""
    tar = make_tar()
    names, kept = [], []
    for member, content in read_members(Drip(tar)):
        names.append(member.name)
        next(content, None)
        kept.append(content)
    assert names == list(FILES)
    assert [list(content) for content in kept] == [[] for _ in kept]


def test_selection_strips_and_filters() -> None:
    """As for zip archives."""
    tar = make_tar()
    assert set(unpack(tar, Selection(strip_components=1, exclude=("*.bin",)))) == {"__init__.py", "empty", "run.sh"}
    assert set(unpack(tar, Selection(include=("pkg/*.sh", "README")))) == {"pkg/run.sh", "README"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a\\b", "c:/x", "nul", "a//b", "bad\udcff"])
def test_names_that_lead_outside_are_refused(name: str) -> None:
    """Absolute names, `..`, and what some file system can't hold."""
    with pytest.raises(UnsafePathError):
        unpack(built(lambda archive: add(archive, name, b"x"), format=tarfile.GNU_FORMAT))
    with pytest.raises(UnsafePathError):
        unpack(built(lambda archive: add(archive, name, b"x"), format=tarfile.PAX_FORMAT))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"M",
    ],
)
def test_links_devices_and_others_are_refused(kind: bytes) -> None:
    """Also when a file would follow through the link."""

    def build(archive: tarfile.TarFile) -> None:
        add(archive, "x", type=kind, linkname="/etc")
        add(archive, "x/passwd", b"root")

    hard = kind == tarfile.LNKTYPE  # which is followed, and so found out at the end only
    with pytest.raises(UnsafePathError if hard else ManifestError, match=r"'x'"):
        unpack(built(build))


def test_sparse_files_in_pax_headers_are_refused() -> None:
    """GNU tar's sparse formats 0.x and 1.0, which would give other bytes than the file's."""
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
    with pytest.raises(ManifestError, match="sparse"):
        unpack(built(lambda archive: add(archive, "x", b"y", pax_headers=sparse)))


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_may_be_left_out(tmp_path: Path, format: str) -> None:
    """The list of their holes may need several blocks."""
    need("tar")
    with (tmp_path / "holes").open("wb") as file:
        for number in range(1, 60):
            file.seek(number << 16)
            file.write(b"x")
    (tmp_path / "z").write_bytes(b"1")
    command = ["tar", "-C", tmp_path, f"--format={format}", "--sparse", "-c", "holes", "z"]
    made = subprocess.run(command, check=True, capture_output=True).stdout
    with pytest.raises(ManifestError, match="a sparse file"):
        unpack(made)
    assert unpack(made, Selection(exclude=("holes",))) == {"z": b"1"}


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("A", "a"), ("a", "a/b"), ("e\u0301", "é")])
def test_names_that_collide_are_refused_at_the_end(first: str, second: str) -> None:
    """Duplicates, and names that are the same elsewhere."""

    def build(archive: tarfile.TarFile) -> None:
        add(archive, first, b"1")
        add(archive, second, b"2")

    with pytest.raises((ManifestError, UnsafePathError)):
        unpack(built(build))


def test_a_directory_that_is_a_file_is_refused() -> None:
    """Either order."""
    for kinds in ((tarfile.DIRTYPE, tarfile.REGTYPE), (tarfile.REGTYPE, tarfile.DIRTYPE)):

        def build(archive: tarfile.TarFile, kinds: tuple[bytes, ...] = kinds) -> None:
            for kind in kinds:
                add(archive, "a", type=kind)

        with pytest.raises(UnsafePathError):
            unpack(built(build))


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ratio while unpacking, by count, by depth, by headers without end, by layers of compression."""
    for name, value in (("RATIO_FROM_BYTES", 1 << 20), ("RATIO", 100), ("MEMBERS", 20)):
        monkeypatch.setattr(limits, name, value)
    bomb = make_tar({"zeros": bytes(8 << 20)})
    for packer in ("gzip", "bzip2", "xz", "zstd"):
        with pytest.raises(ManifestError, match="to 1"):
            unpack(PACKERS[packer](bomb))
    with pytest.raises(ManifestError, match="more than 20 members"):
        unpack(make_tar({f"f{number}": b"" for number in range(21)}))
    with pytest.raises(ManifestError, match="deep"):
        unpack(make_tar({"/".join("d" * 100): b""}, directories=False))
    header = built(lambda archive: add(archive, "x", pax_headers={"comment": "y"}))[:1024]
    with pytest.raises(ManifestError, match="too many extension headers"):
        unpack(header * 100)
    with pytest.raises(ManifestError, match="not a tar"):
        unpack(gzip.compress(gzip.compress(make_tar())))


def test_padding_without_end_is_refused() -> None:
    """What follows the end of the archive is read for the checksum of the compression, but not for ever."""
    with pytest.raises(ManifestError, match="after its end"):
        unpack(gzip.compress(make_tar() + bytes(65 << 20)))


@pytest.mark.parametrize("size", [1024, 10_240, 1 << 20])
def test_an_archive_of_zeros_is_refused(size: int) -> None:
    """As a server's crash may leave one: a sync would remove every file."""
    with pytest.raises(ManifestError, match="all zeros"):
        unpack(bytes(size))


def test_headers_too_large_to_hold_are_refused() -> None:
    """A long name or PAX header of gigabytes is not read into memory."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 1 << 30
        with pytest.raises(ManifestError, match="extension header of"):
            unpack(info.tobuf(tarfile.GNU_FORMAT))


def test_windows_too_large_to_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decompressor that would need more memory than allowed."""
    monkeypatch.setattr(limits, "WINDOW_BYTES", 1 << 20)
    tar = make_tar()
    with pytest.raises(ManifestError, match="memory"):
        unpack(lzma.compress(tar, preset=9))


@pytest.mark.parametrize("packer", PACKERS)
def test_every_cut_is_seen(packer: str) -> None:
    """A stream that ends too early gives a typed error, at whichever byte."""
    tar = make_tar({"a": b"some text", "b/c": b"more" * 300}, format=tarfile.USTAR_FORMAT)
    data = PACKERS[packer](tar.rstrip(b"\0").ljust(-(-len(tar.rstrip(b"\0")) // 512) * 512 + 512, b"\0"))
    assert len(unpack(data)) == 2
    for length in range(0, len(data), 1 if packer != "plain" else 37):
        with pytest.raises(ManifestError):
            unpack(data[:length])


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])
def test_every_flipped_byte_is_seen_or_harmless(packer: str) -> None:
    """These formats have checksums: what comes out whole is what went in."""
    files = {"a": b"some text " * 10, "b": bytes(range(256))}
    data = PACKERS[packer](make_tar(files, format=tarfile.USTAR_FORMAT))
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        try:
            found = unpack(bytes(broken))
        except ManifestError:
            continue
        assert found == files, position


def test_something_behind_a_compressed_stream_is_refused() -> None:
    """Zeros may follow, as tapes and blocks of xz have them; nothing else."""
    data = gzip.compress(make_tar())
    assert unpack(data + bytes(5000)) == FILES
    with pytest.raises(ManifestError, match="followed"):
        unpack(data + b"signature")


PLAIN = make_tar({"a": b"some text", "b/c": b"more" * 200})


@given(
    st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6),
    st.booleans(),
)
def test_fuzzed_archives_give_typed_errors(edits: list[tuple[int, bytes]], mend: bool) -> None:
    """Whatever is in an archive, even with valid header checksums, only perfkit's errors are raised."""
    data = bytearray(PLAIN)
    for position, piece in edits:
        data[position % 1600 : position % 1600 + len(piece)] = piece
    if mend:
        for start in (0, 512, 1024, 1536):
            block = data[start : start + 512]
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    try:
        unpack(bytes(data))
    except PerfkitError:
        pass


@given(st.binary(max_size=3000))
def test_random_bytes_give_typed_errors(data: bytes) -> None:
    """Noise, alone and after each magic number, is refused."""
    for magic in (b"", b"\x1f\x8b\x08\x00", b"BZh91AY&SY", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"):
        with pytest.raises(ManifestError):
            unpack(magic + data + b"\1")


def test_headers_are_recognised() -> None:
    """A header is known by its checksum, text and zeros by having none."""
    assert is_header(make_tar())
    assert not is_header(b"text" * 200)
    assert not is_header(bytes(512))
    assert not is_header(b"")


class Staging:
    """Takes content as a staging area does."""

    content: bytes | None = None

    def add(self, chunks: Iterable[bytes | memoryview]) -> tuple[bytes, int]:
        self.content = b"".join(chunks)
        return hashlib.sha256(self.content).digest(), len(self.content)


OLD = b"old content" * 50_000


@pytest.mark.parametrize("new", [OLD, b"new content" * 50_000, OLD[:-1] + b"!", b"!" + OLD[1:]])
def test_only_contents_that_differ_are_written(tmp_path: Path, new: bytes) -> None:
    """From the first difference on, all of it is staged; the digest is there either way."""
    staging = Staging()
    [(_, content)] = [next(read_members(io.BytesIO(make_tar({"a": new}, directories=False))))]
    (tmp_path / "old").write_bytes(OLD)
    with (tmp_path / "old").open("rb", buffering=0) as file:
        digest = add_unless_equal(content, file, staging.add)
    assert digest == hashlib.sha256(new).digest()
    assert staging.content == (None if new == OLD else new)


def test_a_file_that_changes_while_it_is_compared_is_not_used(tmp_path: Path) -> None:
    """What was equal a moment ago is verified when it is copied."""
    path = tmp_path / "old"
    path.write_bytes(b"a" * 1000)

    def content() -> Iterator[bytes]:
        yield b"a" * 500
        path.write_bytes(b"b" * 1000)
        yield b"c" * 500

    with path.open("rb", buffering=0) as file, pytest.raises(FileChangedError):
        add_unless_equal(content(), file, Staging().add)


def test_memory_stays_bounded() -> None:
    """One member of 40 MB goes through in pieces."""
    data = gzip.compress(make_tar({"big": bytes(40 << 20)}), 1)
    tracemalloc.start()
    try:
        for _, content in read_members(io.BytesIO(data)):
            assert sum(map(len, content)) == 40 << 20
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
