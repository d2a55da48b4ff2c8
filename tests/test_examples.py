"""The examples run as they are, and README's commands are those that CI runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", [pytest.param(script, id=script.stem) for script in EXAMPLES])
def test_example(script: Path, tmp_path: Path) -> None:
    """It ends well, from a directory that is not its own, and says nothing on standard error but progress."""
    command = [sys.executable, str(script)]
    ended = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout.strip()


def test_readme_has_the_commands_that_ci_runs() -> None:
    """`.ci/run` takes the test command from README by this marker."""
    marked = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- test command -->\n```sh\n")[2]
    assert marked.startswith("python3 -m venv ")
    assert "tox" in marked.partition("\n")[0]
