"""Reads and validates `settings.PERFKIT`.

`read` is pure and reports all problems at once, for the system checks; `load` and `tree_settings` raise the first one.
Nothing is cached, so that `override_settings` works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from perfkit.archives.members import LINKS, Selection
from perfkit.config import Config, convert, parse_seconds
from perfkit.downloads.http.urls import origin_of
from perfkit.errors import ConfigError
from perfkit.redact import value_shown
from perfkit.updates.check import Check
from perfkit.updates.signers import Signers
from perfkit.updates.source_types import parse_source_type

_FIELDS = {item.name.upper(): item for item in dataclasses.fields(Config)}
_NAME = re.compile(r"\w[\w.-]*")  # can't be mistaken for an option on a command line


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """One entry of `PERFKIT["TREES"]`."""

    name: str
    source: str = field(repr=False)  # a URL, or the absolute path of a list
    dest: str  # absolute path
    type: str | None = None  # as for `Toolkit.sync`; None: detected
    selection: Selection | None = None  # the files of a release, or members of an archive
    decompress: bool | None = None  # as for `Toolkit.sync`
    checksums: str | None = field(default=None, repr=False)  # as for `Toolkit.sync`
    mirrors: tuple[str, ...] = field(default=(), repr=False)
    check: Check | None = None  # as for `Toolkit.sync`
    min_interval_s: float = 0.0  # between syncs by `perfkit_sync`
    splay_s: float = 0.0  # the longest that `perfkit_sync` waits first
    public_keys: tuple[str, ...] = ()  # as for `Toolkit.sync`
    threshold: int = 1
    config: Config = field(default_factory=Config)  # the settings of PERFKIT, overridden by the tree's


@dataclass(frozen=True)
class Problem:
    """A problem in the settings: where and what it is, and how to fix it."""

    id: str  # such as `E003`
    where: str  # such as `PERFKIT["TREES"]["rules"]["DEST"]`
    message: str
    hint: str


@dataclass(frozen=True)
class Settings:
    """The valid part of `settings.PERFKIT`, and the problems in the rest."""

    config: Config
    trees: Mapping[str, TreeSettings]
    problems: tuple[Problem, ...]


def load() -> Settings:
    """The settings, if all are valid.

    Raises:
        ConfigError: there is a problem; `manage.py check` lists all of them.
    """
    found = read(getattr(settings, "PERFKIT", {}))
    if found.problems:
        first = found.problems[0]
        raise ConfigError(f"settings.{first.where} {first.message}. {first.hint}")
    return found


def tree_settings(name: str) -> TreeSettings:
    """The tree called `name`.

    Raises:
        ConfigError: the settings have no such tree, or are invalid.
    """
    trees = load().trees
    if name not in trees:
        known = f"it has {', '.join(trees)}" if trees else "it is empty"
        raise ConfigError(f'no tree {name!r} in settings.PERFKIT["TREES"]; {known}')
    return trees[name]


def read(raw: object) -> Settings:
    """Read `settings.PERFKIT`, collecting all problems."""
    problems: list[Problem] = []
    raw = _dictionary("PERFKIT", raw, 'Write PERFKIT = {"TREES": {}}.', problems) or {}
    config = _config("PERFKIT", raw, {"TREES"}, Config(), problems)
    hint = 'Write "TREES": {"NAME": {"SOURCE": "https://…", "DEST": "/…"}}.'
    entries = _dictionary('PERFKIT["TREES"]', raw.get("TREES", {}), hint, problems) or {}
    found = (_tree(name, entry, config, problems) for name, entry in entries.items())
    trees = {tree.name: tree for tree in found if tree is not None}
    problems += _overlaps(trees.values())
    return Settings(config, trees, tuple(problems))


def _dictionary(where: str, value: object, hint: str, problems: list[Problem]) -> Mapping[Any, object] | None:
    if isinstance(value, Mapping):
        return value
    problems.append(Problem("E001", where, f"must be a dictionary; got a {type(value).__name__}", hint))
    return None


def _tree(name: object, entry: object, inherited: Config, problems: list[Problem]) -> TreeSettings | None:
    """One tree; None if its name, source or destination is invalid."""
    where = f'PERFKIT["TREES"][{_quoted(name)}]'
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        hint = "Use letters, digits, dots, dashes and underscores; start with a letter or a digit."
        problems.append(Problem("E004", where, "has a name that can't be given on a command line", hint))
        return None
    values = _dictionary(where, entry, 'Write {"SOURCE": "https://…", "DEST": "/…"}.', problems)
    if values is None:
        return None
    config = _config(where, values, OF_A_TREE, inherited, problems)
    signers = values.get("PUBLIC_KEYS", ()), values.get("THRESHOLD", 1)  # are valid together
    found: dict[str, Any] = {}
    for key, (number, read_value, hint) in _VALUES.items():
        place = f"{where}[{_quoted(key)}]"
        value = signers if key == "PUBLIC_KEYS" else values.get(key)
        try:
            if value is not None:
                found[key] = read_value(value)
            elif key in ("SOURCE", "DEST"):
                problems.append(Problem("E005", place, "is missing", hint))
        except ConfigError as error:
            problems.append(Problem(number, place, f"is invalid: {error}", hint))
    if "SOURCE" not in found or "DEST" not in found:
        return None
    selected = {key.lower(): found[key] for key in ("STRIP_COMPONENTS", "INCLUDE", "EXCLUDE", "LINKS") if key in found}
    selection = Selection(**selected)
    signed_by: Signers | None = found.get("PUBLIC_KEYS")
    return TreeSettings(
        name=name,
        source=found["SOURCE"],
        dest=found["DEST"],
        type=found.get("TYPE"),
        selection=None if selection == Selection() else selection,
        decompress=found.get("DECOMPRESS"),
        checksums=found.get("CHECKSUMS"),
        mirrors=found.get("MIRRORS", ()),
        check=found.get("CHECK"),
        min_interval_s=found.get("MIN_INTERVAL", 0.0),
        splay_s=found.get("SPLAY", 0.0),
        public_keys=tuple(map(str, signed_by.keys)) if signed_by else (),
        threshold=signed_by.threshold if signed_by else 1,
        config=config,
    )


# -- the values of a tree ---------------------------------------------------------------------------------------------


def _location(value: object) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    with contextlib.suppress(ConfigError):
        if isinstance(value, str) and (os.path.isabs(value) or origin_of(value)):
            return value
    raise ConfigError(f"it must be an http or https URL; got {value_shown(value)}")


def _locations(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"it must be a list of URLs; got {value_shown(value)}")
    return tuple(_location(each) for each in value)


def _absolute(value: object) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str) and os.path.isabs(value) and "\0" not in value:
        return value
    raise ConfigError(f"it must be an absolute path; got {value_shown(value)}")


def _type(value: object) -> str:
    return str(parse_source_type(value if isinstance(value, str) else type(value).__name__))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"it must be a number, 0 or more; got {value_shown(value)}")
    return value


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"it must be a list of patterns; got {value_shown(value)}")
    return Selection(include=tuple(value)).include


def _links(value: object) -> object:
    if value not in LINKS:
        raise ConfigError(f"it must be one of {', '.join(LINKS)}; got {value_shown(value)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"it must be True or False; got {value_shown(value)}")
    return value


def _function(value: object) -> object:
    try:
        found = import_string(value) if isinstance(value, str) else value
    except ImportError as error:
        raise ConfigError(f"it can't be imported: {error}") from error
    if not callable(found):
        raise ConfigError("it is not a function")
    return found


def _seconds(value: object) -> float:
    with contextlib.suppress(ConfigError):
        seconds = parse_seconds(value) if isinstance(value, str) else value
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < float("inf"):
            return seconds
    raise ConfigError(f'it must be a time, such as 90, "30m" or "1h"; got {value_shown(value)}')


def _signers(value: Any) -> Signers | None:
    keys, threshold = value
    return Signers.of(keys, threshold)


_A_LOCATION = "Start it with https://, or give the absolute path of a list of URLs."
_A_PLACE = 'Write BASE_DIR / "rules": a relative path would depend on where the process was started.'
_A_TIME = "Leave it out for none."
_A_PATTERN = 'Write patterns as in a .gitignore: ["*.rules"].'
_A_KEY = 'Write ["RW…"], with the line that `perfkit keygen` prints, or the path of a file with it.'
# The settings of a tree: the id of the problem if the value is invalid, the function that reads it, and how to fix it.
_VALUES: Mapping[str, tuple[str, Callable[[object], object], str]] = {
    "SOURCE": ("E006", _location, _A_LOCATION),
    "DEST": ("E007", _absolute, _A_PLACE),
    "TYPE": ("E009", _type, "Leave it out to have the type detected."),
    "STRIP_COMPONENTS": ("E009", _count, "It is the number of leading directories to remove."),
    "INCLUDE": ("E009", _patterns, _A_PATTERN),
    "EXCLUDE": ("E009", _patterns, _A_PATTERN),
    "LINKS": ("E009", _links, "Leave it out to refuse archives with symbolic links."),
    "DECOMPRESS": ("E009", _flag, "Leave it out for False."),
    "CHECKSUMS": ("E006", _location, _A_LOCATION),
    "MIRRORS": ("E006", _locations, 'Write ["https://…"].'),
    "CHECK": ("E009", _function, "Write the dotted path of a function."),
    "MIN_INTERVAL": ("E009", _seconds, _A_TIME),
    "SPLAY": ("E009", _seconds, _A_TIME),
    "PUBLIC_KEYS": ("E009", _signers, _A_KEY),
}
OF_A_TREE = (*_VALUES, "THRESHOLD")


def _overlaps(trees: Collection[TreeSettings]) -> Iterator[Problem]:
    """Problems of trees in the same directory or inside one another, which would overwrite each other."""
    places = sorted((os.path.join(os.path.realpath(tree.dest), ""), tree.name) for tree in trees)
    for number, (outer, outer_name) in enumerate(places):
        for inner, inner_name in places[number + 1 :]:
            if inner.startswith(outer):
                how = "is the same directory as" if inner == outer else "lies inside"
                message = f'{how} the "DEST" of the tree {_quoted(outer_name)}'
                yield Problem(
                    "E008",
                    f'PERFKIT["TREES"][{_quoted(inner_name)}]["DEST"]',
                    message,
                    "Give each tree a directory of its own.",
                )


def _config(
    where: str, raw: Mapping[Any, object], others: Collection[str], inherited: Config, problems: list[Problem]
) -> Config:
    """The settings that are fields of `Config`."""
    values: dict[str, Any] = {}
    for key in (key for key in raw if key not in others):
        item = _FIELDS.get(key)
        if item is None:
            hint = _nearest(key, [*_FIELDS, *others])
            problems.append(Problem("E002", f"{where}[{_quoted(key)}]", "is not a setting", hint))
            continue
        try:
            values[item.name] = convert(item.name, raw[key])
        except ConfigError as error:
            hint = f"The default is {_default(item)!r}; leave the key out to get it."
            problems.append(Problem("E003", f"{where}[{_quoted(key)}]", str(error), hint))
    try:
        return dataclasses.replace(inherited, **values)
    except ConfigError as error:
        hint = "See perfkit.Config: each setting is one of its fields, in capitals."
        problems.append(Problem("E003", where, f"has a value out of its range: {error}", hint))
        return inherited


def _default(item: dataclasses.Field[Any]) -> object:
    return {} if item.default is dataclasses.MISSING else item.default


def _nearest(key: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(known))}."


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)
