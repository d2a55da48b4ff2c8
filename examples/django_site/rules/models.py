"""The rules, and which release they are of."""

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
    """The one that is loaded: there is a single row."""

    version = models.CharField(max_length=200)
    generation = models.PositiveIntegerField()
    loaded = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.version
