import pytest

from benchmarks.samples import TOTAL, Breakdown, Figures, Samples, alternate, percentile


def test_systems_take_turns_in_every_round() -> None:
    turns: list[str] = []
    samples = alternate(2, {name: lambda name=name: float(len(turns.append(name) or turns)) for name in "ab"})
    assert turns == ["a", "b", "a", "b"]
    assert samples["a"].values == [1.0, 3.0]
    assert (samples["b"].median, samples["b"].lowest, samples["b"].highest) == (3.0, 2.0, 4.0)


def test_failed_system_is_not_measured_again_and_keeps_its_values() -> None:
    values = iter([1.0])
    samples = alternate(3, {"a": lambda: next(values), "b": lambda: 5.0})
    assert samples["a"].values == [1.0]
    assert samples["a"].failures == ["StopIteration: "]
    assert samples["b"].values == [5.0] * 3


def test_ratio_divides_by_the_median_of_the_base() -> None:
    table = Figures("t", "", "s", {"a": Samples([2.0, 4.0, 9.0]), "b": Samples([8.0]), "c": Samples()}, base="a")
    assert table.ratio("b") == 2.0
    assert table.ratio("c") is None


def test_ratio_is_missing_if_the_base_failed() -> None:
    table = Figures("t", "", "s", {"a": Samples([], ["TimeoutError: "]), "b": Samples([8.0])}, base="a")
    assert table.ratio("b") is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile_is_the_smallest_value_that_covers_the_share(share: float, value: float) -> None:
    assert percentile(range(100, 0, -1), share) == value


def test_total_is_the_last_column() -> None:
    table = Breakdown("t", "", "ms", {"a": {"x": 1.0, TOTAL: 1.0}, "b": {"y": 2.0, TOTAL: 2.0}})
    assert table.columns == ["x", "y", TOTAL]
