#!/usr/bin/env bash
# Linux (seen on 6.18), overlayfs with its defaults, as under Docker and Kubernetes, a file that came with the image, and
# LMDB 0.9.36 (lmdb 3.0.0's wheel), SQLite 3.54.1 (apsw 3.54.1.0) with mmap_size; a program has the file open for reading
# before another one in the same container writes into it for the first time.
# Most would guess: a mapping with MAP_SHARED shows what others write into the file; reader and writer have the same
# path, the same inode number and no rename between them. So a reader of LMDB sees each transaction, as elsewhere.
# Seen: the first write copies the file into the container's own layer. read() and stat() by the reader's old descriptor
# follow to the copy, its mapping stays that of the image's file, for good, and so does a new mapping of the same
# descriptor. So SQLite's reader sees the old rows, whatever is written, and LMDB's, which learns from lock.mdb that there
# were transactions, the last state or even the one before, as the number of transactions is even or odd; no error. Who
# opens the files anew sees the new. If the writer was first, or the database is on a volume, all is well. (overlayfs's
# documentation, "Non-standard behavior", says so of MAP_SHARED.) Put databases on a volume, or have the container write
# into each before it is read.
# Needs unprivileged user namespaces, or root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lmdb==3.0.0 apsw==3.54.1.0
mkdir "$folder/own"
mount=(unshare --mount)
[ "$(id -u)" = 0 ] || mount=(unshare --user --map-root-user --mount)
uname -r
cat >"$folder/program.py" <<'END'
import mmap, os, pathlib, shutil, subprocess, sys
import apsw, lmdb

ROWS = 500
WRITE = """
import sys, apsw, lmdb
with lmdb.open("lmdb") as environment:
    for number in range(int(sys.argv[1])):
        with environment.begin(write=True) as transaction:
            transaction.put(b"version", b"new %d" % number)
connection = apsw.Connection("rows.db")
connection.execute("update price set version = 'new'")
connection.close()
"""


def build(place):
    with lmdb.open(str(place / "lmdb")) as environment:
        for version in (b"older", b"old"):
            with environment.begin(write=True) as transaction:
                transaction.put(b"version", version)
    (place / "lmdb/lock.mdb").unlink()
    with apsw.Connection(str(place / "rows.db")) as connection:
        connection.execute("create table price(id integer primary key, version text, note text)")
        connection.executemany("insert into price values(?, 'old', ?)", ((row, "x" * 500) for row in range(ROWS)))
    connection.close()
    (place / "plain").write_bytes(b"old " * 2048)


def read_lmdb(environment):
    with environment.begin() as transaction:
        return (transaction.get(b"version") or b"nothing").decode()


def read_rows(connection):
    return dict(connection.execute("select version, count(*) from price group by version order by version"))


def look(place, transactions):
    """What readers see who had the files open before a program wrote into them, and others."""
    os.chdir(place)
    environment = lmdb.open("lmdb", readonly=True)
    connection = apsw.Connection("rows.db", flags=apsw.SQLITE_OPEN_READONLY)
    connection.pragma("mmap_size", 1 << 30)
    assert (read_lmdb(environment), read_rows(connection)) == ("old", {"old": ROWS})
    plain = os.open("plain", os.O_RDONLY)
    mapping = mmap.mmap(plain, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    assert mapping[:3] == b"old"
    subprocess.run([sys.executable, "-c", WRITE, str(transactions)], check=True)
    with open("plain", "r+b") as file:
        file.write(b"new")
    assert os.fstat(plain).st_ino == os.stat("plain").st_ino
    found = {
        "LMDB": read_lmdb(environment),
        "SQLite with mmap_size": read_rows(connection),
        "pread": os.pread(plain, 3, 0).decode(),
        "mapping": mapping[:3].decode(),
    }
    with mmap.mmap(plain, 0, mmap.MAP_SHARED, mmap.PROT_READ) as again:
        found["new mapping of the old descriptor"] = again[:3].decode()
    mapping.close()
    os.close(plain)
    environment.close()
    connection.close()
    with lmdb.open("lmdb", readonly=True) as environment:
        anew = read_lmdb(environment)
    connection = apsw.Connection("rows.db", flags=apsw.SQLITE_OPEN_READONLY)
    assert (anew, read_rows(connection)) == (f"new {transactions - 1}", {"new": ROWS})
    connection.close()
    print(f"{place.name}, {transactions} transactions: {found}; LMDB opened anew: {anew}")
    return found


print(f"LMDB {'.'.join(map(str, lmdb.version()))}, SQLite {apsw.sqlite_lib_version()}")
own = pathlib.Path(sys.argv[1])
for transactions in (1, 2):
    for name in ("image", "layer", "work", "overlay", "plain directory"):
        shutil.rmtree(own / name, ignore_errors=True)
        (own / name).mkdir()
    build(own / "image")
    build(own / "plain directory")
    options = f"lowerdir={own}/image,upperdir={own}/layer,workdir={own}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", own / "overlay"], check=True)
    found = [look(own / name, transactions) for name in ("plain directory", "overlay")]
    os.chdir(own)
    subprocess.run(["umount", own / "overlay"], check=True)
    new, image = {"new": ROWS}, {"old": ROWS}
    assert list(found[0].values()) == [f"new {transactions - 1}", new, "new", "new", "new"]
    assert list(found[1].values()) == [["older", "old"][transactions - 1], image, "new", "old", "old"], "this has changed"
END
"${mount[@]}" bash -euo pipefail -s "$folder" <<'END'
mount -t tmpfs -o size=256m tmpfs "$1/own"
"$1/venv/bin/python" "$1/program.py" "$1/own"
END
