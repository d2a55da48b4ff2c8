"""What the command line says of itself: help, examples, version, and completion in real shells."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import perfkit
from perfkit.cli import command_parser, main
from tests.support.tools import need

Capture = pytest.CaptureFixture[str]
PERFKIT = [sys.executable, "-m", "perfkit"]
OPTIONS = {
    "get": ("-i", "-o", "-d", "-j", "--segments", "--limit-rate", "--checksum", "--mirror", "--header", "--public-key",
            "--retries", "--no-resume", "--progress", "--verbose"),
    "keygen": ("FILE",),
    "publish": ("SRC", "SITE", "--version", "--keep-deltas", "--exclude", "--links", "--serial", "--sign-key",
                "--expires", "--wait", "--progress", "--verbose"),
    "releases": ("URL",),
    "promote": ("SITE", "--channel", "--version", "--sign-key", "--expires", "--wait"),
    "check": ("SITE", "--progress"),
    "prune": ("DIR", "--keep", "--grace", "--dry-run", "--wait"),
    "sync": ("SOURCE DEST", "--all", "--config", "--dry-run", "--check", "--public-key", "--threshold",
             "--allow-expired", "--on-change", "-j", "--limit-rate", "--progress", "--verbose"),
    "rollback": ("DEST", "--to", "--no-hold", "--wait"),
    "history": ("DEST",),
    "verify": ("DEST", "--repair", "--wait", "--progress", "--verbose"),
    "status": ("DEST", "--all", "--config", "--max-age", "--metrics"),
    "hold": ("DEST", "VERSION", "--wait"),
    "pin": ("DEST", "--wait"),
    "unhold": ("DEST", "--wait"),
    "serve": ("SITE", "--port"),
}  # fmt: skip
COMMANDS = [*OPTIONS, "completion"]


def says(capsys: Capture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_version(capsys: Capture) -> None:
    """The package's, as metadata has it too."""
    assert says(capsys, "--version") == f"perfkit {perfkit.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for, and examples, in lines that fit any terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    told = says(capsys, *filter(None, [command]), "--help")
    assert re.search(r"\n\n[A-Z][^\n]+\n", told)
    assert "\nexamples:\n  " in told
    assert max(map(len, told.splitlines())) <= 90
    assert told.isascii()  # so that any terminal can show it


def test_help_names_all_commands(capsys: Capture) -> None:
    """And COMMANDS here is all of them, so that no test above passes one over."""
    told = says(capsys, "--help")
    assert re.findall(r"^    ([a-z]+)\b", told, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_all_options(command: str, capsys: Capture) -> None:
    """Each that the command promises, and the two of all commands."""
    told = says(capsys, command, "--help")
    for option in (*OPTIONS[command], "--quiet", "--json"):
        assert re.search(rf"^  (-\w( \w+)?, )?{option}\b", told, re.MULTILINE), option


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_can_be_run(command: str, capsys: Capture) -> None:
    """Each example is a command line that perfkit takes."""
    told = says(capsys, *filter(None, [command]), "--help")
    examples = re.findall(r"^  (?:\S+=\S+ |\w+ \| )?perfkit (.+)$", told.partition("\nexamples:\n")[2], re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(re.split(r"   | > ", example)[0])
        assert command in ("", words[0])
        command_parser().parse_args(words)


def test_two_names_for_it() -> None:
    """`perfkit`, as installed, and `python -m perfkit` are the same."""
    installed = Path(sys.executable).with_name("perfkit")
    told = {
        subprocess.run([*command, "get", "--help"], capture_output=True, check=True, timeout=100).stdout
        for command in (PERFKIT, [str(installed)])
    }
    assert len(told) == 1
    assert b"usage: perfkit get " in told.pop()


# -- completion -------------------------------------------------------------------------------------------------------


def script_for(shell: str, capsys: Capture) -> str:
    assert main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def bash_offers(script: str, line: str, cwd: Path) -> set[str]:
    """What bash would offer at the end of this line."""
    words = line.split(" ")
    asked = f"""{script}
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
        COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}
        function=$(complete -p perfkit); function=${{function#*-F }}
        ${{function%% *}} perfkit "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=100, check=True, cwd=cwd
    )
    return set(ended.stdout.split())


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "rules").mkdir()
    (tmp_path / "urls.txt").touch()
    return tmp_path


@pytest.mark.once
@pytest.mark.parametrize(("line", "offers"), [
    ("perfkit ", set(COMMANDS)),
    ("perfkit pu", {"publish"}),
    ("perfkit sync --lim", {"--limit-rate"}),
    ("perfkit get --checksum x --no", {"--no-resume"}),
    ("perfkit verify ", {"rules"}),
    ("perfkit sync ", {"rules", "urls.txt"}),
    ("perfkit sync --public-key ", {"rules", "urls.txt"}),
    ("perfkit get --checksums ", {"rules", "urls.txt"}),
    ("perfkit get -d ", {"rules"}),
    ("perfkit get -i ", {"rules", "urls.txt"}),
    ("perfkit completion ", {"bash", "zsh", "fish"}),
])  # fmt: skip
def test_bash_completion(line: str, offers: set[str], listed: Path, capsys: Capture) -> None:
    """Commands, the options of the command at hand, files and directories where it takes one."""
    need("bash")
    assert bash_offers(script_for("bash", capsys), line, listed) == offers


@pytest.mark.once
@pytest.mark.parametrize(("line", "offers"), [
    ("perfkit ", set(COMMANDS)), ("perfkit sync --lim", {"--limit-rate"}), ("perfkit get -d ru", {"rules/"}),
])  # fmt: skip
def test_fish_completion(line: str, offers: set[str], listed: Path, capsys: Capture) -> None:
    """As bash."""
    need("fish")
    asked = f"{script_for('fish', capsys)}\ncomplete -C {shlex.quote(line)}\n"
    environ = {"HOME": str(listed), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        ["fish", "--no-config", "-c", asked],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=listed,
        env=environ,
    )
    assert {each.split("\t")[0] for each in ended.stdout.splitlines()} == offers


@pytest.mark.once
def test_zsh_completion(listed: Path, capsys: Capture) -> None:
    """Its completion system takes the script for perfkit's, and every function in it is defined."""
    need("zsh")
    (listed / "_perfkit").write_text(script_for("zsh", capsys))
    asked = (
        "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -d dump; print $_comps[perfkit]; autoload +X _perfkit"
    )
    ended = subprocess.run(
        ["zsh", "-f", "-c", asked], capture_output=True, text=True, timeout=100, check=True, cwd=listed
    )
    assert (ended.stdout, ended.stderr) == ("_perfkit\n", "")


def test_completion_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'perfkit[completion]'" in capsys.readouterr().err
