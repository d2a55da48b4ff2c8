#!/usr/bin/env bash
# huggingface_hub 2.4.0, snapshot_download of `main`, before a server on loopback that speaks the Hub's API (HF_ENDPOINT, as
# mirrors within companies do); it has a second commit, but not yet its large file (404); later there is no network, as
# when a host starts again.
# Most would guess: the cache keeps each commit in a directory of its own, so an update that fails leaves the old snapshot
# where it was, and without the network that is what one gets. And when snapshot_download returns, it has the files of one
# commit.
# Seen: refs/main is moved to the new commit before the first of its files is fetched. So after a failed update `main` is a
# snapshot without weights: IncompleteSnapshotError, and file by file, as from_pretrained asks, the new config and no
# weights, while the old snapshot lies beside it, whole. With local_dir, snapshot_download does not fail at all: what
# can't be fetched (404, and 503 after five attempts) may stay as it is if a file of that name is there. It returns the
# directory with the new config and the old weights, and says so only in the log; without the network it does the same.
# Ask for a commit, not for `main`, and compare hashes in a local_dir.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check huggingface-hub==2.4.0
"$folder/venv/bin/python" - "$folder" <<'END'
import hashlib, http.server, json, os, pathlib, subprocess, sys, threading

folder = pathlib.Path(sys.argv[1])
REPOSITORY, COMMITS = "company/model", {"old": "1" * 40, "new": "2" * 40}
FILES = {
    (COMMITS[version], name): f"{version} {name} ".encode() * repeats
    for version in COMMITS
    for name, repeats in (("config.json", 1), ("model.safetensors", 50_000))
}
current, fails = COMMITS["old"], False
DOWNLOAD = """
import json, pathlib, sys
import huggingface_hub
how, place = sys.argv[1:]
options = {"local_dir" if how == "local_dir" else "cache_dir": place}
try:
    if how == "by file":
        names = ("config.json", "model.safetensors")
        files = [huggingface_hub.hf_hub_download("company/model", name, **options) for name in names]
    else:
        snapshot = pathlib.Path(huggingface_hub.snapshot_download("company/model", max_workers=1, **options))
        files = sorted(file for file in snapshot.iterdir() if file.is_file())
    print("; ".join(" ".join(open(file).read().split()[:2]) for file in files))
except Exception as error:
    print(type(error).__name__)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        headers = {}
        if parts[:3] == ["api", "models", "company"] and parts[4:5] == ["revision"]:
            status, body = 200, json.dumps({"id": REPOSITORY, "sha": current, "siblings": []}).encode()
        elif parts[:3] == ["api", "models", "company"] and parts[4:5] == ["tree"]:
            entries = [(name, content) for (commit, name), content in FILES.items() if commit == parts[5]]
            tree = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in entries]
            status, body = 200, json.dumps(tree).encode()
        elif parts[2:3] == ["resolve"]:
            commit = current if parts[3] == "main" else parts[3]
            status, body = 200, FILES[commit, parts[4]]
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
            if fails and parts[4] == "model.safetensors":
                status, body, headers = 404, b"", {}
        else:
            status, body = 404, b""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def download(how, place, offline=False):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", DOWNLOAD, how, folder / place]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    print(f"  {how}{', offline' if offline else ''}: {done.stdout.strip()}")
    for line in done.stderr.splitlines():
        print(f"    {line}")
    return done.stdout.strip()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"http://127.0.0.1:{server.server_port}"
said = subprocess.run([sys.executable, "-m", "pip", "show", "huggingface_hub"], capture_output=True, text=True).stdout
print(said.splitlines()[1])
OLD, NEW, MIXED = (
    f"{config} config.json; {weights} model.safetensors"
    for config, weights in (("old", "old"), ("new", "new"), ("new", "old"))
)
print("the old version:")
assert {download("snapshot", "cache"), download("local_dir", "tree")} == {OLD}
assert {download("snapshot", "cache", True), download("by file", "cache", True), download("local_dir", "tree", True)} == {OLD}
print("the new version, whose large file fails:")
current, fails = COMMITS["new"], True
failed = download("snapshot", "cache"), download("local_dir", "tree")
assert failed == ("LocalEntryNotFoundError", MIXED), "this has changed"
print("no network:")
snapshot, by_file, tree = (
    download(how, place, True) for how, place in (("snapshot", "cache"), ("by file", "cache"), ("local_dir", "tree"))
)
kept = [file.read_text().split()[0] for file in sorted((folder / "cache").glob(f"models*/snapshots/{'1' * 40}/*"))]
print(f"  the old snapshot's files in the cache: {kept}")
assert kept == ["old", "old"]
assert snapshot == "IncompleteSnapshotError" and by_file == "LocalEntryNotFoundError", "this has changed"
assert tree == MIXED, "this has changed"
print("the new version, whose large file is there:")
fails = False
assert {download("snapshot", "cache"), download("local_dir", "tree")} == {NEW}
END
