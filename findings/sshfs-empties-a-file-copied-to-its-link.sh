#!/usr/bin/env bash
# Linux (seen on 6.18), sshfs 3.7.3 with libfuse 3.14.0 (Debian 12's packages), cp of GNU coreutils (seen with 9.1) and
# Python's shutil (seen with 3.11); two hard links of one file, made through the mount.
# Most would guess: a file system either has hard links, or refuses link(2). Where it has them, both names have one
# inode number and a link count of 2, and `cp` and shutil.copyfile refuse to copy a file to itself.
# Seen: link(2) works, and the server has one file with two names; but each name has a number of its own and a count of
# 1. So nothing tells that they are the same file: `cp a b` empties b, which is a, finds nothing to copy, and ends with
# 0. Both names are empty then, and the bytes are gone; shutil.copyfile does the same.
# Needs root, for the mount (/dev/fuse); apt-get and dpkg of Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
needed=('sshfs=3.7.3-1*' 'libfuse3-3=3.14.0-4*' 'openssh-sftp-server=1:9.2p1-2*' libglib2.0-0 libpcre2-8-0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
mkdir "$folder/server" "$folder/mounted"
uname -r
cp --version | sed -n 1p
python3 - "$folder" <<'END'
import os, pathlib, shutil, socket, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
mounted = folder / "mounted"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
version = subprocess.run([folder / "usr/bin/sshfs", "-V"], env=environment, capture_output=True, text=True).stdout
print(next(line for line in version.splitlines() if line.startswith("SSHFS")))
here, there = socket.socketpair()  # sshfs and an SFTP server, joined by a socket instead of ssh
with here, there:
    server = subprocess.Popen([folder / "usr/lib/openssh/sftp-server"], stdin=there, stdout=there)
    command = [folder / "usr/bin/sshfs", "-f", "-o", "passive", f":{folder}/server", mounted]
    client = subprocess.Popen(command, stdin=here, stdout=here, env=environment)
while not os.path.ismount(mounted):
    assert client.poll() is None
    time.sleep(0.05)
for how in ("cp", "shutil"):
    a, b = mounted / f"{how}-a", mounted / f"{how}-b"
    a.write_bytes(b"content " * 1000)
    os.link(a, b)
    one, other = os.stat(a), os.stat(b)
    print(f"two links: inode numbers {one.st_ino} and {other.st_ino}, counts {one.st_nlink} and {other.st_nlink}")
    assert os.path.samefile(folder / "server" / a.name, folder / "server" / b.name)
    if how == "cp":
        print("cp ends with", subprocess.run(["cp", a, b]).returncode)
    else:
        shutil.copyfile(a, b)
    left = [(folder / "server" / each.name).stat().st_size for each in (a, b)]
    print(f"{how}: of 8000 bytes, {left} are left")
    assert left == [0, 0] and one.st_ino != other.st_ino, "this has changed"
subprocess.run(["umount", mounted], check=True)
client.wait()
server.wait()
END
