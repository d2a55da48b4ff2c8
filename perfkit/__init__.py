"""perfkit: fast parallel downloads, live progress, and all-or-nothing changes, in plain synchronous Python.

Names are imported on first use, so that `import perfkit` is almost free.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from perfkit._version import __version__ as __version__

if sys.platform == "win32":
    raise ImportError("perfkit runs on Linux and macOS; on Windows, use it in WSL, the Windows Subsystem for Linux")

if TYPE_CHECKING:
    from perfkit.cli.named_trees import NamedTree, read_trees
    from perfkit.config import Config
    from perfkit.downloads.request import Download, Request
    from perfkit.errors import (
        BatchError,
        CancelledError,
        CheckFailedError,
        CommandFailedError,
        ConfigError,
        ExpiredError,
        FileChangedError,
        HTTPStatusError,
        IntegrityError,
        LockedError,
        ManifestError,
        PerfkitError,
        RecoveryError,
        RemoteChangedError,
        RollbackError,
        SignatureError,
        StaleSourceError,
        TransferError,
        TransferTimeoutError,
        UnsafePathError,
        UpdateError,
    )
    from perfkit.progress.bars import Bars
    from perfkit.progress.lines import CallbackProgress, JsonLines, PlainLines
    from perfkit.progress.meter import FileProgress, Progress, Snapshot
    from perfkit.releases.publish.publisher import Release
    from perfkit.toolkit import Toolkit
    from perfkit.transactions.history import Generation
    from perfkit.updates.check import StagedTree
    from perfkit.updates.hold import Hold
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport, VerifyReport
    from perfkit.updates.sources.earlier_releases import OfferedRelease
    from perfkit.updates.status import TreeStatus

__all__ = [
    "Bars",
    "BatchError",
    "CallbackProgress",
    "CancelledError",
    "CheckFailedError",
    "CommandFailedError",
    "Config",
    "ConfigError",
    "Download",
    "ExpiredError",
    "FileChangedError",
    "FileProgress",
    "Generation",
    "HTTPStatusError",
    "Hold",
    "IntegrityError",
    "JsonLines",
    "LockedError",
    "ManifestError",
    "NamedTree",
    "OfferedRelease",
    "PerfkitError",
    "PlainLines",
    "Plan",
    "Progress",
    "RecoveryError",
    "Release",
    "RemoteChangedError",
    "Request",
    "RollbackError",
    "SignatureError",
    "Snapshot",
    "StagedTree",
    "StaleSourceError",
    "SyncReport",
    "Toolkit",
    "TransferError",
    "TransferTimeoutError",
    "TreeStatus",
    "UnsafePathError",
    "UpdateError",
    "VerifyReport",
    "read_trees",
]

_HOMES = {  # the names that are not listed here are in perfkit.errors
    "Bars": "perfkit.progress.bars",
    "CallbackProgress": "perfkit.progress.lines",
    "Config": "perfkit.config",
    "Download": "perfkit.downloads.request",
    "FileProgress": "perfkit.progress.meter",
    "Generation": "perfkit.transactions.history",
    "NamedTree": "perfkit.cli.named_trees",
    "read_trees": "perfkit.cli.named_trees",
    "Hold": "perfkit.updates.hold",
    "OfferedRelease": "perfkit.updates.sources.earlier_releases",
    "Plan": "perfkit.updates.planner",
    "StagedTree": "perfkit.updates.check",
    "SyncReport": "perfkit.updates.report",
    "VerifyReport": "perfkit.updates.report",
    "JsonLines": "perfkit.progress.lines",
    "PlainLines": "perfkit.progress.lines",
    "Progress": "perfkit.progress.meter",
    "Release": "perfkit.releases.publish.publisher",
    "Request": "perfkit.downloads.request",
    "Snapshot": "perfkit.progress.meter",
    "Toolkit": "perfkit.toolkit",
    "TreeStatus": "perfkit.updates.status",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'perfkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "perfkit.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
