"""Each job of perfkit, killed before any call that changes a file, or with a failing one: one of two states."""

from __future__ import annotations

import errno
import hashlib
import itertools
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from perfkit import Config, Toolkit
from perfkit.releases.publish.publisher import publish
from perfkit.transactions.tree import Tree as Managed
from tests.chaos.seeds import CASE, LONG, SEED, TIMEOUT_S, Cases, some
from tests.chaos.sources import Sources, content, expected
from tests.support.crash_cases import OWN, copy
from tests.support.fault_worker import CHANGES, DONE, FAILED, KILL, UNFINISHED, End, Fault, Worker
from tests.support.kits import QUICK
from tests.support.release_client import Client
from tests.support.trees import Tree, tree_of, write_tree

pytestmark = [pytest.mark.once, pytest.mark.timeout(TIMEOUT_S)]

Command = tuple[object, ...]
Kinds = Mapping[str, int | None]
OF_PUBLISHER = ("lock", "owner", "files", "retired")
HERE = "HERE"  # stands for the directory that a case works in


class Job(NamedTuple):
    """What is done in a directory.

    Attributes:
        command: for the worker, with HERE for the directory.
        start: what the directory is copied from.
        old, new: what it is to contain before and afterwards.
        again: doing it twice does no harm.
    """

    command: Command
    start: Path
    old: Tree
    new: Tree
    again: bool = True


def jobs_of_source(kit: Toolkit, place: Path, sources: Sources, kind: str) -> dict[str, Job]:
    """What can be done with a tree that follows a source."""
    url, old, new = sources.urls[kind], expected(kind, 1), expected(kind, 2)
    empty, first, second, damaged = (place / f"{kind}-{each}" for each in ("empty", "1", "2", "damaged"))
    empty.mkdir()
    sources.offer(kind, 1)
    kit.sync(url, first, type=kind)
    sources.offer(kind, 2)
    kit.sync(url, copy_tree(first, second))
    (copy_tree(second, damaged) / "large.bin").unlink()
    (damaged / "large.bin").write_bytes(b"damaged")
    return {
        f"install {kind}": Job(("sync", url, HERE, kind), empty, {}, new),
        f"update {kind}": Job(("sync", url, HERE, kind), first, old, new),
        f"rollback {kind}": Job(("rollback", HERE), second, new, old, again=False),
        f"repair {kind}": Job(("repair", HERE), damaged, {**new, "large.bin": b"damaged"}, new),
        f"prune {kind}": Job(("prune", HERE), second, new, new),
        f"pin {kind}": Job(("pin", HERE), second, new, new),
    }


def other_jobs(place: Path, sources: Sources) -> dict[str, Job]:
    """Publishing, and a download."""
    src, site, empty, old, new = place / "src", place / "published", place / "empty", content(2), content(3)
    empty.mkdir()
    publish(str(write_tree(src, old)), str(site), version="2")
    write_tree(src, new)
    (sources.site / "large-2").write_bytes(old["large.bin"])
    checksum = f"sha256:{hashlib.sha256(old['large.bin']).hexdigest()}"
    download = "download", f"{sources.url}large-2", f"{HERE}/file", checksum
    return {
        "publish": Job(("publish", src, HERE, "3"), site, old, new),
        "download": Job(download, empty, {}, {"file": old["large.bin"]}),
    }


def copy_tree(source: Path, target: Path) -> Path:
    target.mkdir()
    copy(source, target)
    return target


class Bench:
    """Runs jobs with faults, and holds what they leave against what they may."""

    def __init__(self, place: Path, worker: Worker, jobs: dict[str, Job]) -> None:
        self._root, self._worker, self.jobs = place / "case", worker, jobs
        for job in jobs.values():  # once, so that what is imported when it is needed is there
            self._fresh(job)
            assert self._do(job, Fault(), here=True).code == DONE

    def run(self, job: Job, fault: Fault) -> End:
        """In a new copy."""
        self._fresh(job)
        return self._do(job, fault)

    def calls(self, job: Job, kinds: Kinds) -> int:
        """How many of these an undisturbed run makes."""
        end = self.run(job, Fault(kinds))
        assert end.code == DONE
        assert self._state(job) == job.new
        return end.calls

    def check(self, job: Job, code: int) -> None:
        """It is one state or the other, as the exit code says; and the next run brings the new one."""
        assert code in (DONE, FAILED, UNFINISHED, -signal.SIGKILL), f"exit code {code}"
        if code == FAILED and job.command[0] == "repair":  # which looks again at what it has done
            assert self._state(job) in (job.old, job.new)
        elif code == FAILED:
            assert self._state(job) == job.old, "it failed, and is not as it was"
        elif code == DONE:
            assert self._state(job) == job.new
        if (self._root / ".perfkit").exists():  # or the fault came before anything
            with Managed(self._root):  # completes or discards
                pass
        found = self._state(job)
        assert found in (job.old, job.new), "a mixture"
        if job.again or found == job.old:
            assert self._do(job, Fault()).code == DONE
        assert self._state(job) == job.new
        self._check_litter(job)

    def _fresh(self, job: Job) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        copy_tree(job.start, self._root)

    def _do(self, job: Job, fault: Fault, *, here: bool = False) -> End:
        command = (str(part).replace(HERE, str(self._root)) for part in job.command)
        return self._worker.run(*command, fault=fault, here=here)

    def _state(self, job: Job) -> Tree:
        if job.command[0] == "publish":
            client = Client(self._root)
            return client.install(client.pointer.solid)
        return {name: data for name, data in tree_of(self._root).items() if ".perfkit-part" not in name}

    def _check_litter(self, job: Job) -> None:
        names = {path.name for path in self._root.iterdir()}
        if job.command[0] == "publish":
            assert names <= {"perfkit.json", "objects", *(f".perfkit-publish.{each}" for each in OF_PUBLISHER)}
            assert all(len(path.name) == 64 for path in (self._root / "objects").iterdir())
        elif job.command[0] == "download":
            assert names == {"file"}
        else:
            # One that ends in ~ was being written, and is replaced when the next one of that name is.
            assert {path.name.removesuffix("~") for path in (self._root / ".perfkit").iterdir()} <= OWN


