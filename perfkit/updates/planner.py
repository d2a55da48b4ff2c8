"""Decide what to do to a tree, from values alone: what exists, what is wanted, what is installed. No I/O.

Content that is anywhere in the tree or in its history costs no bytes; only the rest has to be fetched.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.compact import DigestIndex, pack_numbers
from perfkit.filesystem.paths import backup_name
from perfkit.releases.format.manifest import EntrySubset, LazySequence
from perfkit.updates.routes import Link, Offer, route_seconds

_NAMES_SHOWN = 5  # in an error
_FEW = 3  # files with the same content that are searched again for each copy


class FileInfo(Protocol):
    """The content and mode of a file; `Entry` of a manifest is one."""

    @property
    def sha256(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def executable(self) -> bool: ...


class ExistingFile(NamedTuple):
    """A file in the tree. `sha256` is empty for anything but a regular file."""

    sha256: bytes
    size: int
    executable: bool = False


class ExistingFiles(Mapping[str, FileInfo]):
    """Some files of the tree: the intact ones, which match the manifest, and the others."""

    def __init__(self, intact: EntrySubset, others: Mapping[str, ExistingFile]) -> None:
        self._intact = intact
        self._others = others
        self._other_names = tuple(others)
        self.names = LazySequence(self._name, range(len(self)))
        self.entries = LazySequence(self._file, range(len(self)))

    def _name(self, at: int) -> str:
        return self._intact.names[at] if at < len(self._intact) else self._other_names[at - len(self._intact)]

    def _file(self, at: int) -> FileInfo:
        return self._intact.entries[at] if at < len(self._intact) else self._others[self._name(at)]

    def __getitem__(self, name: str) -> FileInfo:
        return self._others[name] if name in self._others else self._intact[name]

    def __contains__(self, name: object) -> bool:
        return name in self._others or name in self._intact

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._intact) + len(self._other_names)


class _Files(NamedTuple):
    """A mapping from names to files, as two sequences."""

    names: Sequence[str]
    files: Sequence[FileInfo]

    @classmethod
    def of(cls, files: Mapping[str, FileInfo]) -> _Files:
        if isinstance(files, (EntrySubset, ExistingFiles)):
            return cls(files.names, files.entries)
        return cls(tuple(files), tuple(files.values()))

    def names_at(self, places: Sequence[int]) -> Sequence[str]:
        return LazySequence(self.names.__getitem__, pack_numbers(places))


class LocalCopy(NamedTuple):
    """A file made from content that the tree already has."""

    name: str
    source: str  # the name of the file that has the content
    move: bool = False  # rename the source instead of copying it: nothing else needs it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps from the existing tree to the wanted one.

    Attributes:
        version: the version to install.
        installed_version: the version to replace; None: nothing is installed.
        held: the version that the source offers and a sync would skip, since it is on hold.
        keep: names that are already as wanted, among those given to `decide`.
        unchanged: how many files of the whole tree are already as wanted.
        local: files made from other files of the tree.
        modes: names whose content is right and whose executable bit is not.
        stored: names whose content is only in the history.
        fetch: names whose content has to be fetched.
        remove: names to remove.
        already_applied: names that somebody else already changed as this version does.
        saved_as: locally edited files, and the names that they are saved as.
        overwritten: locally edited files that are not saved.
        added, changed: names.
        offers: the routes to take, in order.
        missing_bytes: total size of the blobs in `fetch`, each counted once; set with the routes.
        bytes, requests: expected network use.
        seconds: expected duration.
    """

    version: str = ""
    installed_version: str | None = None
    held: str | None = None
    keep: Sequence[str] = ()
    unchanged: int = 0
    local: tuple[LocalCopy, ...] = ()
    modes: Sequence[str] = ()
    stored: Sequence[str] = ()
    fetch: Sequence[str] = ()
    remove: Sequence[str] = ()
    already_applied: tuple[str, ...] = ()
    saved_as: Mapping[str, str] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    added: Sequence[str] = ()
    changed: Sequence[str] = ()
    offers: tuple[Offer, ...] = ()
    missing_bytes: int = 0
    bytes: int = 0
    requests: int = 0
    seconds: float = 0.0

    def with_offers(self, offers: tuple[Offer, ...], missing_bytes: int) -> Plan:
        """The plan with the routes to take, and their cost."""
        return replace(
            self,
            offers=offers,
            missing_bytes=missing_bytes,
            bytes=sum(offer.bytes for offer in offers),
            requests=sum(offer.requests for offer in offers),
            seconds=route_seconds(offers, Link()),
        )

    @property
    def empty(self) -> bool:
        """Whether the tree is already as wanted."""
        return not (self.local or self.stored or self.modes or self.fetch or self.remove or self.saved_as)

    @property
    def steps(self) -> int:
        """How many files are put in place or removed."""
        return len(self.local) + len(self.modes) + len(self.stored) + len(self.fetch) + len(self.remove)

    @property
    def route(self) -> str:
        """The names of the routes: `none` where nothing changes, `local` where nothing is fetched."""
        if self.offers:
            return "+".join(dict.fromkeys(offer.route for offer in self.offers))
        return "none" if self.empty else "local"


def decide(
    wanted: Mapping[str, FileInfo],
    existing: Mapping[str, FileInfo],
    installed: Mapping[str, FileInfo],
    *,
    stored: Callable[[bytes], bool] = lambda digest: False,
    taken: Callable[[str], bool] = lambda name: False,
    local_changes: LocalChanges = "keep",
) -> Plan:
    """The plan without its routes: what stays, moves, is removed, and has to be fetched.

    Args:
        wanted: the files of the version to install, by name.
        existing: the files in the tree under the names of `wanted` and `installed`.
        installed: the files of the installed version, by name.
        stored: whether the tree's history has a blob, by SHA-256.
        taken: whether the tree has something under a name that is not in `existing`.
        local_changes: what to do with a file that is neither as `installed` nor as `wanted`, and with an unmanaged file
            in the way: `keep` it under another name next to the new one, `overwrite` it, or `refuse`.

    Raises:
        UpdateError: there are local changes, and `local_changes` is `refuse`.
    """
    files = _Files.of(wanted)
    keep, modes, added, changed, missing = (array("I") for _ in range(5))
    for at, (name, entry) in enumerate(zip(*files, strict=True)):
        found = existing.get(name)
        if found is None:
            added.append(at)
        elif _same(found, entry):
            keep.append(at)
        else:
            changed.append(at)
        if found is None or found.sha256 != entry.sha256:
            missing.append(at)
        elif found.executable != entry.executable:
            modes.append(at)
    tree = _Tree(_Files.of(existing), wanted, installed)
    if local_changes == "refuse":
        _refuse_edits(tree.edited)
    saved_as: dict[str, str] = {}
    fresh: set[str] = set()
    for name in tree.edited if local_changes == "keep" else ():
        saved_as[name] = backup_name(name, lambda n: n in wanted or n in existing or n in fresh or taken(n))
        fresh.add(saved_as[name])
    local, kept, fetch = _locate(files, missing, tree, stored)
    moved = {each.source for each in local if each.move}
    return Plan(
        keep=files.names_at(keep),
        unchanged=len(keep),
        local=tuple(local),
        stored=files.names_at(kept),
        modes=files.names_at(modes),
        fetch=files.names_at(fetch),
        remove=tree.unwanted(but={*moved, *saved_as}),
        already_applied=tuple(_already_applied(files.names_at(keep), wanted, existing, installed)),
        saved_as=saved_as,
        overwritten=tuple(tree.edited) if local_changes == "overwrite" else (),
        added=files.names_at(added),
        changed=files.names_at(changed),
    )


def _refuse_edits(edited: Collection[str]) -> None:
    if edited:
        shown = ", ".join(sorted(edited)[:_NAMES_SHOWN]) + (", …" if len(edited) > _NAMES_SHOWN else "")
        raise UpdateError(
            f"{len(edited)} files were changed locally: {shown}; the tree was not changed. "
            'Set local_changes to "keep" to save them under other names, or to "overwrite" to replace them'
        )


class _Tree:
    """The existing files, and which of them become unused."""

    def __init__(self, files: _Files, wanted: Mapping[str, FileInfo], installed: Mapping[str, FileInfo]) -> None:
        self._files = files
        self._unwanted = array("I")
        # names whose content is neither that of the installed version nor that of the wanted one
        self.edited: list[str] = []
        self._movable = bytearray(len(files.names))  # 1 for each unwanted name whose file nothing else needs yet
        for at, (name, found) in enumerate(zip(*files, strict=True)):
            entry = wanted.get(name)
            if entry is None:
                self._unwanted.append(at)
            if (entry is None or entry.sha256 != found.sha256) and _edited(found, installed.get(name)):
                self.edited.append(name)
            else:
                self._movable[at] = entry is None
        self._index = DigestIndex(found.sha256 for found in files.files)
        self._searched: dict[bytes, int] = {}  # blob: how many of its files were tried, where there are many

    def unwanted(self, but: Collection[str]) -> Sequence[str]:
        """The names that the wanted version does not have."""
        return self._files.names_at(array("I", (at for at in self._unwanted if self._files.names[at] not in but)))

    def source(self, wanted: FileInfo) -> tuple[str, bool] | None:
        """A name that has this content, and whether its file can be moved; none is moved twice."""
        names, files = self._files
        searched = self._searched.get(wanted.sha256, 0)
        for number, at in enumerate(self._index.candidates(wanted.sha256, skip=searched), searched + 1):
            if number > _FEW:
                self._searched[wanted.sha256] = number
            if self._movable[at] and _same(files[at], wanted):
                self._movable[at] = 0
                return names[at], True
        matches = (at for at in self._index.candidates(wanted.sha256) if files[at].sha256 == wanted.sha256)
        return next(((names[at], False) for at in matches), None)


def _same(found: FileInfo, entry: FileInfo) -> bool:
    return found.sha256 == entry.sha256 and found.executable == entry.executable


def _already_applied(
    keep: Iterable[str],
    wanted: Mapping[str, FileInfo],
    existing: Mapping[str, FileInfo],
    installed: Mapping[str, FileInfo],
) -> Iterator[str]:
    """The names that somebody else already changed or removed as the wanted version does."""
    for name in keep:
        if name in installed and not _same(installed[name], wanted[name]):
            yield name
    yield from (name for name in installed if name not in wanted and name not in existing)


def _edited(found: FileInfo, installed: FileInfo | None) -> bool:
    return installed is None or found.sha256 != installed.sha256


def _locate(
    wanted: _Files, missing: Iterable[int], tree: _Tree, stored: Callable[[bytes], bool]
) -> tuple[list[LocalCopy], array[int], array[int]]:
    """Where the content of each missing file is: in the tree, in its history, or on the network."""
    local: list[LocalCopy] = []
    kept, fetch = array("I"), array("I")
    for at in missing:
        entry = wanted.files[at]
        if (found := tree.source(entry)) is not None:
            source, move = found
            local.append(LocalCopy(wanted.names[at], source, move=move))
        elif stored(entry.sha256):
            kept.append(at)
        else:
            fetch.append(at)
    return local, kept, fetch
