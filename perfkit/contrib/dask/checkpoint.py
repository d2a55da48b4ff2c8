"""Which files of a batch are done, on the client's disk: one record for each shard, written when the shard ends."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.manager import Item
from perfkit.downloads.request import Download, Request
from perfkit.filesystem.own_files import read_record, write_record

_SUFFIX = ".done.json"


class Checkpoint:
    """The files of a batch that were downloaded, also by earlier runs with the same directory.

    A file is identified by a digest of its URL, or the `key` of its request, with its name, checksum and the batch's
    destination. URLs are not written to disk, since they may contain secrets.

    Args:
        directory: where the records are kept; created if it does not exist. None: nothing is kept.

    Raises:
        UpdateError: a file in the directory is damaged, or not of a checkpoint.
        OSError: the directory can't be created, read or written.
    """

    def __init__(self, directory: str | None, dest: str) -> None:
        self._directory = directory
        self._dest = dest
        self._done: dict[str, Download] = {}
        if directory is not None:
            os.makedirs(directory, exist_ok=True)
            for entry in os.scandir(directory):
                if entry.name.endswith(_SUFFIX):
                    remedy = "remove it, or name another directory for the checkpoint"
                    self._done |= read_record(entry.path, _parse, remedy) or {}

    def find(self, item: Item) -> Download | None:
        """The result of a file that is done, without its URL."""
        return self._done.get(self._key(item)) if self._done else None

    def add(self, results: Iterable[tuple[Item, Download]]) -> None:
        """Record the files that did not fail."""
        if self._directory is None:
            return
        done = {self._key(item): {**asdict(each), "url": ""} for item, each in results if each.error is None}
        if done:
            write_record(os.path.join(self._directory, f"{uuid.uuid4().hex}{_SUFFIX}"), done)

    def _key(self, item: Item) -> str:
        options: tuple[object, ...] = ()
        if isinstance(item, Request):
            options = (item.checksum, item.byte_range)
        url, name = identity_of(item)
        return hashlib.sha256(json.dumps((self._dest, url, name, *options)).encode()).hexdigest()


def _parse(record: Mapping[str, Any]) -> dict[str, Download]:
    return {key: Download(**{**each, "version": Version(**each["version"])}) for key, each in record.items()}


def identity_of(item: Item) -> tuple[str, str | None]:
    """The URL of an item, or the key in its place; and the name that its file gets."""
    if isinstance(item, Request):
        return item.key or item.url, item.name
    return (item, None) if isinstance(item, str) else item
