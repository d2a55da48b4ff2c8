"""A layer around the system calls that change a disk: what passes can be recorded, or end the process in effect."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from perfkit.transactions import commit

Watcher = Callable[[str, list[str]], Callable[[], None] | None]


class Crash(BaseException):
    """The process has ended: nothing may catch this and go on."""


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _at(path: Any, dir_fd: int | None) -> str:
    return os.fspath(path) if dir_fd is None else os.path.join(path_of(dir_fd), path)


@contextlib.contextmanager
def watched(watch: Watcher) -> Iterator[None]:
    """Call `watch(kind, paths)` before every mutating call, and what it returns after the call has succeeded."""

    def wrap(kind: str, real: Callable[..., Any], paths: Callable[..., list[str] | None]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found = paths(*args, **options)
            if found is None:
                return real(*args, **options)
            after = watch(kind, found)
            result = real(*args, **options)
            if after is not None:
                after()
            return result

        return call

    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> list[str] | None:
        return [_at(path, dir_fd)] if flags & (os.O_WRONLY | os.O_RDWR) else None

    def one(path: Any, *_: Any, dir_fd: int | None = None) -> list[str]:
        return [_at(path, dir_fd)]

    def two(a: Any, b: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, **_: Any) -> list[str]:
        return [_at(a, src_dir_fd), _at(b, dst_dir_fd)]

    def by_fd(fd: int, *_: Any) -> list[str]:
        return [path_of(fd)]

    with contextlib.ExitStack() as stack:
        for kind, paths in {
            "open": opened,
            "mkdir": one,
            "rmdir": one,
            "unlink": one,
            "rename": two,
            "link": two,
            "fsync": by_fd,
            "write": by_fd,
            "fchmod": by_fd,
        }.items():
            stack.enter_context(mock.patch.object(os, kind, wrap(kind, getattr(os, kind), paths)))
        stack.enter_context(mock.patch.object(commit, "syncfs", wrap("syncfs", commit.syncfs, by_fd)))
        yield


@contextlib.contextmanager
def dying(at: int) -> Iterator[None]:
    """Let that many mutating calls pass; the next one, and all after it, never happen."""
    left = at

    def watch(kind: str, paths: list[str]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash

    with watched(watch):
        yield
