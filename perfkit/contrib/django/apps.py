"""The app config."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from perfkit.contrib.django.checks import check_deployment, check_settings


class PerfkitAppConfig(AppConfig):
    """Registers the system checks, under the tag `perfkit`."""

    name = "perfkit.contrib.django"
    label = "perfkit"
    verbose_name = "perfkit"

    def ready(self) -> None:
        checks.register(check_settings, "perfkit")
        checks.register(check_deployment, "perfkit", deploy=True)
