"""`--check` and `--on-change`: commands of the user's, with the exit codes that scripts rely on."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit.cli import main
from tests.support.command import start
from tests.support.fakes import MisbehavingServer
from tests.support.sites import Origin
from tests.support.tools import ENVIRONMENT
from tests.support.trees import ONE, TWO, tree_of
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

Capture = pytest.CaptureFixture[str]


def python(tmp_path: Path, code: str) -> str:
    """A command line that runs this program."""
    script = tmp_path / "hook.py"
    script.write_text("import os, subprocess, sys, time\n" + code)
    return f"{sys.executable} -S {script}"  # without site-packages, which take half the time


def sync(origin: Origin, *options: str) -> int:
    return main(["sync", origin.url, "tree", "--quiet", *options])


def test_exit_code_says_whether_the_tree_changed(cli_origin: Origin) -> None:
    assert sync(cli_origin, "--exit-code") == 10
    assert sync(cli_origin, "--exit-code") == 0
    cli_origin.publish(TWO, "2")
    assert sync(cli_origin) == 0
    cli_origin.publish(ONE, "3")
    assert sync(cli_origin, "--exit-code") == 10


def test_a_check_that_passes(cli_origin: Origin, tmp_path: Path) -> None:
    """It has the tree in an argument and in the environment, both versions, and the names that change."""
    code = """
assert open(f"{sys.argv[1]}/README").read() == open(os.environ["PERFKIT_STAGED"] + "/README").read()
versions = os.environ["PERFKIT_PREVIOUS_VERSION"], os.environ["PERFKIT_VERSION"]
print(*versions, repr(sys.stdin.read()), file=open("seen", "a"))
"""
    check = python(tmp_path, code) + " {}"
    assert sync(cli_origin, "--check", check) == 0
    cli_origin.publish(TWO, "2")
    assert sync(cli_origin, "--check", check, "--null") == 0
    all_names = "".join(f"{name}\n" for name in sorted(ONE))
    different = "".join(f"{name}\0" for name in sorted({*ONE, *TWO}) if ONE.get(name) != TWO.get(name))
    assert (tmp_path / "seen").read_text() == f" 1 {all_names!r}\n1 2 {different!r}\n"


def test_a_check_that_fails(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """Its exit code and the end of its output are in the error; then the version is passed over."""
    assert sync(cli_origin) == 0
    cli_origin.publish(TWO, "2")
    check = python(tmp_path, "print('rule 7 is bad'); sys.exit(5)")
    assert sync(cli_origin, "--check", check) == 1
    said = capsys.readouterr().err
    assert "refused version 2" in said
    assert "ended with exit code 5: rule 7 is bad" in said
    assert tree_of(tmp_path / "tree") == ONE
    assert sync(cli_origin, "--check", check, "--exit-code") == 0
    assert main(["sync", cli_origin.url, "tree"]) == 0
    assert "2 is on hold" in capsys.readouterr().err
    assert sync(cli_origin, "--check", "true", "--retry-rejected") == 0
    assert tree_of(tmp_path / "tree") == TWO


@pytest.mark.once
def test_a_check_that_hangs_and_leaves_processes(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """It is ended, with all that it started."""
    code = """
child = subprocess.Popen(["sleep", "600"])
open("pid", "w").write(str(child.pid))
time.sleep(600)
"""
    assert sync(cli_origin, "--check", python(tmp_path, code), "--check-timeout", "1.5") == 1
    assert "took longer than 1.5 s" in capsys.readouterr().err
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _runs(pid))


@pytest.mark.once
def test_a_check_that_leaves_a_session_of_its_own(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """It is ended, too, and so is what that has started; what they hold open keeps nothing waiting."""
    code = """
child = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
open("pid", "w").write(str(child.pid))
"""
    assert sync(cli_origin, "--check", python(tmp_path, code)) == 0
    pid = int((tmp_path / "pid").read_text())
    assert not _runs(pid)
    sessions = [each.read_text().rpartition(")")[2].split()[3] for each in Path("/proc").glob("[0-9]*/stat")]
    assert str(pid) not in sessions


@pytest.mark.once
def test_a_check_that_says_much(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """Only the end is kept, in memory and nowhere else."""
    code = "for n in range(2000): print(f'{n:06d}' * 1000)\nsys.exit('the end')"
    assert sync(cli_origin, "--check", python(tmp_path, code)) == 1
    said = capsys.readouterr().err
    assert len(said) < 2000
    assert said.endswith("the end\n")


@pytest.mark.once
def test_a_check_that_is_killed(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """It refuses the version. If it kills what runs it, too."""
    for victim in ("os.getpid()", "os.getppid()"):
        check = python(tmp_path, f"os.kill({victim}, 9); time.sleep(1)")
        assert sync(cli_origin, "--retry-rejected", "--check", check) == 1
        assert "was ended by signal 9" in capsys.readouterr().err
    assert sync(cli_origin, "--retry-rejected", "--check", "true") == 0


@pytest.mark.once
def test_a_check_that_writes_into_the_tree(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """It can't, where there can be mounts of its own; else what it has done is told and can be repaired."""
    assert sync(cli_origin) == 0
    cli_origin.publish({**ONE, "new": b"new"}, "2")
    code = "open(os.environ['PERFKIT_STAGED'] + '/README', 'a').write('more')"
    assert sync(cli_origin, "--check", python(tmp_path, code)) == 1
    said = capsys.readouterr().err
    if "Read-only file system" not in said:
        assert "has changed the tree" in said
        assert "README" in said
        assert main(["verify", "tree", "--repair"]) == 0
        (tmp_path / "tree/README.perfkit-local").unlink()
    assert tree_of(tmp_path / "tree") == ONE
    assert sync(cli_origin, "--retry-rejected") == 0


@pytest.mark.once
def test_a_check_where_the_system_has_neither_prctl_nor_proc(tmp_path: Path) -> None:
    """As on macOS: its exit code and output count, and what it leaves in its process group is ended."""
    code = """
import ctypes, os, sys
from perfkit.cli import check_process
sys.platform, ctypes.CDLL, os.listdir = "darwin", None, None
check_process.main(sys.argv[1], 20.0, ["sh", "-c", "sleep 600 & echo $!; exit 3"])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=True)
    status, left = done.stdout.split()
    assert status == "3"
    wait_until(lambda: not _runs(int(left)))


@pytest.mark.once
@pytest.mark.parametrize(("option", "changed"), [("--check", 10), ("--on-change", 0)])
def test_terminated_while_a_command_runs(
    option: str, changed: int, cli_origin: Origin, tmp_path: Path, warm_python: WarmPython
) -> None:
    """The command ends with it, nothing is held, and the next sync goes on."""
    hang = python(tmp_path, "open('pid~', 'w').write(str(os.getpid())); os.rename('pid~', 'pid'); time.sleep(600)")
    with start(warm_python, "sync", cli_origin.url, "tree", "--quiet", option, hang) as process:
        wait_until((tmp_path / "pid").exists)
        process.terminate()
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (
        -signal.SIGTERM,
        b"perfkit: interrupted; run the same command again to resume\n",
    )
    wait_until(lambda: not _runs(int((tmp_path / "pid").read_text())))
    assert not (tmp_path / "tree/.perfkit/check").exists()
    assert sync(cli_origin, "--exit-code") == changed


@pytest.mark.parametrize("option", ["--check", "--on-change"])
def test_interrupted_while_a_command_starts(
    option: str, cli_origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of the start ends the command, too, which is running already."""
    started: list[int] = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # KeyboardInterrupt would be raised here at the latest

    monkeypatch.setattr("subprocess.Popen", InterruptedPopen)
    assert sync(cli_origin, option, python(tmp_path, "time.sleep(600)")) == 130
    wait_until(lambda: not _runs(started[0]))


