"""The documentation is true: its pages are copied and pasted, and what they promise is there."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import perfkit
from perfkit import Config, errors
from tests.support.dask_cluster import CALM
from tests.support.tools import first_everywhere, need
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

DOCS = Path(__file__).parent.parent / "docs"
TRIED = [DOCS / "tutorial.md", DOCS / "errors.md", DOCS / "operations.md", *sorted((DOCS / "howto").glob("*.md"))]
NEEDED = {"object-stores": ("curl", "moto_server", "rclone"), "sign": ("minisign",)}  # programs, by page
LANGUAGES = {"sh", "python", "text", "console"}  # run, run, what the last one prints, shown only
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# From run to run, and from zstd to zstd; a download has no speed if it took no time to speak of.
_VARIES = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?|[\d.]+ [KM]?i?B kept|(?<= in )\d+:\d\d(, [\d.]+ [KM]?i?B/s)?"
)


@dataclass
class Block:
    language: str
    code: str
    promised: list[str] = field(default_factory=list)  # lines that it prints, in this order, among others


def blocks(page: Path) -> Iterator[Block]:
    """What a reader would paste, block by block."""
    last: Block | None = None
    for language, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
        assert language in LANGUAGES, f"{page}: {language}"
        if language == "text":
            assert last is not None
            last.promised = code.splitlines()
        elif language in ("sh", "python"):
            if last is not None:
                yield last
            last = Block(language, code)
    if last is not None:
        yield last


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# A server in the background is there a moment after it was begun; readers don't type that fast.
WAIT = """
wait_for_server() {{ until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.02; done; }}
"""


def run(block: Block, where: Path, port: int, warm: WarmPython) -> str:
    """What it prints; in a new process group, which may leave a server behind."""
    code = block.code.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("--port 8000", f"--port {port}")
    if block.language == "sh":
        code = re.sub(r"^perfkit serve (?!.*--port)", f"perfkit serve --port {port} ", code, flags=re.MULTILINE)
        code = re.sub(r"^(perfkit serve .*)&$", r"\1> /dev/null 2>&1 &\nwait_for_server", code, flags=re.MULTILINE)
    command = ["bash", "-ec", WAIT.format(port=port) + code] if block.language == "sh" else warm.python("-c", code)
    paths = f"{warm.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": paths, "HOME": str(where), "PYTHONUNBUFFERED": "1", **CALM}
    environ.pop("AWS_CA_BUNDLE", None)  # rclone before 1.63 refuses to work with it
    environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"  # takes half the time
    environ["TMPDIR"] = str(where)  # a page that runs pytest does not clean up what other runs have left in /tmp
    ended = subprocess.run(
        command,
        cwd=where,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, f"{code}\n{ended.stdout}"
    return ended.stdout.replace(f":{port}", ":8000")


@pytest.mark.parametrize("page", first_everywhere(*TRIED), ids=lambda page: page.stem)
def test_by_copy_and_paste(page: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """In an empty directory, top to bottom, each block prints what the page says."""
    need("bash", *NEEDED.get(page.stem, ()))
    port = free_port()
    try:
        for block in blocks(page):
            printed = run(block, tmp_path, port, warm_python)
            at = 0
            lines = _VARIES.sub("#", printed).splitlines()
            for promise in block.promised:
                wanted = re.escape(_VARIES.sub("#", promise.strip())).replace("…", ".*")  # what the page leaves out
                found = [number for number, line in enumerate(lines[at:], at) if re.fullmatch(wanted, line.strip())]
                assert found, f"{page.name} promises {promise!r}; printed was\n{printed}"
                at = found[0] + 1
    finally:
        for pid in listeners(port):
            os.kill(pid, signal.SIGTERM)  # shells have what they run in the background ignore SIGINT
        wait_until(lambda: not listeners(port))


def listeners(port: int) -> list[int]:
    """The processes that serve on it: those begun by a page that has this port in their command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            serves = b"serve" in words or any(word.endswith(b"moto_server") for word in words)
            if serves and str(port).encode() in words:
                found.append(int(entry.name))
    return found


def test_every_how_to_is_listed() -> None:
    """In the index, and in its table of contents."""
    index = (DOCS / "howto/index.md").read_text(encoding="utf-8")
    for page in (DOCS / "howto").glob("*.md"):
        if page.stem != "index":
            assert f"({page.name})" in index
            assert f"\n{page.stem}\n" in index


@pytest.mark.parametrize("page", [
    pytest.param(page, id=page.stem) for page in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
])  # fmt: skip
def test_links_lead_somewhere(page: Path) -> None:
    """Each that is not of the web names a file that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    ("page", "least"), [("docs/concepts/trust.md", 30), ("docs/reliability.md", 60), ("SECURITY.md", 14)]
)
def test_the_tests_that_are_named_exist(page: str, least: int) -> None:
    """Those that are given as evidence; one without a path is in the file before it."""
    named = re.findall(r"`(?:[A-Z_]+=\S+ )*(?:pytest )?([\w/]+\.py)?(?:::(\w+))?`", (DOCS.parent / page).read_text())
    tests = ""
    for path, name in named:
        if path:
            places = [DOCS.parent / below / path for below in ("", "perfkit", "tests", "tests/chaos", "tests/support")]
            tests = "".join(each.read_text(encoding="utf-8") for each in places if each.exists())
            assert tests, path
        assert f"\ndef {name}(" in tests or not name, f"{path}::{name}"
    assert sum(bool(name) for _, name in named) > least


def test_every_error_is_explained() -> None:
    """Each class has a heading on the errors page, with why it comes and what to do."""
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0].strip("` "): part for part in text.split("\n## ")[1:]}
    for name in errors.__all__:
        assert "**Why.**" in sections[name], name
        assert "**What to do.**" in sections[name], name


def test_every_name_of_the_package_is_in_the_api_reference() -> None:
    text = (DOCS / "reference/api.md").read_text(encoding="utf-8")
    described = {*re.findall(r"auto(?:class|function):: \S+\.(\w+)$", text, re.MULTILINE), *errors.__all__}
    assert set(perfkit.__all__) <= described


def test_every_setting_is_explained() -> None:
    """Each field has a row on the settings page, with its default."""
    text = (DOCS / "reference/settings.md").read_text(encoding="utf-8")
    for item in dataclasses.fields(Config):
        row = re.search(rf"^\| `{item.name}` \| `([^`]*)` \|", text, re.MULTILINE)
        assert row, item.name
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
        assert row[1] == repr(default), item.name


@pytest.mark.parametrize("chart", ["peers.png", "links.png"])
def test_the_chart_shows_the_figures_of_the_table(chart: str) -> None:
    made = runpy.run_path(str(DOCS / "images/make_charts.py"))
    rows = made["figures"](*made["CHARTS"][chart])
    assert len(rows) > 10
    drawn = (DOCS / "images" / chart).read_bytes()
    assert made["fingerprint"](rows).encode() in drawn, "run docs/images/make_charts.py"
