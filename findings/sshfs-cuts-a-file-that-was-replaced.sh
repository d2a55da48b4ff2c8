#!/usr/bin/env bash
# Linux (seen on 6.18), sshfs 3.7.3 with libfuse 3.14.0, rsync 3.2.7 (Debian 12's packages) and cp; a file on the server
# that is replaced by a longer version, by a rename, after a client has looked at the old one.
# Most would guess: for some seconds, while it is cached, the client reads the old version, and then the new one; or it
# fails, as NFS does with "Stale file handle".
# Seen: for 20 s (dcache_timeout) the length is the old version's and the bytes are the new one's. So cp, rsync and
# shutil.copyfile copy the new version cut off at the old length, and end with 0: a file that neither side ever had.
# rsync -a gives it the old date, so that its next run mends it; nothing mends the others'. That a file is replaced by a
# rename does not help. `-o dir_cache=no,attr_timeout=0` does; elsewhere a hash has to be compared.
# Needs root, for the mount (/dev/fuse); apt-get and dpkg of Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
needed=('sshfs=3.7.3-1*' 'libfuse3-3=3.14.0-4*' 'openssh-sftp-server=1:9.2p1-2*' 'rsync=3.2.7-1*' libglib2.0-0 libpcre2-8-0
    liblz4-1 libpopt0 libxxhash0 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
mkdir "$folder/server" "$folder/mounted"
uname -r
python3 - "$folder" <<'END'
import os, pathlib, shutil, socket, subprocess, sys, time

OLD, NEW, OLD_DATE = b"old " * 1000, b"new " * 5000, 1_700_000_000
folder = pathlib.Path(sys.argv[1])
file, seen, copied = folder / "server/file", folder / "mounted/file", folder / "copied"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}


def replace(content):
    (folder / "server/.fresh").write_bytes(content)
    os.replace(folder / "server/.fresh", file)


def copy(how):
    copied.unlink(missing_ok=True)
    if how == "shutil":
        shutil.copyfile(seen, copied)
    else:
        command = ["cp"] if how == "cp" else [folder / "usr/bin/rsync", "-a"]
        subprocess.run([*command, seen, copied], env=environment, check=True)
    return copied.read_bytes()


def mount(option):
    """sshfs and an SFTP server, joined by a socket instead of ssh."""
    here, there = socket.socketpair()
    with here, there:
        server = subprocess.Popen([folder / "usr/lib/openssh/sftp-server"], stdin=there, stdout=there)
        command = [folder / "usr/bin/sshfs", "-f", "-o", f"passive,{option}", f":{folder}/server", folder / "mounted"]
        client = subprocess.Popen(command, stdin=here, stdout=here, env=environment)
    while not os.path.ismount(folder / "mounted"):
        assert client.poll() is None
        time.sleep(0.05)
    return server, client


version = subprocess.run([folder / "usr/bin/sshfs", "-V"], env=environment, capture_output=True, text=True).stdout
print(next(line for line in version.splitlines() if line.startswith("SSHFS")))
found = {}
for option in ("dcache_timeout=3600", "dir_cache=no,attr_timeout=0"):  # an hour instead of 20 s, lest a slow machine miss it
    for how in ("cp", "rsync", "shutil"):
        replace(OLD)
        os.utime(file, (OLD_DATE, OLD_DATE))
        server, client = mount(option)
        assert seen.read_bytes() == OLD
        seen.stat()
        replace(NEW)
        found[option, how] = copy(how)
        same_date = copied.stat().st_mtime == OLD_DATE
        assert same_date == (how == "rsync" and "dir_cache" not in option)
        subprocess.run(["umount", folder / "mounted"], check=True)
        client.wait()
        server.wait()
        kind = {NEW: "the new version", NEW[: len(OLD)]: "the beginning of the new version"}
        what = kind.get(found[option, how], "something else")
        print(f"{option}: {len(OLD)} bytes are replaced by {len(NEW)}; {how} copies {len(found[option, how])}: {what}")
for (option, how), content in found.items():
    assert content == (NEW if "dir_cache=no" in option else NEW[: len(OLD)]), f"{option}, {how}: this has changed"
END
