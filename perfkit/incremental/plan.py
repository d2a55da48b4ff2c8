"""What to do to a tree, decided from values alone: what is there, what is wanted, and what is on offer. No I/O.

Content that is anywhere in the tree, or in its history, costs no bytes. What is left has to come over the network;
every route that could bring some of it is priced in seconds on the link at hand, and the cheapest ones are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.paths import aside_name

__all__ = ["Content", "Held", "Link", "Local", "Offer", "Plan", "choose", "decide"]


_SHOWN = 5  # names in an error


class Content(Protocol):
    """What a file is to hold; a manifest's entries are of this kind."""

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
    contents: frozenset[bytes]  # by SHA-256
    bytes: int  # over the network
    requests: int
    decoded_bytes: int = 0  # that have to be read and written to get there
    variant: str = ""  # of the route, where there are several ways to take it; they exclude each other


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The way from what is there to what is wanted."""

    version: str
    installed_version: str | None = None  # None: nothing is installed
    keep: frozenset[str] = frozenset()  # names that are as wanted, of those that were given to `decide`
    unchanged: int = 0  # files that are as wanted, of all
    local: tuple[Local, ...] = ()
    modes: tuple[str, ...] = ()  # whose content is right, and whose executable bit is not
    stored: tuple[str, ...] = ()  # names whose content only the history has
    fetch: tuple[str, ...] = ()  # names whose content is not here
    remove: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()  # that are as wanted, or gone, already, though the installed release had them otherwise
    aside: Mapping[str, str] = field(default_factory=dict)  # edited files, and the names they are kept under
    overwritten: tuple[str, ...] = ()  # edited files that are not kept
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
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
    installed: Mapping[str, Held],
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
    keep = frozenset(name for name, entry in wanted.items() if _same(installed.get(name), entry))
    modes = tuple(name for name, entry in wanted.items() if name not in keep and name in installed
                  and installed[name].sha256 == entry.sha256)  # fmt: skip
    right = keep.union(modes)
    edited = [name for name, held in installed.items() if name not in right and _edited(held, before.get(name))]
    if edited and local_changes == "refuse":
        shown = ", ".join(sorted(edited)[:_SHOWN]) + (", …" if len(edited) > _SHOWN else "")
        raise UpdateError(f"{len(edited)} files were changed locally: {shown}; nothing was done. "
                          'local_changes="keep" moves them aside, "overwrite" replaces them')  # fmt: skip
    names = {*wanted, *installed}
    aside: dict[str, str] = {}
    for name in edited if local_changes == "keep" else ():
        aside[name] = aside_name(name, lambda fresh: fresh in names or taken(fresh))
        names.add(aside[name])
    gone = [name for name in installed if name not in wanted]
    local, kept, fetch = _sources(wanted, installed, right, free={*gone}.difference(edited), stored=stored)
    moved = {each.source for each in local if each.move}
    sizes = {wanted[name].sha256: wanted[name].size for name in fetch}
    return Plan(
        version=version,
        installed_version=installed_version,
        keep=keep,
        unchanged=len(keep),
        local=tuple(local),
        stored=tuple(kept),
        modes=modes,
        fetch=tuple(fetch),
        remove=tuple(name for name in gone if name not in moved and name not in aside),
        noted=tuple(n for n, entry in before.items() if _came_about(entry, installed.get(n), wanted.get(n))),
        aside=aside,
        overwritten=tuple(edited) if local_changes == "overwrite" else (),
        added=tuple(name for name in wanted if name not in installed),
        changed=tuple(name for name in wanted if name in installed and name not in keep),
        missing_bytes=sum(sizes.values()),
    )


def _same(held: Held | None, entry: Content) -> bool:
    return held is not None and held.sha256 == entry.sha256 and held.executable == entry.executable


def _came_about(before: Content, held: Held | None, wanted: Content | None) -> bool:
    """Whether others have already made the change that the release makes."""
    if wanted is None:
        return held is None
    return _same(held, wanted) and (before.sha256, before.executable) != (wanted.sha256, wanted.executable)


def _edited(held: Held, entry: Content | None) -> bool:
    return entry is None or held.sha256 != entry.sha256


def _sources(
    wanted: Mapping[str, Content],
    installed: Mapping[str, Held],
    right: Collection[str],
    *,
    free: set[str],
    stored: Collection[bytes],
) -> tuple[list[Local], list[str], list[str]]:
    """Where each file that is not in place comes from: the tree itself, its history, or the network."""
    holders: dict[bytes, list[str]] = {}
    for name, held in installed.items():
        if held.sha256:
            holders.setdefault(held.sha256, []).append(name)
    local: list[Local] = []
    kept: list[str] = []
    fetch: list[str] = []
    for name, entry in wanted.items():
        if name in right:
            continue
        sources = holders.get(entry.sha256, [])
        leaving = next((source for source in sources if source in free), None)
        if leaving is not None and installed[leaving].executable == entry.executable:
            free.remove(leaving)
            local.append(Local(name, leaving, move=True))
        elif sources:
            local.append(Local(name, sources[0]))
        elif entry.sha256 in stored:
            kept.append(name)
        else:
            fetch.append(name)
    return local, kept, fetch


def choose(
    missing: Collection[bytes], offers: Callable[[frozenset[bytes]], Sequence[Offer]], link: Link
) -> tuple[Offer, ...]:
    """The routes that together bring these contents for the least price, in the order to take them.

    Args:
        missing: contents, by SHA-256.
        offers: what each route asks for bringing what it can of these.

    Raises:
        UpdateError: some content is on offer from no route.
    """
    found = _cheapest(frozenset(missing), offers, link, used=frozenset())
    if found is None:
        raise UpdateError(f"no route offers all of the {len(missing)} missing contents; the release is incomplete")
    return found


def _cheapest(
    missing: frozenset[bytes], offers: Callable[[frozenset[bytes]], Sequence[Offer]], link: Link, used: frozenset[str]
) -> tuple[Offer, ...] | None:
    """Each route first, and after it the best for what it leaves; there are few routes, so all orders are tried."""
    if not missing:
        return ()
    best: tuple[Offer, ...] | None = None
    for offer in offers(missing):
        if offer.route in used or not offer.contents & missing:
            continue
        rest = _cheapest(missing - offer.contents, offers, link, used | {offer.route})
        if rest is not None and (best is None or _price((offer, *rest), link) < _price(best, link)):
            best = (offer, *rest)
    return best


def _price(offers: Iterable[Offer], link: Link) -> float:
    return sum(link.seconds(offer) for offer in offers)
