#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0), its defaults (no WAL), a database that is built anew by the same script each time, as
# MBTiles, GeoPackages and indexes are, and put in place by `cp new.db live.db` (or rsync --inplace) while a program has
# it open, but reads nothing.
# Most would guess: to write into a database behind SQLite's back is dangerous while a transaction is under way
# (sqlite.org/howtocorrupt.html, 1.2). Afterwards the next query reads the new file, since each transaction looks whether
# the file has changed.
# Seen: what it looks at is a counter in the header, which counts transactions. Two files that were built in the same way
# have the same number, so the program keeps the pages that it has in memory, and takes the others from the new file:
# rows of both versions, for as long as it runs, and integrity_check says ok. What it writes puts whole old pages into
# the new file, for all. If the new file has had one transaction more, all is well, and so it is when the file is
# replaced by a rename: the program keeps the old one, whole, and SQLite refuses to write. Use a rename, or SQLite's
# backup API.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check apsw==3.54.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import os, pathlib, shutil, subprocess, apsw

ROWS = 2000
LIVE = "live.db"


def build(name, transactions=2):
    """A database with rows of one version, in transactions of which the first creates the table."""
    pathlib.Path(name).unlink(missing_ok=True)
    with apsw.Connection(name) as connection:
        connection.execute("create table price(id integer primary key, version text, note text)")
    with connection:
        rows = ((row, name.split("-")[0], "x" * 500) for row in range(ROWS))
        connection.executemany("insert into price values(?, ?, ?)", rows)
    for _ in range(transactions - 2):
        connection.execute("update price set note = 'z' where id = 1")
    connection.close()


def versions(connection):
    return dict(connection.execute("select version, count(*) from price group by version order by version"))


def counter(name):
    return int.from_bytes(pathlib.Path(name).read_bytes()[24:28], "big")


def update(new, by):
    """What a program sees after the update that has read a tenth of the rows before, and what another sees in the end."""
    shutil.copyfile("old-", LIVE)
    program = apsw.Connection(LIVE)
    assert len(list(program.execute("select * from price where id < ?", (ROWS // 10,)))) == ROWS // 10
    if by == "cp":
        subprocess.run(["cp", new, LIVE], check=True)
    else:
        shutil.copyfile(new, "next")
        os.rename("next", LIVE)
    with apsw.Connection(LIVE) as other:
        assert versions(other) == {"new": ROWS}
    other.close()
    seen, check = versions(program), program.pragma("integrity_check")
    try:
        program.execute("update price set note = 'y' where id = 5")
    except apsw.ReadOnlyError:  # SQLite sees that the file that it has open has lost its name
        assert by == "rename"
    program.close()
    with apsw.Connection(LIVE) as other:
        return seen, check, versions(other), other.pragma("integrity_check")


print(f"SQLite {apsw.sqlite_lib_version()}, apsw {apsw.apsw_version()}")
build("old-")
build("new-")
build("new-and-one-more", 3)
found = {}
for new in ("new-", "new-and-one-more"):
    for by in ("cp", "rename"):
        seen, check, left, last_check = found[new, by] = update(new, by)
        print(f"counter {counter('old-')}, new file {counter(new)}, {by}: the program sees {seen}, integrity_check: {check}")
        print(f"  after it has tried to change one row others see {left}, integrity_check: {last_check}")
seen, check, left, last_check = found["new-", "cp"]
assert seen["old"] >= ROWS // 10 and seen["old"] + seen["new"] == ROWS and check == "ok", "this has changed"
assert left["old"] > 1 and left["new"] > 1 and last_check == "ok", "this has changed"
assert found["new-and-one-more", "cp"] == ({"new": ROWS}, "ok", {"new": ROWS}, "ok")
for new in ("new-", "new-and-one-more"):
    assert found[new, "rename"] == ({"old": ROWS}, "ok", {"new": ROWS}, "ok")
END
