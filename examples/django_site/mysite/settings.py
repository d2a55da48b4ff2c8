"""Minimal settings. RULES_SOURCE is the source of the rules, SITE_DATA the directory for data."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SITE_DATA", BASE_DIR / "data"))
DATA.mkdir(exist_ok=True)

SECRET_KEY = "an example has no secrets"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["perfkit.contrib.django", "rules"]
USE_TZ = True

PERFKIT = {
    "TREES": {
        "rules": {
            "SOURCE": os.environ.get("RULES_SOURCE", "http://127.0.0.1:8123/"),
            "DEST": DATA / "rules",
            "LOCAL_CHANGES": "overwrite",  # they are never edited here
        },
    },
    "RETRIES": 2,
}
