"""Command-line options that set fields of `Config`; `PERFKIT_*` variables and defaults provide the rest."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from perfkit.config import Config, convert, parse_auth
from perfkit.errors import ConfigError

_FIELDS = {  # by option: the fields of Config that it sets
    "workers": ("workers", "connections_per_host"),
    "segments": ("segments",),
    "retries": ("retries",),
    "check_contents": ("check_contents",),
    "limit_rate": ("rate_limit",),
    "user": ("auth",),
}


def add_rates(command: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options for concurrency and bandwidth."""
    command.add_argument("-j", "--workers", type=int, metavar="N", help="files and requests at once (default 8 and 16)")
    limit = "bytes per second for all transfers together, such as 500K or 5M"
    command.add_argument("--limit-rate", metavar="RATE", help=limit)


def add_credentials(command: argparse.ArgumentParser) -> None:
    """Add the options for credentials, which are sent to no other origin than that of the URL or source."""
    what = "a header for the URL's origin, such as 'Authorization: Bearer ...' (can be repeated)"
    command.add_argument("--header", action="append", default=[], metavar="'K: V'", help=what)
    command.add_argument("--user", metavar="USER:PASSWORD", help="for the URL's origin (default: from ~/.netrc)")


def add_wait(command: argparse.ArgumentParser) -> None:
    """Add the option of the commands that lock a tree."""
    what = "how long to wait while another command is at work, such as 30s (default 0)"
    command.add_argument("--wait", metavar="TIME", default="0", help=what)


def fields_for(options: Mapping[str, object]) -> dict[str, object]:
    """The fields of `Config` that options of a command line set.

    Raises:
        ConfigError: the value of an option is invalid; the message names the option.
    """
    chosen: dict[str, object] = {}
    for option, fields in _FIELDS.items():
        value = options.get(option)
        if value is None or value is False:
            continue
        try:
            for name in fields:
                chosen[name] = convert(Config, name, parse_auth(str(value)) if name == "auth" else value)
                Config(**{name: chosen[name]})  # type: ignore[arg-type]
        except ConfigError as error:
            reason = str(error).replace(f"Config.{name}", "it")
            raise ConfigError(f"--{option.replace('_', '-')}: {reason}") from error
    return chosen


def config_for(arguments: argparse.Namespace) -> Config:
    """The Config for a command line.

    Raises:
        ConfigError: an option or a `PERFKIT_*` variable has an invalid value.
    """
    given = vars(arguments)
    of_the_tree = given.get("settings", {})  # in perfkit.toml; the environment takes precedence
    unset = {name: value for name, value in of_the_tree.items() if not os.environ.get(f"PERFKIT_{name.upper()}")}
    config = Config.from_env(**{**unset, **fields_for(given)})
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
