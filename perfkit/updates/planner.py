"""Decide what to do to a tree, from values alone: what exists, what is wanted, what is installed. No I/O.

Content that is anywhere in the tree or in its history costs no bytes; only the rest has to be fetched.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.compact import DigestIndex, LazySequence, pack_numbers
from perfkit.filesystem.paths import backup_name
from perfkit.progress.text import counted
from perfkit.releases.format.manifest import Entry, EntrySubset
from perfkit.updates.routes import LATENCY_S, Offer, route_seconds

_NAMES_SHOWN = 5  # in an error
_FEW = 3  # files with the same content that are searched again for each copy


class ExistingFiles(Mapping[str, Entry]):
    """Some files of the tree: the intact ones, which match the manifest, and the others. The SHA-256 of anything but a
    regular file is empty.
    """

    def __init__(self, intact: EntrySubset, others: Mapping[str, Entry]) -> None:
        self._intact = intact
        self._others = others
        self._other_names = tuple(others)
        self.names = LazySequence(self._name, range(len(self)))
        self.entries = LazySequence(self._entry, range(len(self)))

    def _name(self, at: int) -> str:
        return self._intact.names[at] if at < len(self._intact) else self._other_names[at - len(self._intact)]

    def _entry(self, at: int) -> Entry:
        return self._intact.entries[at] if at < len(self._intact) else self._others[self._name(at)]

    def __getitem__(self, name: str) -> Entry:
        return self._others[name] if name in self._others else self._intact[name]

    def __contains__(self, name: object) -> bool:
        return name in self._others or name in self._intact

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._intact) + len(self._other_names)


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
            seconds=route_seconds(offers, LATENCY_S),
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
    wanted: EntrySubset,
    existing: ExistingFiles,
    installed: EntrySubset,
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
    keep, modes, added, changed, missing = (array("I") for _ in range(5))
    for at, entry in enumerate(wanted.entries):
        found = existing.get(entry.name)
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
    tree = _Tree(existing, wanted, installed)
    if local_changes == "refuse":
        _refuse_edits(tree.edited)
    saved_as: dict[str, str] = {}
    fresh: set[str] = set()
    for name in tree.edited if local_changes == "keep" else ():
        saved_as[name] = backup_name(name, lambda n: n in wanted or n in existing or n in fresh or taken(n))
        fresh.add(saved_as[name])
    local, kept, fetch = _locate(wanted.entries, missing, tree, stored)
    moved = {each.source for each in local if each.move}
    kept_names = _names_at(wanted.names, keep)
    return Plan(
        keep=kept_names,
        unchanged=len(keep),
        local=tuple(local),
        stored=_names_at(wanted.names, kept),
        modes=_names_at(wanted.names, modes),
        fetch=_names_at(wanted.names, fetch),
        remove=tree.unwanted(but={*moved, *saved_as}),
        already_applied=tuple(_already_applied(kept_names, wanted, existing, installed)),
        saved_as=saved_as,
        overwritten=tuple(tree.edited) if local_changes == "overwrite" else (),
        added=_names_at(wanted.names, added),
        changed=_names_at(wanted.names, changed),
    )


def _refuse_edits(edited: Collection[str]) -> None:
    if edited:
        shown = ", ".join(sorted(edited)[:_NAMES_SHOWN]) + (", …" if len(edited) > _NAMES_SHOWN else "")
        raise UpdateError(
            f"{counted(len(edited), 'file')} with local edits: {shown}; the tree was not changed. "
            'Set local_changes to "keep" to save them under other names, or to "overwrite" to replace them'
        )


class _Tree:
    """The existing files, and which of them become unused."""

    def __init__(self, files: ExistingFiles, wanted: EntrySubset, installed: EntrySubset) -> None:
        self._files = files
        self._unwanted = array("I")
        # names whose content is neither that of the installed version nor that of the wanted one
        self.edited: list[str] = []
        self._movable = bytearray(len(files.names))  # 1 for each unwanted name whose file nothing else needs yet
        for at, (name, found) in enumerate(zip(files.names, files.entries, strict=True)):
            entry = wanted.get(name)
            if entry is None:
                self._unwanted.append(at)
            if not (_is_content(entry, found) or _is_content(installed.get(name), found)):
                self.edited.append(name)
            else:
                self._movable[at] = entry is None
        self._index = DigestIndex(found.sha256 for found in files.entries)
        self._searched: dict[bytes, int] = {}  # blob: how many of its files were tried, where there are many

    def unwanted(self, but: Collection[str]) -> Sequence[str]:
        """The names that the wanted version does not have."""
        names = self._files.names
        return _names_at(names, (at for at in self._unwanted if names[at] not in but))

    def source(self, wanted: Entry) -> tuple[str, bool] | None:
        """A name that has this content, and whether its file can be moved; none is moved twice."""
        names, files = self._files.names, self._files.entries
        searched = self._searched.get(wanted.sha256, 0)
        for number, at in enumerate(self._index.candidates(wanted.sha256, skip=searched), searched + 1):
            if number > _FEW:
                self._searched[wanted.sha256] = number
            if self._movable[at] and _same(files[at], wanted):
                self._movable[at] = 0
                return names[at], True
        matches = (at for at in self._index.candidates(wanted.sha256) if files[at].sha256 == wanted.sha256)
        return next(((names[at], False) for at in matches), None)


def _is_content(entry: Entry | None, found: Entry) -> bool:
    return entry is not None and entry.sha256 == found.sha256


def _same(found: Entry, entry: Entry) -> bool:
    return found.sha256 == entry.sha256 and found.executable == entry.executable


def _names_at(names: Sequence[str], places: Iterable[int]) -> Sequence[str]:
    return LazySequence(names.__getitem__, pack_numbers(places))


def _already_applied(
    keep: Iterable[str], wanted: EntrySubset, existing: ExistingFiles, installed: EntrySubset
) -> Iterator[str]:
    """The names that somebody else already changed or removed as the wanted version does."""
    for name in keep:
        if name in installed and not _same(installed[name], wanted[name]):
            yield name
    yield from (name for name in installed if name not in wanted and name not in existing)


def _locate(
    wanted: Sequence[Entry], missing: Iterable[int], tree: _Tree, stored: Callable[[bytes], bool]
) -> tuple[list[LocalCopy], array[int], array[int]]:
    """Where the content of each missing file is: in the tree, in its history, or on the network."""
    local: list[LocalCopy] = []
    kept, fetch = array("I"), array("I")
    for at in missing:
        entry = wanted[at]
        if (found := tree.source(entry)) is not None:
            source, move = found
            local.append(LocalCopy(entry.name, source, move=move))
        elif stored(entry.sha256):
            kept.append(at)
        else:
            fetch.append(at)
    return local, kept, fetch
