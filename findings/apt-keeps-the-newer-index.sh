#!/usr/bin/env bash
# apt 2.6.1 (Debian 12), a repository of one's own that is put back to its state of yesterday, since today's package is
# broken: a snapshot, a backup, `git revert`, the link to the former release.
# Most would guess: `apt-get update` makes the client's index that of the repository, whatever it had before; if it does
# not take it, it says so and fails.
# Seen: a Release file whose Date is earlier than that of the last one is fetched and not used, as if it were the same.
# `apt-get update` ends with 0 and no warning, and the host goes on with the index of a repository that is gone: it
# offers the new version, whose .deb is answered with 404, for as long as nothing is published that is dated later. Hosts
# that did not update in between see the old one. apt means to prevent downgrades by old mirrors (a comment in its
# acquire-item.cc); neither its messages nor its manual pages tell. To go back, publish the old state with a new Date.
# Needs apt-get, apt-cache and python3 of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 - "$folder" <<'END'
import datetime, functools, hashlib, http.server, os, pathlib, shutil, subprocess, sys, threading, time

folder = pathlib.Path(sys.argv[1])
site = folder / "site"
requests = []


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code="-", size="-"):
        requests.append((self.path, int(code)))

    def log_message(self, *_):
        pass


def publish(version, day):
    """The repository's state of a day of November 2026."""
    date = datetime.datetime(2026, 11, day, 10).strftime("%a, %d %b %Y %H:%M:%S UTC")
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    package = site / f"thing_{version}_all.deb"
    package.write_bytes(b"a package\n")
    entry = f"Package: thing\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a thing\n"
    entry += f"Filename: ./{package.name}\nSize: 10\nSHA256: {hashlib.sha256(package.read_bytes()).hexdigest()}\n\n"
    (site / "Packages").write_text(entry)
    listed = f" {hashlib.sha256(entry.encode()).hexdigest()} {len(entry)} Packages"
    (site / "Release").write_text(f"Suite: own\nDate: {date}\nSHA256:\n{listed}\n")


def make_host(name):
    """The options of an apt that has nothing but this repository."""
    root = folder / name
    for directory in ("etc/apt.conf.d", "lists/partial", "cache/archives/partial", "dpkg", "empty"):
        (root / directory).mkdir(parents=True)
    (root / "dpkg/status").touch()
    (root / "etc/sources.list").write_text(f"deb [trusted=yes] http://127.0.0.1:{server.server_port}/ ./\n")
    (root / "conf").write_text(
        f'Dir::Etc "{root}/etc"; Dir::State "{root}"; Dir::State::lists "{root}/lists"; Dir::Cache "{root}/cache"; '
        f'Dir::State::status "{root}/dpkg/status"; APT::Sandbox::User "root"; Acquire::Languages "none";'
        f'Acquire::Retries "0"; Acquire::http::Proxy "DIRECT";'
    )
    return root


def run(root, *command):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "APT_CONFIG": str(root / "conf")}
    done = subprocess.run(command, env=environment, cwd=root / "empty", capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def update(root):
    """Whether `apt-get update` is content, what it was sent, and which version the host would install."""
    requests.clear()
    code, output = run(root, "apt-get", "update")
    assert "W:" not in output and "E:" not in output, output
    policy = run(root, "apt-cache", "policy", "thing")[1]
    candidate = next(line for line in policy.splitlines() if "Candidate" in line).split()[-1]
    sent = [f"{path} {status}" for path, status in requests if status in (200, 304)]
    print(f"{root.name}: exit code {code}, sent: {', '.join(sent)}; candidate: {candidate}")
    return code, sent, candidate


version = subprocess.run(["apt-get", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
print(version)
assert version.startswith("apt 2.6.")
handler = functools.partial(Handler, directory=site)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
daily, weekly = make_host("updated each day"), make_host("updated each week")
publish("1.0", 10)
assert update(daily)[2] == update(weekly)[2] == "1.0"
time.sleep(1.1)  # so that Last-Modified differs
publish("2.0", 11)
assert update(daily)[2] == "2.0"
time.sleep(1.1)
publish("1.0", 10)
print("the repository is put back to 1.0 of the 10th")
back, other = update(daily), update(weekly)
code, output = run(daily, "apt-get", "download", "thing")
print(f"{daily.name}: apt-get download: exit code {code}, {output.strip().splitlines()[-1]}")
assert other[2] == "1.0" and "/./Release 200" in back[1]
assert (back[0], back[2]) == (0, "2.0") and code == 100 and "404" in output, "this has changed"
time.sleep(1.1)
publish("1.0", 12)
print("the repository has 1.0, of the 12th")
assert update(daily)[2] == "1.0"
END
