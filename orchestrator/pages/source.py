"""Python source with its parts marked, for a style sheet to colour."""

from __future__ import annotations

from markupsafe import Markup
from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from orchestrator.pages.formats import LONGEST_TEXT
from shared.contracts.visible_text import visible

CLASSES = {
    Comment: "comment",
    String: "string",
    Number: "number",
    Keyword: "keyword",
    Operator.Word: "keyword",
    Name.Function: "definition",
    Name.Class: "definition",
    Name.Decorator: "definition",
}
LEXER = PythonLexer(stripnl=False, ensurenl=False)


def marked(code: str) -> Markup:
    """Return the beginning of a source as text with elements for its comments, strings, numbers and keywords.

    The lexer only tells the parts apart: each is escaped here. Characters that cannot be seen are written as escapes,
    because marks that turn the direction of writing can make code look like other code.
    """
    parts = [
        Markup('<span class="{}">{}</span>').format(name, text)
        if (name := _class_of(kind))
        else Markup("{}").format(text)
        for kind, text in LEXER.get_tokens(visible(code[:LONGEST_TEXT]))
    ]
    return Markup("").join(parts)


def _class_of(kind: object) -> str | None:
    return next((name for known, name in CLASSES.items() if kind in known), None)
