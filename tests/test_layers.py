"""The house: imports run downwards only, third-party packages come in through one door each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import perfkit

ROOT = Path(perfkit.__file__).parent

# Lower rooms first; rooms that stand in one row don't know each other.
FLOORS = (
    {"libc", "redact", "_version"},
    {"errors"},
    {"config"},
    {"server", "progress"},
    {"filesystem"},  # shows what it does through progress
    {"transactions", "downloads"},
    {"archives"},
    {"releases", "zsync"},
    {"updates"},
    {"toolkit"},
    {"cli", "contrib", "testing"},
    {"pytest_plugin"},
)
FRONT = {"__init__", "__main__"}  # the package's own lazy names point everywhere; nobody inside needs them
DOORS = {
    "requests": "downloads/conventions.py",
    "urllib3": "downloads/conventions.py",
    "progressbar": "progress/bars.py",
    "watchdog": "filesystem/watch.py",
}
FORBIDDEN_NAMES = {"utils", "util", "base", "common", "helpers", "types", "misc"}


def modules() -> Iterator[Path]:
    return iter(sorted(ROOT.rglob("*.py")))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it: in functions and under TYPE_CHECKING cycles like to hide."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module in ("perfkit", *(f"perfkit.{room}" for room in ("downloads", "filesystem", "progress"))):
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"
            else:
                yield node.lineno, node.module


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"perfkit/{room} is on no floor: give it one in this file, or put its code elsewhere")


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in modules()])
def test_imports_run_downwards(path: Path) -> None:
    """A room knows itself and the floors below."""
    room = room_of(path)
    if room in FRONT:
        return
    for line, name in imported(path):
        other = name.partition(".")[2].partition(".")[0]
        if name.startswith("perfkit.") and other != room:
            assert floor_of(other) < floor_of(room), f"{path}:{line}: {room} imports {name}, above it"


def test_no_cycles() -> None:
    """Also inside a room, modules stand in an order."""
    graph = {}
    for path in modules():
        name = ".".join(("perfkit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = {other for _, other in imported(path) if other.startswith("perfkit.")}
    state: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"a cycle: {' → '.join((*way[way.index(name) :], name))}"
        if state.get(name) == 2:
            return
        state[name] = 1
        for other in sorted(graph.get(name, ())):
            visit(other, (*way, name))
        state[name] = 2

    for name in graph:
        if name != "perfkit":
            visit(name, ())


def test_one_door_for_each_package() -> None:
    """requests and urllib3, progressbar2, and watchdog are each imported in one module only."""
    for path in modules():
        for line, name in imported(path):
            door = DOORS.get(name.split(".")[0])
            where = path.relative_to(ROOT).as_posix()
            assert door is None or where == door, f"{path}:{line}: {name} comes in through {door}"


def test_names_say_what_is_inside() -> None:
    """No room is called after nothing."""
    for path in ROOT.rglob("*"):
        assert path.stem not in FORBIDDEN_NAMES, path
