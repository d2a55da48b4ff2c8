"""Django is set up here, before a test module imports the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import django
import pytest
from django.conf import settings
from django.test import override_settings

from perfkit import Toolkit
from perfkit.server.server import Server
from tests.support.django_commands import Site
from tests.support.warm import DJANGO, USED_BY_COMMANDS, WarmPython

settings.configure(
    INSTALLED_APPS=["perfkit.contrib.django"],
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()


@pytest.fixture(scope="session")
def warm_django(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Programs that start within milliseconds, with Django."""
    with WarmPython(tmp_path_factory.mktemp("warm-django"), *DJANGO, *USED_BY_COMMANDS) as warm:
        warm.install("python")
        warm.install("perfkit", "-m", "perfkit")
        yield warm


@pytest.fixture
def published(tmp_path: Path, kit: Toolkit) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        entry = {"SOURCE": server.url, "DEST": tmp_path / "rules"}
        with override_settings(PERFKIT={"TREES": {"rules": entry}, "RETRIES": 0}):
            yield Site(tmp_path, kit, server.url)