@pytest.mark.once
def test_what_a_command_leaves_running(cli_origin: Origin, tmp_path: Path) -> None:
    """A check's is ended; that of --on-change may be a daemon."""
    leave = python(tmp_path, "open(sys.argv[1], 'w').write(str(subprocess.Popen(['sleep', '600']).pid))")
    assert sync(cli_origin, "--check", f"{leave} check", "--on-change", f"{leave} change") == 0
    check, change = (int((tmp_path / name).read_text()) for name in ("check", "change"))
    try:
        wait_until(lambda: not _runs(check))
        assert _runs(change)
    finally:
        os.kill(change, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("option", ["--check", "--on-change"])
@pytest.mark.parametrize("command", ["no-such-program-here x", " ", "sh 'x"])
def test_no_such_command(cli_origin: Origin, option: str, command: str, capsys: Capture) -> None:
    """Told before anything is asked for."""
    assert sync(cli_origin, option, command) == 2
    assert option in capsys.readouterr().err
    assert cli_origin.sent == []


def test_a_command_that_cannot_be_run(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """That is no refusal of the version; nor is a change undone for it."""
    script = tmp_path / "script"
    script.write_text("no #! line")
    script.chmod(0o755)
    assert sync(cli_origin, "--check", str(script)) == 2
    assert f"--check: {script} can't be run: Exec format error" in capsys.readouterr().err
    assert sync(cli_origin, "--on-change", str(script), "--exit-code") == 3
    assert f"{script} can't be run: Exec format error; the next sync runs it again" in capsys.readouterr().err
    assert tree_of(tmp_path / "tree") == ONE


def test_names_since_a_generation_that_is_gone(
    cli_origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any file may have changed."""
    monkeypatch.setenv("PERFKIT_KEEP_GENERATIONS", "1")
    assert sync(cli_origin, "--on-change", "true") == 0
    for version in ("2", "3", "4"):
        cli_origin.publish({**ONE, "README": version.encode()}, version)
        assert sync(cli_origin, "--on-change", "false") == 3
    assert sync(cli_origin, "--on-change", python(tmp_path, "open('seen', 'w').write(sys.stdin.read())")) == 0
    assert sorted((tmp_path / "seen").read_text().splitlines()) == sorted(ONE)


def test_on_change_runs_after_each_change_only(cli_origin: Origin, tmp_path: Path) -> None:
    """It runs after each change and at no other time, with the names and the versions."""
    code = """
names = sorted(sys.stdin.read().splitlines())
print(os.environ["PERFKIT_PREVIOUS_VERSION"], os.environ["PERFKIT_VERSION"], *names, file=open("seen", "a"))
assert open(os.environ["PERFKIT_DEST"] + "/README").read()
"""
    command = python(tmp_path, code)
    for _ in range(2):
        assert sync(cli_origin, "--on-change", command, "--exit-code") in (0, 10)
    cli_origin.publish({**ONE, "README": b"other\n"}, "2")
    for _ in range(2):
        assert sync(cli_origin, "--on-change", command) == 0
    assert (tmp_path / "seen").read_text().splitlines() == [f" 1 {' '.join(sorted(ONE))}", "1 2 README"]


def test_names_that_end_with_nul(cli_origin: Origin, tmp_path: Path) -> None:
    command = python(tmp_path, "open('seen', 'w').write(sys.stdin.read())")
    assert sync(cli_origin, "--on-change", command, "--null") == 0
    assert sorted((tmp_path / "seen").read_text().split("\0")) == sorted([*ONE, ""])


def test_on_change_fails(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """Exit code 3; it is tried again, though nothing changes any more, until it succeeds."""
    code = "print(len(sys.stdin.readlines()), file=open('seen', 'a')); sys.exit(int(open('code').read()))"
    command = python(tmp_path, code)
    for exit_code, expected in ((1, 3), (2, 3), (0, 0), (0, 0)):
        (tmp_path / "code").write_text(str(exit_code))
        assert sync(cli_origin, "--on-change", command) == expected
        assert "the next sync runs it again" in capsys.readouterr().err or not expected
        assert main(["status", "tree", "--metrics", "tree.prom"]) == 0
        assert f"it again: {sys.executable} ended with exit code {exit_code}" in capsys.readouterr().out or not expected
        assert re.search(rf"^perfkit_tree_on_change_failed.* {expected // 3}$", Path("tree.prom").read_text(), re.M)
    assert (tmp_path / "seen").read_text().split() == [str(len(ONE))] * 3


def test_on_change_is_tried_again_whatever_the_sync_does(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    """Where it is too early for one, and where it fails; its own failure is then the second one."""
    code = "open('seen', 'a').write('x'); sys.exit(int(open('code').read()))"
    command = python(tmp_path, code)
    bad = ["sync", f"{cli_origin.url}/no-such-site/", "tree", "--quiet", "--on-change", command]
    for exit_code, expected, arguments in (
        (1, 3, ["sync", cli_origin.url, "tree", "--quiet", "--on-change", command]),
        (1, 3, ["sync", cli_origin.url, "tree", "--json", "--on-change", command, "--min-interval", "1h"]),
        (1, 1, bad),
        (0, 1, bad),
        (0, 1, [*bad, "--now"]),
    ):
        (tmp_path / "code").write_text(str(exit_code))
        assert main(arguments) == expected
    assert (tmp_path / "seen").read_text() == "xxxx"
    report = json.loads(capsys.readouterr().out)
    assert report.items() >= {"version": "1", "generation": 1, "route": "none", "bytes_received": 0}.items()


@pytest.mark.parametrize("options", [[], ["--on-change", "false"]])
def test_a_first_sync_that_fails_is_remembered(
    cli_origin: Origin, tmp_path: Path, capsys: Capture, options: list[str]
) -> None:
    """As any other; that of a tree that never changed leaves nothing else."""
    failing = ["sync", f"{cli_origin.url}/no-such-site/", "tree", "--quiet", *options]
    assert main(failing) == 1
    assert [path.name for path in (tmp_path / "tree").rglob("*")] == [".perfkit", "last-sync"]
    asked = len(cli_origin.sent)
    assert sync(cli_origin, "--min-interval", "1h", *options) == 0
    assert len(cli_origin.sent) == asked
    assert main(["status", "tree", "--max-age", "1d"]) == 1
    assert re.search("^failed .*404", capsys.readouterr().out, re.MULTILINE)
    assert sync(cli_origin, "--min-interval", "1h", "--now", "--exit-code") == 10


@pytest.mark.once
def test_killed_between_the_change_and_the_command(cli_origin: Origin, tmp_path: Path) -> None:
    """The next run runs it."""
    kill = python(tmp_path, "os.kill(os.getppid(), 9)")
    child = os.fork()
    if child == 0:
        sync(cli_origin, "--on-change", kill)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert tree_of(tmp_path / "tree") == ONE
    assert sync(cli_origin, "--on-change", python(tmp_path, "open('seen', 'w')")) == 0
    assert (tmp_path / "seen").exists()


def test_a_tree_from_before_the_option(cli_origin: Origin, tmp_path: Path) -> None:
    """Nothing changed since the option is used, so the command is not run."""
    assert sync(cli_origin) == 0
    assert sync(cli_origin, "--on-change", python(tmp_path, "open('seen', 'w')")) == 0
    assert not (tmp_path / "seen").exists()


def test_least_interval(cli_origin: Origin, tmp_path: Path) -> None:
    """Nothing is asked before it has passed; after a failure, not within a minute; except with --now."""
    assert sync(cli_origin, "--min-interval", "1h", "--exit-code") == 10
    asked = len(cli_origin.sent)
    cli_origin.publish(TWO, "2")
    assert sync(cli_origin, "--min-interval", "1h", "--exit-code") == 0
    assert len(cli_origin.sent) == asked
    assert sync(cli_origin, "--min-interval", "0", "--exit-code") == 10
    assert main(["sync", f"{cli_origin.url}/no-such-site/", "tree", "--quiet"]) == 1
    asked = len(cli_origin.sent)
    assert sync(cli_origin, "--min-interval", "1h") == 0
    assert len(cli_origin.sent) == asked
    assert sync(cli_origin, "--min-interval", "1h", "--now") == 0
    assert len(cli_origin.sent) == asked + 1


def test_later_runs_obey_retry_after(
    cli_origin: Origin, misbehaving: Callable[..., MisbehavingServer], capsys: Capture
) -> None:
    """A server that asks to wait is not asked again before, in later runs either, unless it is told to."""
    assert sync(cli_origin) == 0
    server = misbehaving(lambda exchange: exchange.respond("503 Service Unavailable", Retry_After="7200"))
    asked = []
    for options, code in (((), 1), ((), 0), (("--now",), 1)):
        assert main(["sync", f"{server.url}/", "tree", *options]) == code
        asked.append(len(server.requests))
    assert asked == [1, 1, 2]
    err = capsys.readouterr().err
    assert re.search(r"the last sync failed: .*503.*; the next is due in 7\d\d\d s, or with --now at once", err)
    assert main(["status", "tree"]) == 0
    assert "as the source asks" in capsys.readouterr().out


def test_splay_is_the_same_for_a_tree_each_time(cli_origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait within the interval that is the same for a tree each time, and another for another tree."""
    waits: list[float] = []
    monkeypatch.setattr("perfkit.cli.sync.sleep", waits.append)
    for dest in ("tree", "tree", "other"):
        assert main(["sync", cli_origin.url, dest, "--quiet", "--splay", "10m"]) == 0
    assert waits[0] == waits[1] != waits[2]
    assert all(0 <= wait < 600 for wait in waits)


@pytest.mark.parametrize("damage", ["{", '{"generation": 0}', "[" * 9999])
def test_a_damaged_record_of_on_change(cli_origin: Origin, tmp_path: Path, damage: str) -> None:
    """As if there were none: the command runs for what changes from now on."""
    assert sync(cli_origin) == 0
    (tmp_path / "tree/.perfkit/on-change").write_text(damage)
    command = python(tmp_path, "open('seen', 'a').write('x')")
    assert sync(cli_origin, "--on-change", command) == 0
    cli_origin.publish(TWO, "2")
    assert sync(cli_origin, "--on-change", command) == 0
    assert (tmp_path / "seen").read_text() == "x"


@pytest.mark.parametrize("version", ["1\0", "\ud800", "1" * 200_000, "\x9b31m"])
def test_a_version_that_no_environment_can_have(cli_origin: Origin, tmp_path: Path, version: str) -> None:
    """The command runs all the same, with as much of it as one can have."""
    assert sync(cli_origin) == 0
    (tmp_path / "tree/.perfkit/on-change").write_text(json.dumps({"generation": 0, "version": version}))
    command = python(tmp_path, "open('seen', 'w').write(ascii(os.environ['PERFKIT_PREVIOUS_VERSION']))")
    assert sync(cli_origin, "--on-change", command) == 0
    seen = ast.literal_eval((tmp_path / "seen").read_text())
    assert seen == "".join(each if each.isprintable() else "?" for each in version)[:1000]


@pytest.mark.parametrize("name", ["on-change", "on-change~"])
def test_a_link_planted_under_the_record_of_on_change(cli_origin: Origin, tmp_path: Path, name: str) -> None:
    """It is replaced, and what it leads to stays as it was."""
    assert sync(cli_origin) == 0
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "tree/.perfkit" / name).symlink_to(tmp_path / "victim")
    cli_origin.publish(TWO, "2")
    assert sync(cli_origin, "--on-change", "true") == 0
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "tree/.perfkit" / name).is_symlink()
