"""A view for load balancers and monitoring: whether the trees of the settings are installed and up to date."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from perfkit.contrib.django import conf, trees
from perfkit.errors import PerfkitError


@require_safe
@never_cache
def health(request: HttpRequest, names: tuple[str, ...] = (), max_age_s: float | None = None) -> JsonResponse:
    """Status 200 if each tree is installed, and a sync of it has succeeded lately; else 503.

        path("health/", health, {"max_age_s": 2 * 86_400})

    The response has the version and the generation of each tree, but no URLs and no paths.

    Args:
        names: the trees; by default all in the settings.
        max_age_s: how long ago the last successful sync may be, in seconds; None for any time.

    Raises:
        ConfigError: the settings are invalid, or have no such tree.
    """
    found = {name: _health(name, max_age_s) for name in names or conf.load().trees}
    well = all(each["ok"] for each in found.values())
    return JsonResponse({"ok": well, "trees": found}, status=200 if well else 503)


def _health(name: str, max_age_s: float | None) -> dict[str, Any]:
    try:
        status = trees.status(name)
    except (PerfkitError, OSError):
        return {"ok": False, "reason": "its records can't be read"}
    reason = ""
    if status.state == "absent":
        reason = "not installed"
    elif max_age_s is not None and status.age_s() > max_age_s:
        reason = f"no sync has succeeded for {max_age_s:.0f} s"
    found = {
        "ok": not reason,
        "version": status.version,
        "generation": status.generation or None,
        "age_s": None if status.checked_s is None else status.age_s(),
    }
    return {**found, "reason": reason} if reason else found
