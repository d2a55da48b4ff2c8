"""Publish a folder again only when something in it has changed. It prints:

    published 1: 50 files
    changed: 2 names, such as new.txt; published 2: 51 files
    changed: 51 names, such as notes; published 3: 1 files
    nothing changed

To run it:  python examples/watch_folder.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from perfkit import Toolkit
from perfkit.filesystem.watch import ALL, DirtySet


def publish_if_changed(kit: Toolkit, dirty: DirtySet, site: Path, version: int) -> None:
    """One iteration of the loop; in production it runs every few seconds, or after `dirty.wait`."""
    dirty.flush()  # until all events up to now have arrived
    names = dirty.drain()
    if not names:
        print("nothing changed")
        return
    what = "maybe everything" if names is ALL else f"{len(names)} names, such as {min(names)}"
    release = kit.publish(dirty.root, site, version=str(version))
    print(f"changed: {what}; published {release.version}: {release.files} files")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Toolkit() as kit:
        folder, site = Path(scratch, "folder"), Path(scratch, "site")
        (folder / "notes").mkdir(parents=True)
        for number in range(50):
            (folder / "notes" / f"{number}.txt").write_text(f"note {number}\n")
        with kit.watch(folder) as dirty:  # watch first, then read: no change is missed
            release = kit.publish(folder, site, version="1")
            print(f"published {release.version}: {release.files} files")

            (folder / "notes/3.txt").write_text("another note\n")
            (folder / "new.txt").write_text("new\n")
            publish_if_changed(kit, dirty, site, 2)

            shutil.rmtree(folder / "notes")
            publish_if_changed(kit, dirty, site, 3)
            publish_if_changed(kit, dirty, site, 4)


if __name__ == "__main__":
    main()
