from pathlib import Path

SECRET_KEY = "for the test of this example only"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "inbox"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path("site.db").absolute(),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
