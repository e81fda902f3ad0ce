"""Pages for browsers: the start page and the API's documentation. They load nothing from other sites."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from orchestrator.api.base_path import link
from shared import __version__

ASSETS = "/docs/assets"
# Swagger UI and ReDoc write styles into the page; ReDoc searches in a worker created from a blob.
POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
WELCOME = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Minions</title></head>
<body>
<h1>Minions {version}</h1>
<p>This is the API of Minions, a task queue and worker system for AI agents.</p>
<ul>
<li><a href="{base}/login">/login</a>: log in with this browser</li>
<li><a href="{base}/docs">/docs</a>: the API's operations, to read and to try (they need the API key)</li>
<li><a href="{base}/redoc">/redoc</a>: the same, to read</li>
<li><a href="{base}/openapi.json">/openapi.json</a>: the same, for programs</li>
<li><a href="{base}/readyz">/readyz</a>: whether the database and the broker answer</li>
</ul>
<p>On the command line, <code>minion --help</code> lists the commands, and <code>minion tasks</code> the tasks.</p>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


def mount(app: FastAPI) -> None:
    """Add the pages and their files."""
    app.include_router(router)
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))


@router.get("/")
async def welcome() -> HTMLResponse:
    """Describe the service and link to its pages."""
    return _guarded(WELCOME.format(base=link(""), version=__version__))


@router.get("/docs")
async def swagger_ui() -> HTMLResponse:
    """Swagger UI."""
    return _swagger_ui(link(""))


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """ReDoc."""
    return _redoc(link(""))


@cache
def _swagger_ui(base: str) -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url=f"{base}/openapi.json",
        title="Minions: API",
        swagger_js_url=f"{base}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{base}{ASSETS}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    return _guarded(bytes(page.body).decode())


@cache
def _redoc(base: str) -> HTMLResponse:
    page = get_redoc_html(
        openapi_url=f"{base}/openapi.json",
        title="Minions: API",
        redoc_js_url=f"{base}{ASSETS}/redoc.standalone.js",
        redoc_favicon_url="data:,",
        with_google_fonts=False,
    )
    return _guarded(bytes(page.body).decode())


def _guarded(page: str) -> HTMLResponse:
    """Return the page with a policy that allows only its own scripts."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()) for script in INLINE_SCRIPT.findall(page)]
    policy = POLICY.format(scripts="".join(f" 'sha256-{digest.decode()}'" for digest in digests))
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(page, headers=headers)
