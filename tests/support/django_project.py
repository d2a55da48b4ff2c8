"""A Django project in one module, for tests that run it in processes of their own: gunicorn, gevent, and Celery, for
which it has another module, `django_celery`.

The environment says where things are: DJANGO_TREE (the tree), DJANGO_SOURCE (the site).
"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.urls import path

from perfkit import LockedError, Toolkit

DEST = Path(os.environ["DJANGO_TREE"])
SOURCE = os.environ["DJANGO_SOURCE"]

settings.configure(
    SECRET_KEY="test",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["perfkit.contrib.django"],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"log": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["log"]},
    },
    PERFKIT={"TREES": {"rules": {"SOURCE": SOURCE, "DEST": DEST}}, "WORKERS": 2, "RETRIES": 1},
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402

from perfkit.contrib.django import trees  # noqa: E402
from perfkit.contrib.django.signals import tree_updated  # noqa: E402

kit = Toolkit()  # made before the fork, and used on both sides of it
kit.download(f"{SOURCE}perfkit.json", DEST.with_name(f"before-the-fork-{os.getpid()}"), resume=False)


def note(dest: str, report: Any, **_: Any) -> None:
    """Leaves one line for each time that it is called."""
    with open(DEST.with_name("told"), "a", encoding="utf-8") as file:
        file.write(f"{report.version} {os.getpid()}\n")


tree_updated.connect(note)


def sync_view(request: HttpRequest) -> JsonResponse:
    """Syncs, waiting for others that do so, and downloads with a Toolkit that has been through a fork."""
    own = kit.download(f"{SOURCE}perfkit.json", DEST.with_name(f"own-{uuid.uuid4()}"), resume=False)
    try:
        report = trees.sync("rules", wait_s=float(request.GET.get("wait", "60")))
    except LockedError as error:
        return JsonResponse({"pid": os.getpid(), "locked": str(error)}, status=409)
    thread = type(threading.current_thread()).__module__
    return JsonResponse(
        {"pid": os.getpid(), "version": report.version, "route": report.route, "bytes": own.bytes, "thread": thread}
    )


urlpatterns = [path("sync", sync_view)]
application = get_wsgi_application()
