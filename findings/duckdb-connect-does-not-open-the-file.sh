#!/usr/bin/env bash
# duckdb 2.0.1 (Python), a database that is published as a file and replaced by the next version, by a rename; a server
# that opens it for each request, so as to see the new version, and has it open somewhere else, too: a request that takes
# long, a pool, a connection that was forgotten.
# Most would guess: duckdb.connect(PATH) opens the file that has that name now; sqlite3.connect does so.
# Seen: within a process, connect() looks for the path among the databases that are open, and gives another connection to
# that. As long as one is open, all that are opened get the old version, whatever lies under the name; under load, when
# connections overlap, for ever. Read-only or not is the same. A row that is written goes into the old file, and its log
# (live.wal) lies beside the new one, which other processes then fail to open; when the last connection is closed the row
# is gone, without an error. Close all connections before the update, or give each version a name of its own. (Known:
# duckdb issue 15912.)
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import os, sqlite3, subprocess, sys, duckdb

READ = "select version, count(*) from price group by version order by version"
OTHER = f"import duckdb; print(dict(duckdb.connect('live', read_only=True).execute({READ!r}).fetchall()))"


def build(name, version, connect):
    if os.path.exists(name):
        os.unlink(name)
    connection = connect(name)
    connection.execute("create table price(version varchar)")
    connection.execute(f"insert into price values('{version}')")
    connection.commit()
    connection.close()


def versions(connection):
    return dict(connection.execute(READ).fetchall())


def see(connect, *options):
    """What a second connection sees after the update, a third after another second, and one when all are closed."""
    build("live", "old", connect)
    build("next", "new", connect)
    first = connect("live", *options)
    assert versions(first) == {"old": 1}
    os.rename("next", "live")
    second = connect("live", *options)
    result = [versions(second)]
    first.close()
    third = connect("live", *options)
    result.append(versions(third))
    second.close()
    third.close()
    last = connect("live", *options)
    result.append(versions(last))
    last.close()
    return result


print(f"duckdb {duckdb.__version__}, SQLite {sqlite3.sqlite_version}")
ways = {
    "duckdb": (duckdb.connect,),
    "duckdb, read-only": (lambda name, *options: duckdb.connect(name, *options), True),
    "sqlite3": (sqlite3.connect,),
}
for name, (connect, *options) in ways.items():
    second, third, last = see(connect, *options)
    print(f"{name}: a second connection sees {second}, a third {third}, one when all others are closed {last}")
    assert last == {"new": 1}
    assert {*second, *third} == ({"new"} if name == "sqlite3" else {"old"}), "this has changed"

build("live", "old", duckdb.connect)
build("next", "new", duckdb.connect)
first = duckdb.connect("live")
os.rename("next", "live")
with duckdb.connect("live") as writer:
    writer.execute("insert into price values('written')")
    seen = versions(writer)
files = sorted(os.listdir("."))
done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True)
other = done.stdout.strip() or done.stderr.splitlines()[-1]
first.close()
left = versions(duckdb.connect("live"))
print(files)
print(f"a row is written: the program sees {seen}, another process {other}; when all are closed there is {left}")
assert seen == {"old": 1, "written": 1} and left == {"new": 1}, "this has changed"
assert "live.wal" in files and "WAL does not match database file" in other, "this has changed"
END
