#!/usr/bin/env bash
# git 2.39.5 and git-lfs 3.3.0 (Debian 12's packages), `git pull` of a commit in which large files changed, in a directory
# that something else reads, as a deployment by git.
# Most would guess: git-lfs downloads the new content, and then git replaces the file; if the download fails, the pull
# fails, and the old files are there, as after a pull that can't reach the server.
# Seen: git removes the old files first and then asks the filter for the new content, and git-lfs answers when it has
# downloaded all. So while it downloads, which takes minutes with models and images, none of the large files is there,
# and the small ones are of the new version already. If the download fails they stay missing: the pull fails, HEAD is
# the old commit, and the tree has the new small files and no large one, although the old ones are in .git/lfs. To go on,
# `git reset --hard` has to bring the old ones back. `git lfs fetch origin origin/main` after `git fetch` and before the pull downloads without
# touching the tree. (Known: git-lfs issue 1195.)
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('git=1:2.39.5-*' 'git-lfs=3.3.0-1*' libpcre2-8-0 libcurl3-gnutls)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" >/dev/null || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import hashlib, http.server, json, os, pathlib, subprocess, sys, threading

folder = pathlib.Path(sys.argv[1])
origin, clone = folder / "origin", folder / "clone"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {
    "PATH": f"{folder}/usr/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries, "HOME": str(folder), "LC_ALL": "C",
    "GIT_EXEC_PATH": str(folder / "usr/lib/git-core"), "GIT_TEMPLATE_DIR": str(folder / "usr/share/git-core/templates"),
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "no_proxy": "*",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_TERMINAL_PROMPT": "0",
}  # fmt: skip
objects, fails, seen = {}, False, []


def tree():
    """What a reader finds in the clone."""
    found = {}
    for name in ("config", "model.bin", "other.bin"):
        try:
            found[name] = (clone / name).read_text().split()[0]
        except FileNotFoundError:
            found[name] = "missing"
    return found


class Lfs(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        here = f"http://{self.headers['Host']}"
        answer = [
            {**wanted, "actions": {"download": {"href": f"{here}/{wanted['oid']}"}}} for wanted in request["objects"]
        ]
        self.answer(200, json.dumps({"transfer": "basic", "objects": answer}).encode())

    def do_GET(self):
        seen.append(tree())
        self.answer(*((404, b'{"message": "not here"}') if fails else (200, objects[self.path[1:]])))

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.git-lfs+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def git(place, *command, fails=False):
    done = subprocess.run(["git", *command], cwd=place, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def commit(version):
    for name in ("config", "model.bin", "other.bin"):
        content = f"{version} {name}\n".encode() * 1000
        (origin / name).write_bytes(content)
        objects[hashlib.sha256(content).hexdigest()] = content
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", version)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lfs)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(git(folder, "--version").strip() + ", " + git(folder, "lfs", "version").split()[0])
url = f"http://127.0.0.1:{server.server_port}"
for setting in ("filter.lfs.required true", "filter.lfs.process 'git-lfs filter-process'", f"lfs.url {url}",
                "filter.lfs.clean 'git-lfs clean -- %f'", "filter.lfs.smudge 'git-lfs smudge -- %f'",
                f"lfs.{url}/.locksverify false", "lfs.transfer.maxretries 1"):  # fmt: skip
    name, value = setting.split(" ", 1)
    git(folder, "config", "--global", name, value.strip("'"))
git(folder, "init", "-q", "-b", "main", origin)
(origin / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
commit("old")
git(folder, "clone", "-q", origin, clone)
OLD, NEW = ({name: version for name in ("config", "model.bin", "other.bin")} for version in ("old", "new"))
assert tree() == OLD
commit("new")
fails = True
seen.clear()
said = git(clone, "pull", "-q", fails=True)
during_failure, after_failure = seen[:], tree()
print(f"a pull that fails: while it downloads the tree has {during_failure[0]}")
print(f"  afterwards: {after_failure}; git: {[line for line in said.splitlines() if 'fatal' in line or 'error:' in line]}")
print("  status: " + git(clone, "status", "--short", "--branch").replace("\n", "; "))
fails = False
git(clone, "reset", "-q", "--hard")
assert tree() == OLD
for file in (clone / ".git/lfs/objects").rglob("*"):
    if file.is_file() and objects[file.name].startswith(b"new"):
        file.unlink()
seen.clear()
git(clone, "pull", "-q")
during_success = seen[:]
print(f"a pull that succeeds: while it downloads the tree has {during_success[0]}; afterwards {tree()}")
assert tree() == NEW
HALF = {"config": "new", "model.bin": "missing", "other.bin": "missing"}
assert set(map(str, [*during_failure, after_failure, *during_success])) == {str(HALF)}, "this has changed"
git(clone, "reset", "-q", "--hard", "HEAD~1")
for file in (clone / ".git/lfs/objects").rglob("*"):
    if file.is_file() and objects[file.name].startswith(b"new"):
        file.unlink()
assert tree() == OLD
seen.clear()
git(clone, "fetch", "-q")
git(clone, "lfs", "fetch", "origin", "origin/main")
fetched_first = seen[:]
git(clone, "pull", "-q")
print(f"`git lfs fetch` first: while it downloads the tree has {fetched_first[0]}; afterwards {tree()}")
assert set(map(str, fetched_first)) == {str(OLD)} and len(seen) == len(fetched_first) and tree() == NEW
END
