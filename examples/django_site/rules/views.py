from django.http import HttpRequest, JsonResponse

from rules.models import Release, Rule


def current_rules(request: HttpRequest) -> JsonResponse:
    """The rules that are in force."""
    release = Release.objects.first()
    rules = list(Rule.objects.values("name", "action", "pattern"))
    return JsonResponse({"version": release and release.version, "rules": rules})
