"""Python source with its parts marked, for a style sheet to colour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from keyword import kwlist

from markupsafe import Markup, escape

from orchestrator.pages.formats import LONGEST_TEXT
from shared.contracts.visible_text import visible

# Each part ends, at the latest, with the text: no part is searched for twice, whatever the source is.
PARTS = re.compile(
    r"(?P<comment>#[^\n]*)"
    r"|(?P<string>(?i:[rbuf]{0,2})(?:"
    r"'''(?:\\[\s\S]|[^\\])*?(?:'''|\\?\Z)"
    r'|"""(?:\\[\s\S]|[^\\])*?(?:"""|\\?\Z)'
    r"|'(?:\\[\s\S]|[^'\\\n])*'?"
    r'|"(?:\\[\s\S]|[^"\\\n])*"?))'
    r"|(?P<number>\b\d[\w.]*)"
    r"|(?P<word>[^\W\d]\w*)"
)
KEYWORDS = frozenset(kwlist)
MOST_PARTS = 2000
"""That are marked: each takes ten times its length in the page."""
DEFINING = ("def", "class")


def marked(code: str) -> Markup:
    """Return the beginning of a source as text with elements for its comments, strings, numbers and keywords.

    Characters that cannot be seen are written as escapes: marks that turn the direction of writing can make code look
    like other code.
    """
    return Markup("").join(_parts(visible(code[:LONGEST_TEXT])))


def _parts(text: str) -> Iterator[Markup]:
    end, before = 0, ""
    for part in islice(PARTS.finditer(text), MOST_PARTS):
        kind, written = part.lastgroup, part[0]
        if kind == "word":
            kind = "keyword" if written in KEYWORDS else "definition" if before in DEFINING else None
            before = written
        if kind is not None:
            yield escape(text[end : part.start()])
            yield Markup('<span class="{}">{}</span>').format(kind, written)
            end = part.end()
    yield escape(text[end:])
