"""The pointer of a site: the only file that is ever replaced. No I/O.

It refers to everything else by digest. `docs/format.md` has the fields.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

from perfkit.errors import ManifestError
from perfkit.releases.format import POINTER_NAME, is_channel, is_version, most_compressed, most_content
from perfkit.releases.format.manifest import MAX_MANIFEST_BYTES

FORMAT = 1
BASED_FORMAT = 2  # the manifest is made from another one
MAX_POINTER_BYTES = 64 << 10
MAX_INDEX_BYTES = 128 << 20
MAX_DELTAS = 64
MAX_SERIAL = (1 << 53) - 1
_SHORT_BYTES = 8
_MAX_OBJECT_BYTES = 1 << 50
_HEX = re.compile("[0-9a-f]*", re.ASCII)


class ObjectRef(NamedTuple):
    """An immutable file of the site, named by the SHA-256 of its bytes."""

    sha256: str  # 64 hexadecimal digits
    bytes: int  # the size

    @property
    def path(self) -> str:
        """The path, relative to the pointer."""
        return f"objects/{self.sha256}"


class PackedRef(NamedTuple):
    """An object that is one zstd frame; or, for a manifest with a base, a delta."""

    object: ObjectRef  # the compressed form
    size: int  # decompressed bytes


class BaseManifest(NamedTuple):
    """A manifest that another one is made from."""

    sha256: str  # the digest of its canonical bytes, 64 hexadecimal digits
    packed: PackedRef  # the object with these bytes


class DeltaRef(NamedTuple):
    """A delta that the site offers."""

    origin: str  # the `short_digest` of the manifest that it applies to
    target: str  # the `short_digest` of the manifest that it produces
    object: ObjectRef  # the delta


class Pointer(NamedTuple):
    """The release that a site offers now."""

    version: str  # as the publisher calls it
    serial: int  # increases with each release; clients refuse a lower one
    manifest_sha256: str  # the digest of the manifest's canonical bytes, 64 hexadecimal digits
    manifest: PackedRef  # the object with these bytes, or the delta that makes them from `base`
    solid: PackedRef  # the index of large frames, for first installs
    fine: PackedRef  # the index of small frames, for updates
    history: ObjectRef  # the record of the latest releases; clients read it only to list or install earlier ones
    deltas: tuple[DeltaRef, ...] = ()  # at most one for each earlier release, which leads nearer to this release
    expires_s: int = 0  # when the pointer expires, in seconds since 1970; 0: never
    # the channel that the pointer is for; empty: the site itself. So a signed pointer can't be passed off as
    # that of another channel.
    channel: str = ""
    base: BaseManifest | None = None

    @property
    def manifest_bytes(self) -> int:
        """The total size of the objects that the manifest is made from."""
        return self.manifest.object.bytes + (self.base.packed.object.bytes if self.base else 0)

    @classmethod
    def parse(cls, data: bytes) -> Pointer:
        """Read `perfkit.json`.

        Raises:
            ManifestError: it is damaged, exceeds a limit, or has an unknown format.
        """
        if len(data) > MAX_POINTER_BYTES:
            _refuse(f"larger than {MAX_POINTER_BYTES} bytes")
        try:
            record = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{POINTER_NAME}: not JSON, perhaps a page of a login or proxy ({error})") from error
        if not isinstance(record, dict):
            _refuse("not an object")
        format_version = record.get("format")
        if type(format_version) is not int or format_version not in (FORMAT, BASED_FORMAT):
            _refuse(
                f"unknown format {format_version!r:.40}; this perfkit reads {FORMAT} and {BASED_FORMAT} only. "
                "Install a newer perfkit"
            )
        version = record.get("version")
        if not is_version(version):
            _refuse(f"the version {version!r:.80} is not one line of 1 to 200 printable characters")
        manifest = record.get("manifest")
        base = _base(manifest) if format_version == BASED_FORMAT else None
        described = base.packed.object.bytes if base else 0
        packed = _packed(manifest, MAX_MANIFEST_BYTES, described=described)
        described += packed.object.bytes
        pointer = cls(
            version=version,
            serial=_number(record, "serial", 1, MAX_SERIAL),
            manifest_sha256=_digest(manifest.get("sha256") if isinstance(manifest, dict) else None),
            manifest=packed,
            solid=_packed(record.get("solid"), MAX_INDEX_BYTES, described=described),
            fine=_packed(record.get("fine"), MAX_INDEX_BYTES, described=described),
            history=_object(record.get("history")),
            deltas=_parse_deltas(record.get("deltas")),
            expires_s=_number(record, "expires", 1, (1 << 53) - 1) if "expires" in record else 0,
            channel=_channel(record.get("channel", "")),
            base=base,
        )
        for delta in pointer.deltas:
            pointer.chain(delta.origin)
        return pointer

    def encode(self) -> bytes:
        """The bytes that `parse` reads."""
        manifest = {"sha256": self.manifest_sha256, **_packed_record(self.manifest)}
        if self.base is not None:
            manifest["base"] = {"sha256": self.base.sha256, **_packed_record(self.base.packed)}
        record = {
            "format": BASED_FORMAT if self.base else FORMAT,
            "version": self.version,
            "serial": self.serial,
            "manifest": manifest,
            "solid": _packed_record(self.solid),
            "fine": _packed_record(self.fine),
            "history": {"object": self.history.sha256, "bytes": self.history.bytes},
            "deltas": [[delta.origin, delta.target, delta.object.sha256, delta.object.bytes] for delta in self.deltas],
        }
        if self.expires_s:
            record["expires"] = self.expires_s
        if self.channel:
            record["channel"] = self.channel
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    def chain(self, manifest_sha256: str) -> tuple[DeltaRef, ...]:
        """The deltas from the tree with this manifest to this release, in order; empty: there are none.

        Args:
            manifest_sha256: hexadecimal, whole or `short_digest`.

        Raises:
            ManifestError: the deltas form a cycle, or do not lead to this release. `parse` has checked that.
        """
        deltas = {delta.origin: delta for delta in self.deltas}
        found: list[DeltaRef] = []
        at = short_digest(manifest_sha256)
        while (delta := deltas.get(at)) is not None:
            if len(found) == len(deltas):
                _refuse("its deltas form a cycle")
            found.append(delta)
            at = delta.target
        if found and at != short_digest(self.manifest_sha256):
            _refuse(f"its delta from {short_digest(manifest_sha256)} does not lead to this release")
        return tuple(found)


def short_digest(manifest_sha256: str) -> str:
    """The first digits of a manifest's digest, which identify a release; results are checked against all digits."""
    return manifest_sha256[: 2 * _SHORT_BYTES]


