"""When another try may help, and how long to wait before it."""

from __future__ import annotations

from perfkit.config import Config

__all__ = ["RETRY_STATUSES", "backoff_s"]

RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


def backoff_s(config: Config, failures: int) -> float:
    """Full jitter: uniform between 0 and a bound that doubles with each failure."""
    import random

    return random.uniform(0.0, min(config.backoff_cap_s, config.backoff_base_s * 2.0 ** max(0, failures - 1)))