@pytest.fixture(scope="module")
def bench(module_place: Path, sources: Sources) -> Iterator[Bench]:
    jobs = other_jobs(module_place, sources)
    with Toolkit(Config(**QUICK)) as kit:
        for kind in some(list(sources.urls), 1):
            jobs |= jobs_of_source(kit, module_place, sources, kind)
    with Worker(module_place) as worker:
        yield Bench(module_place, worker, jobs)


def sweep(cases: Cases, bench: Bench, faults: Mapping[str, Fault], *, few: int, calls: int) -> None:
    """Jobs with faults, which are given without `at`, in the long form: every job at so many calls, and those that are
    no transaction, publish and download, at every call. In the short one: a few cases.
    """
    every = list(enumerate(itertools.product(bench.jobs.items(), faults.items())))
    if CASE is not None:
        every = [every[int(CASE) // 10_000]]
    elif not LONG:
        every = random.Random(f"{SEED} {cases.name}").sample(every, few)
    for first, ((name, job), (what, fault)) in every:
        most = bench.calls(job, fault.kinds)
        wanted = 1 if not LONG else calls if " " in name else most
        for at in chosen(f"{SEED} {what} {name}", most, wanted):
            with cases.case(first * 10_000 + at, f"{name}, {what}, at call {at} of {most}"):
                end = bench.run(job, replace(fault, at=at))
                bench.check(job, end.code)
                cases.ends[what] += bool(end.failed)


def chosen(seed: str, most: int, count: int) -> list[int]:
    """Numbers of calls; the one that is to be tried again."""
    if CASE is not None:
        return [int(CASE) % 10_000]
    return sorted(random.Random(seed).sample(range(1, most + 1), min(count, most)))


def test_killed_before_any_change(cases: Cases, bench: Bench) -> None:
    """The new state or the old one, whole, and the next run goes on."""
    sweep(cases, bench, {"killed": Fault(KILL)}, few=2, calls=10_000)


SPACE = ("create", "write", "rename", "link", "mkdir", "size", "copy")
NAMES = ("rename", "link", "unlink", "rmdir", "mkdir")
FAILURES: dict[str, Kinds] = {
    "disk full": dict.fromkeys(SPACE, errno.ENOSPC),
    "quota exceeded": dict.fromkeys(SPACE, errno.EDQUOT),
    "read-only": dict.fromkeys(CHANGES, errno.EROFS),
    "I/O error": dict.fromkeys([*CHANGES, "open", "read"], errno.EIO),
    "busy": dict.fromkeys(("rename", "unlink", "rmdir"), errno.EBUSY),
    "not permitted": dict.fromkeys((*NAMES, "open", "create", "attributes"), errno.EPERM),
    "too many open files": dict.fromkeys(("open", "create"), errno.EMFILE),
    "no threads": {"thread": errno.EAGAIN},
}


@pytest.mark.parametrize("what", some(list(FAILURES), 3))
def test_failing_calls(cases: Cases, bench: Bench, what: str) -> None:
    """As it was, or done, or completed by the next run, and the error says which."""
    faults = {what: Fault(FAILURES[what]), f"{what} from then on": Fault(FAILURES[what], onwards=True)}
    sweep(cases, bench, faults, few=1, calls=5)


def test_clock_is_stepped(cases: Cases, bench: Bench) -> None:
    """A day back or ahead in the middle: nothing fails by it."""
    for name, job in some(list(bench.jobs.items()), 1):
        for at, step_s in itertools.product((0, 1, 2, 3, 5, 8, 13) if LONG else (1,), (-86_400, 86_400)):
            with cases.case(0, f"{name}, {step_s} s at reading {at}"):
                end = bench.run(job, Fault(at=at, clock_step_s=step_s))
                assert end.code == DONE
                bench.check(job, end.code)
            cases.ends["clock stepped"] += 1
