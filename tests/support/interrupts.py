"""Ctrl-C wherever CPython raises it: as a Python function begins or a generator goes on, and after a call of C code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType


def interrupted(work: Callable[[], object], modules: tuple[ModuleType, ...], number: int) -> bool:
    """Do this, with a KeyboardInterrupt at the moment with this number, from 1 on, of those in the code of the modules;
    returns whether it came. Functions that this calls must have been imported before.
    """
    files, left = {module.__file__ for module in modules}, number

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False
