"""`Toolkit`, the facade: it wires the packages together and contains no algorithm of its own."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from perfkit.config import Auth, Config, LocalChanges, checks_arguments
from perfkit.downloads.http.transport import HttpTransport, SessionSource, Transport
from perfkit.downloads.manager import DownloadManager, Item
from perfkit.downloads.request import Download, Request
from perfkit.errors import BatchError, ConfigError
from perfkit.filesystem.paths import local_path
from perfkit.progress.meter import Progress, Silent
from perfkit.progress.operation import OperationProgress
from perfkit.releases.format import POINTER_NAME

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.downloads.http.semantics import Version
    from perfkit.downloads.shared_limits import LimitStore
    from perfkit.filesystem.batch.copying import CopyResult
    from perfkit.filesystem.batch.run import BatchResult, OnError
    from perfkit.filesystem.hashing.hash_file import FileHash
    from perfkit.filesystem.scan import ScanEntry
    from perfkit.filesystem.watch import DirtySet
    from perfkit.minisign.public_keys import AnyKey
    from perfkit.releases.publish.publisher import Release
    from perfkit.releases.publish.source_tree import Links
    from perfkit.releases.publish.upkeep import SiteReport
    from perfkit.transactions.history import Generation, Pruned
    from perfkit.transactions.transaction import Transaction
    from perfkit.updates.check import Check
    from perfkit.updates.hold import Hold
    from perfkit.updates.planner import Plan
    from perfkit.updates.report import SyncReport, VerifyReport
    from perfkit.updates.sources.earlier_releases import OfferedRelease
    from perfkit.updates.status import TreeStatus

Path = str | os.PathLike[str]


@checks_arguments
class Toolkit:
    """Everything perfkit does, as ordinary blocking calls.

    A Toolkit may be used by many threads at once, and after a fork. Its first download starts threads and opens
    connections, so use it as a context manager, or call `close()`.

    Each call that changes a tree or a site locks it. Its argument `wait_s` says how many seconds to wait for another
    process or thread that has locked it; after that, the call raises LockedError.

    Args:
        config: settings; the defaults suit most callers.
        progress: displays progress, such as `Bars()`; none by default.
        session: sends all requests: a `requests.Session`, whose auth, headers, cookies, params, hooks, `verify`,
            `cert`, `proxies`, `trust_env` and mounted adapters apply; or a callable that makes one for each thread.
        transport: creates a `Transport`; by default `default_transport`.
        limits: the store from which several Toolkits lease their shares of one rate limit and of the connections to
            each host; `Config.rate_limit` is not used then.

    Raises:
        ConfigError: an argument has the wrong type, or both `session` and `transport` are given.

    Attributes:
        default_transport: creates the transport of every Toolkit that is not given one: requests sessions over one
            urllib3 PoolManager. `perfkit.testing` replaces it.
    """

    default_transport: ClassVar[Callable[[Config], Transport]] = HttpTransport

    def __init__(
        self,
        config: Config | None = None,
        *,
        progress: Progress | None = None,
        session: SessionSource | None = None,
        transport: Callable[[Config], Transport] | None = None,
        limits: LimitStore | None = None,
    ) -> None:
        if session is not None and transport is not None:
            raise ConfigError("give session or transport, not both: a custom transport does not use the session")
        self.config = config or Config()
        make = transport or type(self).default_transport
        if session is not None and make is HttpTransport:
            make = functools.partial(HttpTransport, session=session)
        self._operation = OperationProgress(progress or Silent())
        self._progress = None if progress is None else self._operation
        self._downloads = DownloadManager(self.config, transport=make, progress=self._progress, limits=limits)

    def __enter__(self) -> Toolkit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all running work within a second, and release threads and connections. Idempotent."""
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
        public_keys: Iterable[AnyKey] = (),
        known: Version | None = None,
        only: Version | None = None,
        size: int | None = None,
        label: str | None = None,
        key: str | None = None,
    ) -> Download:
        """Download one file; when this returns, the file is complete and has its final name.

        Args:
            url: what to download; or a `Request`, which contains all options but `dest`.
            dest: a file; or a directory that exists, or a path that ends in a slash, to put the file in.
            checksum: `algorithm:hex`, such as `sha256:…`; any fixed-length algorithm of hashlib. Or the URL of a
                checksum file, such as `SHA256SUMS`. If the file exists with this checksum, it is not requested.
            mirrors: other URLs of the same file, tried in order when this one fails.
            headers, auth: sent to the origin of `url` only.
            public_keys: one of them has to have signed the file, in `url` + `.minisig`; or, if `checksum` is the URL
                of a checksum file, that file. Keys as for `sync`.
            resume: continue a partial file of an earlier run, and fetch an existing file only if it changed on the
                server (a conditional request); False fetches everything again.
            rate_limit, max_bytes, segments, byte_range, known, only, size, label, key: as for `Request`.

        Raises:
            ConfigError: an argument is invalid.
            HTTPStatusError, TransferTimeoutError, IntegrityError, RemoteChangedError, SignatureError, TransferError:
                the download failed; there is no new file. The error has an attribute `download`, a `Download` that
                describes what was received.
            CancelledError: the Toolkit was closed during the download.
            OSError: the local disk is full or not writable, or the destination is a directory.
        """
        request = Request(
            url.url if isinstance(url, Request) else url,
            checksum=checksum,
            mirrors=mirrors,  # type: ignore[arg-type]  # what is not iterable is refused there
            headers=headers or {},
            auth=auth,
            resume=resume,
            rate_limit=rate_limit,
            max_bytes=max_bytes,
            segments=segments,
            byte_range=byte_range,
            public_keys=public_keys,  # type: ignore[arg-type]  # anything but keys is refused there
            known=known,
            only=only,
            size=size,
            label=label,
            key=key,
        )
        if isinstance(url, Request):
            if request != Request(url.url):
                raise ConfigError("options were given together with a Request; set them in the Request")
            request = url
        return self._downloads.fetch(request, local_path(dest))

    def download_many(self, requests: Iterable[Item], dest: Path | None = None) -> list[Download]:
        """Download many files in parallel.

        Args:
            requests: URLs, (URL, name) pairs, or `Request` objects; read as workers become free.
            dest: the directory that names are relative to, by default the current one; created if it does not exist.

        Returns:
            One result per request, in input order.

        Raises:
            BatchError: some failed; the others are complete, and `results` has all of them, in input order.
        """
        results: list[Any] = []
        for index, download in self.iter_downloads(requests, dest):
            results.extend([None] * (index + 1 - len(results)))
            results[index] = download
        if any(download.error is not None for download in results):
            raise BatchError(results)
        return results

    def iter_downloads(
        self, requests: Iterable[Item | None], dest: Path | None = None
    ) -> Iterator[tuple[int, Download]]:
        """Like `download_many`, for streams of any length: yields (input index, result) as each file ends.

        An iterable that has to wait for its next item may yield None, so that progress and results continue. A failed
        file is a result whose `error` is set; nothing is raised for it. Closing the iterator cancels the rest.
        """
        return self._downloads.run(requests, None if dest is None else local_path(dest))

    def set_rate_limit(self, bytes_per_second: int | None) -> None:
        """Limit all downloads together from now on, including running ones; None removes the limit.

        Raises:
            ConfigError: neither a positive number nor None.
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
        """Traverse the tree below `path`, with stat information; see `perfkit.filesystem.scan.scan`.

        Directories are read as you iterate: if you rename files, make a list first, or they may come again under their
        new names. `move_many` does so.

        Raises:
            ConfigError: a pattern is invalid.
            OSError: the root can't be read. A failure below it yields an entry with `error` set.
        """
        from perfkit.filesystem.scan import ScanOptions, scan

        options = ScanOptions(
            directories=directories, follow_symlinks=follow_symlinks, include=include, exclude=exclude, without=without
        )
        return scan(path, options)

    def hash_file(
        self, path: Path, *, chunk_bytes: int | None = None, whole: bool = True, lease: bool = False
    ) -> FileHash:
        """SHA-256 of one file, of each chunk of it, or both, using a few MiB of memory whatever its size.

        The digest of the whole file is inherently serial. Chunk digests use all CPUs; if both are requested, they are
        computed in one pass. Files of /proc and /sys, whose size is not that of their content, are read to their end.

        Args:
            chunk_bytes: also hash each chunk of this size.
            whole: False for only the chunks.
            lease: hold a read lease (fcntl(2), "Leases") where the kernel grants one: a file of 8 MiB and more is then
                mapped (mmap(2)), not read. A process that opens the file for writing or truncates it waits until the
                lease is released, after the current 2 MiB of a large file; an open with O_NONBLOCK fails. Without it,
                nobody waits.

        Raises:
            FileChangedError: the file changed in content, size or metadata while it was read.
            ConfigError: `chunk_bytes` is not positive, or neither digest is requested.
            OSError: the file can't be read, or is not a regular file.
        """
        from perfkit.filesystem.hashing.hash_file import hash_file

        return hash_file(path, chunk_bytes=chunk_bytes, whole=whole, lease=lease)

    def hash_tree(
        self, path: Path, *, include: Iterable[str] = (), exclude: Iterable[str] = (), without: Collection[str] = ()
    ) -> Iterator[FileHash]:
        """SHA-256 of every regular file below `path`, in the order in which they are finished; symlinks are not
        followed.

        A file that can't be read, or was modified while it was read, yields a result with `error` set. Closing the
        iterator ends the work. A large tree is shared with a second process, which lives as long as the iterator; each
        process uses less than 16 MB of memory. With one CPU, no process or thread is started.

        Args:
            include, exclude, without: as for `scan`.

        Raises:
            ConfigError, OSError: as `scan`.
        """
        from perfkit.filesystem.hashing.hash_tree import hash_tree
        from perfkit.filesystem.scan import ScanOptions

        options = ScanOptions(include=include, exclude=exclude, without=without)
        return hash_tree(path, options, progress=self._progress)

    def copy_tree(self, src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop") -> CopyResult:
        """Copy a tree: contents, permissions (rwx), mtimes and symlinks, but not owners and setuid bits.

        Contents are copied with reflinks where supported, else inside the kernel, else by reading and writing; sparse
        files stay sparse.

        Args:
            dest: must not exist, or be an empty directory. A new one appears in one step, when it is complete.
            merge: `dest` may have contents: files are replaced one by one, each atomically; everything else stays.
            on_error: `stop` at the first failure, and remove a new `dest`; or `continue` with the other files.

        Raises:
            BatchError: some paths failed; `results` has a `BatchResult` for each of those.
            FileExistsError: `dest` has contents (without `merge`), or is not a directory.
            ConfigError: `dest` is `src` or inside it.
            OSError: `src` can't be opened, or `dest` can't be created.
        """
        from perfkit.filesystem.batch.copying import copy_tree

        return copy_tree(src, dest, merge=merge, on_error=on_error, progress=self._progress)

    def link_tree(self, src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop") -> CopyResult:
        """Like `copy_tree`, but with hard links: a file that is later modified in place changes in both trees.

        Empty files, and files that can't be linked (another file system, too many links, not permitted), are copied.
        """
        from perfkit.filesystem.batch.copying import copy_tree

        return copy_tree(src, dest, merge=merge, on_error=on_error, progress=self._progress, link=True)

    def move_many(
        self, pairs: Iterable[tuple[Path, Path]], *, replace: bool = False, on_error: OnError = "stop"
    ) -> list[BatchResult]:
        """Move files, symlinks and directories, one after the other in this order, since a move may depend on another.

        Within a file system, a move is an atomic rename. Across file systems, the source is copied, the copy is renamed
        into place, and the source is removed.

        Args:
            pairs: sources and destinations; all are read before the first move, so they may come from `scan`.
            replace: whether an existing destination is replaced; otherwise it is an error. The check and the move are
                not one atomic step.
            on_error: `stop` at the first failure, without undoing earlier moves; or `continue` with the others.

        Returns:
            A result per pair, with the source as its `name`.

        Raises:
            BatchError: some failed; `results` has all that were attempted, in order.
        """
        from perfkit.filesystem.batch.moving import move_many

        return move_many(pairs, replace=replace, on_error=on_error, progress=self._progress)

    def remove_tree(self, path: Path, *, on_error: OnError = "stop") -> int:
        """Remove a directory with its contents; returns how many names were removed. Symlinks are never followed.

        Args:
            on_error: `stop` at the first failure, or `continue` with the others.

        Raises:
            BatchError: some paths could not be removed; `results` has those.
            OSError: it does not exist, is not a directory, is a symlink (ENOTDIR), or ends in `.` or `..` (EINVAL).
        """
        from perfkit.filesystem.batch.removal import remove_tree

        return remove_tree(path, on_error=on_error, progress=self._progress)

    def watch(self, path: Path) -> DirtySet:
        """Watch the names that change below `path`: `with kit.watch(path) as dirty: ...`; see `DirtySet`."""
        from perfkit.filesystem.watch import DirtySet

        return DirtySet(path)

    @contextlib.contextmanager
    def transaction(self, root: Path, *, wait_s: float = 0.0) -> Iterator[Transaction]:
        """Change files below `root` all at once: durably at the end of the block, or not at all.

        An exception that leaves the block, or a crash, discards all changes. Replaced contents are kept for a rollback.

        Raises:
            LockedError: another process or thread is still changing the tree.
            UpdateError, FileChangedError, OSError: the change failed; nothing was changed.
            RecoveryError: a commit could not be completed; the next change of the tree tries again.
        """
        from perfkit.transactions.tree import Tree

        tree = Tree(
            local_path(root),
            wait_s=wait_s,
            keep_generations=self.config.keep_generations,
            trust_other_owners=self.config.trust_other_owners,
        )
        with contextlib.closing(tree), tree, tree.transaction() as tx:  # see `Tree.close`
            yield tx

    def publish(
        self,
        src: Path,
        site: Path,
        *,
        version: str,
        keep_deltas: int = 3,
        exclude: Iterable[str] = (),
        links: Links = "refuse",
        serial: int | None = None,
        wait_s: float = 0.0,
        sign_key: Path | Iterable[Path] | None = None,
        expires_s: float | None = None,
        level: int = 19,
        keep_releases: int = 16,
        grace_s: float = 86_400.0,
    ) -> Release:
        """Publish a directory as the current release of a static site, which is created if it does not exist.

        Args:
            site: a directory for any static file server; only one small file in it is ever replaced.
            version: the name of the release, one line of at most 200 characters. `{n}` is replaced by the number of
                the release, and `{time}` by its UTC time, such as 20261124T233000Z; with either, a tree that equals
                the current release is not published again.
            keep_deltas: how many earlier releases get a direct delta; older ones follow a chain of deltas.
            exclude: patterns, as in a `.gitignore`, of names in `src` to leave out; a directory with its contents.
            links: what to do with symbolic links: `refuse`, `skip`, or `follow` them, also to files outside of `src`.
            serial: the number of the release, larger than those before it. By default it is the time, or one more than
                the last one. A site that is created again continues from a `perfkit.json` kept in its directory.
            sign_key: the file of a secret key (`perfkit keygen`, `minisign -G`) that signs the release; or several.
            expires_s: how long clients may install the release, in seconds; publishing again renews it.
            level: compression level for first installs, from 1 to 22; lower levels publish faster. What further
                releases add to these has 18 at most; updates have 12 at most, and deltas always the best.
            keep_releases: how many of the last releases, including this one, can be installed; at most 1,000.
            grace_s: how long to keep objects that no release needs, in seconds, for clients in the middle of a sync.

        Raises:
            ConfigError: an argument is invalid, or `site` is inside `src`.
            UnsafePathError: `src` contains names that are not valid on every client, symbolic links, or special
                files; the error lists all of them.
            FileChangedError: a file changed while it was read; the site is as it was.
            LockedError: another process is publishing to this site.
            ManifestError: the site is damaged.
            OSError: `src` can't be read or `site` can't be written; the site is as it was.
        """
        from perfkit.minisign.secret_keys import read_secret_keys
        from perfkit.releases.publish.publisher import publish

        return publish(
            local_path(src),
            local_path(site),
            version=version,
            keep_deltas=keep_deltas,
            exclude=exclude,
            links=links,
            serial=serial,
            wait_s=wait_s,
            sign_keys=read_secret_keys(sign_key, src, site),
            expires_s=expires_s,
            level=level,
            keep_releases=keep_releases,
            grace_s=grace_s,
            progress=self._progress,
        )

    def publish_on_change(
        self,
        src: Path,
        site: Path,
        *,
        version: str,
        keep_deltas: int = 3,
        exclude: Iterable[str] = (),
        links: Links = "refuse",
        wait_s: float = 0.0,
        sign_key: Path | Iterable[Path] | None = None,
        expires_s: float | None = None,
        level: int = 19,
        keep_releases: int = 16,
        grace_s: float = 86_400.0,
    ) -> Generator[Release, None, None]:
        """Publish a tree now, and again whenever its files change; yields each release until the generator is closed.

        All files are hashed once, then only those that the kernel reports as changed, after half a second without
        changes. A tree that can't be published, because a file is still being written for example, is logged and tried
        again at the next change.

        Args:
            version: as for `publish`; `{n}` or `{time}` give each release its own version.
            links: as for `publish`; what links point to is not watched.
            level, keep_releases, grace_s: as for `publish`.
            expires_s: as for `publish`; a release is renewed when half of this time has passed.

        Raises:
            as `publish`, for the first release.
            OSError: `src` can't be watched.
        """
        from perfkit.minisign.secret_keys import read_secret_keys
        from perfkit.releases.publish.on_change import publish_on_change

        return publish_on_change(
            local_path(src),
            local_path(site),
            version=version,
            keep_deltas=keep_deltas,
            exclude=exclude,
            links=links,
            wait_s=wait_s,
            sign_keys=read_secret_keys(sign_key, src, site),
            expires_s=expires_s,
            level=level,
            keep_releases=keep_releases,
            grace_s=grace_s,
        )

    def promote(
        self,
        site: Path,
        *,
        channel: str,
        version: str,
        sign_key: Path | Iterable[Path] | None = None,
        expires_s: float | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """Make a channel of a site offer one of the site's releases to those who sync with `channel=`.

        Only one small file, `perfkit-CHANNEL.json`, is replaced. The release is kept as long as a channel offers it.

        Args:
            version: the version of the release, one of those that `releases` lists.
            sign_key, expires_s: as for `publish`.

        Raises:
            ConfigError: there is no such site or release; the name is invalid; or the site is signed, and no key is
                given.
            ManifestError, LockedError, OSError: as `publish`.
        """
        from perfkit.minisign.secret_keys import read_secret_keys
        from perfkit.releases.publish.upkeep import promote

        promote(
            local_path(site),
            channel=channel,
            version=version,
            sign_keys=read_secret_keys(sign_key, site),
            expires_s=expires_s,
            wait_s=wait_s,
        )

    def check_site(self, site: Path) -> SiteReport:
        """Hash every object that the releases of a site need; only read permission is needed.

        Raises:
            ConfigError: there is no site in this directory.
            ManifestError: its pointer is damaged.
            OSError: it can't be read.
        """
        from perfkit.releases.publish.upkeep import check_site

        return check_site(local_path(site), self._progress)

    def prune(
        self,
        path: Path,
        *,
        keep: int | None = None,
        grace_s: float | None = None,
        dry_run: bool = False,
        wait_s: float = 0.0,
    ) -> Pruned:
        """Free space: delete old generations of a tree, or objects of a site that no release has needed for a day.

        Args:
            keep: how many generations before the current one a tree keeps, for `rollback`; by default 1.
            grace_s: how long a site keeps objects that no release needs, as for `publish`; by default a day.
            dry_run: change nothing, and return what would be removed.

        Raises:
            ConfigError: `keep` is given for a site, where `publish` decides how many releases are kept; or `grace_s`
                for a tree.
            ManifestError: the site is damaged.
            UpdateError: the directory is neither a tree nor a site, or `keep` is negative.
            LockedError, RecoveryError, OSError: as `sync`.
        """
        place = local_path(path)
        if os.path.exists(os.path.join(place, POINTER_NAME)):
            from perfkit.releases.publish.upkeep import prune_site

            if keep is not None:
                raise ConfigError(
                    f"{place} is a site, not a tree: publish says how many releases it keeps (--keep-releases)"
                )
            return prune_site(place, dry_run=dry_run, wait_s=wait_s, grace_s=grace_s)
        from perfkit.updates.restore import prune

        if grace_s is not None:
            raise ConfigError(f"{place} is not a site; only a site has a grace (--grace)")

        return prune(self.config, place, 1 if keep is None else keep, dry_run=dry_run, wait_s=wait_s)

    def plan(
        self,
        source: Path,
        dest: Path,
        *,
        type: str | None = None,
        selection: Selection | None = None,
        decompress: bool | None = None,
        checksums: Path | None = None,
        mirrors: Iterable[str] = (),
        release: str | None = None,
        channel: str | None = None,
        public_keys: Iterable[AnyKey] = (),
        threshold: int = 1,
        allow_expired: bool = False,
    ) -> Plan:
        """What `sync` would do now; nothing is written to `dest`.

        Raises:
            as `sync`.
        """
        from perfkit.updates.dry_run import plan
        from perfkit.updates.source_types import SourceSpec

        spec = SourceSpec.of(
            source,
            type=type,
            selection=selection,
            decompress=decompress,
            checksums=checksums,
            mirrors=mirrors,
            release=release,
            channel=channel,
            public_keys=public_keys,
            threshold=threshold,
            allow_expired=allow_expired,
        )
        with self._operation.operation():
            return plan(self.config, self._downloads, spec, local_path(dest), progress=self._operation)

    def sync(
        self,
        source: Path,
        dest: Path,
        *,
        type: str | None = None,
        selection: Selection | None = None,
        decompress: bool | None = None,
        checksums: Path | None = None,
        mirrors: Iterable[str] = (),
        release: str | None = None,
        channel: str | None = None,
        check: Check | None = None,
        retry_rejected: bool = False,
        allow_older: bool = False,
        allow_expired: bool = False,
        public_keys: Iterable[AnyKey] = (),
        threshold: int = 1,
        wait_s: float = 0.0,
    ) -> SyncReport:
        """Update a tree to what a source offers: only differences are fetched, and all files change at once.

        Unmanaged files are left alone; `Config.local_changes` decides about edited ones. A file whose size, times,
        inode and mode are unchanged is not read again, unless `Config.check_contents` is set. After a crash, the same
        call resumes with what was fetched. A version that the tree was rolled back from, or that `check` refused, is
        passed over until the source offers another one; the report's `held` names it.

        Args:
            source: the URL of a site or of a file; or the path of a list of URLs, or of a Metalink document.
            dest: the tree; created if it does not exist.
            type: the type of the source, one of `SourceType`; by default it is detected from the content.
            selection: which files of a release or members of an archive to install, and under which names; by default
                as in the last sync from this source, and all in the first. `Selection()` selects all.
            decompress: whether to decompress a plain file (gzip, bzip2, xz, zstd) and drop the suffix of its name; by
                default as in the last sync from this source, and not in the first.
            checksums: the URL or path of a file with the checksum of a plain file, such as `SHA256SUMS`, or
                `algorithm:hex`; it is read first, and the file is fetched only if its checksum changed.
            mirrors: other URLs of the same site, or of a plain file with `checksums`. The first that responds says what
                is new, and files come from any; one that is down or behind is not an error.
            release: the version to install from a site, one of `releases`, even if it is older or on hold; by default
                the current one. A pinned tree is then pinned to it.
            channel: install what this channel of the site offers (see `promote`) rather than the current release.
            check: called with a `StagedTree` before anything changes; an exception refuses the version. What it returns
                does not matter.
            retry_rejected: check a version again, although `check` refused it before.
            allow_older: install a release although a later one of the same site was installed before.
            allow_expired: install a release although it has expired.
            public_keys: the keys that have to sign the release, plain file (or its fetched `checksums`) or archive:
                public keys of `perfkit keygen` or `minisign -G`, each as its base64 line or the path of its file. The
                tree remembers them.
            threshold: how many of these keys have to sign a release.

        Raises:
            CheckFailedError: `check` refused the version; the tree is as it was.
            ConfigError: the source has no known type, or an option does not apply to it.
            ManifestError, UnsafePathError: the source is damaged or malicious; the tree is as it was.
            SignatureError: the source is not signed as required; the tree is as it was.
            TransferError: the source cannot be fetched; the tree is as it was.
            UpdateError: there are local edits and `Config.local_changes` is `refuse`; the tree is as it was.
            StaleSourceError: the source offers an older release than was installed from it before, or lacks files of
                the one it offers; the tree is as it was.
            ExpiredError: what the source offers has expired; the tree is as it was.
            FileChangedError: a file of the release was edited during the update; the tree is as it was.
            LockedError: another process or thread is changing the tree.
            RecoveryError: a commit could not be completed; the next change of the tree tries again.
            OSError: the local disk failed, for example for lack of space; the tree is as it was.
        """
        from perfkit.updates.source_types import SourceSpec
        from perfkit.updates.updater import SyncOptions, sync

        spec = SourceSpec.of(
            source,
            type=type,
            selection=selection,
            decompress=decompress,
            checksums=checksums,
            mirrors=mirrors,
            release=release,
            channel=channel,
            public_keys=public_keys,
            threshold=threshold,
            allow_expired=allow_expired,
            allow_older=allow_older,
        )
        options = SyncOptions(
            local_changes=cast("LocalChanges", self.config.local_changes),
            check_contents=self.config.check_contents,
            check=check,
            retry_rejected=retry_rejected,
            wait_s=wait_s,
        )
        with self._operation.operation():
            return sync(self.config, self._downloads, spec, local_path(dest), options=options, progress=self._operation)

    def releases(self, url: str) -> list[OfferedRelease]:
        """The releases of a site that `sync(release=...)` can install, newest first.

        Raises:
            ConfigError: `url` is not an http or https URL.
            ManifestError, TransferError: the site is damaged or can't be fetched.
        """
        from perfkit.updates.sources.earlier_releases import list_releases

        with self._operation.operation():
            return list_releases(self._downloads, url)

    def rollback(self, dest: Path, *, to: int | None = None, hold: bool = True, wait_s: float = 0.0) -> SyncReport:
        """Return a tree to a kept generation, an earlier or a later one, without the network.

        `sync` then passes over the version that was left, until the source offers another one.

        A file that had local edits before it was updated is restored with those edits if the released content is not
        kept anywhere; the report's `restored_with_edits` lists such files.

        Args:
            to: the number of the generation, as in `history`; by default the previous one. To return to the tree before
                the first sync, pass 0.
            hold: if False, the next sync installs the newest version again.

        Raises:
            RollbackError: the generation is not kept, or its contents are damaged; the tree is as it was.
            UpdateError: `dest` is not a managed tree.
            LockedError, RecoveryError, OSError: as `sync`.
        """
        from perfkit.updates.restore import rollback

        return rollback(self.config, local_path(dest), to, hold=hold, wait_s=wait_s)

    def pin(self, dest: Path, *, wait_s: float = 0.0) -> None:
        """Keep the installed version of a tree: `sync` passes over all others until `unhold`.

        Raises:
            UpdateError: nothing is installed in `dest`.
            LockedError, OSError: as `sync`.
        """
        from perfkit.updates.hold import pin

        pin(self.config, local_path(dest), wait_s=wait_s)

    def hold(self, dest: Path, version: str, *, wait_s: float = 0.0) -> None:
        """Make `sync` pass over a version of the installed source, until `unhold` or `sync(release=...)` with it.

        Raises:
            ConfigError: `version` is not one line of 1 to 200 printable characters.
            UpdateError: nothing is installed in `dest`, or this version is, or the tree is pinned.
            LockedError, OSError: as `sync`.
        """
        from perfkit.updates.hold import hold

        hold(self.config, local_path(dest), version, wait_s=wait_s)

    def unhold(self, dest: Path, *, wait_s: float = 0.0) -> Hold | None:
        """End all holds, so that `sync` passes over no version; returns the latest hold, or None.

        Raises:
            UpdateError: `dest` is not a managed tree.
            LockedError, OSError: as `sync`.
        """
        from perfkit.updates.hold import unhold

        return unhold(self.config, local_path(dest), wait_s=wait_s)

    def status(self, dest: Path) -> TreeStatus:
        """The status of a tree, read without the network, the tree's lock, or write permission.

        Raises:
            UpdateError: `dest` is not a managed tree, or a record in it is damaged.
            RecoveryError: the record of its generations is damaged.
            OSError: a record can't be read.
        """
        from perfkit.updates.status import status

        return status(local_path(dest))

    def history(self, dest: Path) -> list[Generation]:
        """The generations that `rollback` can restore, oldest first; read without the tree's lock.

        Raises:
            UpdateError: `dest` is not a managed tree.
            RecoveryError: the record of its generations is damaged.
            RollbackError: the record of one generation is damaged.
        """
        from perfkit.updates.restore import history

        return history(local_path(dest))

    def changed_since(self, dest: Path, generation: int, *, wait_s: float = 0.0) -> list[str] | None:
        """The names of the files that differ between a tree and a generation; None if the generation is not kept.

        Raises:
            as `history`.
            LockedError: another process or thread is changing the tree.
        """
        from perfkit.updates.restore import changed_since

        return changed_since(self.config, local_path(dest), generation, wait_s=wait_s)

    def verify(
        self, dest: Path, *, repair: bool = False, mirrors: Iterable[str] = (), wait_s: float = 0.0
    ) -> VerifyReport:
        """Hash every file of the installed release again; reports missing, changed and extra files.

        Without `repair`, neither the tree's lock nor write permission is needed.

        Args:
            repair: fetch missing and changed files again; extra files stay.
            mirrors: where else to fetch them from, as for `sync`.

        Raises:
            UpdateError: no release is installed in `dest`.
            LockedError: the tree changed again and again while it was verified.
            as `sync`, if `repair` is true.
        """
        from perfkit.updates.verify import verify

        with self._operation.operation():
            return verify(
                self.config,
                self._downloads,
                local_path(dest),
                repair,
                mirrors=tuple(mirrors),
                wait_s=wait_s,
                progress=self._operation,
            )
