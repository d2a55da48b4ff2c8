"""Read and write the files of a release, as docs/format.md specifies them."""

__all__ = ["MAX_AHEAD_MS", "POINTER_NAME", "most_compressed", "most_content", "signature_path"]

POINTER_NAME = "perfkit.json"  # of the pointer; a site is recognised by it
MAX_AHEAD_MS = 86_400_000  # how far the clock of a publisher, from which serials are, may be ahead of a client's


def signature_path(pointer_sha256: str, key_name: str) -> str:
    """Where the signature of a pointer by a key is, relative to the pointer.

    It is named after the pointer's bytes, so that a client that has one of the two has the right other one, whatever a
    cache or a mirror keeps of the site.
    """
    return f"objects/{pointer_sha256}-{key_name}.minisig"


def most_compressed(size: int) -> int:
    """The most bytes that `size` bytes may have as a zstd frame: more than ZSTD_compressBound in zstd.h."""
    return size + size // 128 + 1024


def most_content(compressed: int) -> int:
    """The most bytes that may be decompressed into memory from so many."""
    return (8 << 20) + 200 * compressed
