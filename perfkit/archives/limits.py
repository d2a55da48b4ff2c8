"""The limits of an archive. One that exceeds them is refused before the tree is touched."""

from __future__ import annotations

from perfkit.errors import ManifestError

MEMBERS = 200_000
DEPTH = 64  # components of a name
TOTAL_BYTES = 1 << 40  # unpacked
RATIO = 250  # unpacked to packed bytes of the whole archive
RATIO_FROM_BYTES = 256 << 20  # a smaller archive, unpacked, may have any ratio
WINDOW_BYTES = 128 << 20  # memory of a decompressor; `xz -9` needs 65 MiB, `zstd --long` 128 MiB


def check_ratio(unpacked: int, packed: int) -> None:
    """Check that an archive with this many packed bytes may have this many unpacked ones.

    Raises:
        ManifestError: it exceeds the limits.
    """
    if unpacked > TOTAL_BYTES:
        raise ManifestError(f"the archive unpacks to more than {TOTAL_BYTES} bytes")
    if unpacked > RATIO_FROM_BYTES and unpacked > RATIO * packed:
        raise ManifestError(
            f"{packed} packed bytes unpack to {unpacked} or more, over {RATIO} to 1: a decompression bomb"
        )
