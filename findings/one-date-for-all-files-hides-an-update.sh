#!/usr/bin/env bash
# CPython (seen on 3.11), nginx 1.22.1 and rsync 3.2.7 (Debian 12's packages), and a tree that is updated from archives
# made the way that reproducible builds recommend: GNU tar with one --mtime for all files.
# Most would guess: when a file has been replaced by one with other bytes, programs see that; the date alone doesn't
# decide, or its only danger is two changes within a second.
# Seen: an update that keeps a file's length, as "1.2.3" to "1.2.4" does, is no change at all. Python runs the old code
# from __pycache__, which it has compiled itself and which knows the source's date and length; print shows 1.2.3 while the
# file says 1.2.4. nginx's ETag is the date and the length, so clients are told 304, and a resume with If-Range joins the
# two versions. rsync -a leaves copies as they are. What installs such archives has to date the files anew (tar -m), or
# the builder has to take the date of the release or commit (SOURCE_DATE_EPOCH), which differs each time.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'rsync=3.2.7-1*' libpopt0 libxxhash0 libzstd1 liblz4-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
export PYTHONPYCACHEPREFIX="" PYTHONDONTWRITEBYTECODE=""
python3 - "$folder" <<'END'
import http.client, os, pathlib, platform, socket, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
tree, mirror = folder / "tree", folder / "mirror"
tree.mkdir()
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
nginx = folder / "usr/sbin/nginx"


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options).stdout.strip()


def source(version):
    return f'__version__ = "{version}"\n'


def pack(version):
    """A reproducible archive with the module of that version."""
    build = folder / f"build-{version}"
    build.mkdir()
    (build / "tool.py").write_text(source(version))
    archive = folder / f"{version}.tar"
    run("tar", "-C", build, "--sort=name", "--mtime=@1700000000", "--owner=0", "--group=0", "-cf", archive, ".")
    return archive


def install(archive):
    """Unpack it beside the installed file, and put it in place by a rename."""
    fresh = folder / "fresh"
    fresh.mkdir()
    run("tar", "-C", fresh, "-xf", archive)
    (fresh / "tool.py").replace(tree / "tool.py")
    fresh.rmdir()


def ask(**conditions):
    connection = http.client.HTTPConnection("nginx")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / "socket"))
    connection.request("GET", "/tool.py", headers={name.replace("_", "-"): value for name, value in conditions.items()})
    answer = connection.getresponse()
    found = answer.status, answer.headers["ETag"], answer.read().decode()
    connection.close()
    return found


def see():
    """What Python and a mirror by rsync have."""
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    run(folder / "usr/bin/rsync", "-a", "--exclude=__pycache__", f"{tree}/", mirror, env=environment)
    code = "import tool; print(tool.__version__)"
    return run(sys.executable, "-c", code, cwd=tree), (mirror / "tool.py").read_text()


temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"server {{ listen unix:{folder}/socket; root {tree}; }} }}"
)
old, new = pack("1.2.3"), pack("1.2.4")
server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists() or not (folder / "socket").exists():
        assert server.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    install(old)
    status, etag, first = ask()
    before = see()
    install(new)
    after = see()
    refreshed = ask(If_None_Match=etag)
    resumed = ask(Range="bytes=5-", If_Range=etag)
finally:
    server.terminate()
    server.wait()
print(f"CPython {platform.python_version()}, nginx 1.22.1, rsync 3.2.7")
print(f"installed: {before}; after the update the file is {(tree / 'tool.py').read_text()!r}")
print(f"Python runs {after[0]}, the mirror by rsync has {after[1]!r}")
print(f"nginx: first {status} and {first!r}; asked with that ETag: {refreshed[0]}; a resume of it: {resumed}")
assert before == ("1.2.3", source("1.2.3")) and (status, first) == (200, source("1.2.3"))
assert (tree / "tool.py").read_text() == source("1.2.4")
assert after == before, "this has changed"
assert refreshed[0] == 304 and resumed == (206, etag, source("1.2.4")[5:]), "this has changed"
END
