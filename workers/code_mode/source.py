"""The source of a program, without what models write around it from habit."""

from __future__ import annotations

import re
import textwrap

_OPENING = re.compile(r"\A\s*```[\w.+-]*[ \t]*(?=\r?\n)")
_CLOSING = re.compile(r"\n[ \t]*```\s*\Z")
_INDENTED = re.compile(r"\A\s*^[ \t]+\S", re.MULTILINE)


def source_of(code: str) -> str:
    """Return the program without a Markdown fence and without an indentation of all lines, which keep their numbers."""
    code, fences = _OPENING.subn(lambda opening: "\n" * opening[0].count("\n"), code)
    if fences:
        code = _CLOSING.sub("\n", code)
    return textwrap.dedent(code) if _INDENTED.match(code) else code
