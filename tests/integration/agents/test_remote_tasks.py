"""Tool calls that an MCP server finishes later: as its own task, or after a person has answered its questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text

from orchestrator.explain import Explanation, explain
from orchestrator.maintenance.remote_poller import RemotePoller
from shared.access.actors import bootstrap_key
from shared.database.connections import autocommit, transaction
from shared.errors import Conflict, InvalidInput
from shared.mcp import remote_tasks
from shared.mcp.eras import Eras
from shared.mcp.faults import McpFault
from shared.mcp.stdio import PROCESSES
from shared.secret_store import SecretStore
from shared.settings import Settings, get_settings
from shared.tasks import approvals, lifecycle, remote_calls, stops
from shared.tasks.states import FINAL
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks, everything_written
from tests.support.authority import authority_server
from tests.support.mcp_server import Shop, raw_server, reference_server, text_result
from tests.support.mcp_tasks import BRANCH, Jobs, question
from tests.support.processes import wait_until
from workers.outcomes import ClaimLost

LISTED = "0" * 64
ROWS = text("SELECT count(*) FROM remote_calls")
HURRY = text("UPDATE remote_calls SET due_at = now()")
AGE = text("UPDATE remote_calls SET failing_since = now() - interval '2 d', created_at = now() - interval '2 d'")
IDEMPOTENT = {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": False}


@dataclass
class Site:
    """A worker and the remote poller, one round at a time."""

    tasks: Tasks
    worker: InlineWorker
    poller: RemotePoller
    engine: Engine

    def submit(self, agent: str, value: Any = None) -> UUID:
        """Submit a task, and run it until it waits or has ended."""
        task = self.tasks.submit(agent, value or {"target": "x"})
        self.worker.run_due()
        return task

    def poll(self) -> None:
        """Poll all calls now."""
        with self.engine.begin() as connection:
            connection.execute(HURRY)
        self.poller.run_once()
        wait_until(lambda: not +self.poller.busy, "all polls ended")

    def finish(self, task: UUID) -> dict[str, Any]:
        """Go on until the task has ended; return it."""

        def look() -> dict[str, Any] | None:
            found = self.tasks.get(task)
            if found["state"] in FINAL:
                return found
            self.poll()
            self.worker.run_due()
            return None

        return wait_until(look, f"{task} has ended")

    def state(self, task: UUID) -> tuple[str, str | None]:
        found = self.tasks.get(task)
        return found["state"], found["wait_reason"]

    def rows(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(ROWS) or 0)

    def why(self, task: UUID) -> Explanation:
        with self.engine.connect() as connection:
            return explain(connection, task, lease=10.0)

    def decide(self, task: UUID, verdict: str, value: Any = None) -> None:
        """Decide as the endpoint does."""
        proposal = self.why(task).facts["proposal"]
        with autocommit(self.engine).connect() as connection:
            approver = approvals.judge(
                connection, task, None, proposal, value, key=bootstrap_key("x"), approves=verdict == "approve"
            )
        with transaction() as connection:
            lifecycle.decide(connection, task, verdict, who="ann", proposal=proposal, value=value, approver=approver)


@pytest.fixture(autouse=True)
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's own addresses are allowed, and no server is known."""
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", "127.0.0.1")
    monkeypatch.setattr("workers.tools.mcp.eras", Eras())
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def shop_with_jobs() -> Iterator[tuple[Shop, Jobs]]:
    jobs = Jobs()
    with reference_server(extensions=[jobs]) as shop:
        yield shop, jobs


@pytest.fixture
def jobs(shop_with_jobs: tuple[Shop, Jobs], define: Define) -> Jobs:
    """The reference server with tasks, and agents that call its tools."""
    shop, jobs = shop_with_jobs
    jobs.__init__()  # type: ignore[misc]
    define(*definitions(shop.url, "build", "deploy", "confirm"))
    return jobs


