"""Which keys have to sign what a tree installs: those that its caller gives, and those that the tree remembers."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from perfkit.downloads.http.urls import is_loopback, origin_of
from perfkit.errors import ConfigError, HTTPStatusError, IntegrityError, SignatureError
from perfkit.filesystem.own_files import read_record, write_record
from perfkit.minisign.public_keys import AnyKey, PublicKey, read_public_keys
from perfkit.redact import redacted
from perfkit.releases.format import signature_path
from perfkit.transactions import layout

_log = logging.getLogger(__name__)


class Signers(NamedTuple):
    """Keys, and how many of them have to sign."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    @classmethod
    def of(cls, public_keys: Iterable[AnyKey], threshold: int = 1) -> Signers | None:
        """The signers that a caller names, each key as its base64 line or by the path of its file; None: no keys.

        Raises:
            ConfigError: one is not a key, or there are fewer keys than have to sign.
        """
        keys = tuple(sorted(read_public_keys(public_keys)))
        if not keys and threshold == 1:
            return None
        if not isinstance(threshold, int) or not 1 <= threshold <= len({key.key for key in keys}):
            shown = threshold if isinstance(threshold, int) else f"a {type(threshold).__name__}"
            raise ConfigError(f"threshold must be from 1 to the number of public keys, {len(keys)}; got {shown}")
        return cls(keys, threshold)

    def are_enough(self, signed: Iterable[PublicKey]) -> bool:
        """Whether enough of the keys are among those that signed."""
        return len({key.key for key in signed if key in self.keys}) >= self.threshold

    def __str__(self) -> str:
        names = ", ".join(key.name for key in self.keys)
        return f"the key {names}" if len(self.keys) == 1 else f"{self.threshold} of the keys {names}"


