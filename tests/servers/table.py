"""What the checks have found, as the page docs/servers.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

import pytest

import perfkit
from tests.servers.bench import package_version
from tests.servers.checks import OF_CACHES, OF_SERVERS
from tests.servers.clients import CHECKS, CLIENTS, PACKAGES

_Rows = dict[tuple[str, str], dict[str, str]]  # by server and version: cells by column

_HEAD = """\
# Servers and caches

Made by `tox -e servers` on {date}, with perfkit {perfkit} on Debian's, PyPI's and npm's packages in the versions shown,
with their default settings as far as they have any. [tests/servers](../tests/servers) has how each is started
(`catalogue.py`) and what is done with it (`checks.py`). No test passes with a wrong byte in a file.

## Servers

files
: Downloads of nine kinds of files: empty, small, 1 MiB, 5 MiB and 7 bytes, `.gz`, `.tar.gz`, `.html`, a name with a
  blank and a letter beyond ASCII, a name without an extension. *8 of 9*: the server itself refuses the ninth.

segments
: The connections that `--segments 4` uses for one file. Less: the server has no ranges, or no ETag or date that shows
  that two ranges are of one version. Where a cache may be storing the file, only after ten seconds (*three hosts*).

kill and resume
: SIGKILL in the middle of `perfkit get`, and the same command again.

changed between
: Another version of the file, between kill and resume.

changed within its second
: Two versions of one size within one second, the first fetched within it too: between kill and resume, and between a
  download and the next.

same size and date
: Other bytes with the same size and date (`rsync -t`, reproducible builds). Resumed: all bytes differ, or only some
  near the beginning, between kill and resume. Refreshed: they differ between a download and the next. *noticed*: by the
  ETag or the bytes. *by checksum*: nothing that the server says differs, and only `--checksum` or a release shows it;
  with it, the file is right. Where all bytes differ, a resume is right everywhere.

refresh
: A download of a file that is there and current, and of one that has changed. *all again*: the server names neither an
  ETag nor a date.

older date
: A file that is put back to what it was, with the date that it had.

release, zip, zsync
: `perfkit sync` of a release and two updates, of a zip of which one member changes, and of a file with a `.zsync`.
  *all again*: as for segments.

"""

_CACHES = """
## Shared caches

In front of nginx, as a reverse proxy. Files that change are fresh for a second there, others for an hour.

three hosts
: Three hosts get one file through the cache, with perfkit's default settings, and the origin sends it once. Most caches
  keep nothing of an answer that the client breaks off, as it does for segments; so one that a cache may be storing is
  left whole in its first ten seconds. A cache shows itself by `Via`, `Age`, `X-Cache` or `Cache-Status`; one that does
  not may be in the way of plain HTTP, if the answer has a lifetime in `Cache-Control`. For files that take longer than
  that through a cache, use `--segments 1`.

"""

_CLIENTS = """
## Other clients

The same checks with {clients},
asked for the same by the options that their manuals name (`tests/servers/clients.py`). *WRONG*: other bytes than the
server's, with exit code 0. *fails*: the file is missing or wrong, and the exit code says so. Servers with the same
results are in one row.

Where it says *by checksum*, perfkit too is wrong without one. Those that fetch everything again at a refresh notice
every change for that. Of the columns above that are not here, *release*, *zip* and *zsync* are perfkit's only.

Others resume where a range does not say of which version it is (WEBrick), and perfkit starts over; what comes of that
is the table after it.
"""


class Results:
    """Cells by table, row and column, as the tests end."""

    def __init__(self) -> None:
        self._tables: dict[str, _Rows] = {}

    def add(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties)
        if report.when == "call" and "row" in found:
            table, server, version, column = map(str, found["row"])  # type: ignore[call-overload]
            row = self._tables.setdefault(table, {}).setdefault((server, version), {})
            row[column] = str(found.get("cell", "**FAILED**"))

    def write(self, path: Path) -> None:
        """The page."""
        date = datetime.datetime.now(datetime.UTC).date()
        versions = [f"{name} {package_version(f'apt:{PACKAGES[name]}')}" for name in CLIENTS]
        text = _HEAD.format(date=date, perfkit=perfkit.__version__) + self._table("servers")
        text += _CACHES + self._table("caches")
        text += _CLIENTS.format(clients=", ".join(versions)) + "".join(map(self._comparison, CHECKS))
        path.write_text(text)

    def _table(self, name: str) -> str:
        rows = self._tables.get(name, {})
        columns = list(OF_SERVERS if name == "servers" else OF_CACHES)
        lines = [
            _line(["server" if name == "servers" else "cache", "version", *columns]),
            _line(["---"] * (len(columns) + 2)),
        ]
        for (server, version), cells in sorted(rows.items(), key=lambda row: row[0][0].lower()):
            lines.append(_line([server, version, *(cells.get(column, "") for column in columns)]))
        return "".join(lines)

    def _comparison(self, check: str) -> str:
        groups: dict[tuple[str, ...], list[str]] = {}
        ours = self._tables.get("servers", {})
        for key, cells in self._tables.get(check, {}).items():
            outcome = ours.get(key, {}).get(check, ""), *(cells.get(client, "") for client in CLIENTS)
            groups.setdefault(outcome, []).append(key[0])
        lines = [
            f"\n### {check.capitalize()}\n\n",
            _line(["perfkit", *CLIENTS, "servers"]),
            _line(["---"] * (len(CLIENTS) + 2)),
        ]
        for outcome, servers in sorted(groups.items(), key=lambda group: -len(group[1])):
            lines.append(_line([*outcome, ", ".join(sorted(servers, key=str.lower))]))
        return "".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
