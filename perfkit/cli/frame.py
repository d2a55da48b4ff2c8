"""The frame of a command: the trees that it is for, a Toolkit with their settings, and outcomes as text or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from perfkit.cli import output
from perfkit.cli.output import Outcome
from perfkit.cli.parser import Parser, add_output
from perfkit.cli.settings import config_for
from perfkit.errors import ConfigError, PerfkitError
from perfkit.progress.text import described, printable

if TYPE_CHECKING:
    from perfkit.cli.settings_file import TreeEntry
    from perfkit.releases.publish.upkeep import SiteReport
    from perfkit.toolkit import Toolkit
    from perfkit.updates.report import VerifyReport

_SETTINGS_FILE = "perfkit.toml"


def outcome_of_check(report: VerifyReport | SiteReport, note: str, *faults: str) -> Outcome:
    """The outcome of a check: a line for each name in the lists `faults` of its report, and then exit code 1."""
    text = "".join(f"{fault} {printable(name)}\n" for fault in faults for name in getattr(report, fault))
    record = {**dataclasses.asdict(report), "intact": report.intact}
    return Outcome(record, note, text, code=0 if report.intact else 1)


Work = Callable[["Toolkit", argparse.Namespace], Outcome]
After = Callable[[argparse.Namespace, list[tuple[argparse.Namespace, Outcome]]], None]


def define(command: Parser, work: Work, about: str, examples: str, *, after: After | None = None) -> None:
    """Give a command its description, the options that all commands have, and what it does: `work`, for each tree if
    it is for trees, then `after`, with the trees for which `work` did not fail, and their outcomes.
    """
    add_output(command, "print one JSON object on standard output")
    command.describe(about, examples, partial(_run, command, work, after))


def add_tree(command: Parser) -> None:
    """Add the argument and the option of a command for one tree."""
    command.add_argument("dest", metavar="DEST", help="the tree, or the name of one in perfkit.toml")
    _add_config(command)


def add_all(command: Parser) -> None:
    """Add the options of a command for any number of trees."""
    command.add_argument("--all", action="store_true", help="all trees that perfkit.toml lists")
    _add_config(command)


def _add_config(command: Parser) -> None:
    what = f"the file that lists trees (default: {_SETTINGS_FILE} in the current directory, if there is one)"
    command.add_argument("--config", metavar="FILE", help=what)


def _run(command: Parser, work: Work, after: After | None, arguments: argparse.Namespace) -> int:
    """Do the work, for each tree if the command is for trees. If there are several, the failure of one does not stop
    the others, and the exit code is that of the first that failed.
    """
    from perfkit.toolkit import Toolkit

    trees = _for_each_tree(command, arguments) if "config" in arguments else [arguments]
    several = vars(arguments).get("all", False) or len(trees) > 1
    records: dict[str, object] = {}
    done: list[tuple[argparse.Namespace, Outcome]] = []
    codes = []
    for tree in trees:
        try:
            with Toolkit(config_for(tree), progress=output.progress_for(tree)) as kit:
                outcome = work(kit, tree)
        except (PerfkitError, OSError) as error:
            if not several:
                raise
            output.print_error(f"{tree.name}: {described(error)}")
            records[tree.name] = {"error": output.error_as_json(error)}
            codes.append(output.exit_code_of(error))
            continue
        done.append((tree, outcome))
        codes.append(outcome.code)
        if several:
            records[tree.name] = outcome.record
            outcome = _headed(outcome, tree.name)
        if not arguments.json:
            output.print_outcome(arguments, outcome)
    if after is not None:
        after(arguments, done)
    if arguments.json:  # one object, so only when nothing can fail any more
        output.print_outcome(arguments, Outcome({"trees": records}, "") if several else done[0][1])
    return next((code for code in codes if code not in (0, output.CHANGED)), max(codes, default=0))


def _headed(outcome: Outcome, name: str) -> Outcome:
    """The outcome for one of several trees, with its name."""
    text = "".join(f"  {line}\n" for line in outcome.text.splitlines())
    return outcome._replace(text=text and f"{name}\n{text}", note=outcome.note and f"{name}: {outcome.note}")


# -- which trees ------------------------------------------------------------------------------------------------------


def _for_each_tree(command: Parser, arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments for each tree that a command line names, by its name in the settings file or by its path."""
    given = vars(arguments)
    words = given.get("places") or given.get("dests") or ([arguments.dest] if "dest" in given else [])
    if bool(words) == given.get("all", False):
        what = "a SOURCE and a DEST, or names of trees" if "places" in given else "trees"
        raise ConfigError(f"give either {what}, or --all for all trees in {_SETTINGS_FILE}")
    known = _known_trees(arguments, words[:1] if "places" in given else words)
    names = list(dict.fromkeys(words or known))
    if not names:
        raise ConfigError(f"{arguments.config or _SETTINGS_FILE} lists no trees: add a table [trees.NAME]")
    if arguments.config is None and not known.keys().isdisjoint(names):
        _refuse_other_owner()
    if "places" in given and not any(name in known for name in names):
        if len(words) != 2:
            raise ConfigError(f"give a SOURCE and a DEST, or names of trees; {_listed(arguments, known)}")
        arguments.source, arguments.dest = words
        return [arguments]
    for name in names:
        if name not in known and ("places" in given or arguments.config is not None):
            raise ConfigError(f"there is no tree {name!r}; {_listed(arguments, known)}")
    return [_for_tree(command, arguments, name, known.get(name)) for name in names]


def _for_tree(command: Parser, arguments: argparse.Namespace, name: str, tree: TreeEntry | None) -> argparse.Namespace:
    """The arguments for one tree: those of the command line, or else those of the settings file."""
    if tree is None:
        return argparse.Namespace(**{**vars(arguments), "name": name, "dest": name})
    from perfkit.cli.settings_file import arguments_for

    return arguments_for(command, tree)


def _known_trees(arguments: argparse.Namespace, words: list[str]) -> dict[str, TreeEntry]:
    """The trees of the settings file, which is read only if it is given or a word may be a name in it."""
    path = arguments.config or _SETTINGS_FILE
    if arguments.config is None and not os.path.exists(path):
        if not words:
            raise ConfigError(f"there is no {path} in the current directory; give it with --config FILE")
        return {}
    from perfkit.cli.settings_file import is_tree_name, read_entries

    if arguments.config is None and words and not any(map(is_tree_name, words)):
        return {}
    return read_entries(path, arguments.parser.commands()["sync"].filled())


def _refuse_other_owner() -> None:
    if os.lstat(_SETTINGS_FILE).st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{_SETTINGS_FILE} belongs to another user, and may name commands; if you trust it, "
            f"give it with --config {_SETTINGS_FILE}"
        )


def _listed(arguments: argparse.Namespace, known: Mapping[str, TreeEntry]) -> str:
    path = arguments.config or _SETTINGS_FILE
    return f"{path} lists {', '.join(known)}" if known else f"no {path} lists any"
