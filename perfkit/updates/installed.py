"""The tree's own record of what is installed: source, version, manifest, and the highest serials so far."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from perfkit.config import Config
from perfkit.downloads.file_origin import digest_of
from perfkit.downloads.http.urls import unsigned
from perfkit.errors import UpdateError
from perfkit.filesystem.own_files import open_own, read_record, write_record
from perfkit.filesystem.paths import is_url
from perfkit.filesystem.rootdir import naming
from perfkit.filesystem.spilled import file_bytes
from perfkit.filesystem.thread_map import cached_property
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions import layout
from perfkit.transactions.tree import Tree
from perfkit.updates.source_types import SourceType

if TYPE_CHECKING:
    from perfkit.updates.sources import Source

_NOTHING = Manifest.of(())


@dataclass(frozen=True)
class Installed:
    """What is installed in a tree; all fields are empty if nothing is."""

    root: str
    type: SourceType | None = None  # the type of the source; None: nothing is installed
    source: str = ""  # the source's URL, without user, password and signature
    version: str | None = None  # as the source calls it
    serial: int = 0  # the serial of the release, if the source has serials; else 0
    manifest_sha256: str = _NOTHING.sha256.hex()  # the SHA-256 of the manifest, in hexadecimal
    files: int = 0  # how many files the manifest has
    # what the source's `record` returned when this was installed
    state: Mapping[str, Any] = field(default_factory=dict)
    # the highest serial ever installed here from each source, by the digest of its URL, since the URL may have
    # secrets in it; a rollback does not lower it
    serials: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """The installed files, by name; read on first access, which must be before the tree changes.

        Raises:
            ManifestError: it is damaged.
            OSError: it can't be read.
        """
        if self.type is None:
            return _NOTHING
        return read_manifest(os.path.join(self.root, layout.MANIFEST), self.manifest_sha256)

    def is_from(self, source: str) -> bool:
        """Whether what is installed came from this source."""
        return self.source == as_recorded(source)

    def highest_serial(self, source: str) -> int:
        """The highest serial of this source that was ever installed here; 0: none, or the source has no serials."""
        installed = self.serial if self.is_from(source) else 0
        return max(installed, self.serials.get(_key(source), 0))

    def record_serial(self, source: str, serial: int) -> None:
        """Remember that this serial was installed, across rollbacks and syncs from other sources.

        Raises:
            OSError: it can't be written.
        """
        if serial <= self.serials.get(_key(source), 0):
            return
        _write_serials(self.root, {**self.serials, _key(source): serial})

    def forget_serials(self, source: str) -> Installed:
        """Forget the serials of this source, in the tree too; returns this record without them.

        Raises:
            OSError: it can't be written.
        """
        serials = {other: serial for other, serial in self.serials.items() if other != _key(source)}
        _write_serials(self.root, serials)
        return replace(self, serials=serials, serial=0 if self.is_from(source) else self.serial)


def read_manifest(path: str, sha256: str) -> Manifest:
    """A manifest that was installed before, with this digest in hexadecimal; one of megabytes stays in its file.

    Raises:
        ManifestError: it is damaged.
        OSError: it can't be read.
    """
    return Manifest.parse(file_bytes(open_own(path)), sha256=bytes.fromhex(sha256), known=True)


def _write_serials(root: str, serials: Mapping[str, int]) -> None:
    write_record(os.path.join(root, layout.SERIALS), dict(serials), 0o644)


def as_recorded(source: str) -> str:
    """A source as the tree's records have it, which others can read: a URL without user, password and signature."""
    return unsigned(source) if is_url(source) else source


def _key(source: str) -> str:
    return digest_of(source) if is_url(source) else source


def require_managed(dest: str) -> None:
    """Check that perfkit manages this tree.

    Raises:
        UpdateError: it does not.
    """
    if not os.path.isdir(os.path.join(dest, layout.PRIVATE_DIR)):
        raise UpdateError(f"{dest} is not managed by perfkit; sync to it first")


@contextlib.contextmanager
def managed_tree(config: Config, dest: str, *, wait_s: float = 0.0, create: bool = False) -> Iterator[Tree]:
    """The tree at `dest`, locked, with these settings.

    Args:
        create: it need not exist yet.

    Raises:
        UpdateError: perfkit does not manage it.
        as `Tree`.
    """
    if not create:
        require_managed(dest)
    tree = Tree(
        dest,
        wait_s=wait_s,
        keep_generations=config.keep_generations,
        trust_other_owners=config.trust_other_owners,
    )
    with naming(tree.root), contextlib.closing(tree), tree:  # see `Tree.close`
        yield tree


def read_installed(root: str) -> Installed:
    """What is installed in the tree at `root`.

    Raises:
        UpdateError: the record of the release or of the serials is damaged.
    """
    remedy = "remove it to accept any release once; without it, downgrades can't be refused"
    serials = read_record(os.path.join(root, layout.SERIALS), _serials, remedy) or {}

    def parse(record: dict[str, Any]) -> Installed | None:
        if not os.path.exists(os.path.join(root, layout.MANIFEST)):
            return None  # a tree without its manifest counts as not installed
        state = dict(record["state"])
        if not all(isinstance(state.get(part, {}), dict) for part in ("origin", "selection")):
            raise ValueError("its state has other types")
        return Installed(
            root,
            SourceType(record["kind"]),
            as_recorded(str(record["source"])),
            str(record["version"]),
            int(record["serial"]),
            bytes.fromhex(record["manifest"]).hex(),
            int(record["files"]),
            state,
            serials,
        )

    remedy = "remove it, and the next sync checks every file"
    return read_record(os.path.join(root, layout.RELEASE), parse, remedy) or Installed(root, serials=serials)


def _serials(record: dict[str, Any]) -> dict[str, int]:
    return {_key(source): int(serial) for source, serial in record.items()}


def encode_record(source: Source, manifest: Manifest) -> Iterator[bytes]:
    """The bytes of the file RELEASE, as `read_installed` reads them, in parts: those of a long list take megabytes."""
    record = {
        "kind": source.type,
        "source": as_recorded(source.url),
        "version": source.version,
        "serial": source.serial,
        "manifest": manifest.sha256.hex(),
        "files": len(manifest),
        "state": source.record(),
    }
    return map(str.encode, json.JSONEncoder().iterencode(record))
