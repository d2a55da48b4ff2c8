"""Which releases a tree has on hold, and why: rolled back from, refused by a check, or held by hand."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from perfkit.config import Config
from perfkit.errors import ConfigError, UpdateError
from perfkit.filesystem.own_files import read_record, write_record
from perfkit.redact import redacted, redacted_text
from perfkit.releases.format import is_version
from perfkit.transactions import layout
from perfkit.updates.installed import as_recorded, managed_tree, read_installed

if TYPE_CHECKING:
    from perfkit.updates.sources import Source

_YEAR_5000 = 95_617_584_000
_MOST_REFUSED, _MESSAGE_CHARACTERS = 99, 1000


class HoldReason(StrEnum):
    """Why a release is not installed."""

    ROLLBACK = "rollback"  # the tree was rolled back from it
    CHECK = "check"  # a check refused it
    HAND = "hand"  # a user put it on hold
    PIN = "pin"  # the tree stays as it is, whatever is offered


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A release that `sync` skips until the source offers another one; a pin holds all of them.

    Attributes:
        source: the source's URL, without passwords.
        version: the version of the release; for a pin, the installed version.
        serial: the serial of the release, if its source has serials; else 0, as for one that is held by hand.
        message: what the check said.
        since_s: seconds since 1970.
    """

    reason: HoldReason
    source: str
    version: str
    serial: int = 0
    message: str = ""
    since_s: float = field(default_factory=time.time)

    def covers(self, source: str, version: str, serial: int) -> bool:
        """Whether this hold applies to a release."""
        if self.reason is HoldReason.PIN:
            return True
        same = (self.source, self.version) == (redacted(as_recorded(source)), version)
        return same and (self.reason is HoldReason.HAND or self.serial == serial)


def hold_on(reason: HoldReason, source: str, version: str, serial: int, message: str = "") -> Hold:
    """A hold without the secrets in its source and message."""
    shown, message = redacted(as_recorded(source)), redacted_text(message)[:_MESSAGE_CHARACTERS]
    return Hold(reason=reason, source=shown, version=version, serial=serial, message=message)


def pin(config: Config, dest: str, *, wait_s: float = 0.0) -> None:
    """See `Toolkit.pin`."""
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        installed = read_installed(tree.root)
        if installed.version is None:
            raise UpdateError(f"{dest}: nothing is installed; sync to it first")
        write_holds(tree.root, [hold_on(HoldReason.PIN, installed.source, installed.version, installed.serial)])


def hold(config: Config, dest: str, version: str, *, wait_s: float = 0.0) -> None:
    """See `Toolkit.hold`."""
    if not is_version(version):
        raise ConfigError(f"{version!r:.80} is not a version: one line of 1 to 200 printable characters")
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        installed = read_installed(tree.root)
        if installed.version in (None, version):
            what = (
                f"{version} is installed; roll back first" if installed.version else "nothing is installed; sync first"
            )
            raise UpdateError(f"{dest}: {what}")
        if any(held.reason is HoldReason.PIN for held in read_holds(tree.root)):
            raise UpdateError(f"{dest} is pinned, so every version is passed over already; unhold it first")
        add_hold(tree.root, hold_on(HoldReason.HAND, installed.source, version, 0))


def unhold(config: Config, dest: str, *, wait_s: float = 0.0) -> Hold | None:
    """See `Toolkit.unhold`."""
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        holds = read_holds(tree.root)
        write_holds(tree.root, ())
        return holds[-1] if holds else None


def read_holds(root: str) -> tuple[Hold, ...]:
    """The holds of the tree at `root`, the latest last.

    Raises:
        UpdateError: the record is damaged.
    """

    def parse(record: dict[str, Any]) -> tuple[Hold, ...]:
        return tuple(map(_parse, record["holds"]))

    return read_record(os.path.join(root, layout.HOLD), parse, "remove it to hold nothing") or ()


def _parse(record: dict[str, Any]) -> Hold:
    for name, kind in (("source", str), ("version", str), ("serial", int), ("message", str), ("since_s", float)):
        if not isinstance(record[name], kind):
            raise ValueError(f"{name} is {record[name]!r:.40}")
    if not is_time(record["since_s"]):
        raise ValueError(f"since_s is {record['since_s']}")
    return Hold(**{**record, "reason": HoldReason(record["reason"])})


def is_time(seconds: float) -> bool:
    """Whether datetime(3) can show this time, in seconds since 1970."""
    return 0 <= seconds < _YEAR_5000


def add_hold(root: str, hold: Hold) -> None:
    """Put one more release on hold. The caller has the tree's lock.

    Raises:
        UpdateError, OSError: the record is damaged, or can't be written.
    """
    write_holds(root, with_hold(read_holds(root), hold))


def with_hold(holds: Iterable[Hold], hold: Hold) -> list[Hold]:
    """These holds and another one, so that after two rollbacks in a row neither release comes back. Of the releases
    that checks refused, only the last hundred are kept: a site may offer another one at each sync.
    """
    others = [each for each in holds if not each.covers(hold.source, hold.version, hold.serial)]
    dropped = [each for each in others if each.reason is HoldReason.CHECK][:-_MOST_REFUSED]
    return [*(each for each in others if each not in dropped), hold]


def is_held(holds: Iterable[Hold], source: Source, *, retry_rejected: bool) -> bool:
    """Whether what a source offers is on hold.

    Args:
        retry_rejected: ignore that a check refused it.
    """
    holding = (held for held in holds if held.covers(source.url, source.version, source.serial))
    return any(held.reason is not HoldReason.CHECK or not retry_rejected for held in holding)


def keep_holds(root: str, holds: tuple[Hold, ...], source: Source, *, newest: bool) -> None:
    """Update the holds after this release was installed. A pinned tree stays pinned. Otherwise the release is no longer
    on hold; if it is the newest, only releases that are held by hand stay on hold.
    """
    if any(held.reason is HoldReason.PIN for held in holds):
        left = [hold_on(HoldReason.PIN, source.url, source.version, source.serial)]
    else:
        others = (held for held in holds if not held.covers(source.url, source.version, source.serial))
        left = [held for held in others if held.reason is HoldReason.HAND or not newest]
    if left != [*holds]:
        write_holds(root, left)


def write_holds(root: str, holds: Iterable[Hold]) -> None:
    """Replace the holds of a tree. The caller has the tree's lock.

    Raises:
        OSError: they can't be written.
    """
    path, records = os.path.join(root, layout.HOLD), [asdict(hold) for hold in holds]
    if not records:
        for each in (path, f"{path}~"):  # the second was left by a crash
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each)
        return
    write_record(path, {"holds": records}, 0o644)
