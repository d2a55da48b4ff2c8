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
from collections.abc import Collection, Iterator, Mapping
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

__all__ = ["OF_A_TREE", "Problem", "Settings", "TreeSettings", "load", "read", "tree_settings"]

_FIELDS = {item.name.upper(): item for item in dataclasses.fields(Config)}
OF_A_TREE = (
    "SOURCE",
    "DEST",
    "TYPE",
    "STRIP_COMPONENTS",
    "INCLUDE",
    "EXCLUDE",
    "LINKS",
    "DECOMPRESS",
    "CHECKSUMS",
    "MIRRORS",
    "CHECK",
    "MIN_INTERVAL",
    "SPLAY",
    "PUBLIC_KEYS",
    "THRESHOLD",
)
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
    if not isinstance(raw, Mapping):
        hint = 'Write PERFKIT = {"TREES": {}}.'
        problems.append(Problem("E001", "PERFKIT", f"must be a dictionary; got a {type(raw).__name__}", hint))
        raw = {}
    values = _config_values("PERFKIT", raw, {"TREES"}, problems)
    config = _config("PERFKIT", values, problems)
    entries = raw.get("TREES", {})
    if not isinstance(entries, Mapping):
        hint = 'Write "TREES": {"NAME": {"SOURCE": "https://…", "DEST": "/…"}}.'
        problems.append(
            Problem("E001", 'PERFKIT["TREES"]', f"must be a dictionary; got a {type(entries).__name__}", hint)
        )
        entries = {}
    trees = {}
    for name, entry in entries.items():
        tree = _tree(name, entry, values, problems)
        if tree is not None:
            trees[tree.name] = tree
    problems += _overlaps(trees.values())
    return Settings(config, trees, tuple(problems))


def _tree(name: object, entry: object, inherited: Mapping[str, object], problems: list[Problem]) -> TreeSettings | None:
    """One tree; None if its name, source or destination is invalid."""
    where = f'PERFKIT["TREES"][{_quoted(name)}]'
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        hint = "Use letters, digits, dots, dashes and underscores; start with a letter or a digit."
        problems.append(Problem("E004", where, "has a name that can't be given on a command line", hint))
        return None
    if not isinstance(entry, Mapping):
        hint = 'Write {"SOURCE": "https://…", "DEST": "/…"}.'
        problems.append(Problem("E001", where, f"must be a dictionary; got a {type(entry).__name__}", hint))
        return None
    values = _config_values(where, entry, OF_A_TREE, problems)
    source = _source(f'{where}["SOURCE"]', entry.get("SOURCE"), problems)
    dest = _dest(f'{where}["DEST"]', entry.get("DEST"), problems)
    kind = _type(f'{where}["TYPE"]', entry.get("TYPE"), problems)
    selection = _selection(where, entry, problems)
    decompress = _flag(f'{where}["DECOMPRESS"]', entry.get("DECOMPRESS"), problems)
    checksums = None
    if entry.get("CHECKSUMS") is not None:
        checksums = _source(f'{where}["CHECKSUMS"]', entry["CHECKSUMS"], problems)
    mirrors: Any = entry.get("MIRRORS", ())
    if not isinstance(mirrors, list | tuple):
        hint = 'Write ["https://…"].'
        problems.append(
            Problem("E006", f'{where}["MIRRORS"]', f"must be a list of URLs; got {value_shown(mirrors)}", hint)
        )
        mirrors = ()
    mirrors = [each for each in (_source(f'{where}["MIRRORS"]', mirror, problems) for mirror in mirrors) if each]
    check = _check(f'{where}["CHECK"]', entry.get("CHECK"), problems)
    interval_s, splay_s = (
        _time(f"{where}[{_quoted(key)}]", entry.get(key, 0), problems) for key in ("MIN_INTERVAL", "SPLAY")
    )
    keys, threshold = _signers(where, entry, problems)
    config = _config(where, {**inherited, **values}, problems) if values else _config_or_default(inherited)
    if source is None or dest is None:
        return None
    return TreeSettings(
        name=name,
        source=source,
        dest=dest,
        type=kind,
        selection=selection,
        decompress=decompress,
        checksums=checksums,
        mirrors=tuple(mirrors),
        check=check,
        min_interval_s=interval_s,
        splay_s=splay_s,
        public_keys=keys,
        threshold=threshold,
        config=config,
    )


def _source(where: str, value: object, problems: list[Problem]) -> str | None:
    if value is None:
        problems.append(Problem("E005", where, "is missing", "Give the URL of the site that `perfkit publish` made."))
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if os.path.isabs(value):
            return value
        with contextlib.suppress(ConfigError):
            origin_of(value)
            return value
    hint = "Start it with https://, or give the absolute path of a list of URLs."
    problems.append(Problem("E006", where, f"must be an http or https URL; got {value_shown(value)}", hint))
    return None


def _type(where: str, value: object, problems: list[Problem]) -> str | None:
    try:
        kind = parse_source_type(None if value is None else value if isinstance(value, str) else type(value).__name__)
        return None if kind is None else str(kind)
    except ConfigError as error:
        problems.append(Problem("E009", where, f"is invalid: {error}", "Leave it out to have the type detected."))
        return None


