"""The manifest of a release without the digests of what a delta makes, which don't compress: the client computes them.

Zeros stand in for them. If several entries have such a content, all but the first have 28 zeros and the number of the
first, counted from 1. The digest of the completed manifest proves that every content was made correctly.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO

from perfkit.errors import ManifestError
from perfkit.filesystem.spilled import Keep
from perfkit.releases.format.manifest import Manifest

DIGEST_BYTES = 32
_UNKNOWN = bytes(28)


def draft_bytes(manifest: Manifest, made: Iterable[int]) -> bytes:
    """A manifest's bytes without the digests of these entries, whose contents all differ."""
    first = {manifest.digest(entry): entry for entry in made}
    draft = BytesIO()
    draft.writelines(  # a join would hold all parts first
        manifest.with_digests(
            (entry, bytes(DIGEST_BYTES) if entry == maker else _reference(maker))
            for entry, maker in enumerate(map(first.get, manifest.digests()))
            if maker is not None
        )
    )
    return draft.getvalue()


def parse_draft(parts: Iterable[bytes], keep: Keep) -> Manifest:
    """Read what `draft_bytes` wrote, with references instead of the zeros, so that no two contents have one digest.

    Args:
        keep: joins parts of bytes.

    Raises:
        ManifestError, UnsafePathError: as `Manifest.parse`.
    """
    draft, unknown = Manifest.parse(keep(parts)), bytes(DIGEST_BYTES)
    own = (entry for entry, digest in enumerate(draft.digests()) if digest == unknown)
    return draft.reading(keep(draft.with_digests((entry, _reference(entry)) for entry in own)))


def complete(draft: Manifest, made: bytes | bytearray, sha256: bytes, keep: Keep = b"".join) -> Manifest:
    """The manifest of a draft.

    Args:
        made: 32 bytes for each entry: the SHA-256 of those that were made; the others are ignored.
        sha256: the digest of the manifest.
        keep: joins parts of bytes.

    Raises:
        ManifestError: the digest differs: the draft is damaged, or a content was not made, or from other old content.
    """
    makers = ((entry, made_for(digest)) for entry, digest in enumerate(draft.digests()))
    found = (
        (entry, made[DIGEST_BYTES * maker : DIGEST_BYTES * (maker + 1)]) for entry, maker in makers if maker is not None
    )
    try:
        return Manifest.parse(keep(draft.with_digests(found)), sha256=sha256, known=True)
    except ManifestError as error:
        raise ManifestError("delta: it is damaged, or files that it needs have changed meanwhile") from error


def _reference(entry: int) -> bytes:
    return _UNKNOWN + (entry + 1).to_bytes(4, "little")


def made_for(digest: bytes) -> int | None:
    """The entry that a digest of a draft refers to; None: it is a real digest."""
    return int.from_bytes(digest[len(_UNKNOWN) :], "little") - 1 if digest.startswith(_UNKNOWN) else None
