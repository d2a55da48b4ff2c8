"""What of a batch is done, kept on the client's disk: a file for each shard, which appears when the shard has ended."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.manager import Item
from perfkit.downloads.request import Download, Request
from perfkit.errors import ConfigError
from perfkit.filesystem.own_files import write_record

__all__ = ["Checkpoint", "identity_of"]

_SUFFIX = ".done.json"


class Checkpoint:
    """The files of a batch that were downloaded, also by earlier runs with the same directory.

    A file is known by its URL, or the `key` of its request, with its name, checksum and the batch's destination.

    Args:
        directory: where it is kept; created if it does not exist. None: nowhere.

    Raises:
        ConfigError: a file in the directory is not of a checkpoint.
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
                    self._read(entry.path)

    def _read(self, path: str) -> None:
        with open(path, "rb") as file:
            try:
                for key, each in json.load(file).items():
                    self._done[key] = Download(**{**each, "version": Version(**each["version"])})
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(f"{path} is not a checkpoint of perfkit; remove it, or name another one") from error

    def find(self, item: Item) -> Download | None:
        """The result of a file that is done."""
        return self._done.get(self._key(item)) if self._done else None

    def add(self, results: Iterable[tuple[Item, Download]]) -> None:
        """Write down the files that did not fail."""
        if self._directory is None:
            return
        done = {self._key(item): asdict(each) for item, each in results if each.error is None}
        if done:
            write_record(os.path.join(self._directory, f"{uuid.uuid4().hex}{_SUFFIX}"), done)

    def _key(self, item: Item) -> str:
        options: tuple[object, ...] = ()
        if isinstance(item, Request):
            options = (item.checksum, item.byte_range)
        url, name = identity_of(item)
        return hashlib.sha256(json.dumps((self._dest, url, name, *options)).encode()).hexdigest()


def identity_of(item: Item) -> tuple[str, str | None]:
    """The URL of an item, or the key that stands for it; and the name that its file is to have."""
    if isinstance(item, Request):
        return item.key or item.url, item.name
    return (item, None) if isinstance(item, str) else item
