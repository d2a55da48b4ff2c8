"""How to publish."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

from perfkit.errors import ConfigError
from perfkit.minisign.secret_keys import SecretKey
from perfkit.releases.format import is_version
from perfkit.releases.format.pointer import MAX_SERIAL
from perfkit.releases.publish.source_tree import Links

GRACE_S = 86_400.0  # unused objects are kept this long, for clients that are in the middle of a sync
_MAX_LEVEL = 22
_MAX_RELEASES = 1000  # the history stays a few megabytes
_LONGEST_S = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """How to publish: the arguments of `Toolkit.publish`.

    Raises:
        ConfigError: a value is invalid.
    """

    version: str
    keep_deltas: int = 3
    exclude: Collection[str] = ()
    links: Links = "refuse"
    serial: int | None = None
    wait_s: float = 0.0
    level: int = 19
    keep_releases: int = 16
    grace_s: float = GRACE_S
    sign_keys: Collection[SecretKey] = ()
    expires_s: float | None = None

    def __post_init__(self) -> None:
        if not is_version(self.version):
            raise ConfigError(f"version {self.version!r} is not one line of 1 to 200 characters")
        if self.keep_deltas < 0:
            raise ConfigError(f"keep_deltas must be 0 or more; got {self.keep_deltas}")
        if not 1 <= self.level <= _MAX_LEVEL:
            raise ConfigError(f"level must be from 1 to {_MAX_LEVEL}; got {self.level}")
        if not 1 <= self.keep_releases <= _MAX_RELEASES:
            raise ConfigError(f"keep_releases must be from 1 to {_MAX_RELEASES}; got {self.keep_releases}")
        check_grace(self.grace_s)
        if self.links not in get_args(Links):
            raise ConfigError(f"links must be one of {', '.join(get_args(Links))}; got {self.links!r}")
        if self.serial is not None and not 1 <= self.serial <= MAX_SERIAL:
            raise ConfigError(f"serial must be from 1 to {MAX_SERIAL}; got {self.serial}")
        expiry(self.expires_s)


def check_grace(grace_s: float) -> None:
    """Check how long unused objects are kept.

    Raises:
        ConfigError: it is negative, or a century.
    """
    if not 0 <= grace_s < _LONGEST_S:
        raise ConfigError(f"grace_s must be 0 or more seconds, and less than 100 years; got {grace_s}")


def expiry(expires_s: float | None) -> int:
    """The Unix time in so many seconds; 0 for None.

    Raises:
        ConfigError: it is not a time within the next 100 years.
    """
    if expires_s is None:
        return 0
    if not 1 <= expires_s <= _LONGEST_S:
        raise ConfigError(f"expires_s must be from 1 second to 100 years, or None; got {expires_s}")
    return int(time.time() + expires_s)
