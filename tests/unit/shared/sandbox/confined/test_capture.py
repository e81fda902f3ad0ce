from __future__ import annotations

import pytest

from shared.sandbox.confined.capture import Capture, StdoutTooLarge


def test_text_within_the_limit_is_kept() -> None:
    capture = Capture(5)
    print("abcd", file=capture)
    assert capture.getvalue() == "abcd\n"
    assert not capture.overflowed


def test_text_beyond_the_limit_is_refused() -> None:
    capture = Capture(5)
    with pytest.raises(StdoutTooLarge):
        capture.write("abcdefgh")
    assert capture.getvalue() == "abcde"
    assert (capture.overflowed, capture.written) == (True, 8)


def test_limit_counts_bytes() -> None:
    with pytest.raises(StdoutTooLarge):
        Capture(5).write("日本")


def test_lone_surrogates_are_accepted() -> None:
    capture = Capture(20)
    capture.write("\ud800")
    assert capture.written == 6
