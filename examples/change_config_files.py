"""Change many configuration files at once, or none of them. It prints:

    invalid value found: 137.conf has no number of workers; all 200 files unchanged: True
    changed: 200 files; workers is 16 everywhere: True
    rolled back: workers is 4 everywhere: True

To run it:  python examples/change_config_files.py
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from perfkit import Toolkit


def write_configs(directory: Path) -> None:
    directory.mkdir()
    for number in range(200):
        (directory / f"{number:03}.conf").write_text(f"name = service-{number}\nworkers = 4\n")


def set_workers(kit: Toolkit, directory: Path, workers: int) -> None:
    """Change all files durably at the end of the block, or none if an exception leaves it."""
    with kit.transaction(directory) as tx:
        for path in sorted(directory.glob("*.conf")):
            text, count = re.subn(r"workers = \d+", f"workers = {workers}", path.read_text())
            if count != 1:
                raise ValueError(f"{path.name} has no number of workers")
            tx.write(path.name, text.encode())


def all_have(directory: Path, workers: int) -> bool:
    return all(f"workers = {workers}\n" in path.read_text() for path in directory.glob("*.conf"))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Toolkit() as kit:
        configs = Path(scratch, "conf.d")
        write_configs(configs)
        broken = configs / "137.conf"
        broken.write_text("workers = many\n")
        before = {path.name: path.read_bytes() for path in configs.glob("*.conf")}
        try:
            set_workers(kit, configs, 16)
        except ValueError as error:
            same = before == {path.name: path.read_bytes() for path in configs.glob("*.conf")}
            print(f"invalid value found: {error}; all {len(before)} files unchanged: {same}")

        broken.write_text("workers = 4\n")
        set_workers(kit, configs, 16)
        print(f"changed: {len(before)} files; workers is 16 everywhere: {all_have(configs, 16)}")

        kit.rollback(configs)  # to the previous generation
        print(f"rolled back: workers is 4 everywhere: {all_have(configs, 4)}")


if __name__ == "__main__":
    main()
