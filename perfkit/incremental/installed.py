"""What a tree's own files say of it: the source, the version and the manifest that are installed, and old serials."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfkit.errors import UpdateError
from perfkit.filesystem.commit import OWN
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.recognise import Kind

__all__ = ["MANIFEST", "RELEASE", "Installed", "Summary", "read_installed", "read_summary", "record_of"]

MANIFEST, RELEASE = "manifest", "release"  # below OWN; committed and rolled back with the files that they speak of
_SERIALS = "serials"  # below OWN; never rolled back
_NOTHING = Manifest.of(())


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed in a tree; all is empty where nothing is.

    Attributes:
        kind: of the source; None: nothing is installed.
        source: its URL.
        version: what the source called it.
        manifest: the files, by name.
        state: what the source's `record` gave when this was installed.
        serials: by source, the highest serial that was ever installed here; a rollback does not lower it.
    """

    root: str
    kind: Kind | None = None
    source: str = ""
    version: str | None = None
    manifest: Manifest = _NOTHING
    state: Mapping[str, Any] = field(default_factory=dict)
    serials: Mapping[str, int] = field(default_factory=dict)

    def highest(self, source: str) -> int:
        """The highest serial of this source that was ever installed here; 0 if it never was, or has none."""
        return self.serials.get(source, 0)

    def note(self, source: str, serial: int) -> None:
        """Write down that this serial has been installed, if it is the highest.

        Raises:
            OSError: it can't be written.
        """
        if serial <= self.highest(source):
            return
        path = os.path.join(self.root, OWN, _SERIALS)
        with open(f"{path}~", "w", encoding="utf-8") as file:
            json.dump({**self.serials, source: serial}, file)
        os.replace(f"{path}~", path)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is installed, in short: its version, and how many files it has."""

    version: str | None = None
    files: int = 0


def read_summary(root: str) -> Summary:
    """What is installed in the tree at `root`, told without its manifest.

    Raises:
        UpdateError: the file that tells is damaged.
    """
    try:
        record = _record(root)
        return Summary() if record is None else Summary(str(record["version"]), int(record["files"]))
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(root, error) from error


def _record(root: str) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(_path(root), "rb") as file:
        record: dict[str, Any] = json.load(file)
        return record
    return None


def _path(root: str) -> str:
    return os.path.join(root, OWN, RELEASE)


def _damaged(root: str, error: Exception) -> UpdateError:
    return UpdateError(f"{_path(root)} is damaged ({error}); remove it, and sync looks at all files anew")


def read_installed(root: str) -> Installed:
    """What is installed in the tree at `root`.

    Raises:
        UpdateError: one of the files that tell is damaged.
        ManifestError: the manifest is.
    """
    own = os.path.join(root, OWN)
    serials = _serials(os.path.join(own, _SERIALS))
    try:
        record = _record(root)
        if record is None:
            return Installed(root, serials=serials)
        with open(os.path.join(own, MANIFEST), "rb") as file:
            manifest = Manifest.parse(file.read(), sha256=bytes.fromhex(record["manifest"]))
        return Installed(root, Kind(record["kind"]), str(record["source"]), str(record["version"]), manifest,
                         dict(record["state"]), serials)  # fmt: skip
    except FileNotFoundError:
        return Installed(root, serials=serials)  # without its manifest a tree is one that nothing is known of
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(root, error) from error


def record_of(*, kind: Kind, source: str, version: str, manifest: Manifest, state: Mapping[str, object]) -> bytes:
    """The bytes of the file RELEASE, as `read_installed` reads them."""
    record = {"kind": kind, "source": source, "version": version, "manifest": manifest.sha256.hex(),
              "files": len(manifest), "state": state}  # fmt: skip
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
