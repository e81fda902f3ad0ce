"""Operations on many tasks, as methods of the client: replays, pauses, limits, schedules, webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from minions.aio.task import AsyncTask
from minions.aio.transport import AsyncTransport
from minions.errors import InvalidInput
from minions.wire import PAGE, given, segment, to_json


class AsyncOperations:
    """The methods of `minions.AsyncClient` that are about many tasks."""

    _transport: AsyncTransport
    _task: Callable[[Mapping[str, Any]], AsyncTask]

    async def replay_many(
        self,
        *,
        pinned: bool = False,
        new_keys: bool = False,
        rate: float = 10.0,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **filters: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """Submit ended tasks again, the newest first, spread over time; yield `{task_id, replayed_as, error}`.

        Args:
            pinned: run the agent versions of the originals, not the active ones.
            new_keys: use new idempotency keys for their calls, and those of all tasks below them.
            rate: number of the new tasks that may start per second.
            dry_run: only list the tasks.
            progress: called after each page with the number of processed tasks and the total.
            filters: `states` (by default the failed ones), `agent`, `capability`, `key`, `error_fingerprint`,
                `function` (`NAME@NUMBER`), `created_after`, `created_before`, `namespace`, `again`.
        """
        asked = {**given(**filters, new_keys=new_keys or None), "pinned": pinned, "rate": rate, "dry_run": dry_run}
        asked["batch"] = str(uuid4())
        done, matched = 0, 0
        while True:
            page = await self._transport.post("/v1/replays", to_json(asked, what="The request"), safe=True)
            for item in page["items"]:
                yield item
            done += len(page["items"])
            matched = page["matched"] or matched
            if progress is not None:
                progress(done, max(matched, done))
            if page["next"] is None:
                return
            asked |= {"cursor": page["next"], "start_at": page["start_at"]}

    async def submit_trial(
        self,
        recording: Mapping[str, Any],
        *,
        level: str,
        agent: str | None = None,
        version: int | None = None,
        allow_idempotent: bool = False,
        labels: Mapping[str, str] | None = None,
        budget: Mapping[str, Any] | None = None,
        namespace: str | None = None,
    ) -> AsyncTask:
        """Submit a task that runs against a recording, with no effect on the world.

        Args:
            recording: of a task, as `minion record` writes it.
            level: `replay`: every step must be the recorded one. `shadow`: the model is called, and tools have their
                recorded results.
            agent: by default that of the recording.
            version: by default the active one.
            allow_idempotent: at the level `shadow`, make idempotent calls that were not recorded.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
            InvalidInput: the recording is not valid.
        """
        options = given(agent=agent, version=version, labels=labels, budget=budget, namespace=namespace)
        asked = {**options, "recording": recording, "level": level, "allow_idempotent": allow_idempotent}
        body = to_json(asked, what="The recording")
        return self._task(await self._transport.post("/v1/trials", body, safe=False))

    def dead_letters(self, agent: str | None = None, namespace: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield failed tasks without a replay, grouped by the kind of error."""
        return self._transport.pages("/v1/dead-letters", {"agent": agent, "namespace": namespace, "limit": PAGE})

    async def errors(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        agent: str | None = None,
        state: str | Sequence[str] | None = None,
        namespace: str | None = None,
        limit: int = 100,
    ) -> dict[str, Any]:
        """Return the kinds of errors of a time range, the most frequent first, with the number of all failures.

        Args:
            since: by default a day ago.
            agent: only failures of this agent.
            state: only kinds in this state, or one of these: `open`, `reopened`, `resolved` or `ignored`.
        """
        filters = {"agent": agent, "state": state, "namespace": namespace, "limit": limit}
        found: dict[str, Any] = await self._transport.get("/v1/errors", params={**_range(since, until), **filters})
        return found

    async def error(
        self,
        fingerprint: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Return one kind of error, with its number by the hour or the day.

        Raises:
            NotFound: no failure of it is known.
        """
        params = {**_range(since, until), "namespace": namespace}
        found: dict[str, Any] = await self._transport.get(_error_path(fingerprint), params=params)
        return found

    async def decide_error(
        self, fingerprint: str, state: str, reason: str | None = None, namespace: str | None = None
    ) -> dict[str, Any]:
        """Resolve or ignore a kind of error, or open it again. A resolved one reopens when a task fails with it.

        Args:
            state: `resolved`, `ignored` or `open`.

        Raises:
            NotFound: no failure of it is known.
        """
        body = to_json(given(state=state, reason=reason), what="The decision")
        params = {"namespace": namespace}
        decided: dict[str, Any] = await self._transport.put(_error_path(fingerprint), body, params=params)
        return decided

    async def pause(
        self, scope: str, name: str, reason: str | None = None, namespace: str | None = None
    ) -> dict[str, Any]:
        """Keep the tasks of a `capability`, an `agent` or a `key` from starting."""
        body = to_json(given(reason=reason), what="The reason")
        paused: dict[str, Any] = await self._transport.put(
            _rule_path("pauses", scope, name), body, params={"namespace": namespace}
        )
        return paused

    async def resume(self, scope: str, name: str, namespace: str | None = None) -> None:
        """Let paused tasks start again.

        Raises:
            NotFound: there is no such pause.
        """
        await self._transport.delete(_rule_path("pauses", scope, name), params={"namespace": namespace})

    async def pauses(self) -> list[dict[str, Any]]:
        """Return all pauses."""
        items: list[dict[str, Any]] = (await self._transport.get("/v1/pauses"))["items"]
        return items

    async def stop_all(
        self,
        reason: str | None = None,
        *,
        agent: str | None = None,
        key: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Keep tasks from beginning model calls and unsafe effects, in every process, until `lift_stop`.

        Args:
            agent: only the tasks of this agent.
            key: only the tasks of this tenant key.
            namespace: only this namespace; by default all of them, or for an agent or a key `default`.
        """
        body = to_json(given(**_stop_target(agent, key, namespace), reason=reason), what="The stop")
        stopped: dict[str, Any] = await self._transport.post("/v1/stops", body, safe=True)
        return stopped

    async def lift_stop(
        self, *, agent: str | None = None, key: str | None = None, namespace: str | None = None
    ) -> None:
        """Lift a stop: its tasks continue. The arguments are those of `stop_all`.

        Raises:
            NotFound: there is no such stop.
        """
        await self._transport.delete("/v1/stops", params=_stop_target(agent, key, namespace))

    async def stops(self) -> list[dict[str, Any]]:
        """Return all stops."""
        items: list[dict[str, Any]] = (await self._transport.get("/v1/stops"))["items"]
        return items

    async def set_budget(
        self,
        scope: str,
        name: str | None = None,
        *,
        period: str,
        dollars: float | None = None,
        tokens: int | None = None,
        on_breach: str | None = None,
        timezone: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Limit what models use in each `hour`, `day` or `month`, in place of the budget of that period.

        Args:
            scope: `installation`, `namespace`, `agent`, `key` or `model`.
            name: of the agent, the tenant key or the model.
            on_breach: what happens to a task whose next call does not fit: `wait` (the default), `fail` or `alert`.
            timezone: in which the period begins, such as `Europe/Berlin`; UTC by default.
            namespace: of the name, or for the scope `namespace` the one that is limited.
        """
        asked = given(
            scope=scope,
            name=name,
            namespace=namespace,
            period=period,
            dollars=dollars,
            tokens=tokens,
            on_breach=on_breach,
            timezone=timezone,
        )
        budget: dict[str, Any] = await self._transport.put("/v1/budgets", to_json(asked, what="The budget"))
        return budget

    async def remove_budget(
        self, scope: str, name: str | None = None, *, period: str, namespace: str | None = None
    ) -> None:
        """Remove a standing budget; tasks that wait for it continue.

        Raises:
            NotFound: there is no such budget.
        """
        params = {"scope": scope, "name": name, "namespace": namespace, "period": period}
        await self._transport.delete("/v1/budgets", params=params)

    async def budgets(self) -> list[dict[str, Any]]:
        """Return all standing budgets, with what is used in the current period."""
        items: list[dict[str, Any]] = (await self._transport.get("/v1/budgets"))["items"]
        return items

    async def set_limit(
        self,
        scope: str,
        name: str,
        *,
        max_running: int | None = None,
        rate: str | None = None,
        input_tokens: str | None = None,
        output_tokens: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Limit the tasks of a `capability`, an `agent` or a `key` that run at once or start in a period, or the
        requests and tokens of a `model` in a period.

        Args:
            name: a name, or `*` for each one without its own limit.
            rate: such as `10/s` or `1000/h`; for a model, of requests.
            input_tokens: for a model, such as `40000/m`.
            output_tokens: for a model.
        """
        rates = given(max_running=max_running, rate=rate, input_tokens=input_tokens, output_tokens=output_tokens)
        body = to_json(rates, what="The limit")
        limit: dict[str, Any] = await self._transport.put(
            _rule_path("limits", scope, name), body, params={"namespace": namespace}
        )
        return limit

    async def remove_limit(self, scope: str, name: str, namespace: str | None = None) -> None:
        """Remove a limit.

        Raises:
            NotFound: there is no such limit.
        """
        await self._transport.delete(_rule_path("limits", scope, name), params={"namespace": namespace})

    async def limits(self) -> list[dict[str, Any]]:
        """Return all limits."""
        items: list[dict[str, Any]] = (await self._transport.get("/v1/limits"))["items"]
        return items

    def schedules(self, namespace: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield all schedules, by name."""
        return self._transport.pages("/v1/schedules", {"namespace": namespace, "limit": PAGE})

    async def schedule(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return one schedule.

        Raises:
            NotFound: there is no schedule of that name.
        """
        found: dict[str, Any] = await self._transport.get(_schedule_path(name), params={"namespace": namespace})
        return found

    async def put_schedule(
        self,
        name: str,
        request: Mapping[str, Any],
        *,
        cron: str | None = None,
        timezone: str | None = None,
        interval_seconds: float | None = None,
        missed: str | None = None,
        enabled: bool | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Store a schedule, either new or in place of the one of that name.

        Args:
            request: the task as a mapping with the arguments of `submit`, without key, times and namespace.
            cron: minute, hour, day of month, month, day of week; alternatively give `interval_seconds`.
            timezone: for `cron`; UTC by default.
            missed: treatment of missed runs: `skip`, `once` (the default) or `all`.

        Raises:
            InvalidInput, UnknownAgent and the other errors of `submit`: its task would be refused now.
        """
        definition = given(
            request=dict(request),
            cron=cron,
            timezone=timezone,
            interval_seconds=interval_seconds,
            missed=missed,
            enabled=enabled,
        )
        text = to_json(definition, what="The schedule")
        stored: dict[str, Any] = await self._transport.put(_schedule_path(name), text, params={"namespace": namespace})
        return stored

    async def change_schedule(self, name: str, namespace: str | None = None, **changes: Any) -> dict[str, Any]:
        """Change some fields of a schedule, such as `enabled=False`; None removes a field.

        Raises:
            NotFound: there is no schedule of that name.
            InvalidInput: the changed schedule would be invalid.
        """
        text = to_json(changes, what="The change")
        changed: dict[str, Any] = await self._transport.patch(
            _schedule_path(name), text, params={"namespace": namespace}
        )
        return changed

    async def delete_schedule(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Delete a schedule and return its last state; its tasks remain.

        Raises:
            NotFound: there is no schedule of that name.
        """
        deleted: dict[str, Any] = await self._transport.delete(_schedule_path(name), params={"namespace": namespace})
        return deleted

    async def run_schedule(self, name: str, namespace: str | None = None) -> AsyncTask:
        """Submit a schedule's task once more, now.

        Raises:
            NotFound: there is no schedule of that name.
            InvalidInput and the other errors of `submit`: the task is refused.
        """
        text = to_json({"idempotency_key": str(uuid4())}, what="The run")
        path = _schedule_path(name, "run")
        return self._task(await self._transport.post(path, text, safe=True, params={"namespace": namespace}))

    def webhooks(self, namespace: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield all webhooks, by name."""
        return self._transport.pages("/v1/webhooks", {"namespace": namespace, "limit": PAGE})

    async def webhook(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return one webhook.

        Raises:
            NotFound: there is no webhook of that name.
        """
        found: dict[str, Any] = await self._transport.get(_webhook_path(name), params={"namespace": namespace})
        return found

    async def add_webhook(self, name: str, url: str, **fields: Any) -> dict[str, Any]:
        """Add a webhook. The answer contains its `secret`, shown only once, which `minions.webhooks.verify` needs.

        Args:
            url: address that receives the messages.
            fields: `events` (`tasks`, `alerts` or both), `states`, `agents`, `labels`, `roots_only`, `secret`,
                `enabled`, `namespace`.

        Raises:
            Conflict: the name is taken.
            ForbiddenAddress: the system must not reach that address.
            InvalidInput: another field is invalid.
        """
        body = to_json(given(name=name, url=url, **fields), what="The webhook")
        added: dict[str, Any] = await self._transport.post("/v1/webhooks", body, safe=False)
        return added

    async def change_webhook(self, name: str, *, namespace: str | None = None, **fields: Any) -> dict[str, Any]:
        """Change a webhook.

        Args:
            fields: any of `url`, `events`, `states`, `agents`, `labels`, `roots_only`, `enabled`.

        Raises:
            NotFound, ForbiddenAddress, InvalidInput: as for `add_webhook`.
        """
        body = to_json(given(**fields), what="The change")
        changed: dict[str, Any] = await self._transport.patch(
            _webhook_path(name), body, params={"namespace": namespace}
        )
        return changed

    async def remove_webhook(self, name: str, namespace: str | None = None) -> None:
        """Remove a webhook and its pending messages.

        Raises:
            NotFound: there is no webhook of that name.
        """
        await self._transport.delete(_webhook_path(name), params={"namespace": namespace})

    async def rotate_webhook(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Replace a webhook's secret. The answer's `secret` is shown only once. The old one stays valid for one more
        day.

        Raises:
            NotFound: there is no webhook of that name.
        """
        path = _webhook_path(name, "rotate")
        rotated: dict[str, Any] = await self._transport.post(path, "{}", safe=False, params={"namespace": namespace})
        return rotated

    async def test_webhook(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Send a test message now: `{"delivered", "status", "error", "seconds"}`.

        Raises:
            NotFound: there is no webhook of that name.
        """
        path = _webhook_path(name, "test")
        answer: dict[str, Any] = await self._transport.post(path, "{}", safe=False, params={"namespace": namespace})
        return answer

    def webhook_deliveries(
        self, name: str, *, status: str | None = None, namespace: str | None = None, page: int = PAGE
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a webhook's messages, the newest first.

        Args:
            status: `pending`, `delivered` or `failed`; None for all.

        Raises:
            NotFound: there is no webhook of that name.
        """
        params = {"status": status, "namespace": namespace, "limit": page}
        return self._transport.pages(_webhook_path(name, "deliveries"), params)

    async def retry_delivery(self, delivery: str | UUID) -> dict[str, Any]:
        """Send a webhook's message again, under the same id.

        Raises:
            NotFound: there is no such delivery.
            Conflict: its webhook is disabled.
        """
        path = f"/v1/webhooks/deliveries/{segment(delivery)}/retry"
        found: dict[str, Any] = await self._transport.post(path, "{}", safe=True)
        return found


def _error_path(fingerprint: str) -> str:
    return f"/v1/errors/{segment(fingerprint)}"


def _range(since: datetime | None, until: datetime | None) -> dict[str, str | None]:
    return {
        "since": since.isoformat() if since else None,
        "until": until.isoformat() if until else None,
    }


def _rule_path(kind: str, scope: str, name: str) -> str:
    return f"/v1/{kind}/{segment(scope)}/{segment(name)}"


def _stop_target(agent: str | None, key: str | None, namespace: str | None) -> dict[str, Any]:
    """The scope, namespace and name of a stop, as the API knows them."""
    if agent is not None and key is not None:
        raise InvalidInput("A stop must have one scope: give `agent` or `key`, not both.")
    if agent is not None:
        return {"scope": "agent", "name": agent, "namespace": namespace}
    if key is not None:
        return {"scope": "key", "name": key, "namespace": namespace}
    return {"scope": "installation" if namespace is None else "namespace", "name": None, "namespace": namespace}


def _schedule_path(name: str, part: str | None = None) -> str:
    path = f"/v1/schedules/{segment(name)}"
    return f"{path}/{part}" if part else path


def _webhook_path(name: str, part: str | None = None) -> str:
    path = f"/v1/webhooks/{segment(name)}"
    return f"{path}/{part}" if part else path
