from __future__ import annotations

import pytest

from shared.sandbox.confined.capture import Capture, StdoutTooLarge


def test_keeps_what_fits() -> None:
    capture = Capture(5)
    print("abcd", file=capture)
    assert capture.getvalue() == "abcd\n"
    assert not capture.overflowed


def test_stops_what_does_not_fit() -> None:
    capture = Capture(5)
    with pytest.raises(StdoutTooLarge):
        capture.write("abcdefgh")
    assert capture.getvalue() == "abcde"
    assert (capture.overflowed, capture.written) == (True, 8)


def test_counts_bytes() -> None:
    with pytest.raises(StdoutTooLarge):
        Capture(5).write("日本")


def test_takes_half_surrogates() -> None:
    capture = Capture(20)
    capture.write("\ud800")
    assert capture.written == 6
