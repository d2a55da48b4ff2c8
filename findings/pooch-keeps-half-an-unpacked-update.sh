#!/usr/bin/env bash
# pooch 1.9.0 (used by SciPy, scikit-image, MNE and xarray for their data sets) with its Unzip processor; an archive that
# is replaced by a next version, in the registry, too.
# Most would guess: fetch() gives the files of the archive whose hash the registry has; if unpacking fails, since the disk
# is full or the program is stopped, the next fetch() unpacks again.
# Seen: the hash is that of the archive, which is whole and in place before it is unpacked, over the old version's files.
# The next fetch() asks only whether a file of each name exists. The old version's do, so after an interrupted update it
# returns without a word, at this and each later run: the first files are new, one is cut off, the rest are old. Also
# without an interruption the list that it returns has the files that the new archive no longer has, so that "all files"
# are of two versions. Untar is the same class. Give extract_dir the version in its name, and remove it when fetch()
# fails.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pooch==1.9.0
"$folder/venv/bin/python" - "$folder" <<'END'
import functools, hashlib, http.server, logging, pathlib, resource, shutil, signal, subprocess, sys, threading, zipfile
import pooch

LIMIT = 1 << 20
folder = pathlib.Path(sys.argv[1])
site, cache = folder / "site", folder / "cache"
site.mkdir()
archive = site / "data.zip"
FETCH = """
import pathlib, sys, pooch
pooch.get_logger().setLevel("ERROR")
base_url, cache, known_hash = sys.argv[1:]
files = pooch.create(cache, base_url, registry={"data.zip": known_hash}).fetch("data.zip", processor=pooch.Unzip())
for file in sorted(map(pathlib.Path, files)):
    content = file.read_bytes()
    print(file.name, content[:3].decode(), len(content))
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def publish(version, names):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in names:
            opened.writestr(name, f"{version} ".encode() * (1000 if name != "2.csv" else LIMIT // 2))


def fetch(limit=None):
    """Exit code of a program that fetches the archive, and the files that it gets, by name."""

    def full():  # as a disk that is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    known_hash = hashlib.sha256(archive.read_bytes()).hexdigest()
    command = [sys.executable, "-c", FETCH, f"http://127.0.0.1:{server.server_port}/", cache, known_hash]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=full if limit else None)
    return done.returncode, {name: (version, int(size)) for name, version, size in map(str.split, done.stdout.splitlines())}


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"pooch {pooch.__version__}")
NAMES = ["1.csv", "2.csv", "3.csv"]
for what, names in (("interrupted", NAMES), ("undisturbed", NAMES[:2])):
    shutil.rmtree(cache, ignore_errors=True)
    publish("old", NAMES)
    code, old = fetch()
    assert code == 0 and set(old) == set(NAMES)
    publish("new", names)
    if what == "interrupted":
        print(f"the update ends with exit code {fetch(LIMIT)[0]}, since a file of more than 1 MiB can't be written")
    runs = [fetch() for _ in range(2)]
    for code, files in runs:
        print(f"{what} update, then: exit code {code}, {files}")
    assert runs[0] == runs[1] and code == 0
    wanted = {"1.csv": ("new", old["1.csv"][1]), "2.csv": ("new", old["2.csv"][1]), "3.csv": old["3.csv"]}
    if what == "interrupted":
        wanted["2.csv"] = ("new", LIMIT)
    assert files == wanted, "this has changed"
END
