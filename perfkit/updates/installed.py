"""What a tree's own files say of it: the source, the version and the manifest that are installed, and old serials."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from perfkit.errors import UpdateError
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions.commit import OWN
from perfkit.updates.source_types import Kind

__all__ = ["MANIFEST", "RELEASE", "Installed", "read_installed", "record_of"]

MANIFEST, RELEASE = "manifest", "release"  # below OWN; committed and rolled back with the files that they speak of
_SERIALS = "serials"  # below OWN; never rolled back
_NOTHING = Manifest.of(())


@dataclass(frozen=True)
class Installed:
    """What is installed in a tree; all is empty where nothing is.

    Attributes:
        kind: of the source; None: nothing is installed.
        source: its URL.
        version: what the source called it.
        serial: of the source's releases, if it counts them; else 0.
        manifest_sha256: in hexadecimal, of the manifest.
        files: how many.
        state: what the source's `record` gave when this was installed.
        serials: by source, the highest serial that was installed here before; a rollback does not lower it.
    """

    root: str
    kind: Kind | None = None
    source: str = ""
    version: str | None = None
    serial: int = 0
    manifest_sha256: str = _NOTHING.sha256.hex()
    files: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)
    serials: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """The files, by name; read when it is first asked for, which must be before the tree changes.

        Raises:
            ManifestError: it is damaged.
            OSError: it can't be read.
        """
        if self.kind is None:
            return _NOTHING
        with open(os.path.join(self.root, OWN, MANIFEST), "rb") as file:
            return Manifest.parse(file.read(), sha256=bytes.fromhex(self.manifest_sha256), known=True)

    def highest(self, source: str) -> int:
        """The highest serial of this source that was ever installed here; 0 if it never was, or has none."""
        installed = self.serial if self.source == source else 0
        return max(installed, self.serials.get(source, 0))

    def note(self, source: str, serial: int) -> None:
        """Write down that this serial was installed, so that no rollback and no other source makes it forgotten.

        Raises:
            OSError: it can't be written.
        """
        if serial <= self.serials.get(source, 0):
            return
        path = os.path.join(self.root, OWN, _SERIALS)
        with open(f"{path}~", "w", encoding="utf-8") as file:
            json.dump({**self.serials, source: serial}, file)
        os.replace(f"{path}~", path)


def read_installed(root: str) -> Installed:
    """What is installed in the tree at `root`.

    Raises:
        UpdateError: one of the files that tell is damaged.
    """
    own = os.path.join(root, OWN)
    serials = _serials(os.path.join(own, _SERIALS))
    path = os.path.join(own, RELEASE)
    try:
        with open(path, "rb") as file:
            record = json.load(file)
        if not os.path.exists(os.path.join(own, MANIFEST)):
            return Installed(root, serials=serials)  # without its manifest a tree is one that nothing is known of
        return Installed(
            root,
            Kind(record["kind"]),
            str(record["source"]),
            str(record["version"]),
            int(record["serial"]),
            str(record["manifest"]),
            int(record["files"]),
            dict(record["state"]),
            serials,
        )
    except (FileNotFoundError, NotADirectoryError):
        return Installed(root, serials=serials)
    except (ValueError, TypeError, KeyError) as error:
        raise UpdateError(f"{path} is damaged ({error}); remove it, and sync looks at all files anew") from error


def record_of(
    *, kind: Kind, source: str, version: str, serial: int, manifest: Manifest, state: Mapping[str, object]
) -> bytes:
    """The bytes of the file RELEASE, as `read_installed` reads them."""
    record = {
        "kind": kind,
        "source": source,
        "version": version,
        "serial": serial,
        "manifest": manifest.sha256.hex(),
        "files": len(manifest),
        "state": state,
    }
    return json.dumps(record).encode()


def _serials(path: str) -> dict[str, int]:
    try:
        with open(path, encoding="utf-8") as file:
            return {str(source): int(serial) for source, serial in json.load(file).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        reason = "damaged: it tells which old pointers are not to be followed; remove it to follow any"
        raise UpdateError(f"{path} is {reason}") from error
