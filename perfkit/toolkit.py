"""`Toolkit`, the facade: it wires the rooms together and holds no algorithm of its own."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from perfkit.config import Auth, Config
from perfkit.downloads.http.transport import HttpTransport, SessionSource, Transport
from perfkit.downloads.manager import DownloadManager, Item
from perfkit.downloads.request import Download, Request
from perfkit.errors import BatchError, ConfigError
from perfkit.progress.meter import Progress, Silent
from perfkit.progress.stage import Patient

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.downloads.http.semantics import Validator, Version
    from perfkit.filesystem.batch import BatchResult, Copied, OnError
    from perfkit.filesystem.hashing.hash_file import FileHash
    from perfkit.filesystem.scan import ScanEntry
    from perfkit.filesystem.watch import DirtySet
    from perfkit.releases.publish.publisher import Release
    from perfkit.transactions.transaction import Transaction
    from perfkit.transactions.tree import Generation
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport, VerifyReport

__all__ = ["Toolkit"]

Path = str | os.PathLike[str]


class Toolkit:
    """Everything perfkit does, in ordinary blocking calls.

    One Toolkit may be used from many threads at once, and after a fork. It holds threads and connections from the
    first download on: use it as a context manager, or call `close()`.

    Args:
        config: settings; the defaults suit most callers.
        progress: where progress is shown, such as `Bars()`; by default nowhere.
        session: sends all requests: a `requests.Session`, whose auth, headers, cookies, params, hooks, `verify`,
            `cert`, `proxies`, `trust_env` and mounted adapters count; or a callable that makes one for each thread.
        transport: makes another `Transport`; by default `default_transport` does.

    Raises:
        ConfigError: an argument of the wrong type; `session` and `transport` together.

    Attributes:
        default_transport: requests and urllib3, for every Toolkit; `perfkit.testing` puts a fake here.
    """

    default_transport: ClassVar[Callable[[Config], Transport]] = HttpTransport

    def __init__(
        self,
        config: Config | None = None,
        *,
        progress: Progress | None = None,
        session: SessionSource | None = None,
        transport: Callable[[Config], Transport] | None = None,
    ) -> None:
        _check_arguments(config, progress, session, transport)
        self.config = config or Config()
        self._progress = progress
        make = transport or type(self).default_transport
        if session is not None and make is HttpTransport:
            make = functools.partial(HttpTransport, session=session)
        self._patient = Patient(progress or Silent())
        self._downloads = DownloadManager(self.config, transport=make, progress=self._patient)

    def __enter__(self) -> Toolkit:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way, within a second, and give everything back. Idempotent."""
        self._downloads.close()

    def download(
        self,
        url: str | Request,
        dest: Path,
        *,
        checksum: str | None = None,
        mirrors: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        auth: Auth | None = None,
        resume: bool = True,
        rate_limit: int | None = None,
        max_bytes: int | None = None,
        segments: int | None = None,
        byte_range: tuple[int, int] | None = None,
        known: Version | None = None,
        only: Validator | None = None,
    ) -> Download:
        """Download one file; when this returns, it is whole and under its name.

        Args:
            url: what to download; or a `Request`, which says all but `dest` itself.
            dest: a file, or an existing directory (or a path ending in a slash) to name the file in.
            checksum: `algorithm:hex`, such as `sha256:…`; any fixed-length algorithm of hashlib. A file that is there
                already and has it is left alone, and nothing is requested.
            mirrors: other URLs of the same file, tried in order when this one fails.
            headers, auth: sent to the origin of `url`, and to no other.
            resume: go on from what an earlier run left, and ask whether a file that is there changed (a 304 leaves it
                alone); False fetches everything anew.
            rate_limit, max_bytes, segments, byte_range, known, only: as of `Request`.

        Raises:
            ConfigError: an argument is invalid.
            HTTPStatusError, TransferTimeoutError, IntegrityError, RemoteChangedError, TransferError: no file.
            CancelledError: the Toolkit was closed meanwhile.
            OSError: the local disk: full, not writable, the destination a directory.
        """
        if isinstance(url, Request):
            options = (checksum, auth, rate_limit, max_bytes, segments, byte_range, known, only)
            if any(each is not None for each in options) or headers or tuple(mirrors) or not resume:
                raise ConfigError("a Request was given, and options beside it; set them in the Request")
            request = url
        else:
            request = Request(
                url, checksum=checksum, mirrors=mirrors, headers=headers or {}, auth=auth, resume=resume,  # type: ignore[arg-type]
                rate_limit=rate_limit, max_bytes=max_bytes, segments=segments, byte_range=byte_range, known=known,
                only=only,
            )  # fmt: skip
        return self._downloads.fetch(request, os.fspath(dest))

    def download_many(self, requests: Iterable[Item], dest: Path | None = None) -> list[Download]:
        """Download many files, as many at once as pays.

        Args:
            requests: URLs, (URL, name) pairs, or `Request` objects; read as workers get free.
            dest: the directory that names are relative to; the current one by default. It is made if need be.

        Returns:
            One result per request, in input order.

        Raises:
            BatchError: some failed; the others are done, and `results` has all of them, in input order.
        """
        found = dict(self.iter_downloads(requests, dest))
        results = [found[index] for index in sorted(found)]
        if any(download.error is not None for download in results):
            raise BatchError(results)
        return results

    def iter_downloads(
        self, requests: Iterable[Item | None], dest: Path | None = None
    ) -> Iterator[tuple[int, Download]]:
        """Like `download_many`, for streams of any length: yields (input index, result) as each file ends.

        A source that has to wait for its next item may yield None meanwhile, so that progress and results go on.
        A failed file is a result whose `error` is set; nothing is raised for it. Closing the iterator cancels the rest.
        """
        return self._downloads.run(requests, None if dest is None else os.fspath(dest))

    def set_rate_limit(self, bytes_per_second: int | None) -> None:
        """Limit all downloads together from now on, running ones included; None lifts the limit.

        Raises:
            ConfigError: not a positive number, nor None.
        """
        self._downloads.set_rate_limit(bytes_per_second)

    def scan(
        self,
        path: Path,
        *,
        directories: bool = False,
        follow_symlinks: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        without: Collection[str] = (),
    ) -> Iterator[ScanEntry]:
        """What is below `path`, with its stat information; see `perfkit.filesystem.scan.scan`.

        Raises:
            ConfigError: patterns that can't be read.
            OSError: the root can't be. What fails below it is an entry with `error` set.
        """
        from perfkit.filesystem.scan import scan

        return scan(path, directories=directories, follow_symlinks=follow_symlinks, include=include, exclude=exclude,
                    without=without)  # fmt: skip

    def hash_file(self, path: Path, *, chunk_bytes: int | None = None, whole: bool = True) -> FileHash:
        """SHA-256 of a file, of each chunk of it, or both; see `perfkit.filesystem.hashing.hash_file.hash_file`.

        Raises:
            FileChangedError: it changed while it was read.
            ConfigError: `chunk_bytes` can't be.
            OSError: it can't be read.
        """
        from perfkit.filesystem.hashing.hash_file import hash_file

        return hash_file(path, chunk_bytes=chunk_bytes, whole=whole)

    def hash_tree(
        self, path: Path, *, include: Iterable[str] = (), exclude: Iterable[str] = (), without: Collection[str] = ()
    ) -> Iterator[FileHash]:
        """SHA-256 of every regular file below `path`, as they are done.

        Raises:
            ConfigError, OSError: as `scan`. A file that fails is a result with `error` set.
        """
        from perfkit.filesystem.hashing.hash_tree import hash_tree

        return hash_tree(path, include=include, exclude=exclude, without=without)

    def copy_tree(self, src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop") -> Copied:
        """Copy a tree, by reflink where that is to be had; a new `dest` appears in one step.

        Args:
            merge: `dest` may have contents, which are replaced file by file or stay.
            on_error: `stop` at the first failure or `continue` with the rest.

        Raises:
            BatchError: some paths failed; `results` has those.
            FileExistsError: `dest` has contents (without `merge`), or is no directory.
            OSError: either can't be opened or made.
        """
        from perfkit.filesystem.batch import copy_tree

        return copy_tree(src, dest, merge=merge, on_error=on_error, progress=self._progress)

    def link_tree(self, src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop") -> Copied:
        """As `copy_tree`, with hard links for files; what can't be linked is copied."""
        from perfkit.filesystem.batch import link_tree

        return link_tree(src, dest, merge=merge, on_error=on_error, progress=self._progress)

    def move_many(
        self, pairs: Iterable[tuple[Path, Path]], *, replace: bool = False, on_error: OnError = "stop"
    ) -> list[BatchResult]:
        """Move files, links and directories, in order; to another file system by a copy.

        Raises:
            BatchError: some failed; `results` has all that were tried.
        """
        from perfkit.filesystem.batch import move_many

        return move_many(pairs, replace=replace, on_error=on_error, progress=self._progress)

    def remove_tree(self, path: Path, *, on_error: OnError = "stop") -> int:
        """Remove a directory and all below it, never through a link; returns how many names.

        Raises:
            BatchError: some paths could not be removed; `results` has those.
            OSError: it is not there, or is no directory.
        """
        from perfkit.filesystem.batch import remove_tree

        return remove_tree(path, on_error=on_error, progress=self._progress)

    def watch(self, path: Path) -> DirtySet:
        """The names that change below `path`: `with kit.watch(path) as dirty: ...`; see `DirtySet`."""
        from perfkit.filesystem.watch import watch

        return watch(path)

    @contextlib.contextmanager
    def transaction(self, root: Path, *, wait_s: float = 0.0) -> Iterator[Transaction]:
        """Change files below `root` all at once: durably at the end of the block, or not at all.

        An exception that leaves the block, or a crash, gives everything up. What is replaced is kept for a rollback.

        Args:
            wait_s: how long to wait for another that is changing the same tree.

        Raises:
            LockedError: another process or thread is changing it.
            UpdateError, FileChangedError, OSError: the change can't be made; nothing was changed.
            RecoveryError: a commit could not be completed; the next use of the tree tries again.
        """
        from perfkit.transactions.tree import Tree

        with Tree(root, wait_s=wait_s) as tree, tree.transaction() as tx:
            yield tx

    def publish(
        self, src: Path, site: Path, *, version: str, keep_deltas: int = 3, exclude: Iterable[str] = ()
    ) -> Release:
        """Make a directory tree the release that a static site offers; the site is made if need be.

        Args:
            site: a directory for any static file server; everything in it but one small file never changes.
            version: what to call the release; one line of at most 200 characters. `{n}` in it becomes the release's
                serial, and `{time}` its UTC time, such as 20261124T233000Z; a tree that is on offer is not released
                again then.
            keep_deltas: how many of the last releases get a direct delta; older ones follow a chain of them.
            exclude: patterns (fnmatch) of names in `src` to leave out; of a directory, with all in it.

        Raises:
            ConfigError: an argument that can't be; `site` lies in `src`.
            UnsafePathError: a name in `src` that not every client can hold; a symbolic link or special file.
            FileChangedError: a file changed while it was read; the site is as it was.
            LockedError: another process is publishing to this site.
            ManifestError: the site is damaged.
            OSError: from reading `src` or writing `site`; the site is as it was.
        """
        from perfkit.releases.publish.publisher import publish

        return publish(os.fspath(src), os.fspath(site), version=version, keep_deltas=keep_deltas, exclude=exclude)

    def republish(
        self, src: Path, site: Path, *, version: str, keep_deltas: int = 3, exclude: Iterable[str] = ()
    ) -> Generator[Release, None, None]:
        """Publish a tree now, and again whenever its files change: yields each release, and goes on until closed.

        Files are hashed once, and then only those that the kernel tells of, when nothing has changed for half a
        second. What can't be published, such as a file that is still being written, is logged, and tried again at the
        next change.

        Args:
            version: as for `publish`; with `{n}` or `{time}` in it each release has a version of its own.

        Raises:
            as `publish`, for the first release.
            OSError: `src` can't be watched.
        """
        from perfkit.releases.publish.on_change import republish

        return republish(os.fspath(src), os.fspath(site), version=version, keep_deltas=keep_deltas,
                         exclude=tuple(exclude))  # fmt: skip

    def plan(self, source: Path, dest: Path, *, type: str | None = None, selection: Selection | None = None) -> Plan:
        """What `sync` would do now; nothing is written to `dest`.

        Raises:
            as `sync`.
        """
        from perfkit.updates.source_types import kind_of
        from perfkit.updates.updater import plan

        with self._patient.waiting():
            return plan(self.config, self._downloads, os.fspath(source), os.fspath(dest), kind=kind_of(type),
                        selection=selection, progress=self._progress)  # fmt: skip

    def sync(
        self, source: Path, dest: Path, *, type: str | None = None, selection: Selection | None = None
    ) -> SyncReport:
        """Bring a tree to what a source offers: only what differs is fetched, and all is changed at once.

        Unmanaged files are left alone; `Config.local_changes` says what becomes of edited ones. After a crash the same
        call goes on with what was fetched.

        Args:
            source: the URL of a site or of a file; or the path of a list of URLs, or of a Metalink document.
            dest: the tree; made if need be.
            type: what the source is, one of `Kind`; by default it is recognised by its content.
            selection: which files of an archive are wanted, and under which names.

        Raises:
            ConfigError: the source is of no kind that perfkit knows, or `selection` is not for its kind.
            ManifestError, UnsafePathError: the release is damaged or hostile; the tree is as it was.
            TransferError: it can't be fetched; the tree is as it was.
            UpdateError: there are local changes that are to be refused, or the source offers an older release than was
                installed from it; the tree is as it was.
            FileChangedError: a file that the release changes was edited meanwhile; the tree is as it was.
            LockedError: another process or thread is changing the tree.
            RecoveryError: a commit could not be completed; the next use of the tree tries again.
            OSError: the local disk, such as no space; the tree is as it was.
        """
        from perfkit.updates.source_types import kind_of
        from perfkit.updates.updater import sync

        with self._patient.waiting():
            return sync(self.config, self._downloads, os.fspath(source), os.fspath(dest), kind=kind_of(type),
                        selection=selection, progress=self._progress)  # fmt: skip

    def rollback(self, dest: Path, *, to: int | None = None) -> SyncReport:
        """Go back to a kept generation, or forward again, without the network.

        A file that others had edited before it was updated comes back as they had left it, if nothing has what the
        release had there; the report's `as_found` names it.

        Args:
            to: its number, as `history` tells; by default the one before the current one.

        Raises:
            RollbackError: there is no such generation, or its contents are damaged; the tree is as it was.
            UpdateError: `dest` is no managed tree.
            LockedError, RecoveryError, OSError: as `sync`.
        """
        from perfkit.updates.updater import rollback

        return rollback(self.config, os.fspath(dest), to)

    def history(self, dest: Path) -> list[Generation]:
        """The generations that `rollback` can reach, oldest first.

        Raises:
            UpdateError: `dest` is no managed tree.
            RollbackError: a record is damaged.
            LockedError: another process or thread is changing the tree.
        """
        from perfkit.updates.updater import history

        return history(os.fspath(dest))

    def verify(self, dest: Path, *, repair: bool = False) -> VerifyReport:
        """Hash every file of the installed release again, and tell what is missing, changed, or extra.

        Args:
            repair: fetch what is missing or changed; extra files stay.

        Raises:
            UpdateError: no release is installed in `dest`.
            as `sync`, with `repair`.
        """
        from perfkit.updates.verify import verify

        with self._patient.waiting():
            return verify(self.config, self._downloads, os.fspath(dest), repair, progress=self._progress)


def _check_arguments(config: object, progress: object, session: object, transport: object) -> None:
    if config is not None and not isinstance(config, Config):
        raise ConfigError(f"config must be a perfkit.Config; got {config!r}")
    if progress is not None and not (hasattr(progress, "update") and hasattr(progress, "finish")):
        raise ConfigError(f"progress must have update() and finish(), as Bars() has; got {progress!r}; "
                          "CallbackProgress(function) calls a function")  # fmt: skip
    if session is not None and not (hasattr(session, "mount") or callable(session)):
        raise ConfigError(f"session must be a requests.Session, or make one when called; got {session!r}")
    if transport is not None and not callable(transport):
        raise ConfigError(f"transport must make a Transport when called with the Config; got {transport!r}")
    if session is not None and transport is not None:
        raise ConfigError("session and transport were given: a transport of its own sends no requests by a session")