def definitions(url: str, *tools: str, config: dict[str, Any] | None = None, **fields: Any) -> list[dict[str, Any]]:
    """A server, and for each of its tools an agent of that name that calls it."""
    made: list[dict[str, Any]] = [{"kind": "mcp_server", "name": "ci", "url": url, "trusted": True}]
    for tool in tools:
        effect = "unsafe" if tool == "deploy" else "idempotent"
        called = {"server": "ci", "tool": tool, "listed": LISTED, "annotations": IDEMPOTENT}
        made.append({"kind": "tool", "name": tool, "type": "mcp", "effect": effect, "mcp": called, **fields})
        made_for = config or {"capabilities": ["work"], "max_attempts": 2, "retry_backoff": 0.0}
        made.append({"kind": "agent", "name": tool, "type": "function", "tool": tool, "config": made_for})
    return made


@pytest.fixture
def site(inline_worker: InlineWorker, tasks: Tasks, settings: Settings, configured: None) -> Iterator[Site]:
    poller = RemotePoller(settings, inline_worker.engine)
    yield Site(tasks, inline_worker, poller, inline_worker.engine)
    poller.close()


def test_task_waits_for_remote_task_without_a_worker(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    assert site.state(task) == ("waiting", "remote_task")
    jobs.job.message = "compiling"
    site.poll()
    why = site.why(task)
    assert why.reason == "remote_task"
    assert "waits for task job-1 of the MCP server 'ci', which has been working for " in why.sentence
    assert "('compiling'). It is polled next in " in why.sentence
    jobs.job.finish("built x")
    site.poll()
    site.worker.run_due()
    done = site.tasks.get(task)
    assert (done["state"], done["output"]) == ("succeeded", "built x")
    [step] = site.tasks.steps(task)
    assert step["usage"]["remote"] == {"server": "ci", "task": "job-1"}
    assert len(jobs.calls) == 1
    assert site.rows() == 0


def test_question_of_remote_task_is_answered_by_a_person(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    assert site.state(task) == ("waiting", "approval")
    why = site.why(task)
    assert "The MCP server 'ci' asks for input for step 1 (deploy): 'Which branch?'" in why.sentence
    assert (why.facts["schema"], why.facts["proposed"]) == (BRANCH, {})
    with pytest.raises(InvalidInput, match="branch"):
        site.decide(task, "approve")
    with pytest.raises(InvalidInput, match="The answer for the MCP server 'ci' does not match its schema"):
        site.decide(task, "approve", {"branch": 1})
    site.decide(task, "approve", {"branch": "main"})
    assert site.state(task) == ("waiting", "remote_task")
    site.poll()
    assert jobs.job.answers == {"q1": {"action": "accept", "content": {"branch": "main"}}}
    # The server may see the answer later than it took it: no person is asked again.
    site.poll()
    assert site.state(task) == ("waiting", "remote_task")
    jobs.job.finish("deployed")
    done = site.finish(task)
    assert done["output"] == "deployed"
    [step] = site.tasks.steps(task)
    [answer] = step["usage"]["answers"]
    assert (answer["by"], answer["verdict"]) == ("ann", "approve")
    assert [method for method, _ in jobs.asked].count("tasks/update") == 1


def test_declined_question_is_passed_on(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question(), q2=question(mode="url", url="https://example.com/pay", message="Pay."))
    site.poll()
    assert "https://example.com/pay" in site.why(task).facts["question"]
    site.decide(task, "reject")
    site.poll()
    assert jobs.job.answers == {"q1": {"action": "decline"}, "q2": {"action": "decline"}}


def test_several_questions_have_one_form(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question(), q2=question(mode="url", url="https://example.com/pay", message="Pay."))
    site.poll()
    site.decide(task, "approve", {"q1": {"branch": "x"}, "q2": {}})
    site.poll()
    assert jobs.job.answers == {"q1": {"action": "accept", "content": {"branch": "x"}}, "q2": {"action": "accept"}}


def test_next_question_is_another_proposal(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    first = site.why(task).facts["proposal"]
    jobs.job.ask(q2=question("Which region?"))
    site.poll()
    assert "Which region?" in site.why(task).sentence
    with pytest.raises(Conflict), transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="ann", proposal=first, value={"branch": "main"})


def test_withdrawn_question_needs_no_answer(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    jobs.job.status = "working"
    site.poll()
    assert site.state(task) == ("waiting", "remote_task")
    with pytest.raises(Conflict), transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="ann", value={"branch": "main"})


def test_late_poll_does_not_repeat_an_answered_question(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    with site.engine.begin() as connection:
        connection.execute(HURRY)
        [late] = remote_calls.claim(connection, most=1, each=1, busy={}, hold=60.0)
    before = remote_tasks.read(jobs.job.shown(), "job-1", late.answered)
    site.decide(task, "approve", {"branch": "main"})
    site.poll()
    assert jobs.job.answers
    site.poller._record(late, site.poller._news(site.poller._connect(late), late, before))
    assert site.state(task) == ("waiting", "remote_task")
    jobs.job.finish("deployed")
    assert site.finish(task)["output"] == "deployed"


def test_plain_call_is_repeated_with_answers_and_exact_state(site: Site, jobs: Jobs) -> None:
    task = site.submit("confirm")
    assert site.state(task) == ("waiting", "approval")
    assert site.why(task).facts["proposed"] == {"sure": True}
    site.decide(task, "approve")
    site.worker.run_due()
    site.decide(task, "approve", {"branch": "main"})
    site.worker.run_due()
    done = site.tasks.get(task)
    assert (done["state"], done["output"]) == ("succeeded", "confirmed x")
    first, second, third = jobs.calls
    assert "requestState" not in first
    assert (second["requestState"], second["inputResponses"]) == (
        'one "é"',
        {"sure": {"action": "accept", "content": {"sure": True}}},
    )
    assert (third["requestState"], third["inputResponses"]["branch"]["content"]) == ("two", {"branch": "main"})
    assert len({call["meta"]["minions/idempotency-key"] for call in jobs.calls}) == 1
    assert site.rows() == 0


def lose(site: Site, task: UUID) -> None:
    """Let the worker of a running task die."""
    claim = site.tasks.get(task)["claim"]
    with transaction() as connection:
        lifecycle.release(connection, task, claim, how="lost", charged=False)


@pytest.mark.parametrize("agent", ["build", "deploy"])
def test_crash_before_remote_id_is_journaled(
    site: Site, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    def die(*_: Any) -> bool:
        raise ClaimLost

    with monkeypatch.context() as patch:
        patch.setattr(remote_calls, "begin", die)
        task = site.submit(agent)
    lose(site, task)
    site.worker.run_due()
    if agent == "deploy":
        assert site.state(task) == ("waiting", "answer")
        assert len(jobs.calls) == 1
        return
    jobs.job.finish()
    assert site.finish(task)["output"] == "built"
    assert [call["meta"]["minions/idempotency-key"] for call in jobs.calls] == [next(iter(jobs.keys))] * 2


@pytest.mark.parametrize("agent", ["build", "deploy"])
def test_crash_after_remote_id_is_journaled(
    site: Site, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    def die(*_: Any) -> None:
        raise ClaimLost

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "suspend", die)
        task = site.submit(agent)
    assert site.rows() == 1
    lose(site, task)
    jobs.job.finish()
    assert site.finish(task)["output"] == "built"
    assert len(jobs.calls) == 1


def test_result_that_comes_before_the_wait_is_not_missed(
    site: Site, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspend = lifecycle.suspend

    def late(*arguments: Any) -> Any:
        jobs.job.finish()
        site.poll()
        return suspend(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "suspend", late)
        task = site.submit("build")
    assert site.state(task) == ("pending", None)
    site.worker.run_due()
    assert site.tasks.get(task)["output"] == "built"


@pytest.mark.parametrize("confirmed", [False, True])
def test_crash_while_an_answer_is_sent(
    site: Site, jobs: Jobs, define: Define, shop_with_jobs: Any, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    """An unsafe call that was being repeated is a person's to decide about; an idempotent one is repeated."""
    effect = "idempotent" if confirmed else "unsafe"
    define(*definitions(shop_with_jobs[0].url, "confirm", effect=effect))
    task = site.submit("confirm")
    site.decide(task, "approve")

    def die(*_: Any, **__: Any) -> Any:
        raise ClaimLost

    with monkeypatch.context() as patch:
        patch.setattr("shared.mcp.client.McpClient.request", die)
        site.worker.run_due()
    lose(site, task)
    site.worker.run_due()
    if confirmed:
        assert jobs.calls[-1]["inputResponses"] == {"sure": {"action": "accept", "content": {"sure": True}}}
        assert site.state(task) == ("waiting", "approval")
    else:
        assert site.state(task) == ("waiting", "answer")
        with transaction() as connection:
            lifecycle.decide(connection, task, "again", who="ann")
        site.worker.run_due()
        # The call begins again.
        assert "inputResponses" not in jobs.calls[-1]
        assert "Sure?" in site.why(task).sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "failed", "error": {"code": -32603, "message": "Disk full."}}, "failed: Disk full."),
        ({"status": "failed", "error": None}, "failed: it does not say why"),
        ({"status": "cancelled", "message": "By the owner."}, "was cancelled there: By the owner."),
        ({"status": "completed", "result": {"isError": True, "content": [{"type": "text", "text": "No."}]}}, "No."),
    ],
)
def test_other_ends_are_tool_errors(site: Site, jobs: Jobs, change: dict[str, Any], message: str) -> None:
    task = site.submit("build")
    for name, value in change.items():
        setattr(jobs.job, name, value)
    done = site.finish(task)
    assert (done["state"], done["error"]["type"]) == ("failed", "tool_error")
    assert message in done["error"]["message"]


def test_unknown_task_is_a_tool_error(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    jobs.jobs.clear()
    done = site.finish(task)
    assert "Task job-1 of the MCP server 'ci' has no result: the server does not know it" in done["error"]["message"]


def test_refused_answer_is_a_tool_error(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    site.decide(task, "approve", {"branch": "main"})
    jobs.jobs.clear()
    assert "the server refused a person's answer" in site.finish(task)["error"]["message"]


def test_task_that_outlives_its_time_is_lost_and_cancelled(site: Site, jobs: Jobs) -> None:
    jobs.prepare = lambda job: setattr(job, "ttl_ms", -5)
    task = site.submit("build")
    with site.engine.begin() as connection:
        connection.execute(text("UPDATE remote_calls SET created_at = now() - interval '2 s'"))
    done = site.finish(task)
    assert "its time (ttlMs) is over" in done["error"]["message"]
    assert ("tasks/cancel", "job-1") in jobs.asked


def test_longer_time_is_accepted(site: Site, jobs: Jobs) -> None:
    jobs.prepare = lambda job: setattr(job, "ttl_ms", 0)
    task = site.submit("build")
    with site.engine.begin() as connection:
        connection.execute(text("UPDATE remote_calls SET created_at = now() - interval '2 s'"))
    jobs.job.ttl_ms = 60_000
    site.poll()
    assert site.state(task) == ("waiting", "remote_task")


def test_cancellation_is_passed_on(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    site.tasks.cancel(task)
    site.poll()
    assert (jobs.job.status, site.rows()) == ("cancelled", 0)


def test_deadline_is_passed_on_with_an_open_question(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    jobs.job.ask(q1=question())
    site.poll()
    with transaction() as connection:
        lifecycle.expire(connection, task)
    site.poll()
    assert (jobs.job.status, site.rows()) == ("cancelled", 0)


def test_cancellation_is_given_up_when_the_server_is_away(site: Site, jobs: Jobs, define: Define) -> None:
    with raw_server(task_result()) as raw:
        define(*definitions(raw.url, "build"))
        task = site.submit("build")
    site.tasks.cancel(task)
    for _ in range(9):
        assert site.rows() == 1
        site.poll()
    assert site.rows() == 0


def test_stop_holds_an_answer_back(site: Site, jobs: Jobs) -> None:
    task = site.submit("deploy")
    jobs.job.ask(q1=question())
    site.poll()
    site.decide(task, "approve", {"branch": "main"})
    target = stops.target_of("installation")
    with transaction() as connection:
        stops.stop(connection, target, who="ann")
    site.poll()
    assert jobs.job.answers == {}
    sentence = site.why(task).sentence
    assert "which will receive the answer that a person gave" in sentence
    assert "The answer is not sent, because ann stopped" in sentence
    with transaction() as connection:
        stops.lift(connection, target)
    site.poll()
    assert "q1" in jobs.job.answers


def test_poll_of_a_dead_orchestrator_is_made_by_another(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    with autocommit(site.engine).connect() as connection:
        connection.execute(HURRY)
        [claimed] = remote_calls.claim(connection, most=5, each=5, busy={}, hold=60.0)
        assert claimed.remote_id == "job-1"
        assert remote_calls.claim(connection, most=5, each=5, busy={}, hold=60.0) == []
    jobs.job.finish()
    assert site.finish(task)["output"] == "built"


def test_each_server_gets_four_polls_at_a_time(site: Site, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        site.submit("build")
    monkeypatch.setattr(site.poller.threads, "submit", lambda *_: None)
    with autocommit(site.engine).connect() as connection:
        connection.execute(HURRY)
        for _ in range(2):
            site.poller.run_once()
            assert site.poller.busy == {"default/ci": 4}
        assert len(remote_calls.claim(connection, most=9, each=4, busy={"default/ci": 2}, hold=60.0)) == 2
        assert len(remote_calls.claim(connection, most=1, each=4, busy={}, hold=60.0)) == 1


AWAY, UNREADABLE = McpFault("HTTP 504", taken=True, temporary=True), McpFault("not JSON", taken=True)


@pytest.mark.parametrize(
    ("fault", "is_expired", "seconds"),
    [(AWAY, False, 86_400.0), (AWAY, True, 600.0), (UNREADABLE, False, 3_600.0), (UNREADABLE, True, 600.0)],
)
def test_failing_polls_become_rarer_and_end(
    site: Site, jobs: Jobs, fault: McpFault, is_expired: bool, seconds: float
) -> None:
    site.submit("build")
    with autocommit(site.engine).connect() as connection:
        connection.execute(HURRY)
        [call] = remote_calls.claim(connection, most=1, each=1, busy={}, hold=60.0)
    call = replace(call, is_expired=is_expired, seconds_failing=seconds - 1)
    pauses = [site.poller._trouble(replace(call, failures=n), fault)["poll_seconds"] for n in (0, 3, 20)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 3 < 300 <= pauses[-1] <= 330
    assert "result" in site.poller._trouble(replace(call, seconds_failing=seconds), fault)


def test_output_schema_holds_for_remote_results(site: Site, jobs: Jobs, define: Define, shop_with_jobs: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    define(*definitions(shop_with_jobs[0].url, "build", output_schema=schema))
    task = site.submit("build")
    jobs.job.finish(structuredContent={"n": "many"})
    assert "The output of tool 'build' does not match its schema" in site.finish(task)["error"]["message"]


# ------------------------------------------------------------------------------------- ways to a server, and secrets


def test_token_serves_both_sides_and_is_written_nowhere(
    site: Site,
    jobs: Jobs,
    shop_with_jobs: Any,
    define: Define,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MINION_SECRET_KEY", Fernet.generate_key().decode())
    get_settings.cache_clear()
    shop, _ = shop_with_jobs
    with authority_server() as authority:
        oauth = {"issuer": authority.url, "client_id": "minions", "client_secret": "${secret:ci}"}
        metadata = {"issuer": authority.url, "token_endpoint": f"{authority.url}/token"}
        authority.answer = lambda path: (200, authority.token() if path == "/token" else metadata)
        define({"kind": "mcp_server", "name": "ci", "url": shop.url, "oauth": oauth})
        define(*definitions(shop.url, "build")[1:])
        with transaction() as connection:
            SecretStore(get_settings()).set(connection, "ci", "t0p-s3cret/value")
        shop.requests.clear()
        task = site.submit("build")
        site.poll()
        jobs.job.ask(q=question("Is it token-1, or t0p-s3cret/value?"))
        site.poll()
        assert "Is it ***, or ***?" in site.why(task).sentence
    assert {request["authorization"] for request in shop.requests} == {"Bearer token-1"}
    written = everything_written(site.engine, capsys)
    assert "t0p-s3cret" not in written
    assert "token-1" not in written


def test_program_is_called_without_the_offer_of_tasks(
    site: Site, define: Define, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(STDIO_SERVER)
    listed = {"shown": {"command": [sys.executable, str(tmp_path / "server.py")]}}
    monkeypatch.setenv("MINION_MCP_STDIO", json.dumps(listed))
    get_settings.cache_clear()
    define({"kind": "mcp_server", "name": "ci", "stdio": "shown"}, *definitions("http://127.0.0.1/", "build")[1:])
    try:
        task = site.submit("build")
        assert site.tasks.get(task)["output"] == {"elicitation": {"form": {}, "url": {}}}
    finally:
        PROCESSES.close()
    monkeypatch.delenv("MINION_MCP_STDIO")
    get_settings.cache_clear()
    refused = site.tasks.get(site.submit("build"))
    assert "its operator must list it in MINION_MCP_STDIO" in refused["error"]["message"]


STDIO_SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    result = {"supportedVersions": ["2026-07-28"], "resultType": "complete"}
    if message["method"] == "tools/call":
        offered = message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        result = {"resultType": "complete", "content": [], "structuredContent": offered}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


# ------------------------------------------------------------------------------------------------- hostile servers


def task_result(**fields: Any) -> dict[str, Any]:
    """The creation of a task."""
    return {"resultType": "task", "taskId": "t/1", "status": "working", "ttlMs": None, **fields}


def state_of_task(**fields: Any) -> dict[str, Any]:
    """What a server says about its task."""
    return {"resultType": "complete", "taskId": "t/1", "status": "working", "ttlMs": None, **fields}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (task_result(taskId=""), "the id of its task is not a text"),
        (task_result(taskId=None), "the id of its task is not a text"),
        (task_result(taskId="x" * 1001), "the id of its task is not a text"),
        ({"resultType": "input_required"}, "it asks for input, but does not say what for"),
        ({"resultType": "input_required", "requestState": 5}, "its requestState is not a text"),
        ({"resultType": "input_required", "inputRequests": {}}, "it asks for input, but does not say what for"),
        (
            {"resultType": "input_required", "inputRequests": {"a": {"method": "sampling/createMessage"}}},
            "did not offer",
        ),
        (
            {"resultType": "input_required", "inputRequests": {"a": question(schema={"type": "string"})}},
            "not of type object",
        ),
        (
            {"resultType": "input_required", "inputRequests": {"a": question(schema={"type": "objekt"})}},
            "invalid schema",
        ),
        ({"resultType": "input_required", "inputRequests": {"a": question(mode="url", url="file:///x")}}, "not valid"),
        ({"resultType": "input_required", "inputRequests": {str(n): question() for n in range(21)}}, "more than 20"),
        ({"resultType": "input_required", "inputRequests": {"a": question("x" * 100_001)}}, "100,000 characters"),
        ({"resultType": "elsewhere"}, "which is not supported"),
    ],
)
def test_creation_that_cannot_be_read_is_a_tool_error(
    site: Site, define: Define, answer: dict[str, Any], message: str
) -> None:
    with raw_server(answer) as raw:
        define(*definitions(raw.url, "build"))
        done = site.tasks.get(site.submit("build"))
    assert (done["state"], done["error"]["type"]) == ("failed", "tool_error")
    assert message in done["error"]["message"]
    assert "The tool 'build' (MCP server 'ci')" in done["error"]["message"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (state_of_task(taskId="t/2"), "answers about 't/2'"),
        (state_of_task(status="finished"), "unknown status 'finished'"),
        (state_of_task(status="completed"), "is completed, and has no result"),
        (state_of_task(status="input_required"), "does not say what for"),
        ({"error": {"code": -32603, "message": "Oops."}}, "Oops."),
        (state_of_task(status="completed", result={"content": [{"type": "text", "text": "x" * 3_000_000}]}), "bytes"),
    ],
)
def test_lies_about_a_task_are_given_up_after_a_while(
    site: Site, define: Define, answer: dict[str, Any], message: str
) -> None:
    with raw_server(task_result(), *[answer] * 2) as raw:
        define(*definitions(raw.url, "build"))
        define({"kind": "mcp_server", "name": "ci", "url": raw.url, "max_bytes": 1 << 20})
        define(*definitions(raw.url, "build")[1:])
        task = site.submit("build")
        site.poll()
        assert site.state(task) == ("waiting", "remote_task")
        assert message in site.why(task).sentence
        with site.engine.begin() as connection:
            connection.execute(AGE)
        done = site.finish(task)
    assert message in done["error"]["message"]


def test_endless_questions_are_given_up(site: Site, define: Define) -> None:
    numbers = iter(range(1000))

    def ask(*_: Any) -> dict[str, Any]:
        return {"resultType": "input_required", "inputRequests": {f"q{next(numbers)}": question()}}

    with raw_server(*[ask] * 50) as raw:
        define(*definitions(raw.url, "build"))
        task = site.submit("build")
        for _ in range(10):
            site.decide(task, "approve", {"branch": "x"})
            site.worker.run_due()
        done = site.tasks.get(task)
    assert "it asked for input 10 times" in done["error"]["message"]


def test_endless_questions_of_a_task_are_given_up(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    for number in range(21):
        jobs.job.ask(**{f"q{number}": question()})
        site.poll()
        if number < 20:
            assert site.state(task) == ("waiting", "approval")
    site.worker.run_due()
    assert "it asked for input 20 times" in site.tasks.get(task)["error"]["message"]
    assert ("tasks/cancel", "job-1") in jobs.asked


@pytest.mark.parametrize("none", [{}, {"inputRequests": {}}, {"inputRequests": None}])
def test_state_without_questions_is_sent_back_at_once(site: Site, define: Define, none: dict[str, Any]) -> None:
    with raw_server({"resultType": "input_required", "requestState": "later", **none}, text_result("done")) as raw:
        define(*definitions(raw.url, "build"))
        task = site.submit("build")
        assert site.tasks.get(task)["output"] == "done"
        assert raw.asked[-1][1]["params"]["requestState"] == "later"


def test_server_that_returns_continues_its_tasks(site: Site, jobs: Jobs, define: Define) -> None:
    with raw_server(task_result(), (503, {"Retry-After": "1"}, b"restarting")) as raw:
        define(*definitions(raw.url, "build"))
        task = site.submit("build")
        site.poll()
        assert "HTTP 503: restarting" in site.why(task).sentence
        raw.script = [state_of_task(status="completed", result={"content": [{"type": "text", "text": "back"}]})]
        assert site.finish(task)["output"] == "back"
        assert {headers.get("Mcp-Name") for headers, message in raw.asked if message["method"] == "tasks/get"} == {
            "t/1"
        }
