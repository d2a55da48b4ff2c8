"""Django is set up here, before a test module imports the app."""

from __future__ import annotations

import django
from django.conf import settings

settings.configure(INSTALLED_APPS=["perfkit.contrib.django"], USE_TZ=True)
django.setup()
