"""The options that are fields of `Config`; what they leave open, `PERFKIT_*` and the defaults say."""

from __future__ import annotations

import argparse

from perfkit.config import Config, parse_size

__all__ = ["add_rates", "config_for"]


def add_rates(command: argparse.ArgumentParser) -> None:
    """How much at once, and how fast."""
    command.add_argument("-j", "--workers", type=int, metavar="N", help="transfers at once (default 8)")
    limit = "bytes per second for all together, such as 500K or 5M"
    command.add_argument("--limit-rate", metavar="RATE", help=limit)


def config_for(arguments: argparse.Namespace) -> Config:
    """The Config that a command line asks for.

    Raises:
        ConfigError: a value that can't be, here or in the environment.
    """
    given = vars(arguments)
    limit = given.get("limit_rate")
    chosen: dict[str, object] = {
        "workers": given.get("workers"),
        "connections_per_host": given.get("workers"),
        "segments": given.get("segments"),
        "retries": given.get("retries"),
        "rate_limit": None if limit is None else parse_size(limit),
    }
    return Config.from_env(**{name: value for name, value in chosen.items() if value is not None})
