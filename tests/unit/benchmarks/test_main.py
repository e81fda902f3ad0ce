import pytest

from benchmarks.__main__ import parse
from benchmarks.systems import SYSTEMS


def test_all_systems_are_chosen_by_default() -> None:
    assert parse([]).systems == SYSTEMS


def test_systems_are_chosen_by_parts_of_their_names() -> None:
    assert [kind.name for kind in parse(["--systems", "rq", "minions"]).systems] == [
        "minions, builtin tool",
        "minions, sandboxed function",
        "rq, redis results",
    ]


def test_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--systems", "nope"])
    assert "no system is named 'nope'" in capsys.readouterr().err
