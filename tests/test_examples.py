"""The examples run as they are, and README's commands are those that CI runs."""

from __future__ import annotations

import ast
import itertools
import subprocess
from pathlib import Path

import pytest

from tests.support.tools import first_everywhere
from tests.support.warm import WarmPython

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", first_everywhere(*EXAMPLES), ids=lambda script: script.stem)
def test_example(script: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """It prints what its top shows, from a directory that is not its own, and nothing else but progress."""
    command = warm_python.python(script)
    ended = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == shown_at_its_top(script)
    assert not list(tmp_path.iterdir())


def shown_at_its_top(script: Path) -> str:
    """The indented block after "It prints:" in an example's docstring."""
    told = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("It prints:\n\n")[2]
    return "".join(f"{line.strip()}\n" for line in itertools.takewhile(str.strip, told.splitlines()))


def test_examples_can_be_read_at_once() -> None:
    """None is long."""
    for script in EXAMPLES:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 75, script


def test_readme_has_the_commands_that_ci_runs() -> None:
    """`.ci/run` takes the test command from README by this marker."""
    marked = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- test command -->\n```sh\n")[2]
    assert marked.startswith("python3 -m venv ")
    assert "tox" in marked.partition("\n")[0]
