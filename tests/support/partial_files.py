"""What the journal of a partial file records."""

from __future__ import annotations

import json
from pathlib import Path


def held(dest: Path) -> int:
    """How many bytes of a download to `dest` its journal records as written."""
    try:
        done = json.loads((dest.parent / f"{dest.name}.perfkit-part.json").read_bytes())["done"]
    except (FileNotFoundError, ValueError):
        return 0
    return sum(end - start for start, end in done)
