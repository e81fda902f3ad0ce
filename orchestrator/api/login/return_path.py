"""The page that a browser returns to after a login: always one of ours."""

from __future__ import annotations

import re

DEFAULT = "/account"
# One slash at the beginning, and only characters that no browser drops or reads as a slash: `//host`, `/\host` and
# `/<tab>/host` would lead to another site.
OWN_PATH = re.compile(r"/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,500}")
# A login that leads to a login never ends.
LOGIN = re.compile(r"/(login|logout)(?![^/?])")


def checked(asked: str | None) -> str:
    """Return the path that was asked for, or that of the account if it is not one of ours."""
    if asked is None or not OWN_PATH.fullmatch(asked) or LOGIN.match(asked):
        return DEFAULT
    return asked