class Trust(NamedTuple):
    """What a tree remembers of signed releases that it was offered; neither a rollback nor another URL changes it."""

    root: str  # the tree's root directory
    signers: Signers | None = None  # who has to sign all further releases; None: the tree has had no signed one
    pointer: str = ""  # the SHA-256 of the last pointer that was verified
    serial: int = 0  # the highest serial of a verified pointer

    @classmethod
    def read(cls, root: str) -> Trust:
        """What the tree at `root` remembers.

        Raises:
            UpdateError: the record is damaged.
        """

        def parse(record: dict[str, Any]) -> Trust:
            keys = tuple(map(PublicKey.parse, record["keys"]))
            if not all(isinstance(record[name], int) for name in ("threshold", "serial")) or record["threshold"] < 1:
                raise ValueError("its numbers are not valid")
            return cls(root, Signers(keys, record["threshold"]), str(record["pointer"]), record["serial"])

        remedy = "it has the keys that the tree trusts: remove it, and give the keys with --public-key"
        return read_record(os.path.join(root, layout.TRUST), parse, remedy) or cls(root)

    def remember(self, before: Trust) -> None:
        """Write it into the tree, if it has changed.

        Raises:
            OSError: it can't be written.
        """
        if self.signers is None or self == before:
            return
        record = {
            "keys": [str(key) for key in self.signers.keys],
            "threshold": self.signers.threshold,
            "pointer": self.pointer,
            "serial": self.serial,
        }
        write_record(os.path.join(self.root, layout.TRUST), record)

    def verify(self, pointer: bytes, given: Signers | None, url: str, fetch: Callable[[str], bytes]) -> Trust:
        """Verify the signatures of a pointer, unless it is the one that was verified last; returns what to remember.

        It has to be signed by the signers that the tree remembers, and by those that the caller gives, whom the tree
        remembers from then on. So a release that is signed with both keys moves a tree from an old key to a new one.

        Args:
            url: the URL of the site.
            fetch: returns the content of a signature, given its path relative to the pointer.

        Raises:
            SignatureError: it lacks a required signature.
            ConfigError: the package cryptography is missing.
        """
        required = [signers for signers in dict.fromkeys((self.signers, given)) if signers is not None]
        sha256 = hashlib.sha256(pointer).hexdigest()
        if not required or (required == [self.signers] and sha256 == self.pointer):
            return self
        signed: list[PublicKey] = []
        failures: list[str] = []
        for key in dict.fromkeys(key for signers in required for key in signers.keys):
            if all(signers.are_enough(signed) for signers in required):
                break
            try:
                signature = fetch(signature_path(sha256, key.name))
            except (HTTPStatusError, IntegrityError) as error:
                if isinstance(error, HTTPStatusError) and error.transient:
                    raise
                failures.append(f"no signature by {key.name}: {error}")
                continue
            if (failure := _failure(pointer, signature, key)) is None:
                signed.append(key)
            else:
                failures.append(failure)
        for signers in required:
            if not signers.are_enough(signed):
                raise SignatureError(url, self._refusal(signers, "; ".join(failures)))
        return self._replace(signers=given or self.signers, pointer=sha256)

    def _refusal(self, signers: Signers, failures: str) -> str:
        what = f"its release is not signed by {signers}, and was not installed: {failures}"
        if signers != self.signers:
            return f"{what}. Compare the key with the publisher's; a release is signed by `perfkit publish --sign-key`"
        path = os.path.join(self.root, layout.TRUST)
        return (
            f"{what}. This tree requires that signature. A publisher who changes keys signs with "
            f"both for a while. If you know from elsewhere that the old key is lost, remove {path}, and give the new "
            "key with --public-key"
        )

    def for_file(self, given: Signers | None, url: str, type: str, *, remember: bool) -> FileSigners:
        """Who has to sign a plain file or an archive, which has a single signature beside it: a key that is among those
        that the tree remembers, if any, and among those that the caller gives, if any. The latter are remembered once
        the file is verified.

        Args:
            type: the type of the source, for the message.
            remember: False: leave the tree as it is.

        Raises:
            SignatureError: the tree has had signed releases, which no file must replace; or no key is among both.
            ConfigError: several signatures are required.
        """
        path = os.path.join(self.root, layout.TRUST)
        if self.signers is not None and self.serial:
            reason = f"this tree accepts only releases signed by {self.signers}, and this is of type {type}"
            raise SignatureError(url, f"{reason}; sync it to another directory, or remove {path}")
        required = [signers for signers in (self.signers, given) if signers is not None]
        if any(signers.threshold > 1 for signers in required):
            raise ConfigError(f"{redacted(url)} is of type {type}, which has one signature; only releases have several")
        keys = tuple(key for key in required[0].keys if all(key in each.keys for each in required)) if required else ()
        if required and not keys:
            raise SignatureError(
                url,
                f"this tree accepts only what {self.signers} signed, but other keys were given. To change keys, give "
                f"both until the file is signed by the new one; if the old one is lost, remove {path}",
            )
        known = self._replace(signers=given or self.signers)
        names = [str(key) for key in known.signers.keys] if known.signers else []
        return FileSigners(keys, names, known != self, (lambda: known.remember(self)) if remember else (lambda: None))


class FileSigners(NamedTuple):
    """Who has to sign a plain file or an archive."""

    keys: tuple[PublicKey, ...]  # one of these has to sign; empty: no signature is required
    names: list[str]  # the keys for the tree to remember; recorded with a version that was verified with them
    are_new: bool  # whether the tree remembers others, or none
    remember: Callable[[], None]  # to be called once the file is verified


def _failure(pointer: bytes, signature: bytes, key: PublicKey) -> str | None:
    """Why this is not a signature of the pointer by the key; None: it is."""
    from perfkit.minisign.signatures import BadSignatureError, Signature, verify  # only a new pointer needs it

    try:
        verify(io.BytesIO(pointer), Signature.parse(signature), [key])
    except BadSignatureError as error:
        return str(error)
    return None


def warn_if_unprotected(url: str) -> None:
    """Warn that a source is fetched over plain http, from another machine."""
    if url.lower().startswith("http://") and not is_loopback(origin_of(url)[1]):
        _log.warning(
            "%s: plain http without a signature: an attacker on the network can change what is installed. Use https, "
            "or signed releases (perfkit keygen, publish --sign-key, sync --public-key)",
            redacted(url),
        )
