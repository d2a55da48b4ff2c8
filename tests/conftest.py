"""What all tests share: a kit that fails fast, servers, and the rule that no test leaves anything behind."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from perfkit import Config, Toolkit
from tests.chaos.seeds import LONG
from tests.support.fakes import Handler, MisbehavingServer
from tests.support.kits import QUICK
from tests.support.leaks import nothing_left
from tests.support.sites import Origin
from tests.support.tools import mounted
from tests.support.warm import USED_BY_COMMANDS, WarmPython

_ONCE = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.once\b", re.MULTILINE)


def fits_in_memory() -> bool:
    """Whether /dev/shm has room for what tests write (less than 100 MB for each worker), and can do what disks can."""
    try:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            os.setxattr(file.fileno(), "user.perfkit", b"")
            found = os.fstatvfs(file.fileno())
    except OSError:
        return False
    return found.f_bavail * found.f_frsize > 2 << 30 and not found.f_flag & getattr(os, "ST_NOEXEC", 0)


# Syncing and removing files on a disk takes a third of the time. Tests of file systems make their own.
if "TMPDIR" not in os.environ and fits_in_memory():
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and children would inherit it


# Without deadlines, which busy machines miss; the same few examples each time, and at night many others.
settings.register_profile("suite", settings.get_profile("ci"), max_examples=300 if LONG else 30, derandomize=not LONG)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "skip the tests marked `once` if this interpreter, which is to run them, is installed"
    parser.addoption("--once-on", metavar="PYTHON", help=text)


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"once: {config.getoption('--once-on')} runs what is marked so" if leaves_out(config) else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't even import a module that is marked `once` as a whole."""
    if collection_path.suffix != ".py" or not leaves_out(config):
        return None
    return bool(_ONCE.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to one interpreter what depends on none."""
    if leaves_out(config):
        for item in items:
            if item.get_closest_marker("once"):
                item.add_marker(pytest.mark.skip("doesn't depend on the interpreter: another one runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector needn't go through all that is imported: not while it is, and not again for each test."""
    gc.disable()
    try:
        return (yield)
    finally:
        if hasattr(gc, "freeze"):  # not in PyPy
            gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Before the first run of the whole suite by an interpreter, have two processes import one half of it each: what
    pytest compiles, and what pip left, takes three times as long as collecting it, and each worker would do all of it.
    """
    here = Path(__file__).parent
    compiled = f"conftest.{sys.implementation.cache_tag}-pytest-*.pyc"
    done = sys.dont_write_bytecode or any((here / "servers/__pycache__").glob(compiled))
    if done or config.args != config.getini("testpaths"):
        return
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    command.append(f"--once-on={config.getoption('--once-on') or ''}")
    files = sorted(here.rglob("test_*.py"))
    halves = [subprocess.Popen([*command, *half], stdout=subprocess.DEVNULL) for half in (files[::2], files[1::2])]
    for process in halves:
        process.wait()


def leaves_out(config: pytest.Config) -> bool:
    """Whether another interpreter runs what is marked `once`."""
    return runs(config.getoption("--once-on") or "")


@functools.cache
def runs(python: str) -> bool:
    """Whether there is such an interpreter, and not only pyenv's stand-in for one."""
    found = shutil.which(python) if python else None
    return found is not None and not subprocess.run([found, "-V"], capture_output=True, check=False).returncode


@pytest.fixture(scope="session")
def scratch() -> Iterator[str]:
    """Where `tempfile` makes the files of tests."""
    with tempfile.TemporaryDirectory(prefix="perfkit-test-") as name:
        os.chmod(name, 0o711)  # some tests step down to another user
        yield name


@pytest.fixture(autouse=True)
def no_leak(scratch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every thread, descriptor and temporary file of a test is gone when it has ended."""
    tmp_path_factory.getbasetemp()  # pytest's own, which it makes when it is first needed
    with mock.patch.object(tempfile, "tempdir", scratch), nothing_left():
        yield


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies and certificates of the machine are not part of a test."""
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a response may take two seconds. Idle connections are closed then, and tests count them."""
    monkeypatch.setattr("perfkit.downloads.http.transport._PATIENCE_S", 60.0)


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Programs and `perfkit` commands that start within milliseconds."""
    with WarmPython(tmp_path_factory.mktemp("warm"), *USED_BY_COMMANDS) as warm:
        warm.install("perfkit", "-m", "perfkit")
        yield warm


@pytest.fixture
def make_kit() -> Iterator[Callable[..., Toolkit]]:
    """Toolkits that retry fast, with a session of the caller's if there is one; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(session: Any = None, progress: Any = None, **changes: Any) -> Toolkit:
            return stack.enter_context(Toolkit(Config(**{**QUICK, **changes}), session=session, progress=progress))

        yield make


@pytest.fixture
def kit(make_kit: Callable[..., Toolkit]) -> Toolkit:
    return make_kit()


@pytest.fixture
def misbehaving() -> Iterator[Callable[..., MisbehavingServer]]:
    """Servers with a handler each, stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(handler: Handler, **options: Any) -> MisbehavingServer:
            return stack.enter_context(MisbehavingServer(handler, **options))

        yield start


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    """A server of a site that nothing is published to yet."""
    with Origin(tmp_path) as origin:
        yield origin


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory if possible: what a kill leaves doesn't depend on the disk, and syncing costs nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can get to; those above `tmp_path` are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    with mounted(path, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        yield path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An empty directory to serve files from."""
    path = tmp_path / "site"
    path.mkdir()
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty directory to download to."""
    path = tmp_path / "out"
    path.mkdir()
    return path
