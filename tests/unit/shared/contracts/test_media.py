"""Facts of hostile files are found in bounded time and memory."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest

from shared.contracts.media import MOST_UNPACKED, PDF, TEXT, inspect
from shared.errors import TooLarge

SIZE = 4_000_000
STREAM = b"/Type/ObjStm>>stream\n"


def packed(contents: bytes) -> bytes:
    """Return an object stream."""
    return STREAM + zlib.compress(contents, 9)


# With a search that is not linear, each takes minutes.
@pytest.mark.parametrize("part", [b"/Type/ObjStm ", STREAM, b"/ObjStm>>", b"/Type ", packed(b"")])
def test_time_for_a_hostile_pdf_is_linear(part: bytes) -> None:
    assert inspect(b"%PDF-1.5\n" + part * (SIZE // len(part)), PDF, where="f").pages is None


def test_memory_for_a_packed_pdf_is_bounded() -> None:
    bomb = packed(b"\0" * 20_000_000) * 20 + packed(b"/Type/Page ")
    tracemalloc.start()
    assert inspect(b"%PDF-1.5\n" + bomb, PDF, where="f").pages == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_UNPACKED / 8


def test_pages_of_many_streams_are_added() -> None:
    paper = b"%PDF-1.5\n/Type /Page\n" + packed(b"/Type/Page /Type /Pages") * 300
    assert inspect(paper, PDF, where="f").pages == 301
    with pytest.raises(TooLarge, match="601 pages"):
        inspect(paper + packed(b"/Type/Page " * 300), PDF, where="f")


def test_text_about_pdf_is_text() -> None:
    letter = b"A PDF begins with %PDF-1.7.".ljust(100)
    assert inspect(letter, None, where="f").media_type == inspect(letter, TEXT, where="f").media_type == TEXT
    for paper in (b"\n%PDF-1.7\n", b"junk\xff\n%PDF-1.7\n"):
        assert inspect(paper, None, where="f").media_type == PDF


def test_size_of_an_image_is_checked_before_its_header() -> None:
    with pytest.raises(TooLarge, match="bytes in base64"):
        inspect(b"\xff\xd8" + b"\xff" * 8_000_000, "image/jpeg", where="f")
