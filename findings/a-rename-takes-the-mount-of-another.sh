#!/usr/bin/env bash
# Linux (seen on 6.18), a directory that two containers share (a volume), and in one of them something mounted over a
# file in it, as `docker run -v volume:/app -v secret:/app/config` and Kubernetes' subPath do; the other one, or the
# host, updates the files by renames.
# Most would guess: to replace a file that something is mounted on fails with "Device or resource busy", as it does
# where it is mounted; or at least it does not matter to who has the mount, whose file is another one.
# Seen: in another mount namespace nothing tells that the file is a mount point. The rename succeeds, and takes the mount
# away from the other container: the program there, which had its own configuration or secret under that name, reads the
# updater's file from then on, with no error and no event. The same holds for unlink and rmdir, so for an update that
# replaces directories. mount_namespaces(7) says so: EBUSY before Linux 3.18. Mount beside a directory that others
# update, not into it.
# Needs root, for mount namespaces; unshare and mount (Debian: util-linux, mount).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uname -r
python3 - "$folder" <<'END'
import os, pathlib, shutil, subprocess, sys

folder = pathlib.Path(sys.argv[1])
shared, own = folder / "shared", folder / "own"
CONTAINER = """
import os, pathlib, subprocess, sys
shared, own = map(pathlib.Path, sys.argv[1:])
for name in ("config", "plugins"):
    subprocess.run(["mount", "--bind", own / name, shared / name], check=True)
for line in sys.stdin:
    if line == "replace\\n":
        try:
            os.replace(shared / "following", shared / "config")
        except OSError as error:
            print(error.strerror, flush=True)
    else:
        mounts = sum(f" {shared}/" in mount for mount in open("/proc/self/mountinfo"))
        print((shared / "config").read_text(), sorted(os.listdir(shared / "plugins")), mounts, flush=True)
"""
for place, whose in ((shared, "volume's"), (own, "container's")):
    (place / "plugins").mkdir(parents=True)
    (place / "config").write_text(f"the {whose}")
(own / "plugins/own").touch()
(shared / "following").write_text("the updater's")
command = ["unshare", "--mount", sys.executable, "-c", CONTAINER, shared, own]
pipe = subprocess.PIPE
with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as container:

    def ask(what):
        container.stdin.write(f"{what}\n")
        container.stdin.flush()
        return container.stdout.readline().strip()

    before, refused = ask("read"), ask("replace")
    print(f"the container has: {before}; to replace the file there: {refused}")
    os.replace(shared / "following", shared / "config")
    after_file = ask("read")
    print(f"after a rename outside: {after_file}")
    os.rmdir(shared / "plugins")
    os.mkdir(shared / "plugins")
    after_both = ask("read")
    print(f"after rmdir and mkdir outside: {after_both}")
    container.stdin.close()
assert (before, refused) == ("the container's ['own'] 2", "Device or resource busy")
assert after_file == "the updater's ['own'] 1", "this has changed"
assert after_both == "the updater's [] 0", "this has changed"
END
