"""System checks of `settings.PERFKIT`, run by `manage.py check` and before each perfkit command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core import checks

from perfkit.contrib.django.conf import TreeSettings, read
from perfkit.downloads.http.urls import is_loopback, origin_of
from perfkit.redact import redacted


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """`perfkit.E001` to `E009`: invalid settings; `W001`: a tree that this user can't write."""
    found = read(getattr(settings, "PERFKIT", {}))
    messages: list[checks.CheckMessage] = [
        checks.Error(f"{each.where} {each.message}.", hint=each.hint, id=f"perfkit.{each.id}")
        for each in found.problems
    ]
    return [*messages, *(warning for tree in found.trees.values() for warning in _unwritable(tree))]


def check_deployment(**_: Any) -> list[checks.CheckMessage]:
    """`perfkit.W002`, with `--deploy`: a tree that is fetched over plain http."""
    trees = read(getattr(settings, "PERFKIT", {})).trees.values()
    hint = "Use https, or PUBLIC_KEYS: the digests of the files come over the same connection."
    return [
        checks.Warning(
            f"The tree {tree.name!r} is fetched over plain http: {redacted(tree.source)}", hint=hint, id="perfkit.W002"
        )
        for tree in trees
        if tree.source.lower().startswith("http://")
        and not is_loopback(origin_of(tree.source)[1])
        and not tree.public_keys
    ]


def _unwritable(tree: TreeSettings) -> Iterator[checks.CheckMessage]:
    place = tree.dest
    while not os.path.lexists(place):
        place = os.path.dirname(place)  # ends at the root, which exists
    if not os.path.isdir(place):
        hint = "Remove it, or choose another directory."
        yield checks.Warning(f"The tree {tree.name!r}: {place} is not a directory.", hint=hint, id="perfkit.W001")
    elif not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        hint = (
            "Make it writable for the user that runs the commands; if another user runs them, add 'perfkit.W001' to "
            "SILENCED_SYSTEM_CHECKS."
        )
        yield checks.Warning(f"The tree {tree.name!r}: {place} is not writable.", hint=hint, id="perfkit.W001")
