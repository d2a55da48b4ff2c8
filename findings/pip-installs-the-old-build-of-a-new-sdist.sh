#!/usr/bin/env bash
# pip 26.3 (with setuptools 84.2.1 to build), an index of one's own, in which a package's sdist is replaced by another one
# of the same version, as for snapshots of a branch, or since a fault was mended before anybody was thought to have it.
# Most would guess: pip asks for the file, or at least whether it is the same; and --force-reinstall takes the new one.
# Seen: where it was built once, pip reads the index and then takes its own build from the cache, whose key is the link.
# The sdist is not asked for, so neither its ETag nor its date matters, and --force-reinstall does the same. Hosts and CI
# runners that keep pip's cache run the old code, fresh ones the new, both as the same version. With hashes in the links
# of the index, as PyPI has them, each content has a link of its own, and all get the new one. --no-cache-dir helps, too.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pip==26.3 setuptools==84.2.1
"$folder/venv/bin/python" - "$folder" <<'END'
import functools, hashlib, http.server, importlib.metadata, io, os, pathlib, subprocess, sys, tarfile, threading

folder = pathlib.Path(sys.argv[1])
environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(folder / "cache"), "no_proxy": "*"}
environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
asked = []
BUILD = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code="-", size="-"):
        asked.append("the sdist" if self.path.endswith(".gz") else "the index")

    def log_message(self, format, *arguments):
        pass


def publish(value):
    """Put an sdist of version 1.0 into an index with plain links, and into one with hashes."""
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: tool\nVersion: 1.0\n",
        "pyproject.toml": f'{BUILD}[project]\nname = "tool"\nversion = "1.0"\n[tool.setuptools]\npy-modules = ["tool"]\n',
        "tool.py": f"value = {value!r}\n",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tool-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    content = packed.getvalue()
    for index, fragment in (("plain", ""), ("hashes", f"#sha256={hashlib.sha256(content).hexdigest()}")):
        place = folder / "www" / index / "tool"
        place.mkdir(parents=True, exist_ok=True)
        (place / "tool-1.0.tar.gz").write_bytes(content)
        (place / "index.html").write_text(f'<a href="tool-1.0.tar.gz{fragment}">tool-1.0.tar.gz</a>')


def install(index, *options):
    """What is installed, and what the index was asked for."""
    asked.clear()
    target = folder / "target"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--upgrade", *options]
    url = f"http://127.0.0.1:{server.server_port}/{index}/"
    subprocess.run([*command, "--target", target, "--index-url", url, "tool==1.0"], env=environment, check=True)
    return (target / "tool.py").read_text().strip(), [*asked]


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder / "www"))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"pip {importlib.metadata.version('pip')}, setuptools {importlib.metadata.version('setuptools')}")
publish("old")
first = {index: install(index) for index in ("plain", "hashes")}
publish("new")
again = {
    ("plain", "--force-reinstall"): install("plain", "--force-reinstall"),
    ("plain", "--no-cache-dir"): install("plain", "--no-cache-dir"),
    ("hashes", "--force-reinstall"): install("hashes", "--force-reinstall"),
}
server.shutdown()
server.server_close()
for index, (value, requests) in first.items():
    print(f"first, links of kind {index}: {value}, asked for {', '.join(requests)}")
for (index, option), (value, requests) in again.items():
    print(f"replaced, links of kind {index}, {option}: {value}, asked for {', '.join(requests)}")
assert all(found == ("value = 'old'", ["the index", "the sdist"]) for found in first.values())
assert again["plain", "--force-reinstall"] == ("value = 'old'", ["the index"]), "this has changed"
assert again["plain", "--no-cache-dir"] == again["hashes", "--force-reinstall"]
assert again["plain", "--no-cache-dir"] == ("value = 'new'", ["the index", "the sdist"])
END
