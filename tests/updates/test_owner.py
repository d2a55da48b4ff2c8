"""A tree or site of one user that root works on once: it stays usable for its owner."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.cli import main
from tests.support.sites import Origin
from tests.support.tools import need_root
from tests.support.trees import tree_of, write_tree
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

OWNER = 65534
ONE = {"a": b"1", "d/b": b"1" * 5000, "gone/c": b"1"}
TWO = {"a": b"2", "d/b": b"1" * 5000, "new/e/f": b"2", "d/copy": b"1" * 5000}
THREE = {"a": b"3", "d/b": b"3", "new/e/f": b"3", "new/e/g": b"3"}

_AS_OWNER = """
import os, sys
from perfkit import Toolkit
url, elsewhere, root, *calls = sys.argv[1:]
with Toolkit() as kit:
    kit.sync(url, elsewhere)  # what root imports here, the other user may not read
    kit.plan(url, elsewhere)
    kit.verify(elsewhere)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    for call in calls:
        if call == "sync":
            kit.plan(url, root)
            kit.sync(url, root)
        elif call == "rollback":
            kit.rollback(root, hold=False)
        elif call == "publish":
            kit.publish(elsewhere, root, version="2")
            continue
        assert kit.verify(root).intact
        kit.history(root)
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, open_path: Path) -> Path:
    """A directory of the owner's; root works for the owner, by sudo."""
    monkeypatch.setenv("SUDO_UID", str(OWNER))
    need_root("to become another user")
    os.chown(open_path, OWNER, OWNER)
    return open_path


def as_owner(warm: WarmPython, origin: Origin, root: Path, elsewhere: Path, *calls: str) -> None:
    command = warm.python("-c", _AS_OWNER, origin.url, elsewhere, root, *calls)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def not_of_the_owner(root: Path) -> list[Path]:
    return [path for path in [root, *root.rglob("*")] if path.lstat().st_uid != OWNER]


def test_one_sudo(origin: Origin, kit: Toolkit, home: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """New files and directories are the owner's, in the tree and in `.perfkit`; the next sync is theirs again."""
    root = home / "tree"
    root.mkdir()
    os.chown(root, OWNER, OWNER)
    origin.publish(ONE, "1")
    as_owner(warm_python, origin, root, tmp_path / "1", "sync")
    origin.publish(TWO, "2")
    kit.sync(origin.url, root)
    assert not_of_the_owner(root) == []
    origin.publish(THREE, "3")
    as_owner(warm_python, origin, root, tmp_path / "2", "sync", "rollback")
    assert tree_of(root) == TWO
    kit.rollback(root)
    kit.verify(root, repair=True)
    assert not_of_the_owner(root) == []
    as_owner(warm_python, origin, root, tmp_path / "3", "sync", "rollback")
    assert tree_of(root) == ONE


def test_the_first_sync_is_by_sudo(
    origin: Origin, kit: Toolkit, home: Path, tmp_path: Path, warm_python: WarmPython
) -> None:
    """In a directory of the owner's; files that were there keep their owner."""
    root = home / "tree"
    root.mkdir()
    os.chown(root, OWNER, OWNER)
    (root / "mine").write_bytes(b"root's")
    origin.publish(ONE, "1")
    kit.sync(origin.url, root)
    assert not_of_the_owner(root) == [root / "mine"]
    origin.publish(TWO, "2")
    as_owner(warm_python, origin, root, tmp_path / "1", "sync", "rollback")


def test_a_site(origin: Origin, kit: Toolkit, home: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """Published to first by root, in a directory of the owner's."""
    site, src = home / "site", write_tree(tmp_path / "src", ONE)
    site.mkdir()
    os.chown(site, OWNER, OWNER)
    kit.publish(src, site, version="1")
    assert not_of_the_owner(site) == []
    origin.publish(TWO, "2")
    as_owner(warm_python, origin, site, home / "elsewhere", "publish")
    write_tree(src, THREE)
    kit.publish(src, site, version="3")
    assert not_of_the_owner(site) == []


def test_the_first_sync_is_by_sudo_and_has_on_change(
    origin: Origin, home: Path, tmp_path: Path, warm_python: WarmPython
) -> None:
    root = home / "tree"
    root.mkdir()
    os.chown(root, OWNER, OWNER)
    origin.publish(ONE, "1")
    assert main(["sync", origin.url, str(root), "--quiet", "--on-change", "true"]) == 0
    assert not_of_the_owner(root) == []
    origin.publish(TWO, "2")
    as_owner(warm_python, origin, root, tmp_path / "1", "sync", "rollback")


def test_a_tree_that_root_manages(origin: Origin, kit: Toolkit, home: Path) -> None:
    """Its files stay root's, also if the directory is somebody else's."""
    root = home / "tree"
    origin.publish(ONE, "1")
    kit.sync(origin.url, root)
    os.chown(root, OWNER, OWNER)
    origin.publish(TWO, "2")
    kit.sync(origin.url, root)
    assert {path.lstat().st_uid for path in root.rglob("*")} == {0}


def test_no_other_file_is_given_away(origin: Origin, kit: Toolkit, home: Path) -> None:
    """The owner puts links to files of root's where perfkit has its own."""
    root, secret = home / "tree", home / "secret"
    root.mkdir()
    os.chown(root, OWNER, OWNER)
    secret.write_bytes(b"secret")
    origin.publish(ONE, "1")
    kit.sync(origin.url, root)
    for name in ("serials", "hard"):
        (root / ".perfkit" / name).unlink(missing_ok=True)
    os.link(secret, root / ".perfkit/hard")
    (root / ".perfkit/soft").symlink_to(secret)
    origin.publish(TWO, "2")
    kit.sync(origin.url, root)
    assert secret.stat().st_uid == 0


def test_a_user_who_may_only_read(origin: Origin, kit: Toolkit, home: Path, warm_python: WarmPython) -> None:
    """Others can ask how a tree stands, list its generations and verify it; not where its source's URL has a query."""
    root, script = home / "tree", "import os\nfrom perfkit import Toolkit\n"
    script += "kit = Toolkit()\n[kit.status(t) and kit.history(t) and kit.verify(t) for t in paths[:1]]\n"
    script += "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
    script += "print(*[f'{kit.status(t).version} {len(kit.history(t))} {kit.verify(t).intact}' for t in paths])"
    for version, tree in (("1", ONE), ("2", TWO)):
        origin.publish(tree, version)
        kit.sync(origin.url, root)
    kit.pin(root)
    command = warm_python.python("-c", f"paths = [{str(root)!r}]\n{script}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "2 3 True\n", done.stderr
    assert {path.name for path in (root / ".perfkit").iterdir() if path.stat().st_mode & 0o004} >= {"hold", "release"}
    kit.unhold(root)
    pack = shutil.make_archive(str(home / "pack"), "zip", root, "d")
    Path(pack).rename(origin.site / "pack.zip?key=s3cret")
    kit.sync(f"{origin.url}/pack.zip?key=s3cret", root)
    assert (root / ".perfkit/release").stat().st_mode & 0o077 == 0
