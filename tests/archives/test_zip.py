"""Zip archives by ranges: honest ones, odd ones, and ones that attack."""

from __future__ import annotations

import io
import itertools
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.archives import limits, zip_directory
from perfkit.archives.coalesce import coalesce
from perfkit.archives.members import Selection
from perfkit.archives.zip import FetchRange, matches_file, plan_ranges, read_directory, read_members
from perfkit.archives.zip_directory import ZipMember
from perfkit.errors import ConfigError, ManifestError, PerfkitError, UnsafePathError
from tests.support.archive_tools import FILES, Ranges, make_zip, raw_zip
from tests.support.archive_tools import unpack_zip as unpack


def test_archives_of_zipfile_are_read() -> None:
    """Stored and deflated members come out as they went in, with their executable bits."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = make_zip(method=method)
        assert unpack(data) == FILES
        members = {member.name: member for member in read_directory(Ranges(data), len(data))}
        assert [name for name, member in members.items() if member.executable] == ["pkg/run.sh"]


def test_data_descriptors_are_understood() -> None:
    """An archive that was written to a pipe has its sizes behind the data, and in the central directory."""
    data = make_zip(stream=True)
    assert zipfile.ZipFile(io.BytesIO(data)).infolist()[0].flag_bits & 8
    assert unpack(data) == FILES


def test_zstd_members_are_read() -> None:
    """Method 93 is zstd."""
    zstd = pytest.importorskip("backports.zstd")
    text = b"zstandard " * 40_000
    data = raw_zip([{"name": "z.txt", "data": text, "method": 93, "packed": zstd.compress(text)}])
    assert unpack(data) == {"z.txt": text}


@pytest.mark.parametrize("length", [1, 21, 22, 65_535])
def test_comments_do_not_hide_the_end(length: int) -> None:
    """The end record is found before a comment of any length, also one that looks like an end record."""
    assert unpack(make_zip(comment=b"c" * length)) == FILES
    assert unpack(make_zip(comment=(b"PK\x05\x06" + b"x" * length)[:65_535])) == FILES


def test_a_directory_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be read into memory. As many members as are allowed may have names of more than 250 bytes."""
    assert zip_directory._DIRECTORY_BYTES >= limits.MEMBERS * (46 + 250 + 28)  # header, name, time and Zip64 fields
    monkeypatch.setattr(zip_directory, "_DIRECTORY_BYTES", 100)
    data = make_zip()
    with pytest.raises(ManifestError, match="the central directory of the zip archive has more than 100 bytes"):
        read_directory(Ranges(data), len(data))


def test_zip64_is_read() -> None:
    """Counts, sizes and offsets may stand in Zip64 records."""
    files = {f"f{number}": bytes(number) for number in range(9)}
    entries: list[dict[str, object]] = [{"name": name, "data": data, "zip64": True} for name, data in files.items()]
    for prefix in (b"", b"#!/bin/sh\n" * 10):
        assert unpack(raw_zip(entries, zip64=True, prefix=prefix)) == files


@pytest.mark.once
def test_more_members_than_a_plain_end_record_can_count() -> None:
    """65,536 members need Zip64, as zipfile writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(1 << 16):
            archive.writestr(zipfile.ZipInfo(f"{number:x}"), b"")
    assert len(read_directory(Ranges(out.getvalue()), len(out.getvalue()))) == 1 << 16


def test_something_in_front_of_an_archive_moves_it() -> None:
    """Self-extracting archives and zipapps have offsets that count from where the archive begins."""
    assert unpack(b"#!/usr/bin/env python3\n" + make_zip()) == FILES


def test_longer_local_extra_fields_are_covered_by_the_range() -> None:
    """A local header may be longer than the central directory lets know, as zipalign makes it."""
    data = raw_zip([{"name": "a", "data": b"1", "local_extra": b"\0" * 60_000}, {"name": "b", "data": b"2"}])
    assert unpack(data) == {"a": b"1", "b": b"2"}


def test_names_are_decoded_as_the_archive_says() -> None:
    """UTF-8 with the flag, code page 437 without."""
    assert set(unpack(raw_zip([{"name": "é", "flags": 1 << 11}]))) == {"é"}
    assert set(unpack(raw_zip([{"name": "é".encode("cp437"), "flags": 0}]))) == {"é"}


def test_an_empty_archive_has_no_members() -> None:
    """Nothing but an end record is an archive too."""
    data = make_zip({})
    assert read_directory(Ranges(data), len(data)) == []


def test_only_what_differs_is_fetched(tmp_path: Path) -> None:
    """From one version of a wheel to the next: the end, the directory, and the changed members; little else."""
    rng = random.Random(5)
    old = {f"pkg/m{number}.py": rng.randbytes(rng.randrange(20_000)) for number in range(300)}
    edits = {"pkg/m7.py": b"new", "pkg/m8.py": old["pkg/m8.py"][::-1], "pkg/m200.py": b"x" * 9000, "pkg/new.py": b"n"}
    new = {**old, **edits}
    for name, content in old.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    data = make_zip(new)
    server = Ranges(data)
    members = read_directory(server, len(data))
    wanted = []
    for member in members:
        path = tmp_path / member.name
        if path.exists():
            with path.open("rb") as file:
                if matches_file(member, file):
                    continue
        wanted.append(member)
    assert {member.name for member in wanted} == set(edits)
    for fetched in plan_ranges(wanted, gap=64 << 10):
        source = io.BytesIO(server(fetched.start, fetched.end))
        for member, content in read_members(fetched, source):
            assert b"".join(content) == new[member.name]
    directory = sum(46 + len(member.raw_name) for member in members) + 22
    assert server.bytes <= 1.1 * (sum(member.packed for member in wanted) + directory + (64 << 10))


def test_the_whole_archive_serves_as_one_range() -> None:
    """Where ranges don't work, members are taken out of the whole file; what is between them is skipped."""
    data = make_zip()
    members = read_directory(Ranges(data), len(data))
    some = tuple(members[1::2])
    got = {m.name: b"".join(c) for m, c in read_members(FetchRange(0, len(data), some), io.BytesIO(data))}
    assert got == {member.name: FILES[member.name] for member in some}


