"""The files in examples/unattended are what their programs take, and each of their commands is one of perfkit's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfkit.cli import command_parser, main
from perfkit.cli.named_trees import read_trees
from tests.support.sites import Origin
from tests.support.tools import need

pytestmark = pytest.mark.once

FILES = Path(__file__).parent.parent / "examples/unattended"
SETTINGS = "/etc/perfkit/perfkit.toml"


def text_of(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of perfkit in the files, without the program; as words of a shell, or as a list."""
    for path in FILES.iterdir():
        if path.suffix not in (".md", ".toml"):
            text = re.sub('[",]', "", path.read_text(encoding="utf-8"))
            for found in re.findall(r"perfkit ((?:sync|status) [^]|;\n]*)", text):
                yield path.name, shlex.split(found)


def test_commands_of_the_examples_parse() -> None:
    """They parse, and are those of each file."""
    found = list(commands())
    assert {name for name, _ in found} == {"perfkit-sync.service", "crontab", "cronjob.yaml", "Containerfile"}
    for _, words in found:
        arguments = command_parser().parse_args(words)
        assert (arguments.all, arguments.config) == (True, SETTINGS)


def test_settings() -> None:
    trees = read_trees(FILES / "perfkit.toml")
    assert set(trees) == {"rules", "lists"}
    assert all(tree.dest.startswith("/var/lib/perfkit/") for tree in trees.values())


def test_systemd_knows_the_units(tmp_path: Path) -> None:
    """systemd knows all that is in them; here the program is in another place, and there is no user `perfkit`."""
    need("systemd-analyze")
    program = Path(sys.executable).with_name("perfkit")
    for unit in ("perfkit-sync.service", "perfkit-sync.timer"):
        text = text_of(unit).replace("/usr/local/bin/perfkit", str(program)).replace("User=perfkit\n", "")
        (tmp_path / unit).write_text(text)
    for unit in ("perfkit-sync.service", "perfkit-sync.timer"):
        command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_crontab_has_valid_lines() -> None:
    """As in /etc/cron.d: five fields, a user, and a command; a % would end the command (crontab(5))."""
    jobs = [line for line in text_of("crontab").splitlines() if line[0] not in "#M"]
    assert len(jobs) == 2
    for job in jobs:
        assert re.fullmatch(r"(?:[\d*/,-]+ ){5}perfkit /usr/local/bin/perfkit [^%]+", job)


def test_the_cronjob_mounts_its_volumes() -> None:
    """One job at a time; each volume is there and mounted where the settings have the trees."""
    job: dict[str, Any] = yaml.safe_load(text_of("cronjob.yaml"))
    assert (job["apiVersion"], job["kind"], job["spec"]["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"config": "/etc/perfkit", "trees": "/var/lib/perfkit", "tmp": "/tmp"}
    assert volumes == set(mounts)
    assert pod["restartPolicy"] == "Never"


def test_compose() -> None:
    services = yaml.safe_load(text_of("compose.yaml"))["services"]
    assert services["perfkit"]["build"]["dockerfile"] == "Containerfile"
    assert services["web"]["depends_on"] == {"perfkit": {"condition": "service_healthy"}}
    healthcheck = re.search(r"^HEALTHCHECK ", text_of("Containerfile"), re.MULTILINE)
    assert healthcheck


def test_the_containers_health_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's two commands, with a site and directories of the test's: healthy after the first sync."""
    monkeypatch.setenv("PERFKIT_RETRIES", "0")
    with Origin(tmp_path) as origin:
        origin.publish({"all.rules": b"drop 1\n"}, "1")
        text = text_of("perfkit.toml").replace("/var/lib/perfkit", str(tmp_path)).replace('splay = "2m"', "")
        settings = tmp_path / "perfkit.toml"
        settings.write_text(re.sub(r'source = "[^"]*"', f'source = "{origin.url}"', text))
        sync, health = ([word.replace(SETTINGS, str(settings)) for word in words] for words in of_the_container())
        assert main(health) == 1
        assert main([*sync, "--quiet"]) == 0
        assert main(health) == 0
        shutil.rmtree(tmp_path / "lists")
        assert main(health) == 1


def of_the_container() -> tuple[list[str], list[str]]:
    found = {words[0]: words for name, words in commands() if name == "Containerfile"}
    return found["sync"], found["status"]
