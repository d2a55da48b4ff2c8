"""Choose routes for missing blobs: each is priced in seconds on the given link, and the cheapest are taken. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

from perfkit.errors import UpdateError


class Link(NamedTuple):
    """The network and the machine, as far as they determine how long a route takes."""

    bytes_per_s: float = 4e6
    latency_s: float = 0.05  # from a request to the first byte of its response
    streams: int = 8  # parallel requests
    decoded_bytes_per_s: float = 200e6

    def seconds(self, offer: Offer) -> float:
        rounds = -(-offer.requests // self.streams)
        transfer_s = rounds * self.latency_s + offer.bytes / self.bytes_per_s
        return transfer_s + offer.decoded_bytes / self.decoded_bytes_per_s


class Offer(NamedTuple):
    """What one route would supply, and at what cost. Other routes have to supply the rest."""

    route: str
    blobs: Set[bytes]  # by SHA-256
    bytes: int  # over the network
    requests: int
    decoded_bytes: int = 0  # how many bytes have to be read and written to decode the blobs
    variant: str = ""  # the variant of the route, if it has several; they exclude each other


def choose_routes(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], link: Link
) -> tuple[Offer, ...]:
    """The cheapest routes that together supply these blobs, in the order to take them.

    Args:
        missing: blobs, by SHA-256.
        offers: returns what each route would supply of the given blobs, and at what cost.

    Raises:
        UpdateError: no route offers some of the blobs.
    """
    found = _cheapest(missing, offers, link, used=frozenset())
    if found is None:
        raise UpdateError(f"no route offers all of the {len(missing)} missing file contents: the release is incomplete")
    return found


def _cheapest(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], link: Link, used: frozenset[str]
) -> tuple[Offer, ...] | None:
    """Try each route first, followed by the cheapest way to get the rest: with few routes, all orders can be tried."""
    if not missing:
        return ()
    best: tuple[Offer, ...] | None = None
    for offer in offers(missing):
        if offer.route in used or missing.isdisjoint(offer.blobs):
            continue
        rest = _cheapest(missing - offer.blobs, offers, link, used | {offer.route})
        if rest is not None and (best is None or route_seconds((offer, *rest), link) < route_seconds(best, link)):
            best = (offer, *rest)
    return best


def route_seconds(offers: Iterable[Offer], link: Link) -> float:
    """How long these routes take, one after the other."""
    return sum(link.seconds(offer) for offer in offers)
