#!/usr/bin/env bash
# watchdog 7.1.0 on Linux (seen on 6.18), a directory that is watched with what is below it, in which two directories are
# exchanged, as by an update that prepares `next` and puts it in place of `current` in one step: renameat2(2) with
# RENAME_EXCHANGE, `mv --exchange` of coreutils 9.5.
# Most would guess: it is reported as two moves, or not at all; what is written into `current` afterwards is reported as
# current/..., as after the same change by three renames.
# Seen: it is reported as two moves, and from then on each change in one of them with the path of the other, until the
# observer is started anew. inotify(7) names directories by a number; watchdog moves the first one's to the second path and
# the same one back with the second move, and forgets the other. What reacts by path (reloads, synchronizes, builds) looks
# at a file that has not changed, or does not exist, and the one that has changed is never looked at. After such a move,
# when the old path still exists, start the observer anew and look through the tree.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check watchdog==7.1.0
uname -r
"$folder/venv/bin/python" - "$folder" <<'END'
import ctypes, importlib.metadata, os, pathlib, queue, sys
import watchdog.events, watchdog.observers

AT_FDCWD, RENAME_EXCHANGE = -100, 2
folder = pathlib.Path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)


class Events(watchdog.events.FileSystemEventHandler):
    def __init__(self, root):
        self.root, self.arrived = root, queue.Queue()

    def on_created(self, event):
        self.arrived.put(os.path.relpath(event.src_path, self.root))

    def on_moved(self, event):
        self.arrived.put(" to ".join(os.path.relpath(path, self.root) for path in (event.src_path, event.dest_path)))

    def until(self, name):
        """The paths that are reported up to the first whose last part is the name."""
        found = []
        while not found or os.path.basename(found[-1]) != name:
            found.append(self.arrived.get(timeout=30))
        return found


def exchange(root):
    if libc.renameat2(AT_FDCWD, os.fsencode(root / "next"), AT_FDCWD, os.fsencode(root / "current"), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def rename(root):
    os.rename(root / "current", root / "old")
    os.rename(root / "next", root / "current")
    os.rename(root / "old", root / "next")


def watch(name, change):
    """What is reported of the change, and then of a file in each directory."""
    root = folder / name
    for directory in ("current", "next"):
        (root / directory).mkdir(parents=True)
    events, observer = Events(root), watchdog.observers.Observer()
    observer.schedule(events, str(root), recursive=True)
    observer.start()
    change(root)
    (root / "mark").touch()
    moves = events.until("mark")[:-1]
    reported = {}
    for directory in ("current", "next"):
        (root / directory / f"in {directory}").touch()
        reported[f"{directory}/in {directory}"] = events.until(f"in {directory}")[-1]
    print(f"{name}: {moves}; then {reported}")
    return reported


print(f"watchdog {importlib.metadata.version('watchdog')}")
renamed, exchanged = watch("three renames", rename), watch("exchange", exchange)
assert all(path == name for name, path in renamed.items())
assert exchanged == {"current/in current": "next/in current", "next/in next": "current/in next"}, "this has changed"
sys.stdout.flush()
os._exit(0)  # without observer.stop()
END
