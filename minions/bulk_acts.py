# Generated from minions/aio/bulk_acts.py by `make client`: change that file.
"""Acts on many tasks, as methods of the client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from uuid import UUID

from minions.transport import Transport
from minions.wire import PAGE, given, segment, to_json


class BulkActs:
    """The methods of `minions.Client` that are about acts on all tasks that match a query."""

    _transport: Transport

    def start_bulk_act(
        self,
        act: Literal["cancel", "replay", "label"],
        query: str,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        labels: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Start an act on all tasks that match a query; an orchestrator works it off, the oldest task first.

        Args:
            query: like `agent:triage state:failed since:1d`.
            rate: tasks a second; by default 20.
            dry_run: only count the tasks, as `matched` and `by_state`, and show the `newest`.
            labels: of the act `label`: values by name; None removes a label.
            options: `reason` of a cancellation; `pinned`, `new_keys` and `again` of a replay; `created_before`, the
                `until` of a dry run.

        Raises:
            InvalidInput: the query or an option is wrong.
            Forbidden: the key may not do the act.
        """
        asked = given(act=act, query=query, rate=rate, dry_run=dry_run or None, **options)
        if labels is not None:
            asked["labels"] = dict(labels)
        started: dict[str, Any] = self._transport.post("/v1/bulk-acts", to_json(asked, what="The act"), safe=dry_run)
        return started

    def bulk_acts(self, *, state: str | None = None, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the bulk acts, the newest first."""
        return self._transport.pages("/v1/bulk-acts", {**given(state=state, namespace=namespace), "limit": PAGE})

    def bulk_act(self, bulk_act: str | UUID) -> dict[str, Any]:
        """Return a bulk act and its progress: `state`, `matched`, `done`, `failed`, `skipped`.

        Raises:
            NotFound: there is none with this id.
        """
        found: dict[str, Any] = self._transport.get(_path(bulk_act))
        return found

    def stop_bulk_act(self, bulk_act: str | UUID) -> dict[str, Any]:
        """Stop a bulk act: no task is acted on any more. May be repeated.

        Raises:
            NotFound: there is none with this id.
        """
        found: dict[str, Any] = self._transport.post(f"{_path(bulk_act)}/stop", "{}", safe=True)
        return found


def _path(bulk_act: str | UUID) -> str:
    return f"/v1/bulk-acts/{segment(bulk_act)}"
