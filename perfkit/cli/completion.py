"""`perfkit completion`: scripts that shtab generates from the parser of the command line."""

from __future__ import annotations

import argparse

from perfkit.cli.output import print_text
from perfkit.cli.parser import Parser
from perfkit.errors import ConfigError

_EXAMPLES = """\
  perfkit completion bash > ~/.local/share/bash-completion/completions/perfkit
  perfkit completion zsh > "${fpath[1]}/_perfkit"
  perfkit completion fish > ~/.config/fish/completions/perfkit.fish
"""
_SHELLS = ("bash", "zsh", "fish")
_DIRECTORIES = {"DIR", "DEST", "SRC", "SITE"}  # metavars of options that take one
_FILES = {"FILE", "FILE|URL", "KEY", "SOURCE DEST | NAME"}  # of those that take a file, too


def add_completion(completion: Parser) -> None:
    completion.add_argument("shell", choices=_SHELLS, help=" or ".join(_SHELLS))
    completion.describe(
        "Print a script with which a shell completes perfkit's commands, options and files.", _EXAMPLES, _completion
    )


def _completion(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion scripts need shtab: pip install 'perfkit[completion]'") from error

    parser: Parser = arguments.parser
    for command in parser.commands().values():
        for action in command.filled().options():
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in _DIRECTORIES:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print_text(shtab.complete(parser, arguments.shell))
    return 0
