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
with their default settings where they have any. [tests/servers](../tests/servers) shows how each is started
(`catalogue.py`) and what is tested (`checks.py`). No test passes with a wrong byte in a file.

## Servers

files
: Downloads of nine kinds of files: empty, small, 1 MiB, 5 MiB and 7 bytes, `.gz`, `.tar.gz`, `.html`, a name with a
  space and a non-ASCII letter, a name without an extension. *8 of 9*: the server itself refuses the ninth.

segments
: The number of connections that `--segments 4` uses for one file. Fewer: the server has no ranges, or no ETag or date
  that shows that two ranges are of one version. If a cache may be storing the file, segments start only after ten
  seconds (*three hosts*).

kill and resume
: SIGKILL in the middle of `perfkit get`, then the same command again.

changed between
: The file is replaced by another version between kill and resume.

changed within its second
: Two versions of the same size within one second, the first of which is fetched within that second: between kill and
  resume, and between one download and the next.

same size and date
: Other bytes with the same size and date (`rsync -t`, reproducible builds). Resumed: all bytes, or only some near the
  beginning, differ between kill and resume. Refreshed: they differ between one download and the next. *noticed*: by the
  ETag or the bytes. *by checksum*: the server's headers are the same, so only `--checksum` or a release detects the
  change; with it, the file is right. If all bytes differ, a resumed file is right on every server.

refresh
: A download of a file that exists and is current, and of one that has changed. *all again*: the server sends neither an
  ETag nor a date, so the whole file is fetched.

older date
: A file is put back to an earlier version, with its earlier date.

release, zip, zsync
: `perfkit sync` of a release and two updates, of a zip in which one member changes, and of a file with a `.zsync`.
  *all again*: for the reasons given under *segments*.

WhiteNoise is tested with `autorefresh=True`. By default it keeps the length and the ETag that a file had when the
server started, so a file that is replaced later is sent with those, and may be cut off; only a checksum or a release
detects it.

Apache sends a file whose date is in the future with a weak ETag and another date each second
(`findings/apache-moves-the-date-of-a-future-file.sh`). Until that date has come, each refresh takes it for a new
version and fetches it again, in one stream; an interrupted download starts over, and each sync of such an archive adds
a generation.

`rclone serve http` is not in the table: for five minutes after a file was replaced it sends the new one cut off at the
old one's length, as a complete response with the old date (`findings/rclone-serve-cuts-a-file-that-was-replaced.sh`).
Only a checksum or a release detects that. Start it with `--dir-cache-time 0`.

"""

_CACHES = """
## Shared caches

Each cache is a reverse proxy in front of nginx. Files that change are fresh for a second, others for an hour.

three hosts
: Three hosts get one file through the cache, with perfkit's default settings, and the origin sends it once. Most caches
  discard a response that the client interrupts, as segments do. So perfkit does not interrupt a response that a cache
  may be storing in its first ten seconds. It detects a cache by `Via`, `Age`, `X-Cache` or `Cache-Status`, and assumes
  one on plain HTTP if the response has a lifetime in `Cache-Control`. For files that take longer than ten seconds
  through a cache, use `--segments 1`.

nginx with `slice`
: A file that is replaced under its name can't be fetched by anyone until its cached slices have expired
  (`findings/nginx-slices-of-two-versions-fail.sh`); perfkit says that the file keeps changing, and leaves the old one.
  Use releases, whose objects never change, or new names.

files larger than Varnish's storage
: Varnish passes on only what it can store, by default 256 MB on Debian, and cuts off the rest, also of every resume
  (`findings/varnish-cuts-off-what-exceeds-its-storage.sh`). perfkit fails, and keeps the beginning. Give Varnish more
  storage, or have its VCL pass large files.

responses without a length
: nginx speaks HTTP/1.0 to its origins, so a generated response that an application server cuts off looks complete, and
  may be cached (`findings/nginx-caches-a-cut-off-response.sh`). Only a checksum or a release detects it.

sidecars of several gzip members
: Varnish asks its origin for gzip, whatever the client accepts, and breaks off at the second member of what it gets
  (`findings/varnish-refuses-gzip-of-several-members.sh`). perfkit says that the connection closed before the response
  was complete. Write sidecars as one member.

large files through nginx without a cache
: nginx takes up to 1 GiB (`proxy_max_temp_file_size`) as fast as the origin sends, and then nothing until the client
  has read it. If that takes longer than the origin waits, the transfer breaks off
  (`findings/nginx-cuts-large-files-for-slow-clients.sh`). perfkit resumes if the origin has ranges. Set
  `proxy_max_temp_file_size 0`.

`Repr-Digest` through Varnish
: perfkit verifies `Repr-Digest` (RFC 9530) and asks for files as they are. Varnish asks for gzip all the same, unpacks
  what it gets, and passes on the digest of the gzip data (`findings/digests-outlive-what-they-are-of.sh`), so the
  download fails. Start Varnish with `-p http_gzip_support=off`.

several caches under one name
: By IPv6, all hosts of a network begin with the same address of a name, in whatever order the name server gives them
  (`findings/dns-rotation-ends-with-ipv6.sh`). perfkit takes the first one that accepts the connection, so the others
  are idle. Give each cache a name of its own.

"""

_CLIENTS = """
## Other clients

The same checks with {clients},
with the options that their manuals give for these tasks (`tests/servers/clients.py`). *WRONG*: other bytes than the
server's, with exit code 0. *fails*: the file is missing or wrong, and the exit code says so. Servers with the same
results are in one row.

Where the table says *by checksum*, perfkit without a checksum is wrong, too. Clients that fetch everything again at a
refresh notice every change. *release*, *zip* and *zsync* are left out, since only perfkit has them.

WEBrick's range responses do not show which version they are of: perfkit starts over, and other clients resume.
*Changed between* shows the consequences.
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
