"""A power cut: of what was not synced, anything may be missing; afterwards the tree is the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perfkit.errors import UpdateError
from tests.support import crash_server
from tests.support.crash_cases import FULL, check_whole, copy, snapshot
from tests.support.faults import watched

pytestmark = pytest.mark.once

CUTS = 4000 if FULL else 160


@dataclass(frozen=True)
class Saved:
    """A file as it is on disk."""

    data: bytes
    mode: int
    mtime_ns: int

    @staticmethod
    def of(path: str) -> Saved:
        found = os.stat(path)
        return Saved(Path(path).read_bytes(), found.st_mode & 0o7777, found.st_mtime_ns)


@dataclass
class Disk:
    """What a run did to the disk, in order; files are numbers, so that a name and a file can be told apart.

    What is taken as certain is little: fsync of a file saves its content and mode, fsync of a directory the names put
    into it or taken out of it, syncfs all. A rename happens wholly or not at all, as on every journaling file system,
    and is saved with the directory of its new name; a directory that is gone takes along what was in it. Everything
    else may be missing, in any combination.
    """

    root: str
    names: dict[str, int] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    first: dict[int, Saved] = field(default_factory=dict)
    events: list[tuple[str, str, str, int]] = field(default_factory=list)  # kind, name, old name, file
    saves: list[tuple[int, dict[int, Saved]]] = field(default_factory=list)  # when, and what was safe from then on
    syncs: list[tuple[int, str | None]] = field(default_factory=list)  # when, and which directory; None is all
    dirty: set[int] = field(default_factory=set)
    count: int = 0

    def start(self) -> None:
        numbers: dict[int, int] = {}
        for directory, _, files in os.walk(self.root):
            self.directories.add(directory)
            for name in files:
                path = os.path.join(directory, name)
                self.names[path] = numbers.setdefault(os.stat(path).st_ino, len(numbers))
                self.first[self.names[path]] = Saved.of(path)
        self.count = len(numbers)
        self.live = dict(self.names)

    def watch(self, kind: str, paths: list[str]) -> Callable[[], None] | None:
        path = paths[0]
        if not path.startswith(self.root) or kind in ("write", "fchmod"):
            return None
        return lambda: self._note(kind, path, paths[-1])

    def _note(self, kind: str, path: str, target: str) -> None:
        now = len(self.events)
        if kind == "syncfs":
            self._save(now, set(self.dirty))
            self.syncs.append((now, None))
        elif kind == "fsync":
            if os.path.isdir(path):
                self.syncs.append((now, path))
            else:
                self._save(now, {self.live[path]})
        elif kind == "open":
            if path not in self.live:
                self.live[path] = self.count
                self.count += 1
                self.events.append(("put", path, "", self.live[path]))
            self.dirty.add(self.live[path])
        elif kind in ("rename", "link"):
            number = self.live.pop(path) if kind == "rename" else self.live[path]
            self.live[target] = number
            self.events.append(("put", target, path if kind == "rename" else "", number))
        elif kind == "unlink":
            self.events.append(("unlink", path, "", self.live.pop(path)))
        else:
            self.events.append((kind, path, "", -1))

    def _save(self, now: int, numbers: set[int]) -> None:
        paths = {number: path for path, number in self.live.items()}
        self.saves.append((now, {number: Saved.of(paths[number]) for number in numbers if number in paths}))
        self.dirty -= numbers

    def cut(self, at: int, target: Path, chance: random.Random) -> None:
        """Make what may be found after a cut that comes when so many events, and the syncs before it, are done."""
        share = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        names, directories = dict(self.names), set(self.directories)
        for index, (kind, name, old, number) in enumerate(self.events[:at]):
            parent = os.path.dirname(name)
            safe = any(index < when <= at and where in (None, parent) for when, where in self.syncs)
            if not safe and chance.random() >= share:
                continue
            if kind == "put":
                if parent in directories and name not in directories:
                    names.pop(old, None)
                    names[name] = number
            elif kind == "unlink":
                names.pop(name, None)
            elif kind == "mkdir":
                if parent in directories and name not in names:
                    directories.add(name)
            else:  # what was in it can't be reached any more, saved or not
                names = {other: file for other, file in names.items() if not other.startswith(f"{name}/")}
                directories = {other for other in directories if other != name and not other.startswith(f"{name}/")}
        saved = dict(self.first)
        for when, files in self.saves:
            if when <= at:
                saved.update(files)
        for directory in sorted(directories):
            (target / os.path.relpath(directory, self.root)).mkdir(exist_ok=True)
        made: dict[int, Path] = {}
        for name, number in names.items():
            path = target / os.path.relpath(name, self.root)
            if number in made:
                os.link(made[number], path)
                continue
            file = saved.get(number) or Saved(chance.choice((b"", b"\0" * 64, b'{"cut')), 0o600, 0)
            path.write_bytes(file.data)
            path.chmod(file.mode)
            os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
            made[number] = path
        (target / ".perfkit/owner").unlink(missing_ok=True)  # it would be of another boot; ours still lives


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("syncing", ["syncfs", "fsync"])
@pytest.mark.parametrize("action", ["change", "back", "prune", "refused"])
def test_power_cut(place: Path, monkeypatch: pytest.MonkeyPatch, action: str, syncing: str) -> None:
    """Whenever the power goes and whatever unsynced part is lost, opening the tree gives the old one or the new one."""
    from perfkit.transactions import commit

    if syncing == "fsync":
        monkeypatch.setattr(commit, "syncfs", lambda fd: False)
    root = place / "root"
    crash_server.begin(str(root))
    if action not in ("change", "refused"):
        crash_server.change(str(root))
    fetched = root / f".perfkit/fetch/content-{crash_server.FETCHED.sha256}"
    fetched.parent.mkdir(exist_ok=True)
    fetched.write_bytes(crash_server.FETCHED_DATA)
    old = snapshot(root)
    disk = Disk(str(root))
    disk.start()
    with watched(disk.watch), pytest.raises(UpdateError) if action == "refused" else contextlib.nullcontext():
        crash_server.ACTIONS[action](str(root))
    new = snapshot(root)
    if action == "refused":
        assert new == old
        copy(root, place / "changed")
        crash_server.change(str(place / "changed"))
        new = snapshot(place / "changed")
    if syncing == "fsync":  # a watched call that did nothing
        disk.syncs = [(when, where) for when, where in disk.syncs if where is not None]
    chance = random.Random(f"{action} {syncing}")
    found = {True: 0, False: 0}
    for number in range(CUTS // 6):
        at = number if number <= len(disk.events) and FULL else chance.randint(0, len(disk.events))
        target = place / "cut"
        disk.cut(at, target, chance)
        found[check_whole(target, old, new, tidy=True)] += 1
        shutil.rmtree(target)
    assert found[True] or action == "refused"
    assert found[False] or action == "prune"
