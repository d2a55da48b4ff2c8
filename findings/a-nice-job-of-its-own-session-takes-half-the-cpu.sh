#!/usr/bin/env bash
# Linux 6.1 and later (autogroups since 2.6.38; on by default in the kernels of Debian, Ubuntu and Fedora): a background
# job, as an updater or a hash of everything is, with `nice -n 19` or `chrt --idle 0`, beside a service that has work.
# Most would guess: on a CPU that both want, the job with nice 19 gets about 1.5 %, and the idle one nearly nothing.
# Seen: that is so within one session. With kernel.sched_autogroup_enabled=1, each session (setsid(2): a terminal, a job of
# cron, what a service manager or subprocess starts with start_new_session) is a group with the same share, and priorities
# count within a group only: in a session of its own, either job takes half of the CPU from the service. The group's own
# value, /proc/PID/autogroup, helps, and so does a control group (CPUWeight= of systemd), which autogroups leave alone.
# Needs root, to switch autogroups on if they are off; the setting is put back.
set -euo pipefail
setting=/proc/sys/kernel/sched_autogroup_enabled
before=$(cat $setting)
folder=$(mktemp -d)
trap 'echo "$before" > $setting; kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
cat > "$folder/share.py" <<'END'
import os, subprocess, sys, time

BUSY = [sys.executable, "-c", "while True: pass"]


def seconds(process):
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share(job, new_session, value=None):
    """The part of one CPU that the job takes from a service that could use all of it."""
    service = subprocess.Popen(BUSY, start_new_session=new_session)
    background = subprocess.Popen([*job, *BUSY], start_new_session=new_session)
    try:
        time.sleep(0.5)
        if value is not None:
            with open(f"/proc/{background.pid}/autogroup", "w") as file:
                file.write(str(value))
        began = seconds(background), seconds(service)
        time.sleep(3)
        taken, left = seconds(background) - began[0], seconds(service) - began[1]
    finally:
        for process in (service, background):
            process.kill()
            process.wait()
    return taken / (taken + left)


os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
found = {}
for name, job in (("nice -n 19", ["nice", "-n", "19"]), ("chrt --idle 0", ["chrt", "--idle", "0"])):
    found[name] = [share(job, False), share(job, True), share(job, True, 19)]
    print("  %-14s same session %4.1f %%, its own %4.1f %%, its own with autogroup 19 %4.1f %%" % (name, *(100 * s for s in found[name])))
for same, own, lowered in found.values():
    assert same < 0.1 and lowered < 0.1
    assert 0.35 < own < 0.65, "this has changed"
END
echo "Linux $(uname -r), autogroups $before"
echo 1 > $setting
python3 "$folder/share.py"
