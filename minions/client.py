# Generated from minions/aio/client.py by `make client`: change that file.
"""The client: submit tasks over HTTP and read their results.

    from minions import Client

    with Client() as client:
        task = client.submit("Classifier", {"text": "…"})
        print(task.result())

It needs `MINION_API_URL` and `MINION_API_KEY` (or `MINION_API_KEY_FILE`), or the same as arguments.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import UUID

from minions.alerts import Alerts
from minions.audit import Audit
from minions.bulk_acts import BulkActs
from minions.comparison import Comparison, Record, compare
from minions.errors import NotConfigured
from minions.files import Files
from minions.following import follow
from minions.keys import Keys
from minions.memories import Memories
from minions.operations import Operations
from minions.submissions import NOT_GIVEN, NotGiven, Submissions, TaskId, id_of, task_path
from minions.task import Task, TaskSummary
from minions.task_event import TaskEvent
from minions.transport import Transport
from minions.wire import PAGE, given, to_json

WHOLE_ID = 32  # characters, without hyphens


class Client(Submissions, Operations, BulkActs, Alerts, Files, Keys, Audit, Memories):
    """Client of the API. Threads may share one; close it, or use it as a context manager.

    Requests are retried when the API or its database is unavailable and a retry is safe: all that only read, `cancel`,
    and `submit` and `submit_many`, which always send an idempotency key.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 5,
        actor: str | None = None,
    ) -> None:
        """Create a client without sending anything.

        Args:
            url: the API's address; by default MINION_API_URL.
            api_key: its key; by default MINION_API_KEY, or the content of the file that MINION_API_KEY_FILE names.
            timeout: seconds until a request is abandoned.
            retries: number of retries of a request.
            actor: the name of the actor, for the record of decisions, pauses, limits, replays and cancellations.
                Records show it as a claim. By default MINION_ACTOR.

        Raises:
            NotConfigured: there is no address, or no key that a header can carry, or its file cannot be read.
        """
        address = url or _from_environment("MINION_API_URL", "the address of the API, such as http://127.0.0.1:8700")
        # A key from a file often ends with a newline.
        key = (api_key or _from_file("MINION_API_KEY") or _from_environment("MINION_API_KEY", "the API key")).strip()
        actor = actor or os.environ.get("MINION_ACTOR")
        self._transport = Transport(address, key, timeout=timeout, retries=retries, actor=actor)

    def follow(self, task: TaskId, after: int = 0) -> Generator[TaskEvent, None]:
        """Yield a task's events as they happen, until its end. Broken connections are resumed where they broke off.

        Args:
            after: the id of the last event already read; 0 starts at the beginning.

        Raises:
            NotFound: there is no task with that id.
            InvalidInput: the task has no event with the id `after` yet.
            Unavailable: the API is still unavailable after the retries.
        """
        # A broken connection is reopened, and by then another task may have the same first characters.
        whole = task if len(id_of(task)) >= WHOLE_ID else self.get(task)
        with closing(follow(self._transport, task_path(whole, "events"), after)) as events:
            yield from events

    def tasks(
        self,
        query: str | None = None,
        *,
        state: str | Iterable[str] | None = None,
        agent: str | None = None,
        capability: str | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        root_id: TaskId | None = None,
        parent_id: TaskId | None = None,
        replay_of: TaskId | None = None,
        conversation_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        error_fingerprint: str | None = None,
        unreplayed: bool | None = None,
        outputs: bool | None = None,
        namespace: str | None = None,
        page: int = PAGE,
    ) -> Iterator[TaskSummary]:
        """Yield all matching tasks, the newest first; pages are loaded as they are read.

        Args:
            query: filters in one text, like `agent:triage state:failed since:1d cost:>0.5`.
            error_fingerprint: only tasks that failed with this kind of error: see `dead_letters`.
            unreplayed: only tasks without a replay.
            outputs: include the outputs.
        """
        filters = _filters(
            query=query,
            state=state,
            agent=agent,
            capability=capability,
            key=key,
            labels=labels,
            root_id=root_id,
            parent_id=parent_id,
            replay_of=replay_of,
            conversation_id=conversation_id,
            created_after=created_after,
            created_before=created_before,
            error_fingerprint=error_fingerprint,
            unreplayed=unreplayed or None,
            outputs=outputs or None,
            namespace=namespace,
        )
        pages = self._transport.pages("/v1/tasks", {**filters, "limit": page})
        return (TaskSummary.of(item, self) for item in pages)

    def tree(self, task: TaskId) -> Iterator[TaskSummary]:
        """Yield the task and everything below it, the oldest first."""
        pages = self._transport.pages(task_path(task, "tree"), {"limit": PAGE})
        return (TaskSummary.of(item, self) for item in pages)

    def counts(self, root_id: TaskId | None = None, **filters: Any) -> dict[str, Any]:
        """Return the number of tasks: `{"by_state": {state: n}, "by_capability": {name: {state: n}}}`.

        Args:
            filters: as for `tasks`.
        """
        counts: dict[str, Any] = self._transport.get("/v1/tasks/counts", params=_filters(root_id=root_id, **filters))
        return counts

    def steps(self, task: TaskId) -> Iterator[dict[str, Any]]:
        """Yield the task's journal, in order."""
        return self._transport.pages(task_path(task, "steps"), {})

    def executions(self, task: TaskId) -> Iterator[dict[str, Any]]:
        """Yield every claim of the task by a minion, in order."""
        return self._transport.pages(task_path(task, "executions"), {})

    def cancel(self, task: TaskId, reason: str | None = None) -> Task:
        """Cancel a task and everything below it. A running one is asked to stop; one that has ended is unchanged."""
        body = to_json(given(reason=reason), what="The reason")
        return self._task(self._transport.post(task_path(task, "cancel"), body, safe=True))

    def label(self, task: TaskId, labels: Mapping[str, str | None]) -> Task:
        """Set labels of a task, and of no task below it; None removes one, and others stay."""
        body = to_json({"labels": dict(labels)}, what="The labels")
        return self._task(self._transport.patch(task_path(task, "labels"), body))

    def replay(
        self,
        task: TaskId,
        pinned: bool | None = None,
        *,
        from_step: int | None = None,
        edited_output: Any = NOT_GIVEN,
        new_keys: bool = False,
    ) -> Task:
        """Submit an ended task again, as a new task.

        Args:
            pinned: run the agent version of the original, not the active one. By default only a replay from a step
                does.
            from_step: read back the journal before this step, and continue from there. With `pinned=False`, the task
                fails with `history_diverged` at the first step for which the active version asks otherwise.
            edited_output: with `from_step`: keep that step too, with this output in place of the recorded one.
            new_keys: use new idempotency keys for its calls, and those of all tasks below it, so that external systems
                treat them as new.

        Raises:
            Conflict: it has not ended yet, or a step before `from_step` cannot be read back.
            InvalidInput: there is no such step, or it could not have returned this output.
        """
        request = given(pinned=pinned, from_step=from_step, new_keys=new_keys or None)
        if not isinstance(edited_output, NotGiven):
            request["edited_output"] = edited_output
        body = to_json(request, what="The request")
        return self._task(self._transport.post(task_path(task, "replay"), body, safe=False))

    def diff(self, a: TaskId, b: TaskId) -> Comparison:
        """Compare the steps, outputs and costs of two tasks.

        Raises:
            NotFound: there is no task with one of the ids.
        """
        return compare(self._record(a), self._record(b))

    def _record(self, task: TaskId) -> Record:
        found = self.get(task)
        steps = list(self.steps(found))
        below = [str(step["child_id"]) for step in steps if step["child_id"] and not step.get("copied_from")]
        ended = [self.get(child) for child in dict.fromkeys(below)]
        outcomes = {child.id: {"output": child.output, "error": child.error} for child in ended}
        return Record(found, steps, list(self.executions(found)), outcomes)

    def why(self, task: TaskId) -> dict[str, Any]:
        """Explain a task's state: `sentence`, `reason`, `todo` and `facts`.

        Raises:
            NotFound: there is no task with that id.
        """
        found: dict[str, Any] = self._transport.get(task_path(task, "why"))
        return found

    def decisions(self, task: TaskId) -> list[dict[str, Any]]:
        """Return the decisions that a task waits for: `kind`, `step`, `proposal`, `name`, `value` and `schema` of each.
        A question of an MCP server also has `server` and `question`.

        Raises:
            NotFound: there is no task with that id.
        """
        items: list[dict[str, Any]] = self._transport.get(task_path(task, "decisions"))["items"]
        return items

    def signal(self, task: TaskId, name: str, payload: Any = None) -> Task:
        """Send a signal to a task. It is kept until the task waits for it.

        Raises:
            NotFound: there is no task with that id.
            Conflict: it has ended.
        """
        body = to_json({"payload": payload}, what="The payload")
        return self._task(self._transport.post(task_path(task, f"signals/{quote(name, safe='')}"), body, safe=False))

    def decide(
        self,
        task: TaskId,
        verdict: str,
        value: Any = None,
        reason: str | None = None,
        step: int | None = None,
        *,
        proposal: str | None = None,
    ) -> Task:
        """Decide about a step that waits for a person, and name the step or proposal that was shown.

        Args:
            verdict: `approve` or `reject` a proposed call; `result`, `again` or `fail` for one that was interrupted.
            value: for `approve` other arguments than proposed, for `result` what the call returned.
            step: the number of the step.
            proposal: `why(task)["facts"]["proposal"]`: unlike a step, it also distinguishes two interruptions.

        Returns:
            The task; its `decision` describes the decision.

        Raises:
            NotFound: there is no task with that id.
            Conflict: it waits for no such decision, or is waiting for another one by now.
            InvalidInput: neither step nor proposal is given, or the verdict does not fit the step.
        """
        decision = given(verdict=verdict, value=value, reason=reason, step=step, proposal=proposal)
        body = to_json(decision, what="The decision")
        return self._task(self._transport.post(task_path(task, "decisions"), body, safe=False))

    def change_budget(
        self,
        task: TaskId,
        *,
        add_tokens: int | None = None,
        add_dollars: float | None = None,
        add_steps: int | None = None,
        add_seconds: float | None = None,
        stop: bool = False,
    ) -> Task:
        """Raise the budget that a task waits for, or else its own. All tasks that now have room in it continue.

        Args:
            add_seconds: counted from now, if the time is used up.
            stop: from now on, fail every task that finds no room in the budget.

        Returns:
            The task to which the budget belongs.

        Raises:
            NotFound: there is no such task.
            Conflict: it has no budget, the budget has no such limit, or the task has ended.
        """
        asked = given(
            add_tokens=add_tokens,
            add_dollars=add_dollars,
            add_steps=add_steps,
            add_seconds=add_seconds,
            stop=stop or None,
        )
        body = to_json(asked, what="The change")
        return self._task(self._transport.post(task_path(task, "budget"), body, safe=False))

    def agents(self, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield all agents, by name."""
        return self._transport.pages("/v1/agents", {"namespace": namespace, "limit": PAGE})

    def agent(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return one agent with its definition and its versions.

        Raises:
            UnknownAgent: there is no agent of that name.
        """
        found: dict[str, Any] = self._transport.get(
            f"/v1/agents/{quote(name, safe='')}", params={"namespace": namespace}
        )
        return found

    def agent_version(self, name: str, number: int, namespace: str | None = None) -> dict[str, Any]:
        """Return one version of an agent, active or not, with its definition.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
        """
        path = f"/v1/agents/{quote(name, safe='')}/versions/{number}"
        found: dict[str, Any] = self._transport.get(path, params={"namespace": namespace})
        return found

    def roll_back_agent(
        self, name: str, version: int, reason: str | None = None, *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Make an earlier version of an agent the active one, until a new text of it is applied, and return the agent.

        A disabled agent stays disabled.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
            InvalidDefinition: the version calls agents that now call it.
        """
        body = to_json(given(version=version, reason=reason), what="The request")
        path = f"/v1/agents/{quote(name, safe='')}/rollback"
        agent: dict[str, Any] = self._transport.post(path, body, params={"namespace": namespace}, safe=True)
        return agent

    def set_canary(
        self,
        name: str,
        version: int,
        share: str,
        reason: str | None = None,
        *,
        max_failures: float | None = None,
        max_cost: float | None = None,
        max_score_drop: float | None = None,
        min_tasks: int | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Give a version a share of an agent's new tasks, or change the share that it has, and return the agent.

        `roll_back_agent` ends the canary.

        Args:
            share: a percentage, such as `10%`; `100%` makes the version the active one.
            max_failures: the additional share of failed tasks that is allowed: 0.05 is five percentage points.
            max_cost: the additional cost of a task that is allowed: 0.5 is half as much again.
            max_score_drop: how much lower the mean score of an evaluator may be.
            min_tasks: nothing is decided before this many tasks of each version have ended.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
            InvalidInput: the version is the active one, or a value is not valid.
            Conflict: the agent is disabled.
            InvalidDefinition: the version calls agents that now call it.
        """
        asked = given(
            version=version,
            share=share,
            reason=reason,
            max_failures=max_failures,
            max_cost=max_cost,
            max_score_drop=max_score_drop,
            min_tasks=min_tasks,
        )
        path = f"/v1/agents/{quote(name, safe='')}/canary"
        body = to_json(asked, what="The request")
        agent: dict[str, Any] = self._transport.put(path, body, params={"namespace": namespace})
        return agent

    def evaluate(
        self,
        agent: str,
        evaluator: str,
        *,
        since: datetime,
        dollars: float,
        until: datetime | None = None,
        version: int | None = None,
        share: str | None = None,
        limit: int | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Have succeeded tasks of an agent judged, the newest first, without those that the evaluator has judged.

        Return `tasks`, their number, and `dollars_per_task`. The versions of `agent()` have the scores.

        Args:
            dollars: for all judging tasks together: each may spend the same part of it.
            share: of the tasks, such as `10%`; all by default.
            limit: the largest number of tasks, 100 by default.

        Raises:
            UnknownAgent: there is no such agent or evaluator.
        """
        asked = given(
            agent=agent,
            evaluator=evaluator,
            since=since.isoformat(),
            until=until.isoformat() if until else None,
            dollars=dollars,
            version=version,
            share=share,
            limit=limit,
            namespace=namespace,
        )
        body = to_json(asked, what="The request")
        chosen: dict[str, Any] = self._transport.post("/v1/evaluations", body, safe=True)
        return chosen

    def set_agent_status(
        self, name: str, status: str, reason: str | None = None, *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Make an agent `active`, `deprecated` (still accepts tasks) or `disabled` (does not), and return it.

        Raises:
            UnknownAgent: there is no agent of that name.
        """
        body = to_json(given(status=status, reason=reason), what="The request")
        path = f"/v1/agents/{quote(name, safe='')}/status"
        agent: dict[str, Any] = self._transport.put(path, body, params={"namespace": namespace})
        return agent

    def route(self, message: str, namespace: str | None = None) -> dict[str, Any]:
        """Return the agent that a message would go to (`agent`, `by`, `problem`) and the `scores`; submit nothing."""
        body = to_json({"message": message}, what="The message")
        route: dict[str, Any] = self._transport.post("/v1/routes", body, params={"namespace": namespace}, safe=True)
        return route

    def contracts(self, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the contracts of all active agents that have an input schema, by name: `input_schema`, `output_schema`,
        `effect`."""
        return self._transport.pages("/v1/contracts", {"namespace": namespace, "limit": PAGE})

    def contract(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return the contract of one agent.

        Raises:
            UnknownAgent: there is no active agent of that name, or it has no input schema.
        """
        path = f"/v1/contracts/{quote(name, safe='')}"
        found: dict[str, Any] = self._transport.get(path, params={"namespace": namespace})
        return found

    def access(self) -> dict[str, Any]:
        """Return the rights of the client's own key: `role`, `permissions`, `namespace`, `scope`.

        `retention_days` says how long ended tasks are kept.
        """
        found: dict[str, Any] = self._transport.get("/v1/access")
        return found

    def tools(self, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield all tools, by name."""
        return self._transport.pages("/v1/tools", {"namespace": namespace, "limit": PAGE})

    def tool(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return one tool with its definition and its versions.

        Raises:
            NotFound: there is no tool of that name.
        """
        path = f"/v1/tools/{quote(name, safe='')}"
        found: dict[str, Any] = self._transport.get(path, params={"namespace": namespace})
        return found

    def functions(self, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield all functions of the function store, by name."""
        return self._transport.pages("/v1/functions", {"namespace": namespace, "limit": PAGE})

    def function(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return one function with its code, contract and versions.

        Raises:
            NotFound: there is no function of that name.
        """
        path = f"/v1/functions/{quote(name, safe='')}"
        found: dict[str, Any] = self._transport.get(path, params={"namespace": namespace})
        return found

    def function_events(self, name: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """Return the latest 50 security events of a function, the newest first.

        Raises:
            NotFound: there is no function of that name.
        """
        path = f"/v1/functions/{quote(name, safe='')}/security-events"
        items: list[dict[str, Any]] = self._transport.get(path, params={"namespace": namespace})["items"]
        return items

    def set_function_status(
        self,
        name: str,
        status: str,
        *,
        version: int | None = None,
        reason: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Make a version of a function `active`, `deprecated` or `quarantined`, and return the function.

        Args:
            version: by default the active one.

        Raises:
            NotFound: there is no such function or version.
            Conflict: the version is to be active, and its row was changed from outside.
        """
        body = to_json(given(status=status, version=version, reason=reason), what="The request")
        path = f"/v1/functions/{quote(name, safe='')}/status"
        function: dict[str, Any] = self._transport.put(path, body, params={"namespace": namespace})
        return function

    def capabilities(self) -> list[dict[str, Any]]:
        """Return every capability with its agents, its workers, and the amount of waiting work."""
        items: list[dict[str, Any]] = self._transport.get("/v1/capabilities")["items"]
        return items

    def stats(
        self,
        *,
        by: Iterable[str] = ("agent",),
        since: datetime | None = None,
        until: datetime | None = None,
        **filters: Any,
    ) -> dict[str, Any]:
        """Return counts, times in seconds, tokens and dollars of ended work, the largest groups first.

        Args:
            by: what to group by: `namespace`, `agent`, `version`, `capability`, `key`, `model`, `function`, `hour`,
                `day`.
            since: by default a day ago; whole hours or days are counted.
            until: by default now.
            filters: `agent`, `version`, `capability`, `key`, `model`, `function`, `namespace`, `limit`.
        """
        times = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        found: dict[str, Any] = self._transport.get("/v1/stats", params={"by": list(by), **times, **filters})
        return found

    def costs(
        self,
        *,
        by: Iterable[str] = ("agent",),
        since: datetime | None = None,
        until: datetime | None = None,
        what_if: Iterable[str] = (),
        **filters: Any,
    ) -> dict[str, Any]:
        """Return what model calls cost in dollars, the most expensive groups first, and their total.

        Args:
            by: what to group by: `namespace`, `agent`, `version`, `capability`, `key`, `model`, `hour`, `day`; or
                `tool`, alone or with `agent`.
            since: by default a day ago; whole hours or days are counted.
            until: by default now.
            what_if: `model=NAME` and `lane=batch`: also what the same tokens would cost.
            filters: `agent`, `version`, `capability`, `key`, `model`, `namespace`, `limit`.
        """
        chosen = {"by": list(by), "what_if": list(what_if)}
        times = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        found: dict[str, Any] = self._transport.get("/v1/costs", params={**chosen, **times, **filters})
        return found

    def workers(self, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the minions, the latest started first.

        Args:
            status: `online`, `stopped` or `lost`; None for all.
        """
        return self._transport.pages("/v1/workers", {"status": status, "limit": PAGE})

    def _task(self, data: Mapping[str, Any]) -> Task:
        return Task.of(data, self)

    def ready(self) -> bool:
        """Return whether the API answers and has everything it needs. Not retried."""
        return self._transport.status_of("/readyz") == 200

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _from_environment(name: str, what: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise NotConfigured(f"{name} is not set: pass {what} to the client, or set the variable.")
    return value


def _from_file(name: str) -> str | None:
    """The secret in the file that `NAME_FILE` names, under the same rules as the servers read theirs."""
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return None
    if os.environ.get(name):
        raise NotConfigured(f"{name} and {name}_FILE are both set: set one of them.")
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise NotConfigured(f"{name}_FILE: the file {path} cannot be read: {error}.") from None
    if not secret:
        raise NotConfigured(f"{name}_FILE: the file {path} is empty: it must hold the value.")
    return secret


def _filters(
    *, state: str | Iterable[str] | None = None, labels: Mapping[str, str] | None = None, **others: Any
) -> dict[str, Any]:
    """Return filters as query parameters."""
    filters = {
        name: id_of(value) if isinstance(value, UUID | TaskSummary) else value
        for name, value in given(**others).items()
    }
    if state is not None:
        filters["state"] = [state] if isinstance(state, str) else [str(one) for one in state]
    if labels:
        filters["label"] = [f"{name}:{value}" for name, value in labels.items()]
    return filters
