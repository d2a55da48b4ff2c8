"""Choose routes for missing blobs: each is priced in seconds on a typical link, and the cheapest are taken. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

from perfkit.errors import UpdateError

LATENCY_S = 0.05  # from a request to the first byte of its response, before it was measured
_BYTES_PER_S = 4e6
_STREAMS = 8  # parallel requests
_DECODED_BYTES_PER_S = 200e6


class Offer(NamedTuple):
    """What one route would supply, and at what cost. Other routes have to supply the rest."""

    route: str
    blobs: Set[bytes]  # by SHA-256
    bytes: int  # over the network
    requests: int
    decoded_bytes: int = 0  # how many bytes have to be read and written to decode the blobs
    variant: str = ""  # the variant of the route, if it has several; they exclude each other


def choose_routes(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], latency_s: float
) -> tuple[Offer, ...]:
    """The cheapest routes that together supply these blobs, in the order to take them.

    Args:
        missing: blobs, by SHA-256.
        offers: returns what each route would supply of the given blobs, and at what cost.

    Raises:
        UpdateError: no route offers some of the blobs.
    """
    found = _cheapest(missing, offers, latency_s, used=frozenset())
    if found is None:
        raise UpdateError(f"no route offers all of the {len(missing)} missing file contents: the release is incomplete")
    return found


def _cheapest(
    missing: Set[bytes], offers: Callable[[Set[bytes]], Sequence[Offer]], latency_s: float, used: frozenset[str]
) -> tuple[Offer, ...] | None:
    """Try each route first, followed by the cheapest way to get the rest: with few routes, all orders can be tried."""
    if not missing:
        return ()
    best: tuple[Offer, ...] | None = None
    for offer in offers(missing):
        if offer.route in used or missing.isdisjoint(offer.blobs):
            continue
        rest = _cheapest(missing - offer.blobs, offers, latency_s, used | {offer.route})
        if rest is not None and (
            best is None or route_seconds((offer, *rest), latency_s) < route_seconds(best, latency_s)
        ):
            best = (offer, *rest)
    return best


def route_seconds(offers: Iterable[Offer], latency_s: float) -> float:
    """How long these routes take, one after the other."""
    return sum(
        -(-offer.requests // _STREAMS) * latency_s
        + offer.bytes / _BYTES_PER_S
        + offer.decoded_bytes / _DECODED_BYTES_PER_S
        for offer in offers
    )
