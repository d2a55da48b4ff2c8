"""Keys, and sites that are signed by them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit.minisign.public_keys import PublicKey
from perfkit.minisign.secret_keys import SecretKey
from perfkit.minisign.signatures import load_ed25519
from perfkit.releases.format import signature_path
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.site import Site
from tests.support.trees import Tree, tree_of, write_tree


def make_key(number: int) -> SecretKey:
    """Always the same key for a number."""
    seed = bytes([number]) * 32
    private = load_ed25519().Ed25519PrivateKey.from_private_bytes(seed)
    return SecretKey(PublicKey(bytes([number]) * 8, private.public_key().public_bytes_raw()), seed)


OLD, NEW, THIRD = map(make_key, (1, 2, 3))


def public(*keys: SecretKey) -> list[PublicKey]:
    return [key.public for key in keys]


def publish_signed(site: Path, tree: Tree, version: str, *keys: SecretKey, **options: Any) -> None:
    """Publish a tree, signed by these keys."""
    src = write_tree(site.with_name(f"{site.name}-src"), tree)
    publish(str(src), str(site), version=version, sign_keys=keys, **options)


def change_pointer(site: Path, keys: Iterable[SecretKey], **changes: Any) -> None:
    """Replace the pointer by one with other fields, signed by these keys."""
    with Site(str(site)) as place:
        pointer = place.pointer()
        assert pointer is not None
        place.replace_pointer(pointer._replace(**changes), keys)


def signature_file(site: Path, key: SecretKey) -> Path:
    """Where the signature of the current pointer by this key is, or would be."""
    sha256 = hashlib.sha256((site / "perfkit.json").read_bytes()).hexdigest()
    return site / signature_path(sha256, key.public.name)


@contextlib.contextmanager
def refused(tree: Path, error: type[Exception]) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Inside, something fails, which leaves the tree and what it remembers of signers as they were."""
    before, trust = tree_of(tree), tree / ".perfkit/trust"
    record = trust.read_bytes() if trust.exists() else None
    with pytest.raises(error) as failure:
        yield failure
    assert tree_of(tree) == before
    assert (trust.read_bytes() if trust.exists() else None) == record
