"""A site that offers the same kind of content by every type of source, in versions that follow each other."""

from __future__ import annotations

import hashlib
import random
import subprocess
import tempfile
from pathlib import Path

from perfkit.releases.publish.publisher import publish
from tests.support.archive_tools import make_tar, make_zip
from tests.support.sites import replace
from tests.support.tools import need
from tests.support.trees import Tree, text, write_tree

# The path of each source below the site's URL.
PATHS = {
    "release": "release",
    "zip": "pack.zip",
    "tar": "pack.tar.gz",
    "zsync": "large.zsync",
    "urls": "urls.txt",
    "metalink": "list.meta4",
}
_BLOCK = 4096


def content(version: int) -> Tree:
    """A dozen files, of which each version changes, moves, adds and removes some."""
    large = bytearray(random.Random(0).randbytes(40 * _BLOCK))
    for step in range(version):
        at = random.Random(step).randrange(40) * _BLOCK
        large[at : at + 100] = random.Random(-step).randbytes(100)
    return {
        "README": b"version %d\n" % version,
        "empty": b"",
        "same": text(1),
        "pkg/edited.py": text(2)[:900] + b"# %d\n" % version + text(2)[900:],
        f"moved/{version % 3}/file.py": text(3),
        f"new/{version}": text(100 + version),
        "large.bin": bytes(large),
    }


def expected(kind: str, version: int) -> Tree:
    """The tree that a source of this type leads to."""
    tree = content(version)
    return {"large.bin": tree["large.bin"]} if kind == "zsync" else tree


class Sources:
    """Files in a directory that is served at `url`; `offer` puts a version of a source there."""

    def __init__(self, site: Path, url: str) -> None:
        need("zsyncmake")
        self.site, self.url = site, url
        self.urls = {kind: url + path for kind, path in PATHS.items()}
        (site / "files").mkdir(parents=True)

    def offer(self, kind: str, version: int) -> None:
        tree = content(version)
        path = self.site / PATHS[kind]
        if kind == "release":
            with tempfile.TemporaryDirectory(dir=self.site.parent) as src:
                publish(str(write_tree(Path(src), tree)), str(path), version=str(version))
        elif kind == "zip":
            replace(path, make_zip(tree))
        elif kind == "tar":
            replace(path, make_tar(tree, mode="w:gz"))
        elif kind == "zsync":
            self._make_zsync(tree["large.bin"])
        else:
            made = (url_list if kind == "urls" else metalink)(self._write_files(tree), tree)
            replace(path, made)

    def _write_files(self, tree: Tree) -> dict[str, str]:
        """Every content under its digest; returns the URLs by name."""
        paths = {}
        for name, data in tree.items():
            path = self.site / "files" / hashlib.sha256(data).hexdigest()
            if not path.exists():
                replace(path, data)
            paths[name] = f"{self.url}files/{path.name}"
        return paths

    def _make_zsync(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self.site.parent) as name:
            made = Path(name)
            (made / "large.bin").write_bytes(data)
            command = ["zsyncmake", "-b", "2048", "-u", "large.bin", "-o", "large.zsync", "large.bin"]
            subprocess.run(command, check=True, cwd=made, capture_output=True)
            for each in ("large.bin", "large.zsync"):
                (made / each).replace(self.site / each)


def url_list(paths: dict[str, str], tree: Tree) -> bytes:
    """A list of URLs, with names and checksums."""
    lines = (f"{path}\t{name}\tsha256:{path.rpartition('/')[2]}\n" for name, path in paths.items())
    return "".join(lines).encode()


def metalink(paths: dict[str, str], tree: Tree) -> bytes:
    """A Metalink document, with sizes and checksums."""
    files = (
        f'<file name="{name}"><size>{len(tree[name])}</size><hash type="sha-256">{path.rpartition("/")[2]}</hash>'
        f"<url>{path}</url></file>"
        for name, path in paths.items()
    )
    return f'<metalink xmlns="urn:ietf:params:xml:ns:metalink">{"".join(files)}</metalink>'.encode()
