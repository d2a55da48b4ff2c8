"""The Django app under what runs Django in production: gunicorn, Celery, gevent; and in a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.server.server import Server
from tests.support.partial_files import held
from tests.support.tools import first_everywhere
from tests.support.trees import Tree, tree_of, write_tree
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

ROOT = Path(__file__).parents[2]
FIRST: Tree = {f"{number:02}.rules": b"allow %d\n" % number * 5000 for number in range(40)}


class Project:
    """`tests/support/django_project.py`, with a site that it follows."""

    def __init__(self, root: Path, url: str, warm: WarmPython) -> None:
        self.root = root
        self.warm = warm
        self.tree = root / "tree"
        self.environment = {
            **os.environ,
            "DJANGO_TREE": str(self.tree),
            "DJANGO_SOURCE": url,
            "CELERY_DIR": str(root / "celery"),
            "PYTHONPATH": str(ROOT),
        }

    def publish(self, kit: Toolkit, version: str, tree: Tree) -> None:
        kit.publish(write_tree(self.root / "src", tree), self.root / "site", version=version)

    def told(self) -> list[str]:
        """The versions that the receiver was called with."""
        return [line.split()[0] for line in (self.root / "told").read_text(encoding="utf-8").splitlines()]

    def python(self, program: str, *, warm: bool = True) -> subprocess.CompletedProcess[str]:
        command = self.warm.python("-c", program) if warm else [sys.executable, "-c", program]
        return subprocess.run(
            command, check=False, env=self.environment, cwd=self.root, capture_output=True, text=True, timeout=200
        )

    @contextmanager
    def running(self, *command: str, ending: int = signal.SIGTERM, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A program with a log; it and its children are ended by a signal."""
        log = self.root / "log"
        with log.open("w", encoding="utf-8") as file:
            program = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self.environment,
                cwd=self.root,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                **options,
            )
            try:
                yield program
            except BaseException:
                print(log.read_text(encoding="utf-8"))
                raise
            finally:
                os.killpg(program.pid, ending)
                program.wait(100)


@pytest.fixture
def project(tmp_path: Path, kit: Toolkit, warm_django: WarmPython) -> Iterator[Project]:
    (tmp_path / "site").mkdir()
    (tmp_path / "celery/control").mkdir(parents=True)
    with Server(tmp_path / "site") as server:
        project = Project(tmp_path, server.url, warm_django)
        project.publish(kit, "1", FIRST)
        yield project


def ask(url: str) -> dict[str, Any]:
    """A request, answered with JSON, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=100) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


@pytest.mark.parametrize("kind", first_everywhere("gthread", "gevent"))
def test_gunicorn_workers_change_the_tree_once(project: Project, kind: str) -> None:
    """Two workers, forked after a Toolkit was used: all sync at once, one of them changes the tree, and once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = ["gunicorn", "--workers", "2", "--worker-class", kind, "--bind", f"fd://{listener.fileno()}"]
        if kind != "gevent":  # which has to patch first
            command += ["--preload"]
        with project.running(*command, "tests.support.django_project:application", pass_fds=[listener.fileno()]):
            answers: list[dict[str, Any]] = []
            until = time.monotonic() + 100
            with ThreadPoolExecutor(6) as pool:
                while len({answer["pid"] for answer in answers}) < 2:
                    assert time.monotonic() < until, f"two workers never answered: {answers[-1]}"
                    answers += pool.map(ask, [f"http://127.0.0.1:{port}/sync"] * 6)
    assert {answer.get("version") for answer in answers} == {"1"}, answers
    assert Counter(answer["route"] for answer in answers)["blocks"] == 1
    assert {answer["bytes"] for answer in answers} == {(project.root / "site/perfkit.json").stat().st_size}
    assert {answer["thread"].partition(".")[0] for answer in answers} == {"gevent" if kind == "gevent" else "threading"}
    assert (project.told(), tree_of(project.tree)) == (["1"], FIRST)


