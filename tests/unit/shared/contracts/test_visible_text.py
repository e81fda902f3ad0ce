"""Hidden characters are escaped; all other text is unchanged."""

from __future__ import annotations

import json
import sys
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.visible_text import one_line, visible

ANYTHING = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", "\\u001b]52;c;ZXZpbA==\\u0007"),  # sets the clipboard
        ("done\r\x1b[2Kforged", "done\\u000d\\u001b[2Kforged"),
        ("\x9b31m\x7f\x00\x08", "\\u009b31m\\u007f\\u0000\\u0008"),
        ("\u202eevil\u2066\u200b\ufeff\u2028", "\\u202eevil\\u2066\\u200b\\ufeff\\u2028"),
        ("\U000e0041\ud800", "\\udb40\\udc41\\ud800"),
        ("a\nb\tc", "a\nb\tc"),
        ("Grüße 你好 می‌خواهم 👩‍👧", "Grüße 你好 می‌خواهم 👩‍👧"),
        ("\\u001b [red]x[/red]", "\\u001b [red]x[/red]"),
    ],
)
def test_hidden_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_control_character_passes() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    passed = [c for c in visible(everything) if category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert passed == ["\t", "\n"]


@given(ANYTHING, ANYTHING)
def test_escaping_is_idempotent_and_works_on_pieces(one: str, other: str) -> None:
    assert visible(one) + visible(other) == visible(one + other) == visible(visible(one + other))


@given(st.recursive(ANYTHING, lambda inner: st.dictionaries(ANYTHING, inner) | st.lists(inner)))
def test_json_keeps_its_value(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert json.loads(visible(text)) == json.loads(text)


def test_line_breaks_in_one_line_are_escaped() -> None:
    assert one_line("no\nError: \x0b\u2029x") == "no\\nError: \\u000b\\u2029x"
