"""Read a `.zsync` control file, which `zsyncmake` made for the new version of a file.

Format: zsync(1), zsyncmake(1) and the source of zsync 0.6.2. An empty line ends the header; then each block of the file
has a weak checksum and a part of its MD4. The SHA-1 in the header decides whether the result is right.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urljoin

from perfkit.errors import ManifestError, UnsafePathError
from perfkit.filesystem.paths import check_name

CONTROL_BYTES = 64 << 20  # limit of a control file
_HEADER_BYTES = 64 << 10
_MAP_ENTRY_BYTES = 4
_GZIP_EXTRA_BLOCKS = 2  # that zsyncmake adds to the sums if it reads the file from a gzip file
_LINE = re.compile(rb"([A-Za-z0-9-]+): ([^\r\n\0]*)")


class Control(NamedTuple):
    """A parsed control file."""

    filename: str  # a safe name without directories; with `keep_gzip`, that of the gzip file
    urls: tuple[str, ...]  # absolute, a relative one resolved against every base
    gzip_urls: tuple[str, ...]  # of the gzip file, for a whole download and `unpack_whole`; ranges need `urls`
    keep_gzip: bool  # the gzip file itself is wanted
    size: int  # uncompressed bytes
    sha1: str  # of the uncompressed file, hexadecimal
    block_size: int
    sequence: int  # how many adjacent blocks must match before one is accepted
    rsum_bytes: int
    strong_bytes: int
    sums: bytes | memoryview  # the checksums of all blocks; empty without `urls`


def parse_control(data: bytes, *, bases: tuple[str, ...]) -> Control:
    """Read a control file; lines may end as on Windows.

    Args:
        bases: the requested URL and the one that responded; relative URLs in it are resolved against each, in order.

    Raises:
        ManifestError: damaged, truncated, a header is missing, or a value is invalid.
        UnsafePathError: the file name is unsafe, or has directories.
    """
    headers: dict[str, list[str]] = {}
    position = 0
    while True:
        end = data.find(b"\n", position, _HEADER_BYTES + position)
        line = data[position:end]
        if end < 0 or (position == 0 and not line.startswith(b"zsync: ")):
            raise ManifestError("not a .zsync control file, or its header is damaged")
        position = end + 1
        line = line.removesuffix(b"\r")
        if not line:
            break
        match = _LINE.fullmatch(line)
        if match is None or len(headers) > 100:
            raise ManifestError(f"the control file has a damaged header line: {line[:80]!r}")
        key, value = match[1].decode(), match[2].decode(errors="replace")
        headers.setdefault(key, []).append(value)
        if key == "Z-Map2":
            position += _MAP_ENTRY_BYTES * _number(headers, key, 0, CONTROL_BYTES)  # binary, and not used
    try:
        return _control(headers, memoryview(data)[position:], bases)
    except ValueError as error:  # of urljoin
        raise ManifestError(f"the control file has an invalid URL: {error}") from error


def _control(headers: dict[str, list[str]], sums: bytes | memoryview, bases: tuple[str, ...]) -> Control:
    block_size = _number(headers, "Blocksize", 64, 1 << 20)
    if block_size & (block_size - 1):
        raise ManifestError(f"the control file has blocks of {block_size} bytes, which is not a power of two")
    size = _number(headers, "Length", 0, 1 << 50)
    lengths = re.fullmatch(r"([12]),([1-4]),(\d\d?)", _only(headers, "Hash-Lengths"))
    if lengths is None or not 3 <= int(lengths[3]) <= 16:
        raise ManifestError(f"the control file has checksums of unknown lengths: {_only(headers, 'Hash-Lengths')!r}")
    sequence, rsum_bytes, strong_bytes = map(int, lengths.groups())
    urls, gzip_urls = (
        tuple(dict.fromkeys(urljoin(base, url) for url in headers.get(key, ()) for base in bases))
        for key in ("URL", "Z-URL")
    )
    if not urls + gzip_urls:
        raise ManifestError("the control file has no URL")
    blocks, each = -(-size // block_size), rsum_bytes + strong_bytes
    extra = _GZIP_EXTRA_BLOCKS if gzip_urls else 0
    if urls and not blocks * each <= len(sums) <= (blocks + extra) * each:
        raise ManifestError(f"the control file has {len(sums)} bytes of checksums for {blocks} blocks")
    sha1 = _only(headers, "SHA-1").lower()
    if not re.fullmatch("[0-9a-f]{40}", sha1):
        raise ManifestError(f"the control file has no SHA-1 of the file: {sha1!r}")
    keep_gzip = not urls and "Recompress" in headers
    filename = _only(headers, "Z-Filename" if keep_gzip and "Z-Filename" in headers else "Filename")
    if "/" in check_name(filename):
        raise UnsafePathError(filename, "the file name in a control file must not have directories")
    return Control(
        filename=filename,
        urls=urls,
        gzip_urls=gzip_urls,
        keep_gzip=keep_gzip,
        size=size,
        sha1=sha1,
        block_size=block_size,
        sequence=sequence,
        rsum_bytes=rsum_bytes,
        strong_bytes=strong_bytes,
        sums=sums[: blocks * each] if urls else b"",  # they are of the uncompressed file
    )


def _only(headers: dict[str, list[str]], key: str) -> str:
    values = headers.get(key, [])
    if len(values) != 1:
        raise ManifestError(f"the control file has {len(values)} {key} headers instead of one")
    return values[0]


def _number(headers: dict[str, list[str]], key: str, least: int, most: int) -> int:
    text = _only(headers, key)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ManifestError(f"the control file has {key} {text!r}, not a number from {least} to {most}")
    return int(text)
