"""Command-line options that set fields of `Config`; `PERFKIT_*` variables and defaults provide the rest."""

from __future__ import annotations

import argparse
import os

from perfkit.config import Config, parse_size

__all__ = ["add_rates", "add_wait", "config_for"]


def add_rates(command: argparse.ArgumentParser) -> None:
    """Add the options for concurrency and bandwidth."""
    command.add_argument("-j", "--workers", type=int, metavar="N", help="files and requests at once (default 8, 16)")
    limit = "bytes per second for all transfers together, such as 500K or 5M"
    command.add_argument("--limit-rate", metavar="RATE", help=limit)


def add_wait(command: argparse.ArgumentParser) -> None:
    """Add the option of the commands that lock a tree."""
    command.add_argument(
        "--wait", metavar="TIME", default="0", help="for another change of the tree to end (default 0)"
    )


def config_for(arguments: argparse.Namespace) -> Config:
    """The Config for a command line.

    Raises:
        ConfigError: an option or a `PERFKIT_*` variable has an invalid value.
    """
    given = vars(arguments)
    limit = given.get("limit_rate")
    chosen: dict[str, object] = {
        "workers": given.get("workers"),
        "connections_per_host": given.get("workers"),
        "segments": given.get("segments"),
        "retries": given.get("retries"),
        "check_contents": given.get("check_contents") or None,
        "rate_limit": None if limit is None else parse_size(limit),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    of_the_tree = given.get("settings", {})  # in perfkit.toml, which gives way to the environment
    unset = {name: value for name, value in of_the_tree.items() if not os.environ.get(f"PERFKIT_{name.upper()}")}
    return Config.from_env(**{**unset, **chosen})