def _flag(where: str, value: object, problems: list[Problem]) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    problems.append(
        Problem("E009", where, f"must be True or False; got {value_shown(value)}", "Leave it out for False.")
    )
    return None


def _check(where: str, value: object, problems: list[Problem]) -> Check | None:
    try:
        found = import_string(value) if isinstance(value, str) else value
    except ImportError as error:
        problems.append(Problem("E009", where, f"can't be imported: {error}", "Write the dotted path of a function."))
        return None
    if found is not None and not callable(found):
        problems.append(Problem("E009", where, "is not a function", "Write the dotted path of a function."))
        return None
    return found


def _time(where: str, value: object, problems: list[Problem]) -> float:
    with contextlib.suppress(ConfigError):
        seconds = parse_seconds(value) if isinstance(value, str) else value
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < float("inf"):
            return seconds
    message = f'must be a time, such as 90, "30m" or "1h"; got {value_shown(value)}'
    problems.append(Problem("E009", where, message, "Leave it out for none."))
    return 0.0


def _signers(where: str, entry: Mapping[object, object], problems: list[Problem]) -> tuple[tuple[str, ...], int]:
    """Who has to sign the releases of a tree, and how many of them."""
    keys: Any = entry.get("PUBLIC_KEYS", ())
    threshold: Any = entry.get("THRESHOLD", 1)
    try:
        found = Signers.of(keys, threshold)
    except ConfigError as error:
        hint = 'Write ["RW…"], with the line that `perfkit keygen` prints, or the path of a file with it.'
        problems.append(Problem("E009", f'{where}["PUBLIC_KEYS"]', f"is invalid: {error}", hint))
        return (), 1
    return (tuple(map(str, found.keys)), found.threshold) if found else ((), 1)


def _selection(where: str, entry: Mapping[object, object], problems: list[Problem]) -> Selection | None:
    """The selection of files; None if the tree has none."""
    strip = entry.get("STRIP_COMPONENTS", 0)
    if not isinstance(strip, int) or isinstance(strip, bool) or strip < 0:
        message = f"must be a number, 0 or more; got {value_shown(strip)}"
        problems.append(
            Problem(
                "E009", f'{where}["STRIP_COMPONENTS"]', message, "It is the number of leading directories to remove."
            )
        )
        strip = 0
    patterns: dict[str, tuple[str, ...]] = {}
    for key in ("INCLUDE", "EXCLUDE"):
        value = entry.get(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            message = f"must be a list of patterns; got {value_shown(value)}"
            problems.append(Problem("E009", f"{where}[{_quoted(key)}]", message, 'Write ["*.rules"].'))
            value = ()
        patterns[key] = tuple(value)
    links: Any = entry.get("LINKS", "refuse")
    if links not in LINKS:
        hint = "Leave it out to refuse archives with symbolic links."
        message = f"must be one of {', '.join(LINKS)}; got {value_shown(links)}"
        problems.append(Problem("E009", f'{where}["LINKS"]', message, hint))
        links = "refuse"
    if not strip and not any(patterns.values()) and links == "refuse":
        return None
    try:
        return Selection(strip_components=strip, include=patterns["INCLUDE"], exclude=patterns["EXCLUDE"], links=links)
    except ConfigError as error:
        problems.append(Problem("E009", where, f"is invalid: {error}", "Write patterns as in a .gitignore."))
        return None


def _dest(where: str, value: object, problems: list[Problem]) -> str | None:
    if value is None:
        problems.append(Problem("E005", where, "is missing", 'Give the directory to keep in step: BASE_DIR / "rules".'))
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and os.path.isabs(value) and "\0" not in value:
        return value
    hint = 'Write BASE_DIR / "rules": a relative path would depend on where the process was started.'
    problems.append(Problem("E007", where, f"must be an absolute path; got {value_shown(value)}", hint))
    return None


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


def _config_values(
    where: str, raw: Mapping[object, object], others: Collection[str], problems: list[Problem]
) -> dict[str, object]:
    """The settings that are fields of `Config`, by field name."""
    values: dict[str, object] = {}
    for key, value in raw.items():
        if key in others:
            continue
        item = _FIELDS.get(key) if isinstance(key, str) else None
        if item is None:
            hint = _nearest(key, [*_FIELDS, *others])
            problems.append(Problem("E002", f"{where}[{_quoted(key)}]", "is not a setting", hint))
            continue
        try:
            values[item.name] = convert(item.name, value)
        except ConfigError as error:
            hint = f"The default is {_default(item)!r}; leave the key out to get it."
            problems.append(Problem("E003", f"{where}[{_quoted(key)}]", str(error), hint))
    return values


def _config(where: str, values: Mapping[str, object], problems: list[Problem]) -> Config:
    try:
        return Config(**values)  # type: ignore[arg-type]
    except ConfigError as error:
        hint = "See perfkit.Config: each setting is one of its fields, in capitals."
        problems.append(Problem("E003", where, f"has a value out of its range: {error}", hint))
        return Config()


def _config_or_default(values: Mapping[str, object]) -> Config:
    """The Config of PERFKIT itself; problems in it were reported already."""
    return _config("", values, [])


def _default(item: dataclasses.Field[Any]) -> object:
    return {} if item.default is dataclasses.MISSING else item.default


def _nearest(key: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(known))}."


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)
