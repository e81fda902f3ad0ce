"""The MCP server over HTTP, with the reference client in both eras of the protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from mcp import Client as McpClient
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ElicitResult

from minions import Client
from minions.errors import UnknownAgent
from orchestrator.api.app import create_app, release
from orchestrator.mcp import calls
from orchestrator.mcp import site as mcp_site
from shared.access.roles import MASK
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.api.conftest import Api, serving
from tests.integration.conftest import Tasks
from tests.support.mcp_client import ask, mcp_client, until
from tests.support.processes import wait_until

SCHEMA = {"type": "object", "properties": {"do": {"type": "string"}, "answer": {"type": "string"}}}
CHANGES = {"notifications/tools/list_changed", "notifications/tasks"}
ERAS = pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])


@pytest.fixture(autouse=True)
def _running(request: pytest.FixtureRequest, http_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops and a worker, for tests with agents; calls become tasks soon."""
    if "act" in request.fixturenames:
        request.getfixturevalue("loops")
        request.getfixturevalue("worker")
    monkeypatch.setattr(http_api.app.state.mcp.server.calls, "_answer_seconds", 0.5)


@pytest.fixture
def connect(http_api: Api) -> Callable[..., Any]:
    """Connects the reference client: `async with connect(mode="legacy") as client`."""
    return lambda key=http_api.key, **options: mcp_client(http_api.url, key, **options)


@pytest.fixture
def key_of(client: Client) -> Callable[..., str]:
    """Creates a key: `key_of("viewer", namespace="ours")`."""
    return lambda role, **bounds: client.create_api_key(f"{role}-{uuid4()}", role, **bounds)["key"]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


