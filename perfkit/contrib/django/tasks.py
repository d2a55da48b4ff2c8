"""Sync and rollback as tasks of Django 6.0 and later: `sync_tree.enqueue("rules")`.

In Django 5.2, which has no tasks, these are plain functions; Celery's `shared_task` accepts them unchanged.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from perfkit.contrib.django import trees

if TYPE_CHECKING:
    from django.tasks import task
else:
    try:
        from django.tasks import task
    except ImportError:

        def task(function):
            return function


@task
def sync_tree(name: str, wait_s: float = 0.0) -> dict[str, object]:
    """`trees.sync`; returns the report as a JSON-serializable dictionary."""
    return _plain(dataclasses.asdict(trees.sync(name, wait_s=wait_s)))


@task
def rollback_tree(name: str, to: int | None = None, wait_s: float = 0.0) -> dict[str, object]:
    """`trees.rollback`; returns the report as a JSON-serializable dictionary."""
    return _plain(dataclasses.asdict(trees.rollback(name, to=to, wait_s=wait_s)))


def _plain(report: dict[str, object]) -> dict[str, object]:
    """Tuples become lists: Django requires results that survive a JSON round trip."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in report.items()}
