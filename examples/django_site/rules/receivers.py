"""Loads the ruleset into the database after its files have changed, all or none."""

from pathlib import Path

from django.db import transaction
from django.dispatch import receiver

from perfkit import SyncReport
from perfkit.contrib.django.signals import tree_updated
from rules.models import Release, Rule


@receiver(tree_updated)
def load_rules(name: str, dest: str, report: SyncReport, **kwargs: object) -> None:
    """Replace the table with the rules in the files. Called again after a failure, so it must be idempotent."""
    if name != "rules":
        return
    rules = [rule for path in sorted(Path(dest).glob("*.rules")) for rule in parse(path)]
    with transaction.atomic():
        Rule.objects.all().delete()
        Rule.objects.bulk_create(rules)
        Release.objects.update_or_create(pk=1, defaults={"version": report.version, "generation": report.generation})


def parse(path: Path) -> list[Rule]:
    """Parse one rule per line: name, action, pattern; `#` starts a comment.

    Raises:
        ValueError: a line is not a rule.
    """
    rules = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or words[1] not in ("allow", "deny"):
            raise ValueError(f"{path.name}, line {number}: not a rule: {line!r}")
        rules.append(Rule(name=words[0], action=words[1], pattern=words[2]))
    return rules
