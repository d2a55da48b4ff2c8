"""What an import costs, and what the package's front says it has."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import perfkit
from perfkit import errors
from perfkit.server.server import Server

HEAVY = (
    "progressbar",
    "watchdog",
    "numpy",
    "zstd",
    "zstandard",
    "backports.zstd",
    "compression.zstd",
    "sqlite3",
    "django",
)
NETWORK = ("requests", "urllib3", "http.client", "ssl")


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after this."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_the_package_is_cheap() -> None:
    """`import perfkit` loads nothing of the network, nor anything heavy."""
    loaded = loaded_by("import perfkit")
    assert not loaded & {*HEAVY, *NETWORK}
    assert {name for name in loaded if name.startswith("perfkit.")} <= {"perfkit._version"}


def test_the_toolkit_loads_what_it_must() -> None:
    """Sockets; but neither requests, TLS, bars, watching nor codecs until they are needed."""
    assert not loaded_by("from perfkit import Toolkit") & {*HEAVY, *NETWORK}


def test_a_plain_download_is_cheap(tmp_path: Path) -> None:
    """It loads requests and what that loads, and nothing else that is large."""
    (tmp_path / "f").write_bytes(b"bytes")
    with Server(tmp_path) as server:
        loaded = loaded_by(
            "from perfkit import Config, Toolkit;"
            f"Toolkit(Config(trust_env=False)).download({server.url!r} + 'f', {os.fspath(tmp_path / 'g')!r})"
        )
    assert (tmp_path / "g").read_bytes() == b"bytes"
    assert "requests" in loaded
    assert not loaded & {"progressbar", "watchdog", "numpy", "sqlite3", "django", "truststore"}


def test_a_sync_loads_what_it_must() -> None:
    """Nothing of the kinds of sources that it is not about, and of Python nothing that only some syncs need."""
    loaded = loaded_by("import perfkit.updates.updater, perfkit.updates.sources.zsync_source")
    seldom = {"difflib", "email.utils", "secrets", "shutil", "signal", "tempfile", "unicodedata"}
    others = {"perfkit.releases.format.pointer", "perfkit.archives.members"}
    assert not loaded & {*HEAVY, *NETWORK, *seldom, *others}


def test_a_command_does_not_load_what_guesses_encodings(tmp_path: Path) -> None:
    """Nor does requests warn that it can't: 2 MB of a sync's memory."""
    (tmp_path / "f").write_bytes(b"bytes")
    with Server(tmp_path) as server:
        get = ["-m", "perfkit", "get", f"{server.url}f", "-d", os.fspath(tmp_path / "to"), "--quiet"]
        command = [sys.executable, "-W", "always", "-X", "importtime", *get]
        ran = subprocess.run(command, capture_output=True, check=True, timeout=100)
    assert b"requests.sessions" in ran.stderr
    assert not re.search(b"charset_normalizer[.]|chardet[.]|character detection", ran.stderr)


@pytest.mark.parametrize("statement", ["import perfkit.cli", "from perfkit import Config, PerfkitError, TransferError"])
def test_the_rest_is_cheap_too(statement: str) -> None:
    """Help texts and `except` clauses need no network."""
    assert not loaded_by(statement) & {*HEAVY, *NETWORK}


def test_a_version_loads_no_settings() -> None:
    """Nor do help and errors of usage."""
    assert not loaded_by("import perfkit.cli") & {"perfkit.config", "perfkit.progress.meter", "dataclasses", "logging"}


def test_a_command_loads_only_itself() -> None:
    """It does not import what only other commands need."""
    loaded = loaded_by("import perfkit.cli, sys; sys.stderr = None; perfkit.cli.main(['get'])")
    assert "perfkit.cli.get" in loaded
    assert not loaded & {"perfkit.cli.tree_commands", "perfkit.cli.serve"}


def test_all_names_are_there() -> None:
    """`__all__` is sorted, every name in it leads somewhere, and the same object is behind both of its names."""
    assert perfkit.__all__ == sorted(perfkit.__all__)
    assert len(set(perfkit.__all__)) == len(perfkit.__all__)
    for name in perfkit.__all__:
        value = getattr(perfkit, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
    assert set(perfkit.__all__) <= set(dir(perfkit))
    scope: dict[str, object] = {}
    exec("from perfkit import *", scope)
    assert set(perfkit.__all__) <= set(scope)


def test_no_other_names() -> None:
    """A slip is an AttributeError, also for names of modules inside."""
    with pytest.raises(AttributeError, match="no attribute 'Toolkitt'"):
        _ = perfkit.Toolkitt  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from perfkit import parse_size")


def test_every_error_is_public() -> None:
    """The whole tree can be caught by name, and hangs on one root."""
    for name in errors.__all__:
        assert name in perfkit.__all__
        assert issubclass(getattr(errors, name), perfkit.PerfkitError)


def test_errors_cross_processes_whole() -> None:
    """Fields survive pickling, and no password is shown."""
    url = "http://user:secret@host/f"
    for error in (
        errors.TransferError(url, "why", transient=True),
        errors.HTTPStatusError(url, "why", 503, transient=True),
        errors.IntegrityError(url, "why", "sha256:a", "sha256:b"),
        errors.TransferTimeoutError(url, "why"),
        errors.FileChangedError("/p", "why"),
        errors.UnsafePathError("../n", "why"),
        errors.BatchError([1, 2]),
        errors.RemoteChangedError(url, "why"),
        errors.CancelledError(url, "why"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert not isinstance(error, errors.TransferError) or str(again) == str(error)
        assert not isinstance(error, errors.TransferError) or ("secret" not in str(error) and "why" in str(error))