@ERAS
def test_agent_is_a_tool_and_answers(act: Any, connect: Any, mode: str) -> None:
    act("Acts", description="Acts.", input_schema=SCHEMA, output_schema={"type": "object"})

    async def main() -> None:
        async with connect(mode=mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert {"Acts", "get_task", "why", "dead_letters"} <= tools.keys()
            assert tools["Acts"].input_schema["properties"] == SCHEMA["properties"]
            assert tools["Acts"].annotations.idempotent_hint
            assert not tools["Acts"].annotations.destructive_hint
            result = await client.call_tool("Acts", {"do": "answer"})
            assert result.structured_content == {"attempt": 1}
            assert result.content[0].text == '{"attempt": 1}'

    run(main())


async def until_ended(client: McpClient, task_id: str) -> dict[str, Any]:
    return await until(client, task_id, "completed", "failed", "cancelled")


async def asked(client: McpClient, task_id: str) -> dict[str, Any]:
    """Return the task once it asks for input."""
    found = await until(client, task_id, "input_required", "completed", "failed")
    assert found["status"] == "input_required", found
    return found


async def ignored(context: Any, params: Any) -> ElicitResult:
    raise AssertionError("tasks carry their forms")


def test_long_call_is_a_task_for_a_client_with_tasks(act: Any, connect: Any) -> None:
    act("Acts", input_schema=SCHEMA)

    async def main() -> None:
        async with connect(tasks=True, mode="2026-07-28") as client:
            created = await client.session.call_tool("Acts", {"do": "sleep", "seconds": 0.9}, allow_claimed=True)
            found = created.model_dump(by_alias=True)
            assert (found["resultType"], found["status"]) == ("task", "working")
            assert found["ttlMs"] > 29 * 86_400_000
            assert found["pollIntervalMs"] == 1000
            assert "running" in found["statusMessage"]
            ended = await until_ended(client, found["taskId"])
            assert ended["result"]["structuredContent"] == {"slept": 0.9}

    run(main())


def test_approval_is_a_form_and_its_answer_a_decision(act: Any, connect: Any, tasks: Tasks, client: Client) -> None:
    act("Acts", input_schema=SCHEMA, effect="unsafe", config={"approval": True})

    async def main() -> str:
        async with connect(tasks=True, mode="2026-07-28", elicitation_callback=ignored) as mcp:
            created = await mcp.session.call_tool("Acts", {"do": "answer", "answer": "no"}, allow_claimed=True)
            found = await asked(mcp, created.model_dump()["taskId"])
            ((key, form),) = found["inputRequests"].items()
            assert form["method"] == "elicitation/create"
            assert form["params"]["requestedSchema"]["properties"]["argument.answer"]["default"] == "no"
            answer = {"action": "accept", "content": {"argument.answer": "yes", "reason": "Looks good."}}
            assert await ask(mcp, "tasks/update", taskId=found["taskId"], inputResponses={"1-000000000000-0": answer})
            await ask(mcp, "tasks/update", taskId=found["taskId"], inputResponses={key: answer})
            ended = await until_ended(mcp, found["taskId"])
            assert ended["result"]["content"][0]["text"] == "yes"
            return found["taskId"]

    task_id = run(main())
    decided = next(entry for entry in client.audit() if entry["act"] == "task.decide")
    assert (decided["after"]["verdict"], decided["after"]["replaced"]) == ("approve", True)
    assert client.get(task_id).succeeded


def test_approvals_of_sub_tasks_are_forms_of_the_task(act: Any, define: Define, connect: Any) -> None:
    act("Below", input_schema=SCHEMA, config={"approval": True})
    above = {"kind": "agent", "name": "Above", "type": "function", "relations": [{"agent": "Below"}]}
    define({**above, "input_schema": SCHEMA, "config": {"capabilities": ["work"]}})

    async def main() -> None:
        async with connect(tasks=True, mode="2026-07-28", elicitation_callback=ignored) as mcp:
            created = await mcp.session.call_tool("Above", {"do": "answer", "answer": "done"}, allow_claimed=True)
            found = await asked(mcp, created.model_dump()["taskId"])
            ((key, form),) = found["inputRequests"].items()
            assert "'Below'" in form["params"]["message"]
            await ask(mcp, "tasks/update", taskId=found["taskId"], inputResponses={key: {"action": "accept"}})
            assert "done" in (await until_ended(mcp, found["taskId"]))["result"]["content"][0]["text"]

    run(main())


def test_form_is_answered_within_a_call_without_tasks(act: Any, connect: Any) -> None:
    act("Acts", input_schema=SCHEMA, config={"approval": True})
    asked = []

    async def answer(context: Any, params: Any) -> ElicitResult:
        assert "asks for the approval" in params.message
        asked.append(params)
        return ElicitResult(action="cancel" if len(asked) == 1 else "accept", content={})

    async def main() -> None:
        async with connect(mode="2026-07-28", elicitation_callback=answer) as client:
            # A user who dismisses the form is not asked again.
            left = await client.call_tool("Acts", {"do": "answer", "answer": "a\u202eb"})
            assert (left.structured_content["state"], len(asked)) == ("waiting", 1)
            assert "\\u202e" in left.structured_content["why"]
            result = await client.call_tool("Acts", {"do": "answer", "answer": "approved"})
            assert (result.content[0].text, len(asked)) == ("approved", 2)
            state = {"request_state": left.structured_content["task_id"]}
            act("Other", input_schema=SCHEMA)
            with pytest.raises(MCPError, match="another tool than 'Other'"):
                await client.session.call_tool("Other", {}, **state)

    run(main())


@ERAS
def test_client_without_tasks_gets_progress_and_a_handle(
    act: Any, connect: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LONG_PATIENCE_SECONDS", 0.2)
    act("Acts", input_schema=SCHEMA, output_schema={"type": "object"})
    heard: list[str | None] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async def main() -> None:
        async with connect(mode=mode) as client:
            result = await client.call_tool("Acts", {"do": "sleep", "seconds": 0.9}, progress_callback=hear)
            assert result.structured_content["state"] == "running"
            handle = {"task_id": result.structured_content["task_id"], "wait_seconds": 30}
            ended = await client.call_tool("get_task", handle)
            assert ended.structured_content == {"slept": 0.9}

    run(main())
    assert heard
    assert "running" in str(heard[0])


def test_call_is_repeated_under_its_key_and_runs_once(act: Any, connect: Any, tasks: Tasks) -> None:
    act("Acts", input_schema=SCHEMA)
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def main() -> str:
        async with connect(mode="2026-07-28") as client:
            meta = {"minions/idempotency-key": "first", "traceparent": caller}
            answers = [await client.call_tool("Acts", {"do": "answer"}, meta=meta) for _ in range(2)]
            one, other = [answer.meta["minions/task-id"] for answer in answers]
            assert one == other
            with pytest.raises(MCPError, match="idempotency key"):
                await client.call_tool("Acts", {"do": "other"}, meta=meta)
            for wrong in ("", 5):
                assert (await client.call_tool("Acts", {}, meta={"minions/idempotency-key": wrong})).is_error
            return one

    assert tasks.get(run(main()))["traceparent"] == caller


def test_failure_and_bad_arguments_are_errors_for_the_model(act: Any, connect: Any) -> None:
    act("Acts", input_schema={**SCHEMA, "required": ["do"]}, config={"max_attempts": 1})

    async def main() -> None:
        async with connect(mode="2026-07-28") as client:
            failed = await client.call_tool("Acts", {"do": "fail"})
            assert failed.is_error
            assert "attempt 1 fails" in failed.content[0].text
            refused = await client.call_tool("Acts", {"answer": "no"})
            assert refused.is_error
            assert "'do' is a required property" in refused.content[0].text
            refused = await client.call_tool("get_task", {"task": "1"})
            assert refused.is_error
            with pytest.raises(MCPError, match="Unknown tool: 'Missing'"):
                await client.call_tool("Missing", {})

    run(main())


def test_cancelled_task_is_cancelled(act: Any, connect: Any) -> None:
    act("Acts", input_schema=SCHEMA)

    async def main() -> None:
        async with connect(tasks=True, mode="2026-07-28") as client:
            created = await client.session.call_tool("Acts", {"do": "sleep", "seconds": 60}, allow_claimed=True)
            task_id = created.model_dump()["taskId"]
            await ask(client, "tasks/cancel", taskId=task_id)
            assert (await until_ended(client, task_id))["status"] == "cancelled"
            await ask(client, "tasks/cancel", taskId=task_id)

    run(main())


def test_call_that_waits_is_answered_when_the_process_stops(act: Any, settings: Settings, client: Client) -> None:
    act("Acts", input_schema=SCHEMA)
    app = create_app(settings)
    mcp_site.add_to(app)

    def stop_once_it_runs() -> None:
        wait_until(lambda: client.counts(state="running")["by_state"], "the call")
        release(app)

    async def main(port: int) -> str:
        url = f"http://127.0.0.1:{port}"
        async with mcp_client(url, settings.require_api_key(), mode="2026-07-28") as mcp:
            stopping = asyncio.create_task(asyncio.to_thread(stop_once_it_runs))
            result = await mcp.call_tool("Acts", {"do": "sleep", "seconds": 60})
            await stopping
            return result.structured_content["task_id"]

    with serving(app) as port:
        task_id = run(main(port))
    client.cancel(task_id)
    assert client.wait(task_id).state == "cancelled"


# ------------------------------------------------------------------------------------------------------------- rights


def test_tools_are_offered_by_role(act: Any, connect: Any, key_of: Any) -> None:
    act("Acts", input_schema=SCHEMA)

    async def offered(key: str) -> set[str]:
        async with connect(key, mode="2026-07-28") as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    async def main() -> None:
        assert await offered(key_of("submitter")) == {"Acts", "get_task", "cancel_task"}
        assert await offered(key_of("viewer")) == {"Acts", "get_task", "why", "diff", "dead_letters"}
        assert await offered(key_of("operator")) >= {"Acts", "why", "replay", "diff", "dead_letters"}
        assert await offered(key_of("operator", agents=["Other"])) == {"get_task", "cancel_task"}
        async with connect(key_of("viewer"), mode="2026-07-28") as client:
            with pytest.raises(MCPError, match="lacks the permission tasks:submit") as refused:
                await client.call_tool("Acts", {})
            assert refused.value.error.data["code"] == "forbidden"
        async with connect(key_of("submitter"), mode="2026-07-28") as client:
            with pytest.raises(MCPError, match="Unknown tool: 'why'"):
                await client.call_tool("why", {"task_id": str(uuid4())})

    run(main())


def test_task_is_unknown_to_keys_that_do_not_reach_it(act: Any, connect: Any, tasks: Tasks, key_of: Any) -> None:
    task = str(tasks.submit(act("Acts", input_schema=SCHEMA), {"do": "answer"}))
    tasks.wait(task)  # type: ignore[arg-type]

    async def main() -> None:
        for key in (key_of("submitter", namespace="other"), key_of("submitter", tenant="other")):
            async with connect(key, tasks=True, mode="2026-07-28") as client:
                for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                    with pytest.raises(MCPError, match="There is no task") as refused:
                        await ask(client, method, taskId=task, inputResponses={})
                    assert refused.value.error.code == INVALID_PARAMS
                with pytest.raises(MCPError, match="There is no task"):
                    await client.read_resource(f"minions://tasks/{task}/journal")
                with pytest.raises(MCPError, match="There is no task"):
                    await client.call_tool("get_task", {"task_id": task})

    run(main())


def test_key_that_may_not_decide_sees_work_and_decides_nothing(
    act: Any, connect: Any, tasks: Tasks, key_of: Any, client: Client
) -> None:
    act("Acts", input_schema=SCHEMA, config={"approval": True})
    task = str(tasks.submit("Acts", {"do": "answer"}))
    tasks.wait_for(task, "waiting")  # type: ignore[arg-type]
    (decision,) = client.decisions(task)

    async def main() -> None:
        async with connect(
            key_of("submitter"), tasks=True, mode="2026-07-28", elicitation_callback=ignored
        ) as submitter:
            found = await ask(submitter, "tasks/get", taskId=task)
            assert found["status"] == "working"
            assert "must approve" in found["statusMessage"]
            answers = {f"1-{decision['proposal']}-0": {"action": "accept", "content": {}}}
            with pytest.raises(MCPError, match="lacks the permission tasks:decide"):
                await ask(submitter, "tasks/update", taskId=task, inputResponses=answers)
        async with connect(key_of("approver"), tasks=True, mode="2026-07-28", elicitation_callback=ignored) as approver:
            for wrong in ({"action": "yes"}, "accept", {"action": "accept", "content": {"argument.do": 1}}):
                with pytest.raises(MCPError):
                    await ask(approver, "tasks/update", taskId=task, inputResponses={next(iter(answers)): wrong})
            await ask(approver, "tasks/update", taskId=task, inputResponses={next(iter(answers)): {"action": "cancel"}})
            assert (await asked(approver, task))["status"] == "input_required"
            declined = {next(iter(answers)): {"action": "decline"}}
            await ask(approver, "tasks/update", taskId=task, inputResponses=declined)
            assert (await until_ended(approver, task))["result"]["isError"]

    run(main())


# -------------------------------------------------------------------------------------- what the API has for the server


def test_contract_has_the_schemas_and_the_worst_effect(act: Any, define: Define, client: Client, key_of: Any) -> None:
    ordered = {"type": "object", "properties": {"zz": {"type": "string"}, "a": {"type": "string"}}}
    act("Acts", input_schema=ordered, output_schema={"type": "string"})
    act("Silent")
    pure = {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"}
    of_tool = {**pure, "name": "checks", "input_schema": SCHEMA, "description": "Checks."}
    define(
        pure, of_tool,
        {"kind": "agent", "name": "Checks", "type": "function", "tool": "checks"},
        {"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "tools": ["act", "echo"], "input_schema": {}},
        {"kind": "agent", "name": "Chain", "type": "function", "relations": [{"agent": "Checks"}],
         "input_schema": SCHEMA},
    )  # fmt: skip
    found = {each["name"]: each for each in client.contracts()}
    assert {name: each["effect"] for name, each in found.items()} == {
        "Acts": "idempotent", "Chain": "unsafe", "Checks": "pure", "Model": "idempotent"
    }  # fmt: skip
    assert list(found["Acts"]["input_schema"]["properties"]) == ["zz", "a"]
    assert (found["Checks"]["input_schema"], found["Checks"]["description"]) == (SCHEMA, "Checks.")
    assert client.contract("Acts")["output_schema"] == {"type": "string"}
    client.set_agent_status("Acts", "deprecated")
    for name in ("Acts", "Silent", "None"):
        with pytest.raises(UnknownAgent):
            client.contract(name)
    with Client(client._transport.url, key_of("viewer", agents=["Model"])) as bound:
        assert [each["name"] for each in bound.contracts()] == ["Model"]


def test_key_learns_its_own_rights(client: Client, key_of: Any) -> None:
    with Client(client._transport.url, key_of("viewer", namespace="ours", agents=["A"])) as viewer:
        found = viewer.access()
    assert (found["role"], found["namespace"], found["whole_namespace"]) == ("viewer", "ours", False)
    assert "tasks:submit" not in found["permissions"]
    assert client.access()["retention_days"]["failed"] == 90


def test_awaited_decisions_are_masked(act: Any, client: Client, tasks: Tasks, key_of: Any) -> None:
    act("Acts", input_schema=SCHEMA, config={"approval": True})
    task = tasks.submit("Acts", {"do": "answer"})
    tasks.wait_for(task, "waiting")
    (found,) = client.decisions(task)
    assert (found["kind"], found["step"], found["value"], found["schema"]) == ("approval", 1, {"do": "answer"}, SCHEMA)
    with Client(client._transport.url, key_of("viewer")) as viewer:
        (masked,) = viewer.decisions(task)
    assert (masked["proposal"], masked["value"], masked["schema"]) == (found["proposal"], MASK, None)


# ---------------------------------------------------------------------------------------------- resources, prompts, …


def test_journals_and_prompts_are_read_by_right(
    act: Any, connect: Any, define: Define, tasks: Tasks, key_of: Any
) -> None:
    task = tasks.submit(act("Acts", input_schema=SCHEMA), {"do": "answer", "answer": "secret"})
    tasks.wait(task)
    define({"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "system_prompt": "Be brief."})

    async def main() -> None:
        async with connect(key_of("author"), mode="2026-07-28") as author:
            (listed,) = (await author.list_resources()).resources
            (read,) = (await author.read_resource(listed.uri)).contents
            assert json.loads(read.text)["steps"][0]["output"] == "secret"
            assert [prompt.name for prompt in (await author.list_prompts()).prompts] == ["Model"]
            assert (await author.get_prompt("Model")).messages[0].content.text == "Be brief."
            for uri in ("minions://tasks/x/journal", f"minions://tasks/{uuid4()}/journal", "file:///etc/passwd"):
                with pytest.raises(MCPError, match="There is no"):
                    await author.read_resource(uri)
        async with connect(key_of("viewer"), mode="2026-07-28") as viewer:
            (read,) = (await viewer.read_resource(listed.uri)).contents
            assert "secret" not in read.text
            assert not (await viewer.list_prompts()).prompts
            with pytest.raises(MCPError, match="no system prompt that this key may read"):
                await viewer.get_prompt("Model")

    run(main())


def test_changes_are_sent_to_a_stream(act: Any, http_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.mcp.subscriptions.LOOK_SECONDS", 0.1)
    monkeypatch.setattr(http_api.app.state.mcp.server.subscriptions, "_tools_seconds", 0.1)
    act("Acts", input_schema=SCHEMA)

    async def main() -> list[Any]:
        body = request("subscriptions/listen", notifications={"toolsListChanged": True, "taskIds": [task]})
        headers = {"Authorization": f"Bearer {http_api.key}"} | headers_of(body)
        heard: list[Any] = []
        async with (
            httpx2.AsyncClient(trust_env=False) as http,
            http.stream("POST", f"{http_api.url}/mcp", json=body, headers=headers) as response,
        ):
            async for event in httpx2.EventSource(response):
                heard.append(json.loads(event.data))
                if len(heard) == 1:
                    await asyncio.to_thread(act, "Later", input_schema=SCHEMA)
                if {each["method"] for each in heard} >= CHANGES:
                    break
        return heard

    with Client(http_api.url, http_api.key) as client:
        task = client.submit("Acts", {"do": "sleep", "seconds": 0.5}).id
    heard = run(main())
    for bound in ("MOST_STREAMS", "MOST_WATCHED"):
        monkeypatch.setattr(f"orchestrator.mcp.subscriptions.{bound}", 0)
        body = request("subscriptions/listen", notifications={"taskIds": [task]})
        with http_api.http() as http:
            refused = said(http.post("/mcp", json=body, headers=headers_of(body)))
        assert "Poll in place of" in refused["error"]["message"]
        monkeypatch.setattr(f"orchestrator.mcp.subscriptions.{bound}", 4)
    assert {each["method"] for each in heard} >= CHANGES
    assert heard[0]["method"] == "notifications/subscriptions/acknowledged"
    assert heard[0]["params"]["notifications"] == {"toolsListChanged": True, "taskIds": [task]}


# --------------------------------------------------------------------------------------------------------------- HTTP

CAPABILITIES = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


def request(method: str, **params: Any) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": CAPABILITIES,
    }
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta, **params}}


def headers_of(body: dict[str, Any]) -> dict[str, str]:
    name = body["params"].get("name") or body["params"].get("taskId")
    return {
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": body["method"],
        "Accept": "application/json, text/event-stream",
        **({"Mcp-Name": name} if name else {}),
    }


def said(answer: httpx2.Response) -> dict[str, Any]:
    """Return the message in an answer, which may be a stream with one."""
    text = answer.text.partition("data: ")[2] if "event-stream" in answer.headers["Content-Type"] else answer.text
    message: dict[str, Any] = json.loads(text)
    return message


def test_request_without_a_key_learns_where_to_get_one(http_api: Api) -> None:
    body = request("tools/list")
    with httpx2.Client(base_url=http_api.url, trust_env=False) as http:
        refused = http.post("/mcp", json=body, headers=headers_of(body))
        assert refused.status_code == 401
        where = f"{http_api.url}/.well-known/oauth-protected-resource/mcp"
        assert refused.headers["WWW-Authenticate"] == f'Bearer resource_metadata="{where}"'
        assert http.get(where).json()["resource"] == f"{http_api.url}/mcp"
        cookie = http.post("/mcp", json=body, headers=headers_of(body) | {"Cookie": "minion_session=x"})
        assert cookie.status_code == 401
        wrong = http.post("/mcp", json=body, headers=headers_of(body) | {"Authorization": "Bearer wrong"})
        assert wrong.headers["WWW-Authenticate"] == f'Bearer error="invalid_token", resource_metadata="{where}"'
    with http_api.http() as http:
        assert http.get("/mcp").status_code == 405


def test_metadata_has_the_public_address_with_its_base_path(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"public_url": "https://minions.example", "base_path": "/minions"}))
    mcp_site.add_to(app)
    body = request("tools/list")
    with serving(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        refused = http.post("/minions/mcp", json=body, headers=headers_of(body) | {"Host": "minions.example"})
        where = "/.well-known/oauth-protected-resource/minions/mcp"
        assert f'"https://minions.example{where}"' in refused.headers["WWW-Authenticate"]
        assert http.get(where).json()["resource"] == "https://minions.example/minions/mcp"


def test_other_sites_are_refused(http_api: Api) -> None:
    body = request("tools/list")
    with http_api.http() as http:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Host": "evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
        ):
            assert http.post("/mcp", json=body, headers=headers_of(body) | headers).status_code == 403
        own = {"Origin": http_api.url}
        assert http.post("/mcp", json=body, headers=headers_of(body) | own).status_code == 200


BAD = (
    b"", b"{", b"[]", b"null", b"1", b'{"jsonrpc": "2.0"}', b'{"a": NaN}', b'{"a": 1, "a": 2}', rb'"\u0000"',
    b"[" * 5000,
    b'{"jsonrpc": "2.0", "id": null, "method": "tools/list"}', b'{"jsonrpc": "2.0", "id": {}, "method": 1}', b"\xff",
    b'{"jsonrpc": "2.0", "id": 1.5, "method": "tools/list"}', b'{"jsonrpc": "2.0", "id": true, "method": "tools/list"}',
    b'[{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}]', b'{"id": 1, "method": "tools/list"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "a", "params": []}', b'{"jsonrpc": "2.0", "id": 1}',
)  # fmt: skip


def test_bad_body_is_refused(http_api: Api) -> None:
    eras = (headers_of(request("tools/list")), {"Accept": "application/json, text/event-stream"})
    with http_api.http() as http:
        for sent, headers in itertools.product(BAD, eras):
            answer = http.post("/mcp", content=sent, headers=headers | {"Content-Type": "application/json"})
            assert answer.status_code == 400, (sent, answer.text)
            assert "JSONRPC" not in answer.text  # a class of the package


def test_client_that_accepts_too_little_learns_what_to_accept(http_api: Api) -> None:
    body = request("tools/list")
    with http_api.http() as http:
        for headers in (headers_of(body), {}):
            refused = http.post("/mcp", json=body, headers=headers | {"Accept": "application/json"})
            assert refused.status_code == 406
            assert "text/event-stream" in refused.json()["error"]["message"]
            assert http.post("/mcp", json=body, headers=headers | {"Accept": "*/*"}).status_code == 200


def test_any_handshake_is_answered(http_api: Api) -> None:
    for version in ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2099-01-01"):
        with http_api.http() as http:
            spoken = handshake(http, version)
            assert spoken == ("2025-11-25" if version == "2099-01-01" else version)
            http.headers["MCP-Protocol-Version"] = spoken
            assert http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
            for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list", "ping"):
                answer = said(http.post("/mcp", json={"jsonrpc": "2.0", "id": "a", "method": method}))
                assert (answer["id"], "error" in answer) == ("a", False)


def handshake(http: httpx2.Client, version: str) -> str:
    """Return the version that the server agrees to."""
    hello = {"protocolVersion": version, "capabilities": {"roots": {}}, "clientInfo": {"name": "any", "version": "1"}}
    agreed = said(http.post("/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}))
    spoken: str = agreed["result"]["protocolVersion"]
    return spoken


def test_wrong_parameter_is_named(http: httpx2.Client) -> None:
    wrong = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": 5}}
    assert "params.cursor" in said(http.post("/mcp", json=wrong))["error"]["message"]


def test_large_or_foreign_body_is_refused(http_api: Api) -> None:
    with http_api.http() as http:
        assert http.post("/mcp", json={"a": "x" * (20 << 20)}).status_code == 413
        assert http.post("/mcp", content=b"<a/>", headers={"Content-Type": "text/xml"}).status_code == 415


TEXTS = ("Acts", str(uuid4()), ".", "..", "../tasks", "a/b", "")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(TEXTS),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=10), part, max_size=3),
    max_leaves=6,
)
METHODS = (
    "tools/list", "tools/call", "tasks/get", "tasks/update", "tasks/cancel", "resources/read", "resources/list",
    "prompts/get", "prompts/list", "server/discover", "ping", "initialize", "completion/complete",
)  # fmt: skip
NAMES = ("name", "arguments", "taskId", "inputResponses", "requestState", "uri", "cursor", "_meta", "task")


PARAMS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)


@bounded(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(method=st.sampled_from(METHODS), params=PARAMS, modern=st.booleans())
def test_any_parameters_are_answered_without_a_fault(
    http: httpx2.Client, method: str, params: dict[str, Any], modern: bool
) -> None:
    headers = {"Accept": "application/json, text/event-stream"}
    body = request(method, **params) if modern else {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    if modern:
        headers |= {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
    for name in ("name", "taskId", "uri"):
        if modern and isinstance(value := params.get(name), str) and value.isascii() and value.isprintable():
            headers["Mcp-Name"] = value
    answer = http.post("/mcp", json=body, headers=headers)
    assert answer.status_code < 500, answer.text
    error = said(answer).get("error", {})
    assert error.get("code") not in (0, -32603), error
