"""What the checks have found, as the page docs/servers.md."""

from __future__ import annotations

from pathlib import Path

import pytest


class Results:
    """Cells by table, row and column, as they come."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[tuple[str, str], dict[str, str]]] = {}

    def add(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties)
        if report.when != "call" or "row" not in found:
            return
        name, server, version, column = found["row"]  # type: ignore[misc]
        self.cells.setdefault(name, {}).setdefault((server, version), {})[column] = str(found.get("cell", "FAILED"))

    def write(self, path: Path) -> None:
        import json
        path.write_text(json.dumps({k: {f"{a} {b}": v for (a, b), v in r.items()} for k, r in self.cells.items()}, indent=1))