def test_neighbours_are_coalesced_within_a_budget() -> None:
    """Short gaps are stepped over, long ones are not, and never so many that they cost more than 4 %."""
    assert coalesce([(0, 10), (10, 20), (400, 500), (9000, 9100)], gap=500) == [(0, 500), (9000, 9100)]
    assert coalesce([(0, 100_000), (102_000, 200_000)], gap=4096) == [(0, 200_000)]
    assert coalesce([(0, 100_000), (102_000, 200_000)], gap=1024) == [(0, 100_000), (102_000, 200_000)]
    assert len(coalesce([(n * 10_000, n * 10_000 + 100) for n in range(100)], gap=1 << 20)) == 100
    assert coalesce([], gap=1) == []


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60))), st.integers(0, 700))
def test_coalesced_ranges_cover_all_and_stay_apart(pairs: list[tuple[int, int]], gap: int) -> None:
    """Whatever the ranges: each is covered, the results are in order and do not touch."""
    ranges = sorted((start, start + length) for start, length in pairs)
    merged = coalesce(ranges, gap=gap)
    assert all(any(a <= start and end <= b for a, b in merged) for start, end in ranges if start < end)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(merged))


def test_selection_strips_and_filters() -> None:
    """Leading directories go, and patterns apply to what is left."""
    data = make_zip()
    assert set(unpack(data, Selection(strip_components=1))) == {"__init__.py", "data.bin", "empty", "run.sh"}
    some = Selection(include=("pkg",), exclude=("*.sh", "*/empty"))
    assert set(unpack(data, some)) == {"pkg/__init__.py", "pkg/data.bin"}
    assert set(unpack(data, Selection(include=("READ*",)))) == {"README"}
    with pytest.raises(ConfigError):
        Selection(strip_components=-1)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/..",
        "a\\b",
        "c:/x",
        "nul",
        "a//b",
        ".perfkit/x",
        "trailing.",
        "new\nline",
        "nul\0byte",
    ],
)
def test_names_that_lead_outside_are_refused(name: str) -> None:
    """Absolute names, `..`, and what some file system can't hold."""
    with pytest.raises(UnsafePathError):
        unpack(raw_zip([{"name": "good"}, {"name": name}]))


