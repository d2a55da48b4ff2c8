"""Reads a site as docs/format.md says, and uses nothing of perfkit: a second opinion on whether that page is right."""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import sys
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class File(NamedTuple):
    """A row of a manifest."""

    name: str
    size: int
    executable: bool
    sha256: bytes


class Span(NamedTuple):
    """A range of a file."""

    entry: int
    offset: int
    length: int  # 0: the rest of the file


class Record:
    """A binary record that is read from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        assert self._at + size <= len(self._data), "cut short"
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def column(self, count: int, width: int) -> list[int]:
        planes = [self.take(count) for _ in range(width)]
        return [int.from_bytes(bytes(plane[row] for plane in planes), "little") for row in range(count)]

    def zigzag(self, count: int, width: int) -> list[int]:
        return [-(value >> 1) - 1 if value & 1 else value >> 1 for value in self.column(count, width)]

    def spans(self, count: int) -> tuple[list[int], list[int], list[int]]:
        return self.zigzag(count, 4), self.zigzag(count, 8), self.column(count, 4)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        assert self._at == len(self._data), "bytes are left"


def unpack(frame: bytes, size: int, dictionary: Any = None) -> bytes:
    """Decode one whole frame with this many bytes of content."""
    decoder = zstd.ZstdDecompressor(dictionary, {zstd.DecompressionParameter.window_log_max: 23})
    content = decoder.decompress(frame)
    assert decoder.eof
    assert not decoder.unused_data
    assert len(content) == size
    return content


def unpack_against(frame: bytes, size: int, prefix: bytes) -> bytes:
    """As `unpack`, with a prefix of raw content."""
    return unpack(frame, size, zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None)


def parse_manifest(data: bytes) -> list[File]:
    record = Record(data)
    assert record.take(19) == b"perfkit manifest 1\n"
    count, name_bytes = record.number(), record.number()
    sizes, flags = record.column(count, 8), record.take(count)
    digests = [record.take(32) for _ in range(count)]
    names = record.take(name_bytes).decode().split("\n")
    record.end()
    assert names.pop() == ""
    assert [name.encode() for name in names] == sorted({name.encode() for name in names})
    rows = zip(names, sizes, flags, digests, strict=True)
    return [File(name, size, bool(flag & 1), digest) for name, size, flag, digest in rows]


class Reader:
    """What a site offers."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self.coders: set[str] = set()  # how the groups of deltas were coded
        self.pointer = json.loads((site / "perfkit.json").read_bytes())
        assert self.pointer["format"] == (2 if "base" in self.pointer["manifest"] else 1)
        self.raw = self._manifest(self.pointer["manifest"])
        self.files = parse_manifest(self.raw)

    def get(self, name: str, size: int) -> bytes:
        data = (self._site / "objects" / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (name, size)
        return data

    def _packed(self, field: dict[str, Any]) -> bytes:
        return unpack(self.get(field["object"], field["bytes"]), field["size"])

    def _manifest(self, field: dict[str, Any]) -> bytes:
        if base := field.get("base"):
            raw, _ = self._apply(field["object"], field["bytes"], self._packed(base), {})
        else:
            raw = self._packed(field)
        assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (field["sha256"], field["size"])
        return raw

    def tree(self, which: str) -> dict[str, bytes]:
        """The files, by the index `solid` or `fine`."""
        packed = self.pointer[which]
        return self._contents(Record(self._packed(packed)), self.raw)

    def _contents(self, record: Record, raw: bytes) -> dict[str, bytes]:
        files = parse_manifest(raw)
        assert record.take(16) == b"perfkit index 1\n"
        assert record.take(32) == hashlib.sha256(raw).digest()
        packs, frames, pieces, tags = (record.number() for _ in range(4))
        digests = [record.take(32).hex() for _ in range(packs)]
        sizes = record.column(packs, 8)
        dictionaries = [record.take(32).hex() for _ in range(packs)]
        dictionary_bytes, dictionary_sizes, counts = (record.column(packs, 4) for _ in range(3))
        gaps, packed_sizes = record.column(frames, 8), record.column(frames, 4)
        beyond, piece_counts = record.column(frames, 4), record.column(frames, 4)
        entry_steps, offset_steps = record.zigzag(pieces, 4), record.zigzag(pieces, 8)
        start_steps, lengths = record.zigzag(pieces, 4), record.column(pieces, 4)
        tag_column = iter(record.column(tags, 8))
        record.end()
        contents = {entry: bytearray(file.size) for entry, file in enumerate(files)}
        covered = {entry: bytearray(file.size) for entry, file in enumerate(files)}
        frame, piece, entry, ends = 0, 0, -1, dict[int, int]()
        for pack in range(packs):
            data, at, shared = self.get(digests[pack], sizes[pack]), 0, None
            if dictionary_sizes[pack]:
                content = unpack(self.get(dictionaries[pack], dictionary_bytes[pack]), dictionary_sizes[pack])
                shared = zstd.ZstdDict(content)
            for _ in range(counts[pack]):
                at += gaps[frame]
                here, furthest, previous = [], 0, 0
                for _ in range(piece_counts[frame]):
                    entry += entry_steps[piece] + 1
                    offset = ends.get(entry, 0) + offset_steps[piece]
                    length = lengths[piece] or files[entry].size - offset
                    start = previous + start_steps[piece]
                    previous, ends[entry] = start + length, offset + length
                    furthest = max(furthest, previous)
                    here.append((entry, offset, start, length))
                    piece += 1
                size = furthest + beyond[frame]
                content = unpack(data[at : at + packed_sizes[frame]], size, shared)
                at += packed_sizes[frame]
                for found, offset, start, length in here:
                    part = content[start : start + length]
                    if tags and (offset or length != files[found].size):
                        assert next(tag_column) == int.from_bytes(hashlib.sha256(part).digest()[:8], "little")
                    assert not any(covered[found][offset : offset + length])
                    contents[found][offset : offset + length] = part
                    covered[found][offset : offset + length] = b"\1" * length
                frame += 1
        assert not list(tag_column)
        by_digest = {bytes(hashlib.sha256(content).digest()): bytes(content) for content in contents.values()}
        return {file.name: by_digest[file.sha256] for file in files}

    def update(self, old_raw: bytes, old: dict[str, bytes]) -> tuple[dict[str, bytes], int]:
        """The files, made by deltas from an earlier release; and how many deltas that took."""
        hops = {origin: (target, name, size) for origin, target, name, size in self.pointer["deltas"]}
        steps = 0
        while (at := hashlib.sha256(old_raw).hexdigest()) != self.pointer["manifest"]["sha256"]:
            target, name, size = hops[at[:16]]
            old_raw, old = self._apply(name, size, old_raw, old)
            assert hashlib.sha256(old_raw).hexdigest().startswith(target)
            steps += 1
        return old, steps

    def earlier(self, version: str) -> dict[str, bytes]:
        """The files of a listed release, by its fine index."""
        field = self.pointer["history"]
        history = json.loads(self.get(field["object"], field["bytes"]))
        row = next(row for row in history["releases"] if row[0] == version)
        manifest = dict(zip(("sha256", "object", "bytes", "size"), row[2:6], strict=True))
        if len(row) > 10:
            manifest["base"] = dict(zip(("sha256", "object", "bytes", "size"), row[10:], strict=True))
        index = dict(zip(("object", "bytes", "size"), row[6:9], strict=True))
        return self._contents(Record(self._packed(index)), self._manifest(manifest))

    def _apply(self, name: str, size: int, old_raw: bytes, old: dict[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        """The manifest and the files that a delta makes of older ones; without those, only the manifest."""
        head = Record(self.get(name, size))
        assert head.take(16) == b"perfkit delta 5\n"
        new_sha256, table_bytes, table_size = head.take(32), head.number(), head.number()
        table = Record(unpack(head.take(table_bytes), table_size))
        slices, groups, sources, outputs = (table.number() for _ in range(4))
        produced, begins = table.column(slices, 4), table.column(slices, 8)
        prefixes, slice_bytes = table.column(slices, 4), table.column(slices, 4)
        source_counts, output_counts = table.column(groups, 4), table.column(groups, 4)
        group_bytes, decoded = table.column(groups, 4), table.column(groups, 4)
        source_steps, gaps, output_steps = table.spans(sources), table.column(sources, 4), table.spans(outputs)
        table.end()
        draft = b"".join(
            unpack_against(head.take(packed), size, old_raw[begin : begin + prefix])
            for size, begin, prefix, packed in zip(produced, begins, prefixes, slice_bytes, strict=True)
        )
        before, after = parse_manifest(old_raw), parse_manifest(draft)
        sizes = [file.size for file in (*before, *after)]
        made: dict[int, bytearray] = {}
        read, written = _resolve(source_steps, sizes), _resolve(output_steps, sizes[len(before) :])
        for group in range(groups):
            spans = [read.pop(0) for _ in range(source_counts[group])]
            skips = [gaps.pop(0) for _ in spans]
            texts = []
            for entry, offset, length in spans:
                source = old[before[entry].name] if entry < len(before) else made[entry - len(before)]
                assert offset + length <= len(source), "a source is not there yet"
                texts.append(bytes(source[offset : offset + length]))
            targets = [written.pop(0) for _ in range(output_counts[group])]
            size = sum(target.length for target in targets)
            frame = head.take(group_bytes[group])
            if decoded[group]:
                content = self._add_differences(frame, decoded[group], texts, skips, size)
            else:
                assert not any(skips)
                self.coders.add("prefix")
                content = unpack_against(frame, size, b"".join(texts))
            for entry, offset, length in targets:
                assert offset == len(made.setdefault(entry, bytearray()))
                made[entry] += content[:length]
                content = content[length:]
        assert head.rest() == b""
        assert all(len(content) == after[entry].size for entry, content in made.items())
        first = len(draft) - 32 * len(after) - sum(len(file.name.encode()) + 1 for file in after)
        filled = bytearray(draft)
        for entry, file in enumerate(after):
            if entry in made:
                assert file.sha256 == bytes(32)
                digest = hashlib.sha256(made[entry]).digest()
            elif file.sha256[:28] == bytes(28):
                digest = hashlib.sha256(made[int.from_bytes(file.sha256[28:], "little") - 1]).digest()
            else:
                continue
            filled[first + 32 * entry : first + 32 * entry + 32] = digest
        assert hashlib.sha256(filled).digest() == new_sha256
        if not old:
            return bytes(filled), {}
        known = {hashlib.sha256(content).digest(): bytes(content) for content in (*old.values(), *made.values(), b"")}
        return bytes(filled), {file.name: known[file.sha256] for file in parse_manifest(bytes(filled))}

    def _add_differences(self, frame: bytes, size: int, sources: list[bytes], gaps: list[int], total: int) -> bytes:
        """The content of a group of differences."""
        predicted = b"".join(sources)
        literals = total - len(predicted)
        planes = frame.startswith(b"\x28\xb5\x2f\xfd")
        if frame.startswith(b"BZh"):
            data = bz2.decompress(frame)
            self.coders.add("bzip2")
        elif planes:
            data = unpack(frame, size)
            self.coders.add("zstd")
        else:
            self.coders.add("LZMA2")
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4 << 20}]
            data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(frame)
        assert len(data) == size <= total
        if size == total:
            if planes:
                mixed, at = bytearray(total), 0
                for plane in range(8):
                    count = len(range(plane, total, 8))
                    mixed[plane::8] = data[at : at + count]
                    at += count
                data = bytes(mixed)
            differences = data[literals:]
        else:
            record = Record(data[literals:])
            runs = record.number()
            zeros, lengths = record.column(runs, 4), record.column(runs, 4)
            spread = b"".join(bytes(zero) + record.take(length) for zero, length in zip(zeros, lengths, strict=True))
            record.end()
            differences = spread.ljust(len(predicted), b"\0")
        summed = bytes((old + difference) % 256 for old, difference in zip(predicted, differences, strict=True))
        content, literal, at = b"", 0, 0
        for source, gap in zip(sources, gaps, strict=True):
            content += data[literal : literal + gap] + summed[at : at + len(source)]
            literal, at = literal + gap, at + len(source)
        return content + data[literal:literals]


def _resolve(steps: tuple[list[int], list[int], list[int]], sizes: list[int]) -> list[Span]:
    """Spans from their columns."""
    spans: list[Span] = []
    entry, end = -1, 0
    for entry_step, offset_step, length in zip(*steps, strict=True):
        before, entry = entry, entry + 1 + entry_step
        offset = offset_step + (end if entry == before else 0)
        spans.append(Span(entry, offset, length or sizes[entry] - offset))
        end = spans[-1].offset + spans[-1].length
    return spans
