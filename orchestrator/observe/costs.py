"""Costs of model calls, by agent, model, tenant, tool and more, and what they would be otherwise.

The figures come from the statistics, except those of tools that call agents. Such a tool costs what its sub-tasks cost,
with everything below them. They are read from the latest sub-tasks of the time range, up to `MOST_SUBTASKS`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from genai_prices import Usage
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.observe.ends import AGENT
from orchestrator.observe.stats import AGE, COLUMNS, FILTERS, LISTS, Question, values_of
from shared.errors import InvalidInput
from shared.model_prices import price_by_name
from shared.model_usage import IN_A_BATCH
from shared.providers import split
from shared.settings import get_settings
from shared.tasks.queries import first_id_at

By = Literal["namespace", "agent", "version", "capability", "key", "model", "tool", "hour", "day"]
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
MOST_SUBTASKS = 10_000

# For the rest of the transaction.
SETTINGS = text("SELECT set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)")
TOOL = "CASE WHEN step IN ('tool_call', 'function_call') THEN name ELSE '' END"
MODEL = "CASE step WHEN 'model_call' THEN name ELSE '' END"
SUMS = ", ".join(f"sum({name})::bigint" for name in ("count", "microdollars", *TOKENS))
# The index of sub-tasks is in the order of their ids, which is that of time. The tool is that which calls the agent.
SUBTASKS = text(
    f"""
    WITH RECURSIVE called AS MATERIALIZED (
        SELECT task_id, name, child_id FROM steps WHERE child_id >= :first AND child_id < :after
            ORDER BY child_id DESC LIMIT :most
    ), calls AS MATERIALIZED (
        SELECT c.child_id, {AGENT} AS agent, w.name AS tool FROM called c
            JOIN tasks t ON t.id = c.task_id JOIN task_status s ON s.task_id = t.id
            JOIN agent_versions v ON v.id = t.agent_version_id
            JOIN LATERAL (
                SELECT w.name FROM agent_version_tools l JOIN tool_versions w ON w.id = l.tool_version_id
                    WHERE l.agent_version_id = v.id AND w.definition->>'type' = 'agent'
                      AND w.definition->>'agent' = c.name ORDER BY l.position LIMIT 1) w ON true
            WHERE (CAST(:namespace AS text) IS NULL OR t.namespace = :namespace)
              AND (CAST(:agent AS text) IS NULL OR {AGENT} = :agent)
              AND (CAST(:version AS integer) IS NULL OR v.number = :version)
              AND (CAST(:capability AS text) IS NULL OR COALESCE(s.capability, t.capability) = :capability)
              AND (CAST(:key AS text) IS NULL OR t.key = :key)
              AND (:only_agents = '{{}}' OR {AGENT} = ANY (:only_agents))
              AND (:only_capabilities = '{{}}' OR COALESCE(s.capability, t.capability) = ANY (:only_capabilities))
              AND (CAST(:tenant AS text) IS NULL OR t.key = :tenant)
              AND (CAST(:tenant_prefix AS text) IS NULL OR starts_with(t.key, :tenant_prefix))
    ), tree AS (
        SELECT child_id AS call, child_id AS id FROM calls
        UNION ALL
        SELECT tree.call, t.id FROM tree JOIN tasks t ON t.parent_id = tree.id
    ), spent AS (
        SELECT tree.call, sum(e.cost_microdollars) AS microdollars, sum(e.input_tokens) AS input_tokens,
               sum(e.output_tokens) AS output_tokens
            FROM tree JOIN executions e ON e.task_id = tree.id GROUP BY tree.call
    ), tools AS (
        SELECT c.agent, c.tool, count(*) AS made, COALESCE(sum(s.microdollars), 0)::bigint AS microdollars,
               COALESCE(sum(s.input_tokens), 0)::bigint AS input_tokens,
               COALESCE(sum(s.output_tokens), 0)::bigint AS output_tokens
            FROM calls c LEFT JOIN spent s ON s.call = c.child_id GROUP BY 1, 2
    )
    SELECT n.found, tools.* FROM (SELECT count(*) AS found FROM called) n LEFT JOIN tools ON true
    """  # noqa: S608 - constants
).bindparams(*(bindparam(name, type_=ARRAY(TEXT)) for name in ("only_agents", "only_capabilities")))


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Another model, or another lane, for the recorded tokens."""

    model: str | None = None
    lane: Literal["direct", "batch"] | None = None

    @classmethod
    def parse(cls, chosen: Sequence[str]) -> WhatIf | None:
        """Read `model=NAME` and `lane=batch`.

        Raises:
            InvalidInput: it is something else, or the model has no price.
        """
        given: dict[str, Any] = {}
        for each in chosen:
            name, _, value = each.partition("=")
            valid = bool(value) if name == "model" else name == "lane" and value in ("direct", "batch")
            if not valid or name in given:
                raise InvalidInput(
                    f"Invalid what-if {each[:100]!r}: it must be model=NAME, lane=batch or lane=direct, each once."
                )
            given[name] = value
        return cls(**given).checked() if given else None

    def checked(self) -> WhatIf:
        """Return it if it has a price."""
        if self.model is not None and self.lane == "batch" and not _has_batches(self.model):
            raise InvalidInput(f"Invalid what-if: the provider of the model {self.model[:100]!r} has no batches.")
        if self.model is not None:
            try:
                price_by_name(self.model, _usage(_Sums()))
            except LookupError:
                raise InvalidInput(
                    f"Invalid what-if: no price list knows the model {self.model[:100]!r}. Check its name."
                ) from None
        return self

    def dollars(self, model: str, sums: _Sums) -> Decimal | None:
        """Return the price of tokens that calls of `model` have used; None if it is not known, or has no batches."""
        chosen = self.model or model
        if self.lane == "batch" and not _has_batches(chosen):
            return None
        try:
            price = price_by_name(chosen, _usage(sums)) * sums.count
        except LookupError:
            return None
        return price * IN_A_BATCH if self.lane == "batch" else price


