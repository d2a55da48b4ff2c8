"""Layers: imports run downwards only, and other people's packages come in at one place each."""

from __future__ import annotations

import ast
import functools
import http.client
import re
from collections.abc import Iterator
from inspect import getsource
from pathlib import Path
from types import ModuleType

import pytest
from urllib3 import connection, connectionpool, poolmanager, response

import perfkit

pytestmark = pytest.mark.once
ROOT = Path(perfkit.__file__).parent

# Lower layers first; what stands side by side in one layer doesn't know each other.
LAYERS = (
    {"libc", "redact", "_version"},
    {"errors"},
    {"config"},
    {"server", "progress", "minisign"},
    {"filesystem"},  # shows what it does through progress
    {"transactions", "downloads"},
    {"archives"},
    {"releases", "zsync"},  # a zsync file may describe what is in a gzip
    {"updates"},
    {"toolkit"},
    {"cli", "testing"},
    {"contrib"},  # Django's commands have options and outcomes of the command line
    {"pytest_plugin"},
)
INSIDE = (("releases.format", "releases.publish"),)  # also in a package: the first knows nothing of the second
FRONT = {"__init__", "__main__"}  # the package's own lazy names point everywhere; nobody inside needs them
ONLY_IN = {
    "requests": "downloads/http/",
    "urllib3": "downloads/http/",
    "cryptography": "minisign/",
    "progressbar": "progress/bars.py",
    "watchdog": "filesystem/watch.py",
}
FORBIDDEN_NAMES = {"utils", "util", "base", "common", "helpers", "types", "misc"}


def files() -> Iterator[Path]:
    return iter(sorted(ROOT.rglob("*.py")))


def name_of(path: Path) -> str:
    """The module in a file, without the `perfkit.` before it."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path) for path in files()}


@functools.cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, wherever in it: in functions and under TYPE_CHECKING cycles like to hide."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found += [(node.lineno, n if n.removeprefix("perfkit.") in MODULES else node.module) for n in names]
    return found


def own(path: Path) -> Iterator[tuple[int, str]]:
    """Those of perfkit among them."""
    for line, name in imported(path):
        if name.split(".")[0] == "perfkit":
            yield line, name.partition(".")[2] or "__init__"


def layer_of(module: str) -> int:
    top = module.split(".")[0]
    for number, layer in enumerate(LAYERS):
        if top in layer:
            return number
    raise AssertionError(f"perfkit/{top} is in no layer: give it one in this file, or put its code elsewhere")


def test_imports_run_downwards() -> None:
    """A module knows its own package and the layers below."""
    for path in files():
        module = name_of(path)
        if module in FRONT:
            continue
        for line, other in own(path):
            if other.split(".")[0] != module.split(".")[0]:
                assert layer_of(other) < layer_of(module), f"{path}:{line}: {module} imports {other}, above it"
            for lower, upper in INSIDE:
                inside = module.startswith(lower) and other.startswith(upper)
                assert not inside, f"{path}:{line}: {lower} imports {upper}"


def test_no_cycles() -> None:
    """Also inside a package, modules stand in an order."""
    graph = {name_of(path): {other for _, other in own(path)} for path in files()}
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
        if name not in FRONT:
            visit(name, ())


def test_other_packages_come_in_at_one_place() -> None:
    """requests and urllib3, progressbar2, and watchdog are each imported in one module only."""
    for path in files():
        for line, name in imported(path):
            only = ONLY_IN.get(name.split(".")[0])
            where = path.relative_to(ROOT).as_posix()
            assert only is None or where.startswith(only), f"{path}:{line}: {name} is imported by {only} alone"


def test_names_say_what_is_inside() -> None:
    """No package and no module is called after nothing."""
    for path in ROOT.rglob("*"):
        assert path.stem not in FORBIDDEN_NAMES, path


def test_no_name_stands_twice() -> None:
    """The name of a module in a traceback or a search is unambiguous.

    Django finds management commands by theirs.
    """
    seen: dict[str, Path] = {}
    for path in files():
        if path.stem == "__init__" or "commands" in path.parts:
            continue
        assert path.stem not in seen, f"{path} and {seen[path.stem]}"
        seen[path.stem] = path


def test_one_private_name_of_urllib3_is_touched() -> None:
    """`_new_conn`, which its own SOCKS connections override, too. What is looked for are the names that its classes
    have beyond those of http.client.
    """

    def private(*modules: ModuleType) -> set[str]:
        return {name for module in modules for name in re.findall(r"(?:self\.|def )(_[a-z]\w*)", getsource(module))}

    theirs = private(connection, connectionpool, poolmanager, response) - private(http.client)
    used = set()
    for path in (ROOT / "downloads/http").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            used.add(getattr(node, "attr", getattr(node, "name", None)))
    of_our_classes = {"_connect", "_read"}
    assert used & theirs - of_our_classes == {"_new_conn"}
