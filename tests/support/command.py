"""The `perfkit` command in tests: in this process, or in another."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from perfkit.cli import main
from tests.support.kits import SOON_S
from tests.support.tools import ENVIRONMENT
from tests.support.warm import WarmPython

Capture = pytest.CaptureFixture[str]
BODY = random.Random(7).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
PERFKIT = [sys.executable, "-m", "perfkit"]


def complaints(err: str) -> list[str]:
    """The reported errors; each is one line, without a traceback."""
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("perfkit: error: ")]


def the_object(out: str) -> dict[str, Any]:
    """One JSON object, and nothing else."""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def get(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any], list[str]]:
    """`perfkit get --json` in this process: exit code, object, errors."""
    code = main(["get", "--json", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, the_object(out), complaints(err)


def start(warm: WarmPython, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return warm.start("-m", "perfkit", *arguments, **{**pipes, **options})


def read_until(pipe: Any, text: bytes, timeout_s: float = 100.0) -> bytes:
    """What comes through a pipe, up to and with `text`."""
    deadline, seen = time.monotonic() + timeout_s, b""
    while text not in seen:
        assert select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0], f"{text!r} not in {seen!r}"
        data = os.read(pipe.fileno(), 65536)
        assert data, f"{text!r} not in {seen!r}"
        seen += data
    return seen


def interrupt(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Ctrl-C: it ends within a second, with 130."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert time.monotonic() - began < SOON_S
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    return out, err


# VmHWM is the peak of this program alone; what wait4(2) tells includes that of the process which started it.
_MEASURED = """if True:
    import sys
    from perfkit.cli import main
    code = main(sys.argv[1:])
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(code, peak.split()[1])
"""


def peak_mb(*arguments: object) -> tuple[int, float]:
    """Exit code and peak of the resident memory of a command, in a process of its own."""
    command = [sys.executable, "-c", _MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    code, kib = done.stdout.split()[-2:]
    return int(code), int(kib) / 1024