@pytest.mark.parametrize("pair", [("a", "A"), ("é", "e\u0301"), ("a", "a/b")])
def test_names_that_collide_elsewhere_are_refused(pair: tuple[str, str]) -> None:
    """By case, by normalisation, or a file that is a directory too."""
    with pytest.raises(UnsafePathError):
        unpack(raw_zip([{"name": name} for name in pair]))


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([{"name": "l", "mode": 0o120777}], "symbolic link"),
        ([{"name": "d", "mode": 0o020666}], "device"),
        ([{"name": "a"}, {"name": "a"}], "twice"),
        ([{"name": "a", "flags": 1}], "encrypted"),
        ([{"name": "a", "method": 12, "packed": b"BZh9"}], "method 12"),
        ([{"name": "a", "data": b"x" * 1000}, {"name": "b", "offset": 20}], "overlaps"),
        ([{"name": "a", "data": b"x" * 1000}, {"name": "b", "offset": 0}], "overlaps"),
        ([{"name": "a", "offset": 5000}], "overlaps"),
        ([{"name": "a", "csize": 500, "size": 500}], "overlaps"),
        ([{"name": "a", "size": 9}], "two sizes"),
        ([{"name": "a", "method": 8, "size": 3}], "more than 3 bytes"),
        ([{"name": "a", "method": 8, "size": 5}], "to 4 bytes instead of 5"),
        ([{"name": "a", "crc": 1}], "CRC-32"),
        ([{"name": "a", "local_name": b"b"}], "disagree"),
        ([{"name": "a", "method": 8, "packed": b"\xff\xff"}], "damaged"),
        ([{"name": "a", "method": 8, "packed": b"\x00"}], "the compressed data of member .a. .* is truncated"),
        ([{"name": "a", "method": 93, "packed": b"\x00" * 20}], "damaged"),
        ([{"name": "/".join("d" * 70)}], "deep"),
        ([{"name": "link", "mode": 0o120777}, {"name": "link/file"}], "symbolic link"),
    ],
)
def test_archives_that_attack_are_refused(entries: list[dict[str, object]], what: str) -> None:
    """Each gives a typed error that says what is wrong with which member."""
    with pytest.raises(ManifestError, match=what):
        unpack(raw_zip(entries))


def test_a_link_may_be_left_out() -> None:
    """What isn't wanted doesn't matter, unless its name leads outside."""
    entries: list[dict[str, object]] = [{"name": "link", "mode": 0o120777}, {"name": "a"}]
    assert unpack(raw_zip(entries), Selection(exclude=("link",))) == {"a": b"data"}
    with pytest.raises(UnsafePathError):
        unpack(raw_zip([{"name": "../x"}, {"name": "a"}]), Selection(exclude=("*x",)))


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ratio and by count, before any member is fetched; one that lies about its size, while it is unpacked."""
    for name, value in (("RATIO_FROM_BYTES", 1 << 20), ("RATIO", 100), ("MEMBERS", 50)):
        monkeypatch.setattr(limits, name, value)
    zeros = bytes(3 << 20)
    with pytest.raises(ManifestError, match="to 1"):
        unpack(make_zip({"zeros": zeros}))
    with pytest.raises(ManifestError, match="more than 50 members"):
        unpack(make_zip({f"f{number}": b"" for number in range(51)}))
    with pytest.raises(ManifestError, match="more than 10 bytes"):
        unpack(raw_zip([{"name": "a", "method": 8, "data": zeros, "size": 10}]))


def test_nested_archives_are_files() -> None:
    """An archive in an archive is not looked into."""
    inner = make_zip({"../evil": b""}, method=zipfile.ZIP_STORED)
    assert unpack(make_zip({"inner.zip": inner})) == {"inner.zip": inner}


def test_a_file_that_is_not_an_archive() -> None:
    """Text, nothing, and an archive without its end."""
    for data in (b"", b"no", b"text " * 20_000, make_zip()[:-30]):
        with pytest.raises(ManifestError):
            unpack(data)


def test_a_short_answer_is_an_error() -> None:
    """Fewer bytes than requested are an error."""
    data = make_zip()
    with pytest.raises(ManifestError, match="bytes at"):
        read_directory(lambda start, end: data[start : end - 1], len(data))


def test_every_cut_is_seen() -> None:
    """An archive that ends anywhere too early gives a typed error."""
    data = make_zip({"a": b"some text", "b/c": b"more"})
    for length in range(len(data)):
        with pytest.raises(ManifestError):
            unpack(data[:length])


SMALL = make_zip({"a": b"some text " * 30, "b/c": bytes(range(100))})


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_content(position: int, bit: int) -> None:
    """Damage is found, or doesn't matter; what comes out under a name that was there is what went in."""
    data = bytearray(SMALL)
    data[position] ^= 1 << bit
    try:
        found = unpack(bytes(data))
    except PerfkitError:
        return
    assert sorted(found.values()) == sorted(unpack(SMALL).values())


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))
def test_fuzzed_archives_give_typed_errors(edits: list[tuple[int, bytes]]) -> None:
    """Whatever is in an archive, only perfkit's errors are raised, and no more bytes come out than were declared."""
    data = bytearray(SMALL)
    for position, piece in edits:
        data[position : position + len(piece)] = piece
    try:
        unpack(bytes(data))
    except PerfkitError:
        pass


def test_is_current_compares_size_and_crc() -> None:
    """Another size is not even read; another CRC is another content."""
    member = ZipMember("a", 4, False, 0xADF3F363, 0, 4, 0, b"a", 40)
    assert matches_file(member, io.BytesIO(b"data"))
    assert not matches_file(member, io.BytesIO(b"dat_"))
    assert not matches_file(member, io.BytesIO(b"data+"))
