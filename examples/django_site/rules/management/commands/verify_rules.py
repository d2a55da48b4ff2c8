"""A custom command: it gets a Toolkit, and has --workers, --limit-rate and --no-progress."""

from typing import Any

from django.core.management.base import CommandError

from perfkit import Toolkit
from perfkit.contrib.django.conf import tree_settings
from perfkit.contrib.django.management import ToolkitCommand


class Command(ToolkitCommand):
    help = "Hash every file of the ruleset again."

    def run(self, kit: Toolkit, **options: Any) -> None:
        report = kit.verify(tree_settings("rules").dest)
        if not report.intact:
            raise CommandError(f"missing: {report.missing}; changed: {report.changed}; run `perfkit_sync rules`")
        self.stdout.write(self.style.SUCCESS(f"{report.files} files match release {report.version}"))
