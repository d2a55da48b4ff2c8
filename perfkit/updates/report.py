"""The results of `sync`, `rollback` and `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a `sync` or `rollback` did. Sizes are bytes, counts are files.

    Attributes:
        version: the version that the tree has now.
        previous_version: the version before that; None: nothing was installed.
        route: how the files were obtained, such as `delta`, `blocks`, `local` or `rollback`; `none`: nothing changed.
        bytes_received: response bodies, pointer and manifest included.
        bytes_written: total size of written files; files that were only moved do not count.
        saved_as: locally edited files, and the names that they were saved as.
        overwritten: locally edited files that were not saved.
        restored_with_edits: files that a rollback restored with the local edits that they had before an update, because
            the content of the release itself was never kept.
        held: the version that the source offers and that was skipped, since it is on hold (see `Hold`); if the tree is
            pinned, the installed version.
        selection: the part of the release or archive that the tree has, such as `+*.rules -old/`; empty: all of it.
        seconds: how long it took.
    """

    version: str
    generation: int
    previous_version: str | None = None
    held: str | None = None
    selection: str = ""
    route: str = "none"
    requests: int = 0
    bytes_received: int = 0
    bytes_written: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    saved_as: Mapping[str, str] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    restored_with_edits: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def generation_is_new(self) -> bool:
        """Whether the tree changed, or at least the version that it has."""
        return self.route != "none" or self.version != (self.previous_version or "")

    def edits(self) -> list[str]:
        """What happened to locally edited files, in a sentence for each."""
        kept = (f"{name} had local edits, which are kept as {fresh}" for name, fresh in self.saved_as.items())
        lost = (f"{name} had local edits, which were overwritten" for name in self.overwritten)
        back = "was restored with local edits, since the released content is not kept"
        return [*kept, *lost, *(f"{name} {back}" for name in self.restored_with_edits)]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result of hashing every file of a tree.

    Attributes:
        files: how many files the release has.
        bytes: how many bytes were hashed.
        missing: files of the release that are not there.
        changed: files with other content, of another file type, or with another executable bit.
        extra: files in the tree that the release does not have.
        repaired: the repair of missing and changed files; None: none was needed or requested.
        seconds: how long it took.
    """

    version: str
    generation: int
    files: int = 0
    bytes: int = 0
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    repaired: SyncReport | None = None
    seconds: float = 0.0

    @property
    def intact(self) -> bool:
        """Whether every file is now as the release has it."""
        return self.repaired is not None or not (self.missing or self.changed)
