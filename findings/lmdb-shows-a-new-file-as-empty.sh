#!/usr/bin/env bash
# LMDB 0.9.36 (lmdb 3.0.0's wheel), a database that is published as a file and replaced by the next version, by a
# rename, while a program has the old one open, as a server has for days.
# Most would guess: who has the old file open goes on with that, who opens it from now on sees the new version; the lock
# file beside it is about locks, and its content does not matter to who only reads.
# Seen: as long as anybody has lock.mdb open, it also says which transaction was the last one, and its number, odd or
# even, tells which of the file's two first pages is the current one. That number is the old file's. If the new file was
# built in one transaction and the number is even, each program that opens it reads an empty database, with no error.
# The first write to it, also by a program that only adds an entry, makes that final: the new version's entries are
# gone, also when everybody has closed it. With more transactions it is the state before the last one. If both files'
# numbers are odd, or both are even, all is well, so a test may show nothing. Whatever has the database open has to
# close it before it is replaced, or each version gets a directory of its own (lock.mdb is made anew by the first who
# opens it).
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lmdb==3.0.0
"$folder/venv/bin/python" - "$folder" <<'END'
import os, pathlib, shutil, subprocess, sys
import lmdb

ENTRIES = 1000
folder = pathlib.Path(sys.argv[1])
current, following = folder / "current", folder / "following"
COUNT = "with lmdb.open(sys.argv[1]).begin() as transaction: print(transaction.stat()['entries'])"
ADD = "with lmdb.open(sys.argv[1]).begin(write=True) as transaction: transaction.put(b'added', b'later')"


def build(path, transactions):
    """A database of `ENTRIES` entries, all of which each of the transactions writes."""
    shutil.rmtree(path, ignore_errors=True)
    with lmdb.open(str(path), map_size=1 << 24) as environment:
        for number in range(transactions):
            with environment.begin(write=True) as transaction:
                for entry in range(ENTRIES):
                    transaction.put(b"%04d" % entry, b"%d" % number)


def run(code):
    """What a new process prints."""
    command = [sys.executable, "-c", f"import sys, lmdb\n{code}", current]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


print(f"lmdb {lmdb.__version__}, LMDB {'.'.join(map(str, lmdb.version()))}")
for transactions in range(1, 7):
    build(current, transactions)
    build(following, 1)
    with lmdb.open(str(current), readonly=True):
        os.rename(following / "data.mdb", current / "data.mdb")
        opened = int(run(COUNT))
        run(ADD)
    closed = int(run(COUNT))
    print(f"old file of {transactions} transactions: the new one has {opened} entries; {closed} after another is added")
    if transactions % 2:
        assert (opened, closed) == (ENTRIES, ENTRIES + 1), "this has changed"
    else:
        assert (opened, closed) == (0, 1), "this has changed"

build(current, 2)
build(following, 1)
os.rename(following / "data.mdb", current / "data.mdb")
print(f"if nobody has it open: {run(COUNT)} entries")
assert int(run(COUNT)) == ENTRIES

build(current, 2)
build(following, 3)
with lmdb.open(str(current), readonly=True):
    os.rename(following / "data.mdb", current / "data.mdb")
    last = run("print(lmdb.open(sys.argv[1]).begin().get(b'0000').decode())")
print(f"a new file of transactions 0 to 2: {last} is seen as the last one")
assert last == "1", "this has changed"
END
