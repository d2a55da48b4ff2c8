"""Mutation testing: small faults in a module, one at a time, which its tests must notice.

    python -m tests.chaos.mutants perfkit/updates/planner.py --count 80 --seed 1

runs the tests of `TESTS` on a copy of the repository, once for each of so many mutants, and prints those that survive:
a test is missing, or the change makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYTHON = [sys.executable]
TRANSACTIONS = ["tests/transactions/test_journal_ops.py", "tests/transactions/test_transaction.py",
                "tests/transactions/test_rollback.py", "tests/transactions/test_refused.py",
                "tests/transactions/test_foreign.py", "tests/updates/test_updater_edges.py",
                "tests/transactions/test_power_cut.py"]  # fmt: skip
TESTS = {  # those that fail soonest come first
    "perfkit/updates/planner.py": ["tests/updates/test_planner.py", "tests/updates/test_updater.py"],
    "perfkit/transactions/transaction.py": TRANSACTIONS,
    "perfkit/transactions/commit.py": TRANSACTIONS,
    "perfkit/transactions/journal.py": TRANSACTIONS,
    "perfkit/transactions/journal_ops.py": TRANSACTIONS,
    "perfkit/downloads/transfer.py": [f"tests/downloads/test_{each}.py" for each in (
        "resume", "segments", "versions", "existing_files", "destinations", "parts", "origins", "misbehaving_ranges",
        "misbehaving_bodies", "downloads", "signed_files", "throttle")],
    "perfkit/releases/format/manifest.py": ["tests/updates/test_ordered.py", "tests/releases/test_hostile_releases.py",
                                            "tests/updates/test_updater_hostile.py", "tests/updates/test_updater.py",
                                            "tests/releases/test_publisher.py"],
}  # fmt: skip
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
        yield node.values[0]
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.If | ast.While):
        for value in (True, False):
            yield type(node)(ast.Constant(value), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Continue | ast.Break):
        yield ast.Pass()


def skipped(node: ast.AST) -> bool:
    """Whether no test has to notice a change: log messages, docstrings, annotations, assertions."""
    text = ast.unparse(node) if isinstance(node, ast.Expr) else ""
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant or text.startswith("_log.") or isinstance(node, ast.arguments | ast.Assert | ast.AnnAssign)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every node below that may be changed, by its parent, the parent's field, and the place in that if it is a list.

    The order is always the same, so that a place is found again in a copy.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not skipped(node):
                yield tree, field, index
                yield from places(node)


def mutants(source: str) -> list[tuple[int, int]]:
    """Every mutant, by the number of its place and that of the mutation there."""
    found = enumerate(places(ast.parse(source)))
    return [(number, which) for number, place in found for which, _ in enumerate(mutations(node_at(*place)))]


def node_at(parent: ast.AST, field: str, index: int | None) -> ast.AST:
    value: Any = getattr(parent, field)
    return value if index is None else value[index]  # type: ignore[no-any-return]


def make(source: str, number: int, which: int) -> tuple[str, str]:
    """A mutant: what is changed in which line, and the module."""
    tree = ast.parse(source)
    parent, field, index = [*places(tree)][number]
    node = node_at(parent, field, index)
    mutation = [*mutations(node)][which]
    shown = f"{ast.unparse(node).splitlines()[0]}  ->  {ast.unparse(ast.fix_missing_locations(mutation))}"
    if index is None:
        setattr(parent, field, mutation)
    else:
        getattr(parent, field)[index] = mutation
    return f"{node.lineno}: {shown.splitlines()[0]}", ast.unparse(ast.fix_missing_locations(tree))


def run(place: Path, tests: list[str]) -> bool:
    """Whether the tests pass there."""
    command = [*PYTHON, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", *tests]
    env = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "dev"}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", default="1")
    given = parser.parse_args()
    source = Path(given.module).read_text()
    every = mutants(source)
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    survivors = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        place = Path(name)
        for part in ("perfkit", "tests", "docs", "setup.cfg", "pyproject.toml"):
            (shutil.copytree if Path(part).is_dir() else shutil.copy)(part, place / part)
        tests = TESTS[given.module]
        assert run(place, tests), "the tests fail without a mutant"
        for each in sorted(chosen):
            shown, mutant = make(source, *each)
            (place / given.module).write_text(mutant)
            if run(place, tests):
                survivors += 1
                print(f"{given.module}:{shown}", flush=True)
            print(".", end="", file=sys.stderr, flush=True)
    print(f"{given.module}: {len(every)} possible, {len(chosen)} tried, {survivors} survived")


if __name__ == "__main__":
    main()
