"""Which release a tree passes over, and why: rolled back from, refused by a check, or held by hand."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from perfkit.errors import UpdateError
from perfkit.redact import redacted, redacted_text
from perfkit.transactions import layout
from perfkit.transactions.tree import Tree
from perfkit.updates.installed import as_recorded, read_installed, require_managed

__all__ = ["Hold", "HoldReason", "clear_hold", "hold_on", "pin", "read_hold", "unhold", "write_hold"]


class HoldReason(StrEnum):
    """Why a release is not installed."""

    ROLLBACK = "rollback"  # the tree was rolled back from it
    CHECK = "check"  # a check refused it
    PIN = "pin"  # the tree stays as it is, whatever is offered


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A release that `sync` passes over until the source offers another one; a pin holds all of them.

    Attributes:
        source: its URL, without passwords.
        version: of the release; of what is installed, for a pin.
        serial: of the release, if its source numbers them; else 0.
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
        """Whether this release is the one."""
        held = self.source, self.version, self.serial
        return self.reason is HoldReason.PIN or held == (redacted(as_recorded(source)), version, serial)


def hold_on(reason: HoldReason, source: str, version: str, serial: int, message: str = "") -> Hold:
    """A hold that keeps no secrets."""
    shown = redacted(as_recorded(source))
    return Hold(reason=reason, source=shown, version=version, serial=serial, message=redacted_text(message))


def pin(dest: str) -> None:
    """See `Toolkit.pin`."""
    require_managed(dest)
    with Tree(dest) as tree:
        installed = read_installed(tree.root)
        if installed.version is None:
            raise UpdateError(f"{dest}: nothing is installed; sync to it first")
        write_hold(tree.root, hold_on(HoldReason.PIN, installed.source, installed.version, installed.serial))


def unhold(dest: str) -> Hold | None:
    """See `Toolkit.unhold`."""
    require_managed(dest)
    with Tree(dest) as tree:
        held = read_hold(tree.root)
        clear_hold(tree.root)
        return held


def read_hold(root: str) -> Hold | None:
    """What the tree at `root` passes over; None: nothing.

    Raises:
        UpdateError: the record is damaged.
    """
    path = os.path.join(root, layout.HOLD)
    try:
        with open(path, "rb") as file:
            record = json.load(file)
        return Hold(**{**record, "reason": HoldReason(record["reason"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UpdateError(f"{path} is damaged ({error}); remove it to hold nothing") from error


def write_hold(root: str, hold: Hold) -> None:
    """Replace what the tree passes over. The caller has the tree's lock.

    Raises:
        OSError: it can't be written.
    """
    path = os.path.join(root, layout.HOLD)
    with open(f"{path}~", "w", encoding="utf-8") as file:
        json.dump(asdict(hold), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}~", path)


def clear_hold(root: str) -> None:
    """Pass over nothing."""
    for path in (layout.HOLD, f"{layout.HOLD}~"):  # the second was left by a crash
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(root, path))
