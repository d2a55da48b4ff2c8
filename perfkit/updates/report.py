"""What came of a change of a tree, and of a look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SyncReport", "VerifyReport"]


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a `sync` or `rollback` did. Sizes are bytes."""

    version: str  # that the tree has now
    generation: int
    previous_version: str | None = None  # None: nothing was installed
    route: str = "none"  # how the files came: such as `delta`, `blocks`, `local`, `rollback`; `none`: nothing changed
    requests: int = 0
    bytes_received: int = 0  # body bytes over the network, pointer and manifest included
    bytes_written: int = 0  # of files that were made anew; a file that only moved is none
    added: int = 0  # files
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    aside: Mapping[str, str] = field(default_factory=dict)  # edited files, and the names they are kept under
    overwritten: tuple[str, ...] = ()  # edited files that were not kept
    as_found: tuple[str, ...] = ()  # that came back as others had left them, as what the release had is kept nowhere
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What every file of a tree was found to be."""

    version: str
    generation: int
    files: int = 0  # of the release
    bytes: int = 0  # that were hashed
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()  # other content, another kind of file, or another executable bit
    extra: tuple[str, ...] = ()  # in the tree, and not of the release
    repaired: SyncReport | None = None  # what was done about the missing and the changed
    seconds: float = 0.0

    @property
    def intact(self) -> bool:
        """Whether every file is as the release has it, now."""
        return self.repaired is not None or not (self.missing or self.changed)
