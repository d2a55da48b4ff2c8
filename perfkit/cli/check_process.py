"""The program that runs the command of `--check`, and kills what it started when it ends or takes too long.

`hooks` starts it as a process of its own. Whatever the command leaves behind, in whatever session, becomes a child of
this process (PR_SET_CHILD_SUBREAPER, prctl(2)). So that it starts fast, it imports nothing of perfkit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

SHOWN_BYTES = 1000  # kept of the end of the command's output, all of which is read
_READ_BYTES = 64 << 10
_KILL_S = 5.0  # a process that can't be killed, such as another user's, is left after this
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_NEW_MOUNTS = 0x20000  # linux/sched.h: CLONE_NEWNS
_RDONLY, _REMOUNT, _BIND, _REC, _SLAVE = 0x1, 0x20, 0x1000, 0x4000, 0x80000  # linux/mount.h: MS_*
_KEPT = 0x40E  # MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, which statvfs(3) has as the same bits


def main(root: str, timeout_s: float, words: list[str]) -> None:
    """Run the command with the standard input of this process, and write to standard output a line with its exit code
    and then the end of its output. Instead of the code, the line is `timeout`, or `errno` and its number if the command
    can't be run.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        _protect(libc, root)
    output, write_end = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_end, 1), (os.POSIX_SPAWN_DUP2, write_end, 2)]
    try:
        ignored = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python
        pid = os.posix_spawnp(words[0], words, os.environ, file_actions=actions, setpgroup=0, setsigdef=ignored)
    except OSError as error:
        sys.stdout.write(f"errno {error.errno}\n")
        return
    os.close(write_end)
    try:
        code, end = _wait(pid, output, time.monotonic() + timeout_s)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has arrived already, or is too late
        _end_all(pid)
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):  # its last output
        end += os.read(output, 1 << 20)
    sys.stdout.buffer.write(f"{code}\n".encode() + end[-SHOWN_BYTES:])


def _protect(libc: ctypes.CDLL, root: str) -> None:
    """Make the tree read-only for this process and those that it starts, by private mounts (unshare(2), mount(2)),
    where that is permitted: to root, outside of most containers.
    """
    path, kept = os.fsencode(root), os.statvfs(root).f_flag & _KEPT
    if (
        libc.unshare(_NEW_MOUNTS) == 0
        and libc.mount(b"none", b"/", None, _REC | _SLAVE, None) == 0
        and libc.mount(path, path, None, _BIND | _REC, None) == 0
    ):
        libc.mount(None, path, None, _BIND | _REMOUNT | _RDONLY | kept, None)


def _wait(pid: int, output: int, deadline_s: float) -> tuple[int | str, bytes]:
    """The exit code of the command with this process ID, or `timeout`; and the end of its output so far."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    sources, end = [woken, output], b""
    ended, status = os.waitpid(pid, os.WNOHANG)  # it may have ended before the handler was set
    while ended != pid:
        ready, _, _ = select.select(sources, [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            return "timeout", end
        if output in ready:
            data = os.read(output, _READ_BYTES)
            end = (end + data)[-SHOWN_BYTES:]
            sources = sources if data else [woken]
        if woken in ready:
            os.read(woken, _READ_BYTES)
            while (found := os.waitpid(-1, os.WNOHANG))[0] not in (0, pid):
                pass  # a process that was left behind
            ended, status = found
    return os.waitstatus_to_exitcode(status), end


def _end_all(pid: int) -> None:
    """Kill every child; processes that a killed child has started become children, and are killed, too. Where there is
    no /proc, kill the process group of the command with this process ID.
    """
    until_s = time.monotonic() + _KILL_S
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until_s:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for each in filter(str.isdecimal, os.listdir("/proc") if sys.platform == "linux" else ()):
                with contextlib.suppress(OSError):
                    if _parent(each) == os.getpid():
                        os.kill(int(each), signal.SIGKILL)
            time.sleep(0.001)


def _parent(process: str) -> int:
    with open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])  # proc_pid_stat(5)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
