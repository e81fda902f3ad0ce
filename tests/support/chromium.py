"""The Chromium of this machine, for Playwright: Debian's package, not a browser that Playwright brings."""

from __future__ import annotations

import shutil

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


def find_chromium() -> str | None:
    """Return the path of the program; None if it is not installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)
