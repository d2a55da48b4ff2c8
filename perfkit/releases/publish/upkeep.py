"""Maintain a site: check the objects that its releases need, remove unused ones, and promote releases to channels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass

from perfkit.errors import ConfigError, ManifestError
from perfkit.minisign.secret_keys import SecretKey
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.progress.text import printable
from perfkit.releases.format import channel_name
from perfkit.releases.format.pointer import ObjectRef, Pointer
from perfkit.releases.publish.options import GRACE_S, check_grace, expiry
from perfkit.releases.publish.site import Site, referenced
from perfkit.transactions.history import Pruned


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """What a check of a site found.

    Attributes:
        version: the version of the current release.
        releases: how many releases can be installed.
        objects, bytes: how many objects these releases need, and the total size of the objects.
        missing, damaged: the paths of objects, relative to the site.
        seconds: how long it took.
    """

    version: str
    releases: int
    objects: int
    bytes: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    seconds: float = 0.0

    @property
    def intact(self) -> bool:
        """Whether every object is there and undamaged."""
        return not (self.missing or self.damaged)


def check_site(path: str, progress: Progress | None = None) -> SiteReport:
    """Hash every object that the releases of a site need. See `Toolkit.check_site`."""
    began_s = time.monotonic()
    site = Site(path)
    pointer = _pointer(site)
    needed = {pointer.history.sha256: pointer.history}
    releases = 0
    with contextlib.suppress(ManifestError):  # the history is one of the needed objects: its damage is found below
        history = site.history(pointer)
        releases = len(history.records)
        needed |= {ref.sha256: ref for ref in referenced(history, pointer.solid)}
    missing, damaged = [], []
    with Stage(progress, "checking", files=len(needed), total_bytes=sum(ref.bytes for ref in needed.values())) as shown:
        for ref in needed.values():
            try:
                with open(site.path(ref), "rb") as file:
                    whole = hashlib.file_digest(file, "sha256").hexdigest() == ref.sha256
                if not whole:
                    damaged.append(ref.path)
            except FileNotFoundError:
                missing.append(ref.path)
            shown.count(files=1, count_bytes=ref.bytes)
    return SiteReport(
        version=pointer.version,
        releases=releases,
        objects=len(needed),
        bytes=sum(ref.bytes for ref in needed.values()),
        missing=tuple(missing),
        damaged=tuple(damaged),
        seconds=time.monotonic() - began_s,
    )


def prune_site(path: str, *, dry_run: bool = False, wait_s: float = 0.0, grace_s: float | None = None) -> Pruned:
    """Remove the objects that no release has needed for a day. See `Toolkit.prune`."""
    grace_s = GRACE_S if grace_s is None else grace_s
    check_grace(grace_s)
    site = Site(path, wait_s=wait_s)
    _pointer(site)  # raises before a lock is created in a directory that is not a site
    with contextlib.closing(site), contextlib.nullcontext() if dry_run else site:
        pointer = _pointer(site)
        history = site.history(pointer)
        keep = {pointer.history.sha256, *(ref.sha256 for ref in referenced(history, pointer.solid))}
        removed: list[ObjectRef] = site.prune(keep, grace_s=grace_s, dry_run=dry_run)
    return Pruned(objects=len(removed), bytes=sum(ref.bytes for ref in removed))


def promote(
    path: str,
    *,
    channel: str,
    version: str,
    sign_keys: tuple[SecretKey, ...] = (),
    expires_s: float | None = None,
    wait_s: float = 0.0,
) -> Pointer:
    """Make a channel offer a release of a site. See `Toolkit.promote`."""
    name, expires = channel_name(channel), expiry(expires_s)
    _pointer(Site(path))  # raises before a lock is created in a directory that is not a site
    with contextlib.closing(Site(path, wait_s=wait_s)) as site, site:
        current = _pointer(site)
        if not sign_keys and site.is_signed():
            raise ConfigError(f"{path} is signed, and clients refuse a channel that is not: give its key (--sign-key)")
        history = site.history(current)
        for record in reversed(history.records):
            if record.version == version:
                pointer = history.pointer_to(record, current.history)
                pointer = pointer._replace(expires_s=expires, channel=channel)
                site.replace_pointer(pointer, sign_keys, name=name)
                return pointer
        known = ", ".join(printable(each.version) for each in reversed(history.records))
        raise ConfigError(f"{path} has no release {version!r}; it has {known}")


def _pointer(site: Site) -> Pointer:
    pointer = site.pointer() if os.path.isdir(site.objects) else None
    if pointer is None:
        raise ConfigError(f"{site.root} is not a site: it lacks perfkit.json or objects; publish to it first")
    return pointer
