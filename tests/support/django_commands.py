"""Management commands in this process, with what they print."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command


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
