"""`examples/django_site`, as its user runs it: through `manage.py`, and by what its README says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.server.server import Server
from tests.support.trees import tree_of
from tests.support.warm import WarmPython

SITE = Path(__file__).parents[2] / "examples/django_site"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy, so that nothing is written to the original."""
    ignored = shutil.ignore_patterns("data", "__pycache__")
    return Path(shutil.copytree(SITE, tmp_path / "django_site", ignore=ignored))


class Manage:
    """`manage.py`, for a source."""

    def __init__(self, warm: WarmPython, project: Path, source: str) -> None:
        self.warm = warm
        self.project = project
        self.environment = {**os.environ, "RULES_SOURCE": source}

    def __call__(self, *args: str, code: int = 0) -> str:
        """Standard output, or standard error of a command that fails."""
        ended = subprocess.run(
            self.warm.python("manage.py", *args),
            check=False,
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert ("Traceback" in ended.stderr) == (code == 3)  # Django logs what receivers raise
        return ended.stderr if code else ended.stdout


@pytest.mark.once
def test_a_release_that_cannot_be_loaded(example: Path, kit: Toolkit, tmp_path: Path, warm_django: WarmPython) -> None:
    """Files are in step and rules in force; a bad release leaves the rules, and a rollback takes the files back too."""
    kit.publish(example / "origin/2026.10", tmp_path / "origin", version="2026.10")
    bad = Path(shutil.copytree(example / "origin/2026.11", tmp_path / "bad"))
    (bad / "dns.rules").write_text("resolver permit port=53\n")
    with Server(tmp_path / "origin") as server:
        manage = Manage(warm_django, example, server.url)
        manage("migrate", "--verbosity", "0")
        assert "no changes detected" in manage("makemigrations", "--check", "--dry-run").lower()
        assert "no issues" in manage("check")
        assert manage("perfkit_sync", "rules").startswith("rules: 2026.10, generation 1: ")
        rules = manage("list_rules")
        assert rules.startswith("2026.10: 5 rules\n")

        kit.publish(bad, tmp_path / "origin", version="2026.11")
        complaint = manage("perfkit_sync", "--all", "--no-color", code=3)
        assert "CommandError" in complaint
        assert "ValueError: dns.rules, line 1: not a rule: 'resolver permit port=53'" in complaint
        assert tree_of(example / "data/rules").keys() == {"base.rules", "dns.rules", "web.rules"}
        assert manage("list_rules") == rules
        assert "some receivers of tree_updated have not processed this generation" in manage("perfkit_status")
    assert manage("perfkit_rollback", "rules").startswith("rules: 2026.10, generation 1: ")
    assert tree_of(example / "data/rules").keys() == {"base.rules", "web.rules"}
    assert manage("list_rules") == rules


@pytest.mark.once
def test_its_readme(example: Path, tmp_path: Path, warm_django: WarmPython) -> None:
    """Every command in it works, in its order, and says what it says there."""
    script = re.findall(r"```sh\n(.*?)```", (example / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    lines = [line for line in script.splitlines() if not line.startswith("pip ") and "runserver" not in line]
    with Server(example) as unused:  # a port that is free a moment later
        port = unused.url.rsplit(":", 1)[1].rstrip("/")
    script = "\n".join(lines).replace("/tmp/origin", f"{tmp_path}/origin").replace("8123", port)
    ready = f"until perfkit get --quiet -o {tmp_path}/up http://127.0.0.1:{port}/perfkit.json; do :; done\n"
    script = "trap 'kill $(jobs -p)' EXIT\n" + script.replace("\n\n", f"\n{ready}\n", 1)
    paths = f"{warm_django.bin}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "RULES_SOURCE": f"http://127.0.0.1:{port}/"}
    ended = subprocess.run(
        ["bash", "-e"],
        input=script,
        check=False,
        cwd=example,
        env=environment,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for told in re.findall(r"# ((?:rules|2026\.10): .+)", script):
        assert told in ended.stdout, ended.stdout
    assert "rules: 2026.11: 1 added, 1 changed, 0 removed; " in ended.stdout
    assert "3 files match release 2026.11" in ended.stdout
    assert tree_of(example / "data/rules").keys() == {"base.rules", "web.rules"}
