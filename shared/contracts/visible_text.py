"""Escaping text so that a terminal shows it without obeying it.

Functions, models, tools and callers choose text that reaches terminals: errors, outputs, names. A terminal obeys
control characters in it: it sets the clipboard, moves the cursor over another line, or writes from right to left.
"""

from __future__ import annotations

import re
from unicodedata import category

# Control and format characters, unpaired surrogates, line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Format characters that scripts and emoji need (joiners), or that are visible (signs before numbers).
HARMLESS = frozenset(
    "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
_NOT_PLAIN = re.compile(r"[^\n\t\x20-\x7e]")


def visible(text: str) -> str:
    r"""Return the text with every hidden character as the escape that JSON has for it, such as `\u001b`.

    Newlines and tabs stay. JSON text keeps its value, because it has such characters in strings only. Each character
    is escaped independently, so a text may be split anywhere, and escaped twice.
    """
    return _NOT_PLAIN.sub(_escape, text)


def one_line(text: str) -> str:
    """Return the text as `visible` does, on a single line, so that no part of it can pass for another line."""
    return visible(text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if category(character) not in HIDDEN or character in HARMLESS:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
