"""Keep the installed releases of trees of the settings, or have syncs install new ones again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from perfkit.cli.output import Outcome
from perfkit.cli.settings import add_wait
from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import TreesCommand, wait_s


class Command(TreesCommand):
    help = (
        "Keep the installed releases of trees: syncs pass over all others. With --off, have syncs install new ones "
        "again, even after a rollback or a refusal by CHECK."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--skip", metavar="V", help="pass over this release only, until another one is offered")
        parser.add_argument("--off", action="store_true", help="end all holds")
        add_wait(parser)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        if not options["off"]:
            held = trees.hold(name, options["skip"], wait_s=wait_s(options))
            what = "stays at" if options["skip"] is None else "passes over"
            return Outcome({"held": held.version, "reason": str(held.reason)}, f"{what} {held.version}")
        released = trees.unhold(name, wait_s=wait_s(options))
        note = f"{released.version} is no longer on hold" if released else "nothing was on hold"
        return Outcome({"released": released.version if released else None}, note)
