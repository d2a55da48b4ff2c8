"""docs/format.md suffices to read a site: a reader that was written from that page alone gets every release."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from perfkit.releases.publish import publisher
from perfkit.releases.publish.publisher import publish
from tests.support.format_reader import Reader
from tests.support.trees import Tree, lines, text, tree_of, write_tree

pytestmark = pytest.mark.once


def numbers(chance: random.Random, count: int) -> list[float]:
    return [chance.gauss(0, 0.02) for _ in range(count)]


def binary(values: list[float]) -> bytes:
    return bytes(64) + struct.pack(f"<{len(values)}f", *values)


def test_every_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both indexes, deltas of each kind and in a chain, a manifest that is stored as a change, earlier releases."""
    monkeypatch.setattr(publisher, "_LARGE_MANIFEST_BYTES", 5_000)
    chance = random.Random(1)
    many: Tree = {f"many/{number // 100:02}/{number}": b"%d\n" % chance.getrandbits(60) for number in range(300)}
    values, code, notes = numbers(chance, 150_000), bytearray(chance.randbytes(30_000)), lines(2, 3000)
    trees: list[Tree] = [
        {
            **many,
            "weights": binary(values),
            "program": b"\0" + bytes(code),
            "notes": notes,
            "old name": text(3),
            "copy 1": b"same\n" * 100,
            "copy 2": b"same\n" * 100,
            "empty": b"",
        }
    ]
    values = [value * (1 + chance.uniform(-0.001, 0.001)) for value in values]
    code[::50] = bytes(value ^ 4 for value in code[::50])
    trees.append(
        {
            **trees[0],
            "weights": binary(values),
            "program": b"\0" + bytes(code),
            "notes": notes[: len(notes) // 2] + b"inserted\n" + notes[len(notes) // 2 :],
            "copy 1": b"other\n" * 100,
            "copy 2": b"other\n" * 100,
        }
    )
    del trees[1]["old name"]
    trees[1]["new name"] = trees[0]["old name"]
    trees.append({**trees[1], "many/00/5": b"changed", "program": trees[1]["program"] + b"more"})
    seen: list[tuple[bytes, Tree]] = []
    for number, tree in enumerate(trees):
        source = write_tree(tmp_path / str(number), tree)
        (source / "many/00/7").chmod(0o755)
        publish(str(source), str(tmp_path / "site"), version=str(number), keep_deltas=1)
        reader = Reader(tmp_path / "site")
        assert [file.name for file in reader.files if file.executable] == ["many/00/7"]
        assert reader.tree("solid") == reader.tree("fine") == tree
        for age, (raw, old) in enumerate(reversed(seen), 1):
            assert reader.update(raw, old) == (tree, age)
        seen.append((reader.raw, tree))
    assert reader.pointer["format"] == 2
    assert [reader.earlier(str(number)) for number in range(3)] == trees
    assert {"prefix", "LZMA2", "zstd"} <= reader.coders
    assert tree_of(source) == trees[2]
