"""Print the rules that are in force."""

from typing import Any

from django.core.management.base import BaseCommand

from rules.models import Release, Rule


class Command(BaseCommand):
    help = "Print the rules that are in force."

    def handle(self, *args: Any, **options: Any) -> None:
        rules = list(Rule.objects.all())
        self.stdout.write(f"{Release.objects.first() or 'nothing loaded'}: {len(rules)} rules")
        for rule in rules:
            style = self.style.SUCCESS if rule.action == "allow" else self.style.ERROR
            self.stdout.write(f"  {style(str(rule))}")
