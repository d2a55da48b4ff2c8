#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0), a database in WAL mode that is published as a file; programs write to their copy of it.
# Most would guess: when the copy is replaced by the next version, by a rename as all updaters do it, a program that has
# the old file open goes on with that, others see the new one, and if anything does not fit, SQLite says so.
# Seen: the log that a program has open, or that it left when it was killed, lies beside the file (prices.db-wal), and
# nothing in it says which file it belongs to. What opens the new version next lays the log's old pages over it: a
# mixture of both, for which integrity_check says ok. When the last program closes it, the old pages are written into
# the new file and the log is removed; then only a checksum tells. If the new version has its rows on other pages, it is
# malformed. sqlite.org/howtocorrupt.html warns of files that are renamed while in use. Programs have to be closed, and
# the -wal file be gone, before the database is replaced.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check apsw==3.54.1.0
cd "$folder"
venv/bin/python - <<'END'
import os, pathlib, shutil, subprocess, sys
import apsw

ROWS = 20_000
COPY = pathlib.Path("copy/prices.db")
WRITE = """
import os, sys, apsw
connection = apsw.Connection("copy/prices.db")
connection.execute("update price set cents = 0 where id % 2000 = 7")
print("written", flush=True)
sys.stdin.readline()
os._exit(1) if sys.argv[1] == "killed" else connection.close()
"""
READ = """
import apsw
connection = apsw.Connection("copy/prices.db")
print(dict(connection.execute("select version, count(*) from price group by version")))
try:
    print(connection.pragma("integrity_check").splitlines()[0])
except apsw.Error as error:
    print(error)
"""


def publish(name, rows):
    connection = apsw.Connection(name)
    connection.pragma("journal_mode", "wal")
    connection.execute("create table price(id integer primary key, version text, cents integer)")
    with connection:
        connection.executemany("insert into price values(?, ?, ?)", ((row, name[:3], row) for row in rows))
    connection.close()
    assert not os.path.exists(f"{name}-wal")


def run(code, *arguments):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=pipe, stdout=pipe, text=True)


def update(end, new):
    """What another program sees after the update, and how many pages differ from the new version in the end."""
    shutil.rmtree(COPY.parent, ignore_errors=True)
    COPY.parent.mkdir()
    shutil.copy("old.db", COPY)
    program = run(WRITE, end)
    assert program.stdout.readline() == "written\n"
    if end == "killed":
        program.communicate("\n")
    shutil.copy(new, "next")
    os.rename("next", COPY)
    seen = run(READ).communicate()[0].splitlines()
    if end == "open":
        program.communicate("\n")
        run(READ).communicate()
    wanted, there = pathlib.Path(new).read_bytes(), COPY.read_bytes()
    pages = sum(wanted[at : at + 4096] != there[at : at + 4096] for at in range(0, len(wanted), 4096))
    return seen, pages, os.listdir(COPY.parent)


print(f"SQLite {apsw.sqlite_lib_version()}, apsw {apsw.apsw_version()}")
publish("old.db", range(ROWS))
publish("new.db", range(ROWS))
publish("new-without-a-tenth.db", range(ROWS // 10, ROWS))
for new in ("new.db", "new-without-a-tenth.db"):
    for end in ("open", "killed"):
        (versions, check), pages, left = update(end, new)
        print(f"{new}, the program is {end}: another sees {versions}, integrity_check: {check}")
        print(f"  when all have closed it {pages} pages of the file are not the new version's; the folder has {left}")
        assert "'old'" in versions and "'new'" in versions and (check == "ok") == (new == "new.db"), "this has changed"
        assert pages > 5 and left == [COPY.name]
END
