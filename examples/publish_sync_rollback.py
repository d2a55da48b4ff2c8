"""Publish a directory, keep a tree in step with it, and roll back an update. It prints:

    2026.10 installed: 100 added, by blocks
    2026.11 installed: 1 added, 2 changed, 1 removed, by delta; fewer than 2000 bytes received: True
    rolled back to 2026.10 with 0 bytes from the network; 007.rules is restored: True
    generation 0: before the first change
    generation 1: 2026.10 (current)
    generation 2: 2026.11
    verified: 100 files, intact: True

To run it:  python examples/publish_sync_rollback.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from perfkit import Toolkit
from perfkit.server.server import Server


def write_rules(directory: Path) -> None:
    directory.mkdir()
    for number in range(100):
        text = "".join(f"alert tcp any any -> any {port} (sid:{number}{port};)\n" for port in range(50))
        (directory / f"{number:03}.rules").write_text(text)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rules, site, tree = Path(scratch, "rules"), Path(scratch, "site"), Path(scratch, "tree")
        write_rules(rules)
        with Toolkit() as kit:
            kit.publish(rules, site, version="2026.10")
            with Server(site) as server:  # any static file server works
                first = kit.sync(server.url, tree)
                print(f"{first.version} installed: {first.added} added, by {first.route}")
                before = (tree / "007.rules").read_bytes()

                (rules / "007.rules").write_text("drop tcp any any -> any 22 (sid:7;)\n")
                (rules / "008.rules").write_text("# retired\n")
                (rules / "009.rules").unlink()
                (rules / "new.rules").write_text("alert udp any any -> any 53 (sid:100;)\n")
                kit.publish(rules, site, version="2026.11")
                new = kit.sync(server.url, tree)
            print(
                f"{new.version} installed: {new.added} added, {new.changed} changed, {new.removed} removed, "
                f"by {new.route}; fewer than 2000 bytes received: {new.bytes_received < 2000}"
            )

            back = kit.rollback(tree)
            print(
                f"rolled back to {back.version} with {back.bytes_received} bytes from the network; "
                f"007.rules is restored: {(tree / '007.rules').read_bytes() == before}"
            )
            for generation in kit.history(tree):
                version = generation.label.get("version", "before the first change")
                print(f"generation {generation.number}: {version}{' (current)' if generation.current else ''}")
            found = kit.verify(tree)
            print(f"verified: {found.files} files, intact: {found.intact}")


if __name__ == "__main__":
    main()
