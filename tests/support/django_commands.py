"""Management commands in this process, with what they print; a site for the trees of the settings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from perfkit import Toolkit
from tests.support.trees import Tree, write_tree

FIRST: Tree = {f"{number:02}.rules": b"allow %d\n" % number * 50 for number in range(20)}
SECOND: Tree = {**FIRST, "07.rules": b"deny 7\n" * 50, "new.rules": b"allow all\n"}


class Site:
    """A published site on a server, and settings with a tree that follows it."""

    def __init__(self, root: Path, kit: Toolkit, url: str) -> None:
        self.root, self.kit, self.url = root, kit, url
        self.dest = root / "rules"
        self.publish("1", FIRST)

    def publish(self, version: str, tree: Tree) -> None:
        self.kit.publish(write_tree(self.root / "src", tree), self.root / "site", version=version)


def run(command: str, *args: str, **options: Any) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    call_command(command, *args, stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


def failure(command: str, *args: str, **options: Any) -> tuple[int, str]:
    """Return code and message of a command that fails."""
    with pytest.raises(CommandError) as caught:
        run(command, *args, **options)
    return caught.value.returncode, str(caught.value)
