"""Show the caller's check the tree as it will be, before anything changes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from stat import S_ISREG

from perfkit.errors import CheckFailedError, ConfigError, FileChangedError
from perfkit.filesystem.hashing.hash_file import hash_file
from perfkit.filesystem.paths import parents
from perfkit.libc import holds_modes
from perfkit.progress.text import printable
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.statcache import clock_ns
from perfkit.transactions import layout
from perfkit.updates.planner import Plan
from perfkit.updates.staging import StagingArea


@dataclass(frozen=True, kw_only=True)
class StagedTree:
    """The tree as it will be; the argument of a check.

    Attributes:
        path: a directory that shows the tree as it will be; do not write to it. Files, and directories in which nothing
            changes, are symbolic links.
        root: the tree itself, not changed yet.
        version: the version to install.
        previous_version: the installed version; None: nothing is installed.
        added, changed, removed: names of files.
    """

    path: str
    root: str
    version: str
    previous_version: str | None
    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]


Check = Callable[[StagedTree], object]  # an exception refuses the change


def run_check(
    check: Check, root: str, plan: Plan, manifest: Manifest, staging: StagingArea, installed: Manifest
) -> None:
    """Call the check.

    Raises:
        CheckFailedError: the check raised an exception, or wrote to the new files or those of the tree.
        ConfigError: the check raised it: the check itself is wrong.
        OSError: the view can't be created.
    """
    changed = _changed_names(root, plan, manifest, staging)
    with _view(root, changed, manifest) as (path, new_files):
        before, began_ns = [_signature(each) for each in new_files], clock_ns(os.path.join(root, layout.CLOCK))
        refusal: Exception | None = None
        staged = StagedTree(
            path=path,
            root=root,
            version=plan.version,
            previous_version=plan.installed_version,
            added=tuple(plan.added),
            changed=tuple(plan.changed),
            removed=tuple(chain(plan.remove, (each.source for each in plan.local if each.move))),
        )
        try:
            check(staged)
        except ConfigError:
            raise
        except Exception as error:
            refusal = error
        finally:
            written = [each for each, was in zip(new_files, before, strict=True) if _signature(each) != was]
            for each in written:
                with contextlib.suppress(OSError):
                    os.unlink(each)
    reason = str(refusal) or type(refusal).__name__ if refusal else ""
    if damaged := _damaged(root, installed, changed, began_ns):
        names = ", ".join(map(printable, damaged[:3])) + (f" and {len(damaged) - 3} others" if len(damaged) > 3 else "")
        reason = f"it has changed the tree, or another program did at the same time; verify and repair it: {names}"
    elif written and not reason:
        reason = "the check wrote to files of the release; it may only read them"
    if reason:
        raise CheckFailedError(plan.version, reason) from refusal


def _damaged(root: str, installed: Manifest, changed: Container[str], began_ns: int) -> list[str]:
    """The files that the update keeps, but that were changed or removed since `began_ns`. Each file costs a stat; only
    those whose inode changed since then are read.
    """
    modes, found, below = holds_modes(os.path.join(root, layout.LOCK)), list[str](), os.path.join(root, "")
    for at, name in enumerate(installed.names()):
        if name in changed:
            continue
        path = below + name  # os.path.join takes twice as long as the stat
        try:
            status = os.lstat(path)
            differs = modes and bool(status.st_mode & 0o100) != installed.executable(at)
            if status.st_ctime_ns >= began_ns and (
                differs or not S_ISREG(status.st_mode) or hash_file(path).sha256 != installed.digest(at).hex()
            ):
                found.append(name)
        except (OSError, FileChangedError):
            found.append(name)
    return found


def _changed_names(root: str, plan: Plan, manifest: Manifest, staging: StagingArea) -> dict[str, str | None]:
    """The path of each changed name's content; None: the name is removed; the empty string: the file is empty."""

    def staged(name: str) -> str:
        at = manifest.find(name)
        assert at is not None, name
        return staging.path(manifest.digest(at)) if manifest.size(at) else ""

    found: dict[str, str | None] = dict.fromkeys(plan.remove)
    found.update(dict.fromkeys(each.source for each in plan.local if each.move))
    found.update((saved, os.path.join(root, name)) for name, saved in plan.saved_as.items())
    found.update((each.name, os.path.join(root, each.source)) for each in plan.local)
    found.update((name, os.path.join(root, name)) for name in plan.modes)
    found.update((name, staged(name)) for name in chain(plan.stored, plan.fetch))
    return found


@contextlib.contextmanager
def _view(root: str, changed: Mapping[str, str | None], manifest: Manifest) -> Iterator[tuple[str, list[str]]]:
    """Create the view; yields its path, and the staged files that it shows."""
    root = os.path.realpath(root)
    view = os.path.join(root, layout.CHECK)
    shutil.rmtree(view, ignore_errors=True)  # left by a crash
    try:
        _link(root, view, changed)
        fetched = os.path.join(root, layout.FETCH, "")
        _set_modes(view, changed, manifest, fetched)
        yield view, [path for path in map(os.path.realpath, filter(None, changed.values())) if path.startswith(fetched)]
    finally:
        shutil.rmtree(view, ignore_errors=True)


def _link(root: str, view: str, changed: Mapping[str, str | None]) -> None:
    """Fill the view: create the directories that lead to changed names, and link everything else."""
    directories = {""}
    for name in changed:
        above = [*parents(name)]
        if all(changed.get(each) is None for each in above):  # otherwise a file replaces a directory
            directories.update(above)
    kept = directories.union(changed, [layout.PRIVATE_DIR])
    for directory in sorted(directories):
        os.mkdir(os.path.join(view, directory))
        below = os.path.join(directory, "")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(os.path.join(root, directory))
            _link_siblings(root, view, directory, [each for each in names if below + each not in kept])
    for name, content in changed.items():
        if content:
            os.symlink(os.path.realpath(content), os.path.join(view, name))
        elif content is not None:
            open(os.path.join(view, name), "xb").close()
    for directory in sorted(directories, reverse=True):
        if directory:
            with contextlib.suppress(OSError):  # the last file of it was removed
                os.rmdir(os.path.join(view, directory))


def _link_siblings(root: str, view: str, directory: str, names: Iterable[str]) -> None:
    """Link what does not change in a directory, with one short system call each. The links are relative, since ext4
    needs a block of its own for a link of 60 bytes or more.
    """
    shown = os.path.join(view, directory)
    original = os.path.relpath(os.path.join(root, directory), shown)
    at = os.open(shown, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            os.symlink(f"{original}/{name}", name, dir_fd=at)
    finally:
        os.close(at)


def _set_modes(view: str, changed: Mapping[str, str | None], manifest: Manifest, fetched: str) -> None:
    """Set the executable bits: of staged files in place; of a file of the tree with another mode, on a copy."""
    for name, content in changed.items():
        path, at = os.path.join(view, name), manifest.find(name)
        if content is None or at is None or bool(os.stat(path).st_mode & 0o100) == manifest.executable(at):
            continue
        if not os.path.realpath(path).startswith((fetched, view)):
            original = os.path.realpath(path)
            os.unlink(path)
            shutil.copyfile(original, path)
            os.chmod(path, 0o755 if manifest.executable(at) else 0o644)
        elif manifest.executable(at):  # even if another file with this content is not
            os.chmod(path, 0o755)


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
