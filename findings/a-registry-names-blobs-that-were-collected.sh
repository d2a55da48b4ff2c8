#!/usr/bin/env bash
# docker-registry 2.8.2 (Debian 12's package of Distribution, the registry of containers), with the cache and the deletion
# that the package's config.yml has; an image is deleted, `docker-registry garbage-collect` is run while nobody pushes or
# pulls, and then the same layers are pushed again, as by a rebuild.
# Most would guess: the collection is dangerous only while somebody uploads, as its documentation warns. Afterwards a HEAD
# for a layer that is gone is answered with 404, so the client uploads it; at the latest, a manifest whose layers are
# missing is refused.
# Seen: the server keeps in memory which blobs it has, and the collection is another process. HEAD is answered with 200 for
# each layer, so the client uploads no layer; the manifest is accepted, with 201. Whoever pulls gets 200 for a layer, the
# right Content-Length, and no byte. If the very same image is pushed, its manifest is 404 in addition, right after the
# 201. Pushing again changes nothing, nor does another name. It ends when the server is started anew: then the layers
# are 404, and a push uploads them. Restart the registry after each collection.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'docker-registry=2.8.2+ds1-1*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import hashlib, http.client, json, os, pathlib, random, re, socket, subprocess, sys, time

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
folder = pathlib.Path(sys.argv[1])
program = folder / "usr/bin/docker-registry"
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
packaged = (folder / "etc/docker/registry/config.yml").read_text()
assert re.search(r"blobdescriptor: inmemory", packaged) and re.search(r"delete:\s+enabled: true", packaged)
configuration = folder / "config.yml"
configuration.write_text(
    "version: 0.1\nlog:\n  level: error\nstorage:\n  delete:\n    enabled: true\n  cache:\n    blobdescriptor: inmemory\n"
    f"  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: 127.0.0.1:{port}\n"
)


def start():
    server = subprocess.Popen([program, "serve", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server
        except ConnectionRefusedError:
            assert server.poll() is None, "the registry does not start"
            time.sleep(0.05)


def ask(method, path, body=None, **fields):
    """Status, headers, and what arrives of the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in fields.items()})
    answer = connection.getresponse()
    try:
        received = answer.read()
    except http.client.IncompleteRead as error:
        received = error.partial
    connection.close()
    return answer.status, answer.headers, received


def described(blob, kind):
    return {"mediaType": kind, "size": len(blob), "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}"}


def push(tag, config):
    """As docker and skopeo do: how many blobs are uploaded, the manifest's status, and its digest."""
    uploaded = 0
    for blob in config, *layers:
        digest = described(blob, "")["digest"]
        if ask("HEAD", f"/v2/app/blobs/{digest}")[0] == 200:
            continue
        status, headers, _ = ask("POST", "/v2/app/blobs/uploads/", b"")
        location = headers["Location"].partition(f":{port}")[2]
        status = ask("PUT", f"{location}&digest={digest}", blob, Content_Type="application/octet-stream")[0]
        assert status == 201
        uploaded += 1
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [described(blob, "application/vnd.docker.image.rootfs.diff.tar.gzip") for blob in layers],
    }
    status, headers, _ = ask("PUT", f"/v2/app/manifests/{tag}", json.dumps(manifest), Content_Type=MANIFEST)
    return uploaded, status, headers["Docker-Content-Digest"]


def pull(tag):
    """Status of the manifest; of each layer the status, the announced and the received length."""
    answers = []
    for blob in layers:
        status, headers, received = ask("GET", f"/v2/app/blobs/{described(blob, '')['digest']}")
        length = int(headers["Content-Length"])
        answers.append((200, length, len(received)) if status == 200 else status)
    return ask("GET", f"/v2/app/manifests/{tag}", Accept=MANIFEST)[0], answers


layers = [random.Random(1).randbytes(100_000), random.Random(2).randbytes(200_000)]
first, rebuilt = b'{"created":"2026-01-01T00:00:00Z"}', b'{"created":"2026-01-02T00:00:00Z"}'
whole, empty = ([(200, len(blob), received and len(blob)) for blob in layers] for received in (True, False))
print(subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split(maxsplit=1)[1].strip())
server = start()
try:
    uploaded, status, digest = push("1", first)
    assert (uploaded, status, pull("1")) == (3, 201, (200, whole))
    assert ask("DELETE", f"/v2/app/manifests/{digest}")[0] == 202
    subprocess.run([program, "garbage-collect", configuration], check=True, capture_output=True)
    for tag, config, expected in (
        ("2", rebuilt, (1, 201, 200, empty)),
        ("3", rebuilt, (0, 201, 200, empty)),
        ("1", first, (0, 201, 404, empty)),
    ):
        found = *push(tag, config)[:2], *pull(tag)
        print("after the collection, blobs uploaded, status of the push, of the pull, layers (status, length, received):")
        print(f"  {tag}: {found}")
        assert found == expected, "this has changed"
    server.terminate()
    server.wait()
    server = start()
    found = pull("2")
    print(f"started anew: {found}")
    assert found == (200, [404, 404]), "this has changed"
    found = *push("2", rebuilt)[:2], *pull("2")
    print(f"pushed again: {found}")
    assert found == (2, 201, 200, whole)
finally:
    server.terminate()
    server.wait()
END
