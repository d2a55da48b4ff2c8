"""Pairs of releases with binaries: packages from PyPI and npm, and made ones (by numpy and pyarrow)."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from corpora import run
from measure import note

PACKAGES = {  # the client that brings it, the project, two releases
    "numpy": ("pip", "numpy", "2.4.5", "2.4.6"),
    "esbuild": ("npm", "esbuild-wasm", "0.28.1", "0.28.2"),
    "cryptography": ("pip", "cryptography", "46.0.6", "46.0.7"),
    "three": ("npm", "three", "0.186.1", "0.187.0"),
    "pylint": ("pip", "pylint", "4.0.4", "4.0.5"),
    "sphinx": ("pip", "sphinx", "8.2.2", "8.2.3"),
    "lxml": ("pip", "lxml", "6.0.1", "6.0.2"),
    "pydantic": ("pip", "pydantic-core", "2.41.4", "2.41.5"),
    "typescript": ("npm", "typescript", "5.9.2", "5.9.3"),
}


def package(cache: Path, client: str, project: str, release: str) -> Path:
    """The unpacked files of a wheel for this interpreter, or of an npm package."""
    tree = cache / "packages" / f"{project}-{release}"
    if tree.is_dir():
        return tree
    note(f"downloading {project} {release}")
    archives = cache / "packages" / "archives" / tree.name
    archives.mkdir(parents=True, exist_ok=True)
    if client == "npm":
        run(["npm", "pack", "--silent", f"{project}@{release}"], cwd=archives)
        with tarfile.open(next(archives.glob("*.tgz"))) as archive:
            archive.extractall(tree, filter="data")
    else:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        run([*pip, "-d", str(archives), f"{project}=={release}"])
        with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
            wheel.extractall(tree)
    return tree


def weights(kind: str) -> tuple[bytes, bytes]:
    """25 MB of weights in the format of safetensors, and the same with some changed."""
    import numpy as np

    noise = np.random.default_rng(1)
    header = b'{"x":{"dtype":"F32","shape":[6250000],"data_offsets":[0,25000000]}}'
    header = header.ljust(-8 % len(header) + len(header) + 8)
    before = (noise.standard_normal(6_250_000) * 0.02).astype("<f4")
    after = before.copy()
    if kind == "scattered":
        chosen = noise.choice(len(after), len(after) // 100, replace=False)
        after[chosen] += 0.001 * noise.standard_normal(len(chosen)).astype("<f4")
    elif kind == "contiguous":
        after[1_000_000:1_025_000] = (noise.standard_normal(25_000) * 0.02).astype("<f4")
    else:  # every weight
        after *= 1 + noise.uniform(-0.001, 0.001, len(after)).astype("<f4")
    head = len(header).to_bytes(8, "little") + header
    return head + before.tobytes(), head + after.tobytes()


def make_table(path: Path, *, changed: bool) -> None:
    """150,000 rows in parquet; `changed`: with other numbers in 10 %, and 1 % of the rows fewer."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    noise = np.random.default_rng(2)
    size = 150_000
    columns = {
        "id": np.arange(size),
        "price": np.round(noise.uniform(1, 1000, size), 2),
        "count": noise.integers(0, 1000, size),
        "name": [f"item {number % 5000}" for number in noise.integers(0, 1 << 30, size)],
        "score": noise.standard_normal(size),
    }
    if changed:
        rows = noise.choice(size, size // 10, replace=False)
        columns["price"][rows] += 1
        columns["score"][rows] = noise.standard_normal(len(rows))
        kept = noise.random(size) > 0.01
        columns = {name: np.asarray(values)[kept] for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="none", use_dictionary=["name"])


def make_database(path: Path, *, changed: bool) -> None:
    """120,000 rows and an index in SQLite; `changed`: with 600 other rows and 200 fewer; vacuumed."""
    noise, other = random.Random(5), random.Random(7)
    words = ["alpha", "beta", "gamma", "delta", "rho"]
    rows = [
        (
            key,
            "".join(noise.choices("abcdefghij", k=12)),
            noise.random(),
            " ".join(noise.choices(words, k=10)),
            noise.randbytes(40),
        )
        for key in range(120_000)
    ]
    if changed:
        for key in other.sample(range(120_000), 600):
            rows[key] = (key, rows[key][1] + "x" * other.randrange(9), other.random(), *rows[key][3:])
        for key in sorted(other.sample(range(120_000), 200), reverse=True):
            del rows[key]
    base = sqlite3.connect(path)
    base.execute("create table t (id integer primary key, name text, v real, note text, data blob)")
    base.executemany("insert into t values (?, ?, ?, ?, ?)", rows)
    base.execute("create index i on t (name)")
    base.commit()
    base.execute("vacuum")
    base.close()


def made_pair(cache: Path, name: str) -> tuple[Path, Path]:
    """The trees of one of `MADE`."""
    trees = cache / "made" / f"{name}-1", cache / "made" / f"{name}-2"
    if not all(tree.is_dir() for tree in trees):
        for tree in trees:
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True)
        MADE[name](*trees)
    return trees


def _weights_pair(kind: str) -> Callable[[Path, Path], None]:
    def make(old: Path, new: Path) -> None:
        for tree, content in zip((old, new), weights(kind), strict=True):
            (tree / "model.safetensors").write_bytes(content)

    return make


def _table_pair(old: Path, new: Path) -> None:
    make_table(old / "table.parquet", changed=False)
    make_table(new / "table.parquet", changed=True)


def _database_pair(old: Path, new: Path) -> None:
    make_database(old / "data.sqlite", changed=False)
    make_database(new / "data.sqlite", changed=True)


MADE: dict[str, Callable[[Path, Path], None]] = {
    "scattered": _weights_pair("scattered"),
    "contiguous": _weights_pair("contiguous"),
    "every-weight": _weights_pair("every weight"),
    "parquet": _table_pair,
    "sqlite": _database_pair,
}
