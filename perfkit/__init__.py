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
    from perfkit.errors import *  # its `__all__` has the exceptions
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

_NAMES = {  # by their modules; all others are in perfkit.errors
    "perfkit.cli.named_trees": ("NamedTree", "read_trees"),
    "perfkit.config": ("Config",),
    "perfkit.downloads.request": ("Download", "Request"),
    "perfkit.progress.bars": ("Bars",),
    "perfkit.progress.lines": ("CallbackProgress", "JsonLines", "PlainLines"),
    "perfkit.progress.meter": ("FileProgress", "Progress", "Snapshot"),
    "perfkit.releases.publish.publisher": ("Release",),
    "perfkit.toolkit": ("Toolkit",),
    "perfkit.transactions.history": ("Generation",),
    "perfkit.updates.check": ("StagedTree",),
    "perfkit.updates.hold": ("Hold",),
    "perfkit.updates.planner": ("Plan",),
    "perfkit.updates.report": ("SyncReport", "VerifyReport"),
    "perfkit.updates.sources.earlier_releases": ("OfferedRelease",),
    "perfkit.updates.status": ("TreeStatus",),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'perfkit' has no attribute {name!r}")
    home = next((module for module, names in _NAMES.items() if name in names), "perfkit.errors")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
