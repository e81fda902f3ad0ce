"""The script waits for its tasks, so they must run elsewhere: `live_minions` has worker processes."""

from pathlib import Path

import pytest
from nightly import main

AGENTS = Path(__file__).parent.parent / "agents.yaml"


@pytest.fixture
def workers(live_minions):
    live_minions.apply(AGENTS)
    return live_minions


def test_sum_of_all_orders_is_printed(workers, tmp_path, capsys):
    orders = tmp_path / "orders.csv"
    orders.write_text("boats\n1\n2\n")
    assert main(orders) == 0
    assert capsys.readouterr().out == "750\n"
    workers.assert_submitted("pricing", times=2)


def test_failed_order_is_reported(workers, tmp_path, capsys):
    orders = tmp_path / "orders.csv"
    orders.write_text("boats\n1\n13\n")
    assert main(orders) == 1
    printed = capsys.readouterr()
    assert printed.out == "250\n"
    assert "bad luck" in printed.err