def test_celery_tasks_change_the_tree_once(project: Project) -> None:
    """A prefork worker whose parent has used a Toolkit: four tasks, two at once, of which one changes the tree."""
    # All are queued before the worker starts: over files, it may read messages that are half written.
    queued = project.python("from tests.support.django_celery import sync\nfor _ in range(4): sync.delay('rules')")
    assert queued.returncode == 0, queued.stderr
    command = ["celery", "--app", "tests.support.django_celery", "worker", "--pool", "prefork", "--concurrency", "2"]
    answers = project.root / "answers"
    command += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    with project.running(*command, ending=signal.SIGKILL) as worker:  # SIGTERM takes it 5 s, without a task too
        wait_until(lambda: answers.exists() and answers.read_text(encoding="utf-8").count("\n") == 4, worker)
    assert sorted(answers.read_text(encoding="utf-8").splitlines()) == ["1 blocks", "1 none", "1 none", "1 none"]
    assert (project.told(), tree_of(project.tree)) == (["1"], FIRST)


def test_greenlets_run_during_syncs_under_gevent(project: Project) -> None:
    """Where gevent has patched everything: two syncs at once, a download, and other greenlets that keep running."""
    (project.root / "site/large").write_bytes(os.urandom(1 << 20))
    program = """
from gevent import monkey; monkey.patch_all()
import gevent, json
from perfkit.downloads import manager
from perfkit.downloads.http import transport
manager._TICK_S, transport._PATIENCE_S = 0.001, 0.0  # as if responses took long: idle connections are closed
from tests.support.django_project import DEST, SOURCE, kit, trees

ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
        if downloading and ticks > before + 10:
            kit.set_rate_limit(None)
downloading = False
gevent.spawn(tick)

both = [gevent.spawn(trees.sync, "rules", wait_s=60) for _ in range(2)]
gevent.joinall(both, raise_error=True)
kit.set_rate_limit(1000)  # a quarter of an hour, if the others did not run and lift it
before, downloading = ticks, True
done = kit.download(f"{SOURCE}large", DEST.with_name("large"))
kit.close()
print(json.dumps({"routes": sorted(each.value.route for each in both), "bytes": done.bytes}))
"""
    ended = project.python(program, warm=False)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert (answer["routes"], answer["bytes"]) == (["blocks", "none"], 1 << 20)
    assert (project.told(), tree_of(project.tree)) == (["1"], FIRST)


def test_gevent_that_came_too_late(project: Project) -> None:
    """If gevent patched after perfkit was imported, threads would deadlock; an error is raised instead."""
    program = """
from perfkit import Toolkit
from gevent import monkey; monkey.patch_all()
Toolkit().download("http://127.0.0.1:9/", "file")
"""
    ended = project.python(program, warm=False)
    assert "perfkit.errors.ConfigError: gevent patched this process after perfkit was imported" in ended.stderr


@pytest.mark.once
def test_killed_before_the_receivers_were_done(project: Project) -> None:
    """SIGKILL within a receiver: the tree is whole, and the next sync calls the receivers again, once."""
    program = """
import os, signal
from tests.support.django_project import trees, tree_updated
def die(**_): os.kill(os.getpid(), signal.SIGKILL)
tree_updated.connect(die)
trees.sync("rules")
"""
    assert project.python(program).returncode == -signal.SIGKILL
    assert tree_of(project.tree) == FIRST
    sync = (
        "from tests.support.django_project import trees\n"
        'print(trees.status("rules").receivers_notified, trees.sync("rules").route)'
    )
    assert [project.python(sync).stdout for _ in range(2)] == ["False none\n", "True none\n"]
    assert project.told() == ["1", "1"]


@pytest.mark.once
def test_ctrl_c(project: Project) -> None:
    """Ends a command with 130 and a line, and the same command again goes on from there."""
    (project.root / "site/large").write_bytes(os.urandom(2 << 20))
    program = """
import sys
from django.core.management import execute_from_command_line
from tests.support.django_project import SOURCE
execute_from_command_line(["manage.py", "perfkit_download", f"{SOURCE}large", *sys.argv[1:]])
"""
    command, options = ["-c", program], {"env": project.environment, "cwd": project.root, "text": True}
    with project.warm.start(*command, "--limit-rate", "200K", stderr=subprocess.PIPE, **options) as first:
        wait_until(lambda: held(project.root / "large") >= 250_000, first)
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=100)
    assert (first.returncode, told) == (130, "interrupted; run the same command again to resume\n")
    assert (project.root / "large.perfkit-part").stat().st_size
    again = subprocess.run(project.warm.python(*command), check=True, stdout=subprocess.PIPE, **options)
    assert again.stdout.endswith("large  2097152 bytes\n")
    assert (project.root / "large").read_bytes() == (project.root / "site/large").read_bytes()