def _parse_deltas(listed: Any) -> tuple[DeltaRef, ...]:
    if not isinstance(listed, list) or len(listed) > MAX_DELTAS:
        _refuse(f"deltas is not a list of at most {MAX_DELTAS} items")
    deltas = []
    for row in listed:
        if not isinstance(row, list) or len(row) != 4:
            _refuse("a delta is not a list of four items")
        ends = [_digest(end, _SHORT_BYTES) for end in row[:2]]
        deltas.append(DeltaRef(ends[0], ends[1], _object({"object": row[2], "bytes": row[3]})))
    if len({delta.origin for delta in deltas}) != len(deltas):
        _refuse("two deltas start from the same release")
    return tuple(deltas)


def _base(manifest: Any) -> BaseManifest:
    record: Any = manifest.get("base") if isinstance(manifest, dict) else None
    packed = _packed(record, MAX_MANIFEST_BYTES)  # raises unless `record` is a dict
    return BaseManifest(_digest(record.get("sha256")), packed)


def _packed(record: Any, limit: int, *, described: int = 0) -> PackedRef:
    """An object with a plausible size.

    Args:
        described: compressed bytes of what it describes or is made from; they raise the limit, since an index grows
            with the manifest.
    """
    packed = PackedRef(_object(record), _number(record, "size", 1, limit))
    if packed.object.bytes > most_compressed(packed.size) or packed.size > most_content(
        packed.object.bytes + described
    ):
        _refuse(f"{packed.object.bytes} bytes can't be those of a frame with {packed.size} bytes")
    return packed


def _packed_record(packed: PackedRef) -> dict[str, object]:
    return {"size": packed.size, "object": packed.object.sha256, "bytes": packed.object.bytes}


def _object(record: Any) -> ObjectRef:
    if not isinstance(record, dict):
        _refuse("a reference to an object is missing")
    return ObjectRef(_digest(record.get("object")), _number(record, "bytes", 1, _MAX_OBJECT_BYTES))


def _number(record: dict[str, Any], name: str, low: int, high: int) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(f"{name} is not an integer from {low} to {high}")
    return value


def _channel(value: Any) -> str:
    if not isinstance(value, str) or (value and not is_channel(value)):
        _refuse(f"{value!r:.80} is not the name of a channel")
    return value


def _digest(value: Any, size: int = 32) -> str:
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        _refuse(f"{value!r:.80} is not {2 * size} hexadecimal digits")
    return value


def _refuse(reason: str) -> NoReturn:
    raise ManifestError(f"{POINTER_NAME}: {reason}")
