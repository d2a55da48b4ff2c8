"""What to do to a tree, decided from values alone: what is there, what is wanted, and what is on offer. No I/O.

Content that is anywhere in the tree, or in its history, costs no bytes. What is left has to come over the network;
every route that could bring some of it is priced in seconds on the link at hand, and the cheapest ones are taken.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.compact import pack_numbers
from perfkit.filesystem.paths import aside_name
from perfkit.releases.format.manifest import Part, View
from perfkit.updates.digest_index import DigestIndex

__all__ = ["Content", "Held", "Link", "Local", "Offer", "Plan", "Standing", "choose", "decide"]


_SHOWN = 5  # names in an error
_FEW = 3  # holders of a content that may be looked at again and again


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


class Standing(Mapping[str, Content]):
    """What stands under some names: entries of a manifest just as it has them, and what is otherwise."""

    def __init__(self, as_said: Part, others: Mapping[str, Held]) -> None:
        self._as_said = as_said
        self._others = others
        self._last = tuple(others)
        self.names = View(self._name, range(len(self)))
        self.contents = View(self._content, range(len(self)))

    def _name(self, at: int) -> str:
        return self._as_said.names[at] if at < len(self._as_said) else self._last[at - len(self._as_said)]

    def _content(self, at: int) -> Content:
        return self._as_said.entries[at] if at < len(self._as_said) else self._others[self._name(at)]

    def __getitem__(self, name: str) -> Content:
        return self._others[name] if name in self._others else self._as_said[name]

    def __contains__(self, name: object) -> bool:
        return name in self._others or name in self._as_said

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._as_said) + len(self._last)


class _Files(NamedTuple):
    """A mapping of names, by their places in it."""

    names: Sequence[str]
    contents: Sequence[Content]

    @classmethod
    def of(cls, files: Mapping[str, Content]) -> _Files:
        if isinstance(files, Part):
            return cls(files.names, files.entries)
        if isinstance(files, Standing):
            return cls(files.names, files.contents)
        return cls(tuple(files), tuple(files.values()))

    def chosen(self, places: Sequence[int]) -> Sequence[str]:
        return View(self.names.__getitem__, pack_numbers(places))


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
        return replace(
            self,
            offers=offers,
            bytes=sum(offer.bytes for offer in offers),
            requests=sum(offer.requests for offer in offers),
            seconds=_price(offers, link),
        )

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
    files = _Files.of(wanted)
    keep, modes, added, changed, lacking = (array("I") for _ in range(5))
    for at, (name, entry) in enumerate(zip(*files, strict=True)):
        held = installed.get(name)
        if held is None:
            added.append(at)
        elif _same(held, entry):
            keep.append(at)
        else:
            changed.append(at)
        if held is None or held.sha256 != entry.sha256:
            lacking.append(at)
        elif held.executable != entry.executable:
            modes.append(at)
    tree = _Tree(_Files.of(installed), wanted, before)
    if tree.edited and local_changes == "refuse":
        edited = tree.edited
        shown = ", ".join(sorted(edited)[:_SHOWN]) + (", …" if len(edited) > _SHOWN else "")
        raise UpdateError(
            f"{len(edited)} files were changed locally: {shown}; nothing was done. "
            'local_changes="keep" moves them aside, "overwrite" replaces them'
        )
    aside: dict[str, str] = {}
    fresh: set[str] = set()
    for name in tree.edited if local_changes == "keep" else ():
        aside[name] = aside_name(name, lambda n: n in wanted or n in installed or n in fresh or taken(n))
        fresh.add(aside[name])
    local, kept, fetch = _sources(files, lacking, tree, stored)
    moved = {each.source for each in local if each.move}
    return Plan(
        version=version,
        installed_version=installed_version,
        keep=files.chosen(keep),
        unchanged=len(keep),
        local=tuple(local),
        stored=files.chosen(kept),
        modes=files.chosen(modes),
        fetch=files.chosen(fetch),
        remove=tree.gone(but={*moved, *aside}),
        noted=tuple(n for n, entry in before.items() if _came_about(entry, installed.get(n), wanted.get(n))),
        aside=aside,
        overwritten=tuple(tree.edited) if local_changes == "overwrite" else (),
        added=files.chosen(added),
        changed=files.chosen(changed),
        missing_bytes=_total(View(files.contents.__getitem__, fetch)),
    )


class _Tree:
    """What stands in the tree, and what of it goes.

    Attributes:
        edited: the names whose content is neither what the release before nor this one has.
    """

    def __init__(self, files: _Files, wanted: Mapping[str, Content], before: Mapping[str, Content]) -> None:
        self._files = files
        self._gone = array("I")
        self.edited: list[str] = []
        self._leaves = bytearray(len(files.names))  # 1 for each that goes, and whose file nothing else needs yet
        for at, (name, held) in enumerate(zip(*files, strict=True)):
            entry = wanted.get(name)
            if entry is None:
                self._gone.append(at)
            if (entry is None or entry.sha256 != held.sha256) and _edited(held, before.get(name)):
                self.edited.append(name)
            else:
                self._leaves[at] = entry is None
        self._index = DigestIndex(held.sha256 for held in files.contents)
        self._passed: dict[bytes, int] = {}  # how many of a content's holders were looked at, where many have it

    def gone(self, but: Collection[str]) -> Sequence[str]:
        """The names that the release does not have."""
        return self._files.chosen(array("I", (at for at in self._gone if self._files.names[at] not in but)))

    def source(self, wanted: Content) -> tuple[str, bool] | None:
        """A name that has this content, and whether its file can be moved, as the name goes; none is moved twice."""
        names, contents = self._files
        passed = self._passed.get(wanted.sha256, 0)
        for number, at in enumerate(self._index.candidates(wanted.sha256, skip=passed), passed + 1):
            if number > _FEW:
                self._passed[wanted.sha256] = number
            if self._leaves[at] and _same(contents[at], wanted):
                self._leaves[at] = 0
                return names[at], True
        holders = (at for at in self._index.candidates(wanted.sha256) if contents[at].sha256 == wanted.sha256)
        return next(((names[at], False) for at in holders), None)


def _total(contents: Sequence[Content]) -> int:
    """The bytes of these files, each content once."""
    index = DigestIndex(each.sha256 for each in contents)
    total = 0
    for at, each in enumerate(contents):
        first = next(place for place in index.candidates(each.sha256) if contents[place].sha256 == each.sha256)
        total += each.size if first == at else 0
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
    wanted: _Files, lacking: Iterable[int], tree: _Tree, stored: Collection[bytes]
) -> tuple[list[Local], array[int], array[int]]:
    """Where each file that is not in place comes from: the tree itself, its history, or the network."""
    local: list[Local] = []
    kept, fetch = array("I"), array("I")
    for at in lacking:
        entry = wanted.contents[at]
        if (found := tree.source(entry)) is not None:
            source, move = found
            local.append(Local(wanted.names[at], source, move=move))
        elif entry.sha256 in stored:
            kept.append(at)
        else:
            fetch.append(at)
    return local, kept, fetch


def choose(missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], link: Link) -> tuple[Offer, ...]:
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
