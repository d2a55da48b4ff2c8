"""Work on contents that deltas from several releases have in common. No I/O."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

_KEPT_BYTES = 8 << 20  # of results; most deltas are smaller


class WorkCache:
    """What was made from contents, by their digests, in a few megabytes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[bytes, tuple[bytes, int]] = {}
        self._left = _KEPT_BYTES

    def get(self, make: Callable[[], tuple[bytes, int]], kind: str, contents: Sequence[bytes]) -> tuple[bytes, int]:
        """What `make` returned for the same kind and contents, on which alone it depends, or returns now."""
        digest = hashlib.sha256(repr((kind, list(map(len, contents)))).encode())
        for content in contents:
            digest.update(content)
        key = digest.digest()
        found = self._results.get(key)
        if found is None:
            found = make()
            with self._lock:
                if key not in self._results and len(found[0]) <= self._left:  # another thread may have made it, too
                    self._left -= len(found[0])
                    self._results[key] = found
        return found
