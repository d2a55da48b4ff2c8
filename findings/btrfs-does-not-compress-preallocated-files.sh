#!/usr/bin/env bash
# Linux (seen on 6.18), btrfs mounted with compress=zstd, aria2 1.36.0 with --file-allocation=falloc, which its manual
# page calls the best choice on btrfs, and rsync 3.2.7 with --preallocate (Debian 12's packages).
# Most would guess: preallocation reserves the space while the file is written; then it is compressed as any other.
# Seen: what was allocated ahead (fallocate) is written as it is, and stays so: 64 MiB of text take 64 MiB instead of
# two. st_blocks, and so ls and du, show 64 MiB in either case; only the free space tells. compress-force doesn't help; to
# compress the file it has to be written again (`btrfs filesystem defragment -czstd`). Downloads to a file system that
# compresses should not preallocate.
# Needs root, for a file system on a loop device; mkfs.btrfs (Debian: btrfs-progs), apt-get and dpkg of Debian 12.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
[ -n "$(command -v mkfs.btrfs)" ] || { echo "mkfs.btrfs is missing" >&2; exit 1; }
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
needed=('aria2=1.36.0-1*' 'libaria2-0=1.36.0-1*' 'rsync=3.2.7-1*' libc-ares2 libicu72 libpopt0 libsqlite3-0 libssh2-1
    libxml2)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
mkdir "$folder/mounted" "$folder/site"
truncate -s 1G "$folder/disk"
mkfs.btrfs -q "$folder/disk" >/dev/null 2>&1
uname -r
for option in compress=zstd compress-force=zstd; do
    mount -o loop,$option "$folder/disk" "$folder/mounted"
    python3 - "$folder" $option <<'END'
import http.server, os, pathlib, subprocess, sys, threading

SIZE = 64 << 20
folder, option = pathlib.Path(sys.argv[1]), sys.argv[2]
mounted, source = folder / "mounted", folder / "site/table.txt"
source.write_bytes((b"a line of a table that repeats itself\n" * (1 << 15))[: 1 << 20] * 64)
library = next(folder.glob("usr/lib/*/libaria2.so.0")).parent
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library), "HOME": str(folder), "no_proxy": "*"}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def used():
    os.sync()
    state = os.statvfs(mounted)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def taken(name, command):
    """The MiB that a file takes from the free space; du would say 64."""
    before = used()
    subprocess.run([folder / "usr/bin" / command[0], *command[1:]], env=environment, check=True, capture_output=True)
    file = mounted / name
    assert file.stat().st_blocks * 512 == SIZE and file.read_bytes() == source.read_bytes()
    after = used()
    file.unlink()
    return (after - before) / (1 << 20)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Handler(*given, directory=folder / "site"))
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/table.txt"
for name, plain, ahead in (
    (
        "aria2c",
        ["aria2c", "--no-conf", "-q", "-d", mounted, "-o", "one", "--file-allocation=none", url],
        ["aria2c", "--no-conf", "-q", "-d", mounted, "-o", "two", "--file-allocation=falloc", url],
    ),
    ("rsync", ["rsync", source, mounted / "one"], ["rsync", "--preallocate", source, mounted / "two"]),
):
    compressed, preallocated = taken("one", plain), taken("two", ahead)
    print(f"{option}, {name}: {compressed:.1f} MiB are taken, {preallocated:.1f} MiB with preallocation")
    assert compressed < 8 and preallocated > 60, "this has changed"
END
    umount "$folder/mounted"
done
