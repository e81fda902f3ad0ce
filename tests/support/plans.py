"""The plans of all statements that a call runs, those inside the functions of the database too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from sqlalchemy import Connection

Plan = dict[str, Any]

SETTINGS = (
    "LOAD 'auto_explain'",
    "SET LOCAL auto_explain.log_min_duration = 0",
    "SET LOCAL auto_explain.log_nested_statements = on",
    "SET LOCAL auto_explain.log_analyze = on",
    "SET LOCAL auto_explain.log_timing = off",
    "SET LOCAL auto_explain.log_format = json",
    "SET LOCAL client_min_messages = log",
)


Mode = Literal["auto", "force_custom_plan", "force_generic_plan"]


def plans_of(connection: Connection, call: Callable[[], Any], *, mode: Mode = "auto") -> list[Plan]:
    """Return the executed plans, with the rows that they read. Each has the text of its query beside its plan.

    Args:
        connection: one in a transaction, at the end of which the settings are gone.
        call: what runs the statements.
        mode: whether statements inside functions get plans for their values. After some runs on a connection
            PostgreSQL may choose a generic plan, so "auto" depends on what ran before.
    """
    seen: list[str] = []
    for setting in (*SETTINGS, f"SET LOCAL plan_cache_mode = {mode}"):
        connection.exec_driver_sql(setting)
    driver: Any = connection.connection.driver_connection

    def remember(notice: Any) -> None:
        seen.append(notice.message_primary)

    driver.add_notice_handler(remember)
    try:
        call()
        connection.exec_driver_sql("SET LOCAL auto_explain.log_min_duration = -1")
    finally:
        driver.remove_notice_handler(remember)
    return [json.loads(text.partition("plan:")[2]) for text in seen if "plan:" in text]


def every_node(plan: Plan) -> Iterator[Plan]:
    """Yield the nodes of a plan."""
    node = plan.get("Plan", plan)
    yield node
    for part in node.get("Plans", []):
        yield from every_node(part)


def nodes_of(plan: Plan) -> set[tuple[str, str | None]]:
    """Return the kind of each node, and the relation, index or CTE that it reads."""
    return {
        (node["Node Type"], node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name"))
        for node in every_node(plan)
    }


def rows_read(plan: Plan) -> float:
    """Return how many rows the nodes of a plan produced or filtered out."""
    return sum(
        (node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)) * node.get("Actual Loops", 0)
        for node in every_node(plan)
    )
