"""Follow a .zip that somebody else publishes: only the members that changed are fetched. It prints:

    first: 300 added, by whole
    the next archive has 6 MB
    second: 1 added, 2 changed, 1 removed; by zip; less than a tenth of the archive was fetched: True
    third: the same archive again: none, 0 changed
    rolled back: maps/7.map is restored: True

To run it:  python examples/partial_update_from_zip.py
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

from perfkit import Toolkit
from perfkit.server.server import Server


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    """Write the archive as any publisher would; the server only needs to support ranges."""
    with zipfile.ZipFile(path.with_suffix(".new"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    os.replace(path.with_suffix(".new"), path)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Toolkit() as kit:
        site, tree = Path(scratch, "site"), Path(scratch, "tree")
        site.mkdir()
        members = {f"maps/{number}.map": os.urandom(20_000) for number in range(300)}
        write_zip(site / "pack.zip", members)
        with Server(site) as server:
            url = f"{server.url}pack.zip"
            first = kit.sync(url, tree)
            print(f"first: {first.added} added, by {first.route}")

            before = members["maps/7.map"]
            members |= {"maps/7.map": os.urandom(20_000), "maps/8.map": os.urandom(500), "maps/new.map": b"new"}
            del members["maps/9.map"]
            write_zip(site / "pack.zip", members)
            second = kit.sync(url, tree)
            size = (site / "pack.zip").stat().st_size
            print(f"the next archive has {size / 1e6:.0f} MB")
            print(
                f"second: {second.added} added, {second.changed} changed, {second.removed} removed; "
                f"by {second.route}; less than a tenth of the archive was fetched: {second.bytes_received < size / 10}"
            )

            third = kit.sync(url, tree)
            print(f"third: the same archive again: {third.route}, {third.changed} changed")
        kit.rollback(tree)
        print(f"rolled back: maps/7.map is restored: {(tree / 'maps/7.map').read_bytes() == before}")


if __name__ == "__main__":
    main()
