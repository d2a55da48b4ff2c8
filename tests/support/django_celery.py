"""Celery for the project of `django_project`, in CELERY_DIR. Importing it takes as long as importing all of Django."""

from __future__ import annotations

import os

from celery import Celery

from tests.support.django_project import DEST, trees

celery = Celery("project", broker="filesystem://")
queue = os.environ["CELERY_DIR"]
celery.conf.update(
    broker_transport_options={
        "data_folder_in": queue,
        "data_folder_out": queue,
        "control_folder": f"{queue}/control",
        "polling_interval": 0.1,
    },
    worker_prefetch_multiplier=1,
)
celery.autodiscover_tasks(["perfkit.contrib.django"])


@celery.task
def sync(name: str) -> None:
    """What a project's own task would be; leaves a line with what came of it."""
    report = trees.sync(name, wait_s=60)
    with open(DEST.with_name("answers"), "a", encoding="utf-8") as file:
        file.write(f"{report.version} {report.route}\n")
