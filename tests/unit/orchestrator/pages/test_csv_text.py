"""Tables as CSV: texts stay texts in a spreadsheet."""

from __future__ import annotations

import pytest

from orchestrator.pages.csv_text import csv_text


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@a", "\t=1", " =1", "\r=1"])
def test_cell_that_begins_like_a_formula_is_a_text(cell: str) -> None:
    assert csv_text(["h"], [[cell]]) in (f"h\r\n'{cell}\r\n", f'h\r\n"\'{cell}"\r\n')


def test_other_cells_are_as_they_were() -> None:
    assert csv_text(["h", "i", "j", "k"], [["a=1", 'a"b', -1.5, None]]) == 'h,i,j,k\r\na=1,"a""b",-1.5,\r\n'
