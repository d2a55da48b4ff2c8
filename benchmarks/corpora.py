"""Trees from PyPI, and the costs of other update tools: for the benchmarks of releases and updates."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import note
from origin import Nginx

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import check_name
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.publish.source_tree import SourceTree

CORPORA = {  # the releases, oldest first; the last pair is the update
    "django": ("django", [f"4.2.{number}" for number in range(6, 17)], "text, thousands of files, point releases"),
    "lxml": ("lxml", ["5.2.2", "5.3.0", "5.3.1"], "a few large generated files"),
    "ansible": ("ansible", ["2.9.27", "2.10.7"], "most files new or moved"),
}


def sdist(cache: Path, project: str, release: str) -> Path:
    directory = cache / "sdists"
    directory.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(rf"{project}-{re.escape(release)}\.tar\.gz", re.IGNORECASE)

    def found() -> Path | None:
        return next((path for path in directory.iterdir() if pattern.fullmatch(path.name)), None)

    if found() is None:
        note(f"downloading {project} {release}")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        run([*pip, "-d", str(directory), f"{project}=={release}"])
    path = found()
    assert path is not None, f"pip did not bring {project} {release}"
    return path


def unpack(archive: Path, root: Path) -> Path:
    """Regular files without the top directory; links as copies of their targets; unsafe names omitted."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            with contextlib.suppress(UnsafePathError, KeyError):
                source = None if member.isdir() else tar.extractfile(member)
                if source is not None:
                    path = root / check_name(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read())
                    path.chmod(0o755 if member.mode & 0o100 else 0o644)
    return root


def make_tar(tree: Path, path: Path) -> Path:
    run(["tar", "-C", str(tree), "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", str(path), "."])
    return path


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return str(done.stdout + done.stderr)


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak bytes of a process."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def manifest_of(tree: Path) -> Manifest:
    source = SourceTree(str(tree))
    source.read_all()
    return source.manifest


def patch_bytes(tars: list[Path]) -> int:
    """One patch between two whole tars."""
    patch = tars[1].with_suffix(".patch")
    run(["zstd", "-q", "-f", "-19", "--long=27", f"--patch-from={tars[0]}", str(tars[1]), "-o", str(patch)])
    return patch.stat().st_size


def rsync_bytes(old: Path, new: Path) -> int:
    """The bytes that rsync sends and receives to turn one tree into the other."""
    target = old.with_name("rsync-target")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(old, target)
    said = run(["rsync", "-rcz", "--no-whole-file", "--delete", "--stats", f"{new}/", f"{target}/"])
    shutil.rmtree(target)
    return sum(int(number.replace(",", "")) for number in re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said))


def block_bytes(tars: list[Path], work: Path) -> dict[str, float]:
    """The bytes from one tar to the other with each installed tool that compares blocks."""
    peers: dict[str, Callable[[], float]] = {
        "zchunk": lambda: zchunk(tars),
        "zsync": lambda: zsync(tars, work),
        "casync": lambda: casync(tars, work),
    }
    return {peer: measured() for peer, measured in peers.items() if shutil.which("zck" if peer == "zchunk" else peer)}


def zchunk(tars: list[Path]) -> float:
    for tar in tars:
        run(["zck", "-o", f"{tar}.zck", str(tar)])
    said = run(["zck_delta_size", f"{tars[0]}.zck", f"{tars[1]}.zck"])
    return float(re.findall(r"(\d+) of \d+ bytes", said)[-1]) if " of " in said else float(re.findall(r"\d+", said)[0])


def zsync(tars: list[Path], work: Path) -> float:
    run(
        ["zsyncmake", "-z", "-u", f"{tars[1].name}.gz", "-f", tars[1].name, "-o", f"{tars[1]}.zsync", str(tars[1])],
        cwd=work,
    )
    shutil.rmtree(work / "nginx", ignore_errors=True)  # of a run that was interrupted
    with Nginx(work, work / "nginx") as server:  # zsync requests several ranges at once
        said = run(["zsync", "-i", str(tars[0]), "-o", str(work / "zsynced"), f"{server.http}/{tars[1].name}.zsync"])
    fetched = re.findall(r"fetched (\d+)", said)
    return Path(f"{tars[1]}.zsync").stat().st_size + float(fetched[-1])


def casync(tars: list[Path], work: Path) -> float:
    chunks = []
    for number, tar in enumerate(tars):
        store = work / f"castr{number}"
        run(["casync", "make", f"--store={store}", f"{tar}.caibx", str(tar)])
        chunks.append({path.name: path.stat().st_size for path in store.rglob("*.cacnk")})
    fresh = sum(size for name, size in chunks[1].items() if name not in chunks[0])
    return fresh + Path(f"{tars[1]}.caibx").stat().st_size


def archive_bytes(tar: Path) -> dict[str, int]:
    """The plain archives of a tree."""
    run(["gzip", "-kf9", str(tar)])
    run(["zstd", "-q", "-f", "-19", "-T2", str(tar), "-o", f"{tar}.zst"])
    return {f"tar.{suffix}": Path(f"{tar}.{suffix}").stat().st_size for suffix in ("gz", "zst")}
