"""The rules, and the release that they belong to."""

from django.db import models


class Rule(models.Model):
    name = models.CharField(max_length=100, unique=True)
    action = models.CharField(max_length=5, choices=[("allow", "allow"), ("deny", "deny")])
    pattern = models.CharField(max_length=200)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return f"{self.name}: {self.action} {self.pattern}"


class Release(models.Model):
    """The loaded release; the table has a single row."""

    version = models.CharField(max_length=200)
    generation = models.PositiveIntegerField()
    loaded = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.version
