"""The kinds of sources that there are."""

from __future__ import annotations

from enum import StrEnum

from perfkit.errors import ConfigError

__all__ = ["Kind", "kind_of"]


class Kind(StrEnum):
    """The kinds of sources, by the names that `--type` takes."""

    RELEASE = "release"
    ZIP = "zip"
    TAR = "tar"
    ZSYNC = "zsync"
    URLS = "urls"
    METALINK = "metalink"


def kind_of(name: str | None) -> Kind | None:
    """The kind that a user calls by this name; None for none.

    Raises:
        ConfigError: there is no such kind.
    """
    if name is None:
        return None
    try:
        return Kind(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} is no type of source; there are {', '.join(Kind)}") from error
