"""`perfkit.toml`: trees by name, with the options of `perfkit sync` and the settings of `Config`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from perfkit.cli.parser import Parser
from perfkit.config import Config, convert
from perfkit.errors import ConfigError
from perfkit.filesystem.paths import is_url, overlapping
from perfkit.minisign.public_keys import is_key

_SETTINGS = {item.name for item in dataclasses.fields(Config)}
# Options that are for one run, and those that set a field of Config, which has its own name in the file.
_FOR_A_RUN = {"all", "config", "dry_run", "help", "json", "now", "places", "progress", "quiet", "verbose"}
_OF_CONFIG = {"header", "limit_rate", "user"}
_PATHS = {"ca_bundle", "client_cert", "verify"}


class TreeEntry(NamedTuple):
    """One entry of the file."""

    name: str  # of the tree
    source: str  # a URL, or the absolute path of a list
    dest: str  # an absolute path
    options: Mapping[str, object]  # of `perfkit sync`
    settings: Mapping[str, object]  # fields of `Config`; the tree's, or else those of the file


def arguments_for(command: Parser, tree: TreeEntry) -> argparse.Namespace:
    """The arguments of a command line for a tree: its own options, or else those of the file."""
    known = {action.dest for action in command.options()}
    found = command.parse_again({key: value for key, value in tree.options.items() if key in known})
    found.name, found.source, found.dest, found.settings = tree.name, tree.source, tree.dest, tree.settings
    return found


def is_tree_name(word: str) -> bool:
    """Whether a tree may have this name, which no option and no path with a slash can be."""
    return re.fullmatch(r"\w[\w.-]*", word) is not None


def read_entries(path: str, sync: Parser) -> dict[str, TreeEntry]:
    """The trees of a file, by name. Relative paths in it are relative to its directory.

    Args:
        sync: the parser of `perfkit sync`, whose options may be in the file.

    Raises:
        ConfigError: the file is not TOML, has an unknown key or an invalid value; two trees overlap.
        OSError: it can't be read.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    entries = found.pop("trees", {})
    settings = {key: _setting(path, "", key, value, {*_SETTINGS, "trees"}) for key, value in found.items()}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ConfigError(f"{path}: write each tree as a table, [trees.NAME]")
    options = {action.dest: action for action in sync.options() if action.dest not in _FOR_A_RUN | _OF_CONFIG}
    trees = {name: _tree(path, name, entry, settings, options) for name, entry in entries.items()}
    for one, other in overlapping({name: tree.dest for name, tree in trees.items()}):
        raise ConfigError(f"{path}: trees.{other}.dest is, or lies in, the directory of trees.{one}")
    return trees


def _tree(
    path: str,
    name: str,
    entry: Mapping[str, object],
    inherited: Mapping[str, object],
    known: Mapping[str, argparse.Action],
) -> TreeEntry:
    where = f"{path}: trees.{name}"
    if not is_tree_name(name):
        raise ConfigError(f"{where}: a tree's name has letters, digits, dots, dashes and underscores only")
    places: dict[str, str] = {}
    options: dict[str, Any] = {}
    settings = dict(inherited)
    for key, value in entry.items():
        if key in ("source", "dest"):
            places[key] = _text(f"{where}.{key}", value)
        elif key in known and key not in _SETTINGS:
            options[key] = _option(f"{where}.{key}", value, known[key])
        else:
            settings[key] = _setting(path, f"trees.{name}.", key, value, {*_SETTINGS, *known, "source", "dest"})
    for key in ("source", "dest"):
        if key not in places:
            raise ConfigError(f"{where}: {key} is missing")
    with _named(where):
        Config(**settings)  # type: ignore[arg-type]
    if "checksums" in options:
        options["checksums"] = _located(path, options["checksums"])
    if "public_keys" in options:
        options["public_keys"] = [key if is_key(key) else _path(path, key) for key in options["public_keys"]]
    return TreeEntry(name, _located(path, places["source"]), _path(path, places["dest"]), options, settings)


def _located(path: str, location: str) -> str:
    """A URL as it is; a path as the file at `path` means it."""
    return location if is_url(location) else _path(path, location)


def _path(path: str, location: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(location))


def _setting(path: str, table: str, key: str, value: object, known: Collection[str]) -> object:
    where = f"{path}: {table}{key}"
    if key not in _SETTINGS:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        raise ConfigError(f"{where}: there is no such key; {hint}")
    with _named(where):
        value = convert(Config, key, value)
    if key not in _PATHS or value == "system":
        return value
    if isinstance(value, tuple):
        return tuple(_path(path, each) for each in value)
    return _path(path, value) if isinstance(value, str) else value


def _option(where: str, value: object, action: argparse.Action) -> object:
    """The value of an option in the type that the command line gives it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false")
        return value
    if isinstance(action.default, list):
        return [_text(where, each) for each in (value if isinstance(value, list) else [value])]
    if action.type is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{where} must be a whole number")
        return value
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(where, value)
    if action.choices is not None and text not in action.choices:
        raise ConfigError(f"{where} must be one of {', '.join(action.choices)}")
    return text


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} must be text, and not empty")
    return value


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
