#!/usr/bin/env bash
# aria2 1.36.0 (Debian 12's package) with -c, a metalink that has the file's SHA-256, and optionally that of each piece
# (RFC 5854); the server is nginx 1.22.1. In the directory there is an earlier version of the file, or a part of one,
# from a transfer by something else, which -c is for ("a download started by a web browser or another program").
# Most would guess: what a metalink gives hashes of is compared with them before aria2 says (OK), and with more hashes
# it knows more: which pieces of the old file can stay, and which have to be fetched.
# Seen: with the whole file's hash alone it is so: an old file of the same length is replaced, and what was joined of
# two versions is refused with exit code 32. With the pieces' hashes, too, only the pieces that are fetched are
# compared. What is there already, to the last byte or to the middle, is taken as it is, the whole file's hash is not
# looked at any more, and aria2 ends with 0: the old version, or a mixture. With -V in addition the pieces that differ
# are fetched.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('aria2=1.36.0-1*' 'libaria2-0=1.36.0-1*' libc-ares2 libicu72 libsqlite3-0 libssh2-1 libxml2 'nginx=1.22.1-9*')
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import hashlib, os, pathlib, random, shutil, socket, subprocess, sys, time

MIB = 1 << 20
SIZE = 8 * MIB
folder = pathlib.Path(sys.argv[1])
nginx, into = folder / "usr/sbin/nginx", folder / "downloads"
library = next(folder.glob("usr/lib/*/libaria2.so.0")).parent
environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
old, new = (random.Random(seed).randbytes(SIZE) for seed in (1, 2))
(folder / "www").mkdir()
(folder / "www/model").write_bytes(new)
existing = {
    "the old version": old,
    "half of the old version": old[: SIZE // 2],
    "the new version with an old piece": new[: 2 * MIB] + old[2 * MIB : 3 * MIB] + new[3 * MIB :],
    "half of the new version": new[: SIZE // 2],
}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def metalink(port, with_pieces):
    pieces = "".join(f"<hash>{sha256(new[start : start + MIB])}</hash>" for start in range(0, SIZE, MIB))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="model">'
        f'<size>{SIZE}</size><hash type="sha-256">{sha256(new)}</hash>'
        + (f'<pieces length="{MIB}" type="sha-256">{pieces}</pieces>' if with_pieces else "")
        + f"<url>http://127.0.0.1:{port}/model</url></file></metalink>"
    )


def aria2(*options):
    command = [folder / "usr/bin/aria2c", "--no-conf", "--no-proxy=*", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def download(content, *options):
    """The exit code, and what the file is afterwards."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    (into / "model").write_bytes(content)
    done = aria2("-c", *options, "-d", into, "-M", folder / "model.meta4")
    found = (into / "model").read_bytes()
    return done.returncode, "new" if found == new else "old" if found == old else "mixture"


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"client_body_temp_path {folder}/body; server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}"
)
print(aria2("--version").stdout.splitlines()[0])
process = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
results = {}
try:
    while not (folder / "pid").exists():  # it listens by then
        assert process.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    for hashes, with_pieces, options in (
        ("the file's hash", False, ()),
        ("the file's and the pieces' hashes", True, ()),
        ("the file's and the pieces' hashes, -V", True, ("-V",)),
    ):
        (folder / "model.meta4").write_text(metalink(port, with_pieces))
        results[hashes] = [download(content, *options) for content in existing.values()]
        print(f"{hashes}:")
        for there, (code, found) in zip(existing, results[hashes]):
            print(f"  {there} is there: exit code {code}, then the file is: {found}")
finally:
    process.terminate()
    process.wait()
whole, pieces, checked = results.values()
assert whole == [(0, "new"), (32, "mixture"), (0, "new"), (0, "new")], "this has changed"
assert pieces == [(0, "old"), (0, "mixture"), (0, "mixture"), (0, "new")], "this has changed"
assert checked == [(0, "new")] * 4, "this has changed"
END
