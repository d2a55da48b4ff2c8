"""Read and write the files of a release, as docs/format.md specifies them."""

__all__ = ["POINTER_NAME"]

POINTER_NAME = "perfkit.json"  # of the pointer; a site is recognised by it


def most_compressed(size: int) -> int:
    """The most bytes that `size` bytes may have as a zstd frame: more than ZSTD_compressBound in zstd.h."""
    return size + size // 128 + 1024


def most_content(compressed: int) -> int:
    """The most bytes that may be decompressed into memory from so many."""
    return (8 << 20) + 200 * compressed