@dataclass(slots=True)
class _Sums:
    """The calls, tokens and micro-dollars of a group, and those of each of its models."""

    count: int = 0
    microdollars: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))
    models: dict[str, _Sums] = field(default_factory=dict)

    def add(self, count: int, microdollars: int, tokens: Iterable[int]) -> None:
        self.count += count
        self.microdollars += microdollars
        for name, number in zip(TOKENS, tokens, strict=True):
            self.tokens[name] += number


def _has_batches(model: str) -> bool:
    provider = get_settings().known_providers().get(split(model)[0])
    return provider is not None and provider.has_batches


def answer(
    connection: Connection, question: Question, by: Sequence[By], what_if: WhatIf | None, *, limit: int
) -> dict[str, Any]:
    """Return the groups with the highest costs first, and their total.

    Args:
        question: the time range and the filters; grouped by what the statistics know of `by`.
        what_if: None: nothing but what it cost.
    """
    values = values_of(question)
    groups: dict[tuple[Any, ...], _Sums] = defaultdict(_Sums)
    _read(connection, values, by, groups)
    is_partial = "tool" in by and _read_subtasks(connection, values, by, groups)
    ranked = sorted(groups.items(), key=lambda group: (-group[1].microdollars, str(group[0])))
    items = [{**dict(zip(by, group, strict=True)), **_item(sums, what_if)} for group, sums in ranked]
    return {
        "since": values["since"],
        "until": values["until"],
        "grain": question.grain,
        "age_seconds": connection.scalar(AGE),
        "what_if": what_if and {"model": what_if.model, "lane": what_if.lane},
        "partial": is_partial,
        "total": _total(items),
        "items": items[:limit],
    }


def check(by: Sequence[By], what_if: WhatIf | None) -> None:
    """Refuse groups that have no answer.

    Raises:
        InvalidInput: tools are grouped with something but agents, or priced otherwise.
    """
    if "tool" not in by:
        return
    if set(by) - {"tool", "agent"}:
        raise InvalidInput("Invalid `by`: `tool` must be alone or with `agent`.")
    if what_if is not None:
        raise InvalidInput("Invalid what-if: a tool has no model. Group by agent or model.")


def _read(
    connection: Connection, values: dict[str, Any], by: Sequence[By], groups: dict[tuple[Any, ...], _Sums]
) -> None:
    columns = [TOOL if name == "tool" else COLUMNS.get(name, name) for name in by]
    only = " AND step IN ('tool_call', 'function_call')" if "tool" in by else ""
    grouped = ", ".join(map(str, range(1, len(by) + 2)))
    statement = text(
        f"SELECT {', '.join([*columns, MODEL])}, {SUMS} FROM statistics "  # noqa: S608
        f"WHERE {FILTERS}{only} GROUP BY {grouped}"
    ).bindparams(*LISTS)
    for row in connection.execute(statement, {**values, "kinds": ["step"]}):
        group, model = tuple(row[: len(by)]), row[len(by)]
        count, microdollars, *tokens = row[len(by) + 1 :]
        sums = groups[group]
        if "tool" in by:
            sums.add(count, microdollars, tokens)
            continue
        # Other steps are no calls of models, and cost nothing by themselves.
        sums.add(count if model else 0, microdollars, tokens)
        if model:
            sums.models.setdefault(model, _Sums()).add(count, microdollars, tokens)


def _read_subtasks(
    connection: Connection, values: dict[str, Any], by: Sequence[By], groups: dict[tuple[Any, ...], _Sums]
) -> bool:
    """Add the sub-tasks of tools that call agents. Return whether there were more than are read."""
    connection.execute(SETTINGS)
    ids = {"first": first_id_at(values["since"]), "after": first_id_at(values["until"])}
    rows = connection.execute(SUBTASKS, {**values, **ids, "most": MOST_SUBTASKS + 1}).all()
    for row in rows:
        if row.tool is not None:
            group = tuple(getattr(row, name) for name in by)
            groups[group].add(row.made, row.microdollars, (row.input_tokens, row.output_tokens, 0, 0))
    return int(rows[0].found) > MOST_SUBTASKS


def _usage(sums: _Sums) -> Usage:
    """Return the usage of an average call: some prices depend on the length of a call."""
    return Usage(**{name: Decimal(number) / max(1, sums.count) for name, number in sums.tokens.items()})


def _item(sums: _Sums, what_if: WhatIf | None) -> dict[str, Any]:
    return {
        "calls": sums.count,
        "tokens": {name.removesuffix("_tokens"): number for name, number in sums.tokens.items()},
        "dollars": sums.microdollars / 1e6,
        **({} if what_if is None else _otherwise(sums, what_if)),
    }


def _otherwise(sums: _Sums, what_if: WhatIf) -> dict[str, Any]:
    prices = {model: what_if.dollars(model, each) for model, each in sums.models.items()}
    known = [price for price in prices.values() if price is not None]
    unpriced = sum(sums.models[model].count for model, price in prices.items() if price is None)
    return {"what_if_dollars": float(sum(known, Decimal(0))), "unpriced_calls": unpriced}


def _total(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("calls", "dollars", "what_if_dollars", "unpriced_calls")
    sums = {name: sum(item[name] for item in items) for name in names if all(name in item for item in items)}
    tokens = {name.removesuffix("_tokens"): 0 for name in TOKENS}
    return {**sums, "tokens": {name: sum(item["tokens"][name] for item in items) for name in tokens}}
