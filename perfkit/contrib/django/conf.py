"""Reads and validates `settings.PERFKIT`.

`read` is pure and reports all problems at once, for the system checks; `load` and `tree_settings` raise the first one.
Nothing is cached, so that `override_settings` works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from perfkit.archives.members import Selection
from perfkit.cli.settings_file import is_tree_name
from perfkit.config import Config, convert, parse_seconds
from perfkit.downloads.http.urls import origin_of
from perfkit.errors import ConfigError
from perfkit.filesystem.paths import overlapping
from perfkit.redact import value_shown
from perfkit.updates.check import Check
from perfkit.updates.signers import Signers
from perfkit.updates.source_types import parse_source_type

_FIELDS = {item.name.upper(): item for item in dataclasses.fields(Config)}


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
    for outer, inner in overlapping({name: tree.dest for name, tree in trees.items()}):
        place = f'PERFKIT["TREES"][{_quoted(inner)}]["DEST"]'
        message = f'is, or lies in, the "DEST" of the tree {_quoted(outer)}'
        problems.append(Problem("E008", place, message, "Give each tree a directory of its own."))
    return Settings(config, trees, tuple(problems))


def _dictionary(where: str, value: object, hint: str, problems: list[Problem]) -> Mapping[Any, object] | None:
    if isinstance(value, Mapping):
        return value
    problems.append(Problem("E001", where, f"must be a dictionary; got a {type(value).__name__}", hint))
    return None


def _tree(name: object, entry: object, inherited: Config, problems: list[Problem]) -> TreeSettings | None:
    """One tree; None if its name, source or destination is invalid."""
    where = f'PERFKIT["TREES"][{_quoted(name)}]'
    if not isinstance(name, str) or not is_tree_name(name):
        hint = "Use letters, digits, dots, dashes and underscores; start with a letter or a digit."
        problems.append(Problem("E004", where, "has a name that can't be given on a command line", hint))
        return None
    values = _dictionary(where, entry, 'Write {"SOURCE": "https://…", "DEST": "/…"}.', problems)
    if values is None:
        return None
    config = _config(where, values, OF_A_TREE, inherited, problems)
    signers = values.get("PUBLIC_KEYS", ()), values.get("THRESHOLD", 1)  # are valid together
    found: dict[str, Any] = {}
    for key, (field_name, number, read_value, hint) in _VALUES.items():
        place = f"{where}[{_quoted(key)}]"
        value = signers if key == "PUBLIC_KEYS" else values.get(key)
        try:
            if value is not None:
                found[field_name] = read_value(value)
            elif key in ("SOURCE", "DEST"):
                problems.append(Problem("E005", place, "is missing", hint))
        except ConfigError as error:
            problems.append(Problem(number, place, f"is invalid: {error}", hint))
    if "source" not in found or "dest" not in found:
        return None
    selected = {item.name: found.pop(item.name) for item in dataclasses.fields(Selection) if item.name in found}
    selection = Selection(**selected)
    if signed_by := found.pop("signers", None):
        found |= {"public_keys": tuple(map(str, signed_by.keys)), "threshold": signed_by.threshold}
    return TreeSettings(name=name, selection=None if selection == Selection() else selection, config=config, **found)


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


def _selected(name: str) -> Callable[[object], object]:
    """Reads a field of `Selection`, which checks the range."""
    return lambda value: getattr(Selection(**{name: convert(Selection, name, value)}), name)  # type: ignore[arg-type]


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
        if isinstance(value, str | int | float):
            return parse_seconds(str(value))
    raise ConfigError(f'it must be a time, such as 90, "30m" or "1h"; got {value_shown(value)}')


_A_LOCATION = "Start it with https://, or give the absolute path of a list of URLs."
_A_PLACE = 'Write BASE_DIR / "rules": a relative path would depend on where the process was started.'
_A_TIME = "Leave it out for none."
_A_PATTERN = 'Write patterns as in a .gitignore: ["*.rules"].'
_A_KEY = 'Write ["RW…"], with the line that `perfkit keygen` prints, or the path of a file with it.'
_COMPONENTS = "It is the number of leading directories to remove."
_REFUSED = "Leave it out to refuse archives with symbolic links."
# The settings of a tree: the field of `TreeSettings` or `Selection`, the id of the problem if the value is invalid, the
# function that reads it, and how to fix it.
_VALUES: Mapping[str, tuple[str, str, Callable[[Any], object], str]] = {
    "SOURCE": ("source", "E006", _location, _A_LOCATION),
    "DEST": ("dest", "E007", _absolute, _A_PLACE),
    "TYPE": ("type", "E009", _type, "Leave it out to have the type detected."),
    "STRIP_COMPONENTS": ("strip_components", "E009", _selected("strip_components"), _COMPONENTS),
    "INCLUDE": ("include", "E009", _selected("include"), _A_PATTERN),
    "EXCLUDE": ("exclude", "E009", _selected("exclude"), _A_PATTERN),
    "LINKS": ("links", "E009", lambda value: Selection(links=value).links, _REFUSED),
    "DECOMPRESS": ("decompress", "E009", partial(convert, TreeSettings, "decompress"), "Leave it out for False."),
    "CHECKSUMS": ("checksums", "E006", _location, _A_LOCATION),
    "MIRRORS": ("mirrors", "E006", _locations, 'Write ["https://…"].'),
    "CHECK": ("check", "E009", _function, "Write the dotted path of a function."),
    "MIN_INTERVAL": ("min_interval_s", "E009", _seconds, _A_TIME),
    "SPLAY": ("splay_s", "E009", _seconds, _A_TIME),
    "PUBLIC_KEYS": ("signers", "E009", lambda value: Signers.of(*value), _A_KEY),
}
OF_A_TREE = (*_VALUES, "THRESHOLD")


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
            values[item.name] = convert(Config, item.name, raw[key])
        except ConfigError as error:
            default = {} if item.default is dataclasses.MISSING else item.default
            hint = f"The default is {default!r}; leave the key out to get it."
            problems.append(Problem("E003", f"{where}[{_quoted(key)}]", str(error), hint))
    try:
        return dataclasses.replace(inherited, **values)
    except ConfigError as error:
        hint = "See perfkit.Config: each setting is one of its fields, in capitals."
        problems.append(Problem("E003", where, f"has a value out of its range: {error}", hint))
        return inherited


def _nearest(key: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(known))}."


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)
