"""Work in a few threads."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import perfkit
from perfkit.filesystem.thread_map import cached_property, map_in_threads


class Slow:
    """A property that takes until another object's is computed, too."""

    both = threading.Barrier(2, timeout=100)

    @cached_property
    def value(self) -> int:
        return self.both.wait()


def test_properties_of_different_objects_are_computed_at_once() -> None:
    """Before Python 3.12, functools had one lock for all, and a child forked meanwhile never got it."""
    objects = Slow(), Slow()
    assert sorted(map_in_threads(lambda each: each.value, objects, 2)) == [0, 1]
    assert sorted(each.value for each in objects) == [0, 1]


def test_no_property_has_the_lock_of_functools() -> None:
    own = Path(perfkit.__file__).parent
    found = [path for path in own.rglob("*.py") if re.search(r"functools.*\bcached_property", path.read_text("utf-8"))]
    assert found == [own / "filesystem/thread_map.py"]
