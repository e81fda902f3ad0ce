"""Programs as models write them."""

from __future__ import annotations

import pytest

from workers.code_mode.source import source_of


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("return 1", "return 1"),
        ("```python\nx = 1\nreturn x\n```", "\nx = 1\nreturn x\n"),
        ("\n```py\r\nreturn 1\r\n```\n\n", "\n\r\nreturn 1\r\n"),
        ("```\nreturn 1", "\nreturn 1"),
        ("    x = 1\n    if x:\n        return x\n", "x = 1\nif x:\n    return x\n"),
        ("```python\n    return 1\n    ```", "\nreturn 1\n"),
        ("\n\treturn 1", "\nreturn 1"),
        # What is right as it is stays as it is.
        ('text = """\n    indented\n"""', 'text = """\n    indented\n"""'),
        ('text = """\n```\ncode\n```"""\nreturn text', 'text = """\n```\ncode\n```"""\nreturn text'),
        ("return 1\n```", "return 1\n```"),
        ("", ""),
        ("\n \n", "\n \n"),
    ],
)
def test_fence_and_indentation_are_removed(code: str, source: str) -> None:
    assert source_of(code) == source
