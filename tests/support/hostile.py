"""What tests of hostile input share: raw manifests and indexes, and a limit of memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from array import array
from collections.abc import Iterator, Sequence

from perfkit.releases.format.columns import pack_column
from perfkit.releases.format.index import Index, Pack, Piece
from perfkit.releases.format.manifest import Manifest


def raw_manifest(names: list[bytes], *, sizes: list[int] | None = None, flags: bytes | None = None) -> bytes:
    """Canonical bytes without any check."""
    listed = b"".join(name + b"\n" for name in names)
    return b"".join(
        (
            b"perfkit manifest 1\n",
            len(names).to_bytes(4, "little"),
            len(listed).to_bytes(4, "little"),
            pack_column(8, sizes or [1] * len(names)),
            bytes(len(names)) if flags is None else flags,
            bytes(32 * len(names)),
            listed,
        )
    )


@contextlib.contextmanager
def bounded(megabytes: int = 12) -> Iterator[None]:
    """See that Python takes no more memory than that at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def one_frame(manifest: Manifest, pack: Pack, compressed: int, size: int, pieces: Sequence[Piece]) -> Index:
    """An index with one frame, which begins the pack."""
    columns = zip(*((each.entry, each.offset, each.start, each.length) for each in pieces), strict=True)
    return Index(
        manifest.sha256,
        (pack,),
        *(array(code, (number,)) for code, number in zip("IQII", (0, 0, compressed, size), strict=True)),
        array("I", (0, len(pieces))),
        *(array(code, column) for code, column in zip("IQII", columns, strict=True)),
        array("Q"),
    )
