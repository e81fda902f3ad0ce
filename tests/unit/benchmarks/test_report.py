import json
from xml.etree import ElementTree

import pytest

from benchmarks.machine import describe
from benchmarks.picture import draw
from benchmarks.report import Report, number, table_rows
from benchmarks.samples import Breakdown, Figures, Samples

FIGURES = Figures(
    "noop",
    "no-op tasks & <results>",
    "tasks/s",
    {
        "celery": Samples([100.0, 110.0, 90.0]),
        "minions": Samples([200.0]),
        "rq": Samples([], ["TimeoutError: late\nlog"]),
    },
    base="celery",
    published={"windmill": 50.0},
    source="example.org",
)
BREAKDOWN = Breakdown(
    "cpu", "processor time", "ms", {"minions": {"worker": 1.234, "total": 1.234}, "rq": {"total": 20.0}}
)
MACHINE = {**describe(), "PostgreSQL": "18.6", "Valkey": "9.1", "rounds": 3}
REPORT = Report(MACHINE, [FIGURES, BREAKDOWN], {"dbos": "not installed"}, {"celery": {"keeps": "k", "settings": "s"}})
TEXTS = pytest.mark.parametrize("text", [REPORT.as_text(), REPORT.as_markdown()], ids=["text", "markdown"])


@TEXTS
def test_report_has_medians_and_the_spread(text: str) -> None:
    assert [cell for cell in ("100", "90.0", "110", "2.00", "1.23") if cell not in text] == []


@TEXTS
def test_failure_of_a_system_is_reported(text: str) -> None:
    assert "rq failed in round 1: TimeoutError: late" in text
    assert "log" not in text


@TEXTS
def test_system_that_is_left_out_gets_one_line(text: str) -> None:
    assert len([line for line in text.splitlines() if "dbos" in line]) == 1


@TEXTS
def test_published_figure_is_labelled_as_another_machine(text: str) -> None:
    assert "windmill (published, another machine)" in text


def test_ratios_are_left_out_if_the_base_was_not_measured() -> None:
    table = Figures("noop", "", "tasks/s", {"minions": Samples([200.0])}, base="celery")
    assert table_rows(table) == [["", "median (tasks/s)", "lowest", "highest"], ["minions", "200", "200", "200"]]


def test_json_has_every_value() -> None:
    found = json.loads(REPORT.as_json())
    rows = found["tables"][0]["rows"]
    assert rows["celery"]["values"] == [100.0, 110.0, 90.0]
    assert rows["minions"]["ratio"] == 2.0
    assert rows["rq"]["failures"] == ["TimeoutError: late\nlog"]
    assert found["tables"][1]["rows"]["rq"] == {"total": 20.0}
    assert found["machine"]["rounds"] == 3


def test_picture_has_a_bar_for_each_system_that_was_measured() -> None:
    picture = ElementTree.fromstring(draw([FIGURES], "caption"))
    bars = [element.get("class") for element in picture if element.tag.endswith("rect")]
    assert bars == ["other", "ours", "published"]


def test_longest_bar_ends_within_the_picture() -> None:
    picture = ElementTree.fromstring(draw([FIGURES], "caption"))
    ends = [float(bar.get("x", "")) + float(bar.get("width", "")) for bar in picture if bar.tag.endswith("rect")]
    assert max(ends) < float(picture.get("width", ""))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (0.00123, "0.0012"),
        (0.1234, "0.12"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_have_two_or_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text
