"""What to do to a tree, decided from values alone: what is there, what is wanted, and what is on offer. No I/O.

Content that is anywhere in the tree, or in its history, costs no bytes. What is left has to come over the network;
every route that could bring some of it is priced in seconds on the link at hand, and the cheapest ones are taken.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, overload

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.paths import aside_name
from perfkit.incremental.contents import DigestIndex
from perfkit.incremental.manifest import Part

__all__ = ["Chosen", "Content", "Held", "Link", "Local", "Offer", "Plan", "Standing", "choose", "decide"]


_SHOWN = 5  # names in an error


class Content(Protocol):
    """What a file holds, or is to hold; a manifest's entries are of this kind."""

    @property
    def sha256(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def executable(self) -> bool: ...


class Held(NamedTuple):
    """What stands under a name. `sha256` is empty for what is not a regular file."""

    sha256: bytes
    size: int
    executable: bool = False


class Chosen(Sequence[str]):
    """Some of many names, in their order; equal to any sequence of the same ones."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._places = array("I")

    def take(self, place: int) -> None:
        """One more: which of the names."""
        self._places.append(place)

    def places(self) -> Iterator[tuple[int, str]]:
        """The names, each with its place."""
        return ((place, self.names[place]) for place in self._places)

    def those(self, fits: Callable[[str], bool]) -> Chosen:
        """Those of them that fit."""
        found = Chosen(self.names)
        found._places.extend(place for place, name in self.places() if fits(name))
        return found

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self.names[place] for place in self._places[at]]
        return self.names[self._places[at]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # more can be taken

    def __repr__(self) -> str:
        return f"Chosen({list(self)!r})"


def _in_order(files: Mapping[str, object]) -> Sequence[str]:
    """The names of a mapping, by their places."""
    return files.names if isinstance(files, (Part, Standing)) else tuple(files)


class Standing(Mapping[str, Content]):
    """What stands under some names: entries of a manifest just as it has them, and what is otherwise."""

    def __init__(self, as_said: Part, others: Mapping[str, Held]) -> None:
        self._as_said = as_said
        self._others = others

    @property
    def names(self) -> Sequence[str]:
        """All of them."""
        return (*self._as_said.names, *self._others) if self._others else self._as_said.names

    def __getitem__(self, name: str) -> Content:
        return self._others.get(name) or self._as_said[name]

    def __contains__(self, name: object) -> bool:
        return name in self._others or name in self._as_said

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._as_said) + len(self._others)


class Local(NamedTuple):
    """A file made from content that the tree has already."""

    name: str
    source: str  # the name that has it
    move: bool = False  # the source's own name goes, and nothing else needs it


class Link(NamedTuple):
    """The network, and this machine, as far as prices go."""

    bytes_per_s: float = 4e6
    latency_s: float = 0.05  # of a request, to its first byte
    streams: int = 8  # requests at once
    decoded_bytes_per_s: float = 200e6

    def seconds(self, offer: Offer) -> float:
        rounds = -(-offer.requests // self.streams)
        transfer_s = rounds * self.latency_s + offer.bytes / self.bytes_per_s
        return transfer_s + offer.decoded_bytes / self.decoded_bytes_per_s


class Offer(NamedTuple):
    """What one route would bring, and for what.

    What a route does not bring, or fails to, is on offer from the others.
    """

    route: str
    contents: Set[bytes]  # by SHA-256
    bytes: int  # over the network
    requests: int
    decoded_bytes: int = 0  # that have to be read and written to get there
    variant: str = ""  # of the route, where there are several ways to take it; they exclude each other


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The way from what is there to what is wanted."""

    version: str
    installed_version: str | None = None  # None: nothing is installed
    keep: Sequence[str] = ()  # names that are as wanted, of those that were given to `decide`
    unchanged: int = 0  # files that are as wanted, of all
    local: tuple[Local, ...] = ()
    modes: Sequence[str] = ()  # whose content is right, and whose executable bit is not
    stored: Sequence[str] = ()  # names whose content only the history has
    fetch: Sequence[str] = ()  # names whose content is not here
    remove: Sequence[str] = ()
    noted: tuple[str, ...] = ()  # that are as wanted, or gone, already, though the installed release had them otherwise
    aside: Mapping[str, str] = field(default_factory=dict)  # edited files, and the names they are kept under
    overwritten: tuple[str, ...] = ()  # edited files that are not kept
    added: Sequence[str] = ()
    changed: Sequence[str] = ()
    offers: tuple[Offer, ...] = ()  # the routes to take, in order
    missing_bytes: int = 0  # of the files in `fetch`, each content once
    bytes: int = 0  # that are expected over the network
    requests: int = 0
    seconds: float = 0.0  # the price of the routes taken

    def by(self, offers: tuple[Offer, ...], link: Link | None = None) -> Plan:
        """The plan with the routes to take, and what they cost."""
        link = link or Link()
        return replace(self, offers=offers, bytes=sum(offer.bytes for offer in offers),
                       requests=sum(offer.requests for offer in offers), seconds=_price(offers, link))  # fmt: skip

    @property
    def empty(self) -> bool:
        """Whether the tree is as wanted."""
        return not (self.local or self.stored or self.modes or self.fetch or self.remove or self.aside)

    @property
    def route(self) -> str:
        """The routes in a word: `none` where nothing changes, `local` where nothing is fetched."""
        if self.offers:
            return "+".join(dict.fromkeys(offer.route for offer in self.offers))
        return "none" if self.empty else "local"


def decide(
    *,
    version: str,
    wanted: Mapping[str, Content],
    installed: Mapping[str, Content],
    before: Mapping[str, Content],
    installed_version: str | None = None,
    stored: Collection[bytes] = (),
    taken: Callable[[str], bool] = lambda name: False,
    local_changes: LocalChanges = "keep",
) -> Plan:
    """Everything but the routes: what stays, moves, goes, and has to be fetched.

    Args:
        wanted: the files of the release, by name.
        installed: what stands under the names of `wanted` and of `before`.
        before: the files of the release that is installed.
        stored: contents that the tree's history has, by SHA-256.
        taken: whether there is something of this name that is not in `installed`.
        local_changes: what becomes of a file that is not what `before` says it is, and not what is wanted either, and
            of an unmanaged one in the way: `keep` it beside its place under another name, `overwrite` it, or `refuse`.

    Raises:
        UpdateError: there are local changes, and they are to be refused.
    """
    names = _in_order(wanted)
    keep, modes, added, changed, lacking = (Chosen(names) for _ in range(5))
    for at, name in enumerate(names):
        entry, held = wanted[name], installed.get(name)
        if held is None:
            added.take(at)
        elif _same(held, entry):
            keep.take(at)
        else:
            changed.take(at)
        if held is None or held.sha256 != entry.sha256:
            lacking.take(at)
        elif held.executable != entry.executable:
            modes.take(at)
    tree = _Tree(installed, wanted, before)
    if tree.edited and local_changes == "refuse":
        edited = tree.edited
        shown = ", ".join(sorted(edited)[:_SHOWN]) + (", …" if len(edited) > _SHOWN else "")
        raise UpdateError(f"{len(edited)} files were changed locally: {shown}; nothing was done. "
                          'local_changes="keep" moves them aside, "overwrite" replaces them')  # fmt: skip
    aside: dict[str, str] = {}
    fresh: set[str] = set()
    for name in tree.edited if local_changes == "keep" else ():
        aside[name] = aside_name(name, lambda n: n in wanted or n in installed or n in fresh or taken(n))
        fresh.add(aside[name])
    local, kept, fetch = _sources(wanted, lacking, tree, stored)
    moved = {each.source for each in local if each.move}
    return Plan(
        version=version,
        installed_version=installed_version,
        keep=keep,
        unchanged=len(keep),
        local=tuple(local),
        stored=kept,
        modes=modes,
        fetch=fetch,
        remove=tree.gone.those(lambda name: name not in moved and name not in aside),
        noted=tuple(n for n, entry in before.items() if _came_about(entry, installed.get(n), wanted.get(n))),
        aside=aside,
        overwritten=tuple(tree.edited) if local_changes == "overwrite" else (),
        added=added,
        changed=changed,
        missing_bytes=_total(wanted, fetch),
    )


class _Tree:
    """What stands in the tree, and what of it goes.

    Attributes:
        gone: the names that the release does not have.
        edited: the names whose content is neither what the release before nor this one has.
    """

    def __init__(
        self, installed: Mapping[str, Content], wanted: Mapping[str, Content], before: Mapping[str, Content]
    ) -> None:
        self._installed = installed
        self._names = _in_order(installed)
        self.gone = Chosen(self._names)
        self.edited: list[str] = []
        self._leaves = bytearray(len(self._names))  # 1 for each that goes, and whose file nothing else needs yet
        for at, name in enumerate(self._names):
            held, entry = installed[name], wanted.get(name)
            if entry is None:
                self.gone.take(at)
            if (entry is None or entry.sha256 != held.sha256) and _edited(held, before.get(name)):
                self.edited.append(name)
            else:
                self._leaves[at] = entry is None
        self._index = DigestIndex(installed[name].sha256 for name in self._names)

    def source(self, wanted: Content) -> tuple[str, bool] | None:
        """A name that has this content, and whether its file can be moved; none is moved twice."""
        first: str | None = None
        for at in self._index.candidates(wanted.sha256):
            name = self._names[at]
            held = self._installed[name]
            if held.sha256 != wanted.sha256:
                continue
            if self._leaves[at] and held.executable == wanted.executable:
                self._leaves[at] = 0
                return name, True
            first = first or name
        return None if first is None else (first, False)


def _total(wanted: Mapping[str, Content], names: Sequence[str]) -> int:
    """The bytes of these files, each content once."""
    index = DigestIndex(wanted[name].sha256 for name in names)
    total = 0
    for at, name in enumerate(names):
        entry = wanted[name]
        first = next(place for place in index.candidates(entry.sha256) if wanted[names[place]].sha256 == entry.sha256)
        total += entry.size if first == at else 0
    return total


def _same(held: Content | None, entry: Content) -> bool:
    return held is not None and held.sha256 == entry.sha256 and held.executable == entry.executable


def _came_about(before: Content, held: Content | None, wanted: Content | None) -> bool:
    """Whether others have already made the change that the release makes."""
    if wanted is None:
        return held is None
    return _same(held, wanted) and (before.sha256, before.executable) != (wanted.sha256, wanted.executable)


def _edited(held: Content, entry: Content | None) -> bool:
    return entry is None or held.sha256 != entry.sha256


def _sources(
    wanted: Mapping[str, Content], lacking: Chosen, tree: _Tree, stored: Collection[bytes]
) -> tuple[list[Local], Chosen, Chosen]:
    """Where each file that is not in place comes from: the tree itself, its history, or the network."""
    local: list[Local] = []
    kept, fetch = Chosen(lacking.names), Chosen(lacking.names)
    for at, name in lacking.places():
        entry = wanted[name]
        if (found := tree.source(entry)) is not None:
            source, move = found
            local.append(Local(name, source, move=move))
        elif entry.sha256 in stored:
            kept.take(at)
        else:
            fetch.take(at)
    return local, kept, fetch


def choose(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], link: Link
) -> tuple[Offer, ...]:
    """The routes that together bring these contents for the least price, in the order to take them.

    Args:
        missing: contents, by SHA-256.
        offers: what each route asks for bringing what it can of these.

    Raises:
        UpdateError: some content is on offer from no route.
    """
    found = _cheapest(missing, offers, link, used=frozenset())
    if found is None:
        raise UpdateError(f"no route offers all of the {len(missing)} missing contents; the release is incomplete")
    return found


def _cheapest(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], link: Link, used: frozenset[str]
) -> tuple[Offer, ...] | None:
    """Each route first, and after it the best for what it leaves; there are few routes, so all orders are tried."""
    if not missing:
        return ()
    best: tuple[Offer, ...] | None = None
    for offer in offers(missing):
        if offer.route in used or missing.isdisjoint(offer.contents):
            continue
        rest = _cheapest(missing - offer.contents, offers, link, used | {offer.route})
        if rest is not None and (best is None or _price((offer, *rest), link) < _price(best, link)):
            best = (offer, *rest)
    return best


def _price(offers: Iterable[Offer], link: Link) -> float:
    return sum(link.seconds(offer) for offer in offers)
