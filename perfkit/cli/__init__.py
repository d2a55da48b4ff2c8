"""The `perfkit` command: parses arguments, calls the Toolkit, prints text or JSON.

Each command has two functions in one of the modules here: `add_COMMAND` defines its options and sets `run` to the
function that does the work and returns the exit code. Exit codes: 0 success, 1 the work failed, 2 invalid usage, 3
the command of `--on-change` failed, 4 the source is behind, 10 the tree changed (with `--exit-code`), 130
interrupted, 141 nobody reads the output. Results go to standard output, everything else to standard error, with one
line per error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module

from perfkit._version import __version__
from perfkit.cli.output import errors_as_json, exit_code_of, interrupted, log_shown, print_error
from perfkit.cli.parser import Parser
from perfkit.errors import PerfkitError
from perfkit.progress.text import described

_COMMANDS = (  # name, module of `perfkit.cli` that defines `add_NAME`, summary in the list of commands
    ("get", "get", "download files"),
    ("keygen", "keys", "make a key that signs releases"),
    ("publish", "publishing", "publish a directory"),
    ("releases", "publishing", "list the releases of a site"),
    ("promote", "publishing", "have a channel of a site offer a release"),
    ("check", "publishing", "check that a site is whole"),
    ("prune", "publishing", "remove what a site or a tree does not need"),
    ("sync", "sync", "update a tree"),
    ("rollback", "tree_commands", "go back to an earlier generation of a tree"),
    ("history", "tree_commands", "list the generations of a tree"),
    ("verify", "tree_commands", "hash every file of a tree again"),
    ("status", "tree_commands", "show what is installed in a tree, and how its syncs went"),
    ("hold", "tree_commands", "pass over a version of a tree"),
    ("pin", "tree_commands", "keep the installed version of a tree"),
    ("unhold", "tree_commands", "install new versions again"),
    ("serve", "serve", "serve a directory, for development"),
    ("completion", "completion", "print a completion script for a shell"),
)

_ABOUT = "Download files in parallel, and keep directories in sync with releases, all or nothing."
_EXAMPLES = """\
examples:
  perfkit get -d out https://example.org/a.iso https://example.org/b.iso
  perfkit publish rules site --version 2026.11
  perfkit sync https://example.org/rules rules
  perfkit rollback rules

Every setting has a variable: PERFKIT_RATE_LIMIT=5M, PERFKIT_RETRIES=2. HTTPS_PROXY,
NO_PROXY, REQUESTS_CA_BUNDLE, netrc and NO_COLOR are honoured too.
See perfkit COMMAND --help for the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default `sys.argv[1:]`, and return the exit code.

    Raises:
        SystemExit: the arguments can't be parsed (code 2), or are `--help` or `--version` (code 0); or nobody reads
            standard output (code 141).
    """
    try:
        arguments = command_parser().parse_args(argv)
        with log_shown(arguments), errors_as_json(arguments):
            code: int = arguments.run(arguments)
        return code
    except (PerfkitError, OSError) as error:
        print_error(described(error))
        return exit_code_of(error)
    except KeyboardInterrupt:
        return interrupted()


def command_parser() -> Parser:
    """The parser of the whole command line; a command's options are added when it is selected."""
    parser = Parser(prog="perfkit", description=_ABOUT, epilog=_EXAMPLES)
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"perfkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module, about in _COMMANDS:
        commands.add_parser(name, help=about).fill = partial(_fill, name, module)
    return parser


def _fill(name: str, module: str, command: Parser) -> None:
    """Add a command's options; its module is imported only now."""
    getattr(import_module(f"perfkit.cli.{module}"), f"add_{name}")(command)
