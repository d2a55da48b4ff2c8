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

settings.configure(INSTALLED_APPS=["perfkit.contrib.django"], USE_TZ=True)
django.setup()


@pytest.fixture
def published(tmp_path: Path, kit: Toolkit) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with Server(tmp_path / "site") as server:
        entry = {"SOURCE": server.url, "DEST": tmp_path / "rules"}
        with override_settings(PERFKIT={"TREES": {"rules": entry}, "RETRIES": 0}):
            yield Site(tmp_path, kit, server.url)
