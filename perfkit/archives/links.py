"""Links in archives: which files they point to. All paths are inside the archive; the disk is never looked at."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping

from perfkit.errors import ManifestError, UnsafePathError

_HOPS = 40  # as Linux allows in one path (path_resolution(7)); also limits nested links to directories


def follow_links(links: Mapping[str, str], files: Collection[str], *, most: int) -> dict[str, str]:
    """The paths that links add to an archive, each with the path of the file that it is a copy of.

    A link to a directory adds a path for each file below it.

    Args:
        links: targets, by the paths of the links. A target that begins with a slash is relative to the root of the
            archive, any other to the directory of its link.
        files: paths of the files.
        most: the most paths to look at.

    Raises:
        UnsafePathError: a link points outside the archive, or is a directory as well.
        ManifestError: a link points to no file, or back to itself; or there are too many paths.
    """
    tree = _Tree(links, files, most)
    copies = {}
    for link in links:
        if next(tree.below(link), None) is not None:
            raise UnsafePathError(link, "it is both a link and a directory")
        found = dict(tree.files_at(link))
        if not found:
            reason = f"a link to {links[link]!r}, which is not a selected file of the archive"
            raise ManifestError(f"member {link!r} is {reason}; exclude it, or skip links")
        copies.update({_join(link, rest): file for rest, file in found.items()})
    return copies


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory and name else directory or name


class _Tree:
    def __init__(self, links: Mapping[str, str], files: Collection[str], most: int) -> None:
        self._links = links
        self._files = files
        self._sorted = sorted([*files, *links])
        self._left = most

    def files_at(self, path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
        """Each file at or below a path, following links: its path relative to `path`, and its own path."""
        if depth > _HOPS:
            raise ManifestError(f"the link {path!r} points back to itself")
        real = self._resolve(path)
        if real in self._files:
            yield "", real
        for each in self.below(real):
            rest = each[len(real) :].lstrip("/")
            if each in self._links:
                yield from ((_join(rest, more), file) for more, file in self.files_at(each, depth + 1))
            else:
                yield rest, each

    def below(self, directory: str) -> Iterator[str]:
        """The files and links below a directory; the empty name is the root of the archive."""
        prefix = directory and directory + "/"
        for at in range(bisect_left(self._sorted, prefix), len(self._sorted)):
            if not self._sorted[at].startswith(prefix):
                return
            self._left -= 1
            if self._left < 0:
                raise ManifestError("the links in the archive expand to too many files")
            yield self._sorted[at]

    def _resolve(self, path: str) -> str:
        """Resolve the links in a path, as path_resolution(7) describes."""
        done: list[str] = []
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == ".." and not done:
                raise UnsafePathError(path, "it is a link to a target outside the archive")
            if part == "..":
                done.pop()
            elif part not in ("", "."):
                done.append(part)
                if (target := self._links.get("/".join(done))) is not None:
                    hops += 1
                    if hops > _HOPS:
                        raise ManifestError(f"the link {path!r} points back to itself")
                    done = [] if target.startswith("/") else done[:-1]
                    todo += target.split("/")[::-1]
        return "/".join(done)
