"""Command-line options that set fields of `Config`; `PERFKIT_*` variables and defaults provide the rest."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import replace

from perfkit.config import Config, parse_auth, parse_size
from perfkit.errors import ConfigError


def add_rates(command: argparse.ArgumentParser) -> None:
    """Add the options for concurrency and bandwidth."""
    command.add_argument("-j", "--workers", type=int, metavar="N", help="files at once (default 8), requests (16)")
    limit = "bytes per second for all transfers together, such as 500K or 5M"
    command.add_argument("--limit-rate", metavar="RATE", help=limit)


def add_credentials(command: argparse.ArgumentParser) -> None:
    """Add the options for credentials, which are sent to no other origin than that of the URL or source."""
    what = "a header for the URL's origin, such as 'Authorization: Bearer ...' (can be repeated)"
    command.add_argument("--header", action="append", default=[], metavar="'K: V'", help=what)
    command.add_argument("--user", metavar="USER:PASSWORD", help="for the URL's origin (default: from ~/.netrc)")


def add_wait(command: argparse.ArgumentParser) -> None:
    """Add the option of the commands that lock a tree."""
    what = "how long to wait while another command is at work (default 0)"
    command.add_argument("--wait", metavar="TIME", default="0", help=what)


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
        "auth": None if given.get("user") is None else parse_auth(given["user"]),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    of_the_tree = given.get("settings", {})  # in perfkit.toml; the environment takes precedence
    unset = {name: value for name, value in of_the_tree.items() if not os.environ.get(f"PERFKIT_{name.upper()}")}
    config = Config.from_env(**{**unset, **chosen})
    headers = _headers(given.get("header", ()))
    return replace(config, headers={**config.headers, **headers}) if headers else config


def _headers(lines: Iterable[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ConfigError("--header must have the form 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers
