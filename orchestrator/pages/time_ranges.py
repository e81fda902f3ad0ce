"""The time ranges of pages about the past, in whole hours or days until now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

Last = Literal["24h", "7d", "30d", "90d"]
Unit = Literal["hour", "day"]
WIDTHS: dict[Unit, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


class TimeRange(NamedTuple):
    """A time range until now.

    Attributes:
        length: its number of hours or days, with the one that has not ended.
        begins_with: the unit that it begins with.
        unit: the unit of its chart.
    """

    title: str
    length: int
    begins_with: Unit
    unit: Unit

    def begin(self, until: datetime) -> datetime:
        """Return the beginning of the range that ends then."""
        whole = {"minute": 0, "second": 0, "microsecond": 0} | ({"hour": 0} if self.begins_with == "day" else {})
        latest = until.astimezone(UTC).replace(**whole)  # type: ignore[arg-type]
        return latest - (self.length - 1) * WIDTHS[self.begins_with]

    def moments(self, until: datetime, unit: Unit | None = None) -> list[datetime]:
        """Return the hours or days, by default those of its chart, of the range that ends then."""
        first, width = self.begin(until), WIDTHS[unit or self.unit]
        return [first + number * width for number in range((until - first) // width + 1)]

    @property
    def width(self) -> timedelta:
        """The width of a bar in the chart."""
        return WIDTHS[self.unit]


RANGES: dict[Last, TimeRange] = {
    "24h": TimeRange("24 hours", 24, "hour", "hour"),
    # Its groups are answered from days, which are fewer rows.
    "7d": TimeRange("7 days", 7, "day", "hour"),
    "30d": TimeRange("30 days", 30, "day", "day"),
    "90d": TimeRange("90 days", 90, "day", "day"),
}
