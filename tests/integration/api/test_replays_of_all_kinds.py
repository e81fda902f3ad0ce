"""Whatever a task did, its recording replays unchanged: for free, and without a key for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minions import Client, Task
from minions.testing import MessagesApi, error, refusal, tool_use, web_search
from minions.testing import said as blocks
from minions.testing import text as said
from orchestrator.cases.case import parse_case
from orchestrator.cases.recorder import record
from orchestrator.cases.verdict import of_replay
from shared.contracts.recording import parse_recording
from tests.conftest import Define
from tests.integration.agents.conftest import TOOLS
from tests.integration.conftest import ACT, InlineWorker
from tests.support.definitions import function_definition
from tests.support.media_files import b64, pdf, png
from tests.support.model_client import forget_model_client

MODEL = "claude-sonnet-5-5"
CONFIG = {"capabilities": ["work"], "max_turns": 4, "max_attempts": 2, "retry_backoff": 0.01, "retry_backoff_max": 0.02}
THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "signed"}
FAILING = {"do": "fail"}


@dataclass
class Site:
    """The system with a scripted model."""

    client: Client
    define: Define
    worker: InlineWorker
    api: MessagesApi
    log: Path

    def agent(self, *tools: dict[str, Any], name: str = "Agent", **fields: Any) -> None:
        """Define an agent with a model."""
        config = {**CONFIG, **fields.pop("config", {})}
        names = fields.pop("tools", []) + [tool["name"] for tool in tools]
        self.define(*tools, {"kind": "agent", "name": name, "model": MODEL, "tools": names, "config": config, **fields})

    def chain(self, *relations: Any, strategy: str = "sequential", name: str = "Agent", **config: Any) -> None:
        """Define an agent that delegates to `Act`, which does what its input says."""
        of_act = {"kind": "agent", "type": "function", "tool": "act", "config": {**CONFIG, "max_attempts": 1}}
        for act, about in (("Act", "boats"), ("Other", "trains")):
            self.define(ACT, {**of_act, "name": act, "description": f"Knows everything about {about}"})
        self.define(
            {
                "kind": "agent",
                "name": name,
                "type": "function",
                "relations": [{"agent": each} if isinstance(each, str) else each for each in relations],
                "config": {**CONFIG, "chain_strategy": strategy, **config},
            }
        )

    def run(self, *replies: Any, value: Any = None, **fields: Any) -> Task:
        """Run a task of `Agent`, or begin one that waits."""
        self.api.script[:] = replies
        given = {} if "messages" in fields else {"input": value or {"text": "go"}}
        task = self.client.submit("Agent", **given, **fields)
        for _ in range(20):
            self.worker.run_due()
        return self.client.get(task)

    def end(self, task: Task) -> Task:
        """Run a task to its end."""
        self.worker.run_all()
        return self.client.get(task)


@pytest.fixture
def site(
    client: Client,
    define: Define,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    tmp_path: Path,
) -> Site:
    return Site(client, define, inline_worker, messages_api, tmp_path / "calls")


KINDS: dict[str, Callable[[Site], Task]] = {}


def kind(make: Callable[[Site], Task]) -> Callable[[Site], Task]:
    """Add a kind of task: the function runs one."""
    KINDS[make.__name__.replace("_", " ").strip()] = make
    return make


@kind
def _text_that_is_almost_json(site: Site) -> Task:
    site.agent(*TOOLS[:1])
    call = tool_use(("echo", {"a": "[NaN]"}), said="[1e999]")
    return site.run(call, said("[NaN, 1e999]"), messages=[{"role": "user", "content": '[{"a": NaN}]'}])


@kind
def _parallel_calls(site: Site) -> Task:
    site.agent(*TOOLS[:2])
    return site.run(tool_use(("act", {"answer": 1}), ("echo", {"a": [1.0]}), ("act", {"answer": 1})), said("done"))


@kind
def _failing_tool(site: Site) -> Task:
    site.define(*TOOLS)
    site.agent(tools=["send", "echo"])
    return site.run(tool_use(("echo", {}), ("nothing", {})), tool_use(("echo", {"x": 1})), said("done"))


@kind
def _turns_used_up(site: Site) -> Task:
    site.agent(*TOOLS[:1])
    return site.run(*[tool_use(("echo", {"n": n})) for n in range(4)])


@kind
def _refusal(site: Site) -> Task:
    site.agent()
    return site.run(refusal("cyber", "Not this."))


@kind
def _fallback_model(site: Site) -> Task:
    site.agent(config={"fallback_models": ["claude-opus-5"]})
    return site.run(refusal("cyber", "Not this."), said("Hi."))


@kind
def _unavailable_model(site: Site) -> Task:
    site.agent(config={"fallback_models": ["claude-opus-5"], "fallback_after": "1s"})
    overloaded = error(529, "overloaded_error", "Overloaded")
    return site.run({**overloaded, "if": f'"model": "{MODEL}"'}, said("Hi."))


@kind
def _model_error(site: Site) -> Task:
    site.agent()
    return site.run(error(400, "invalid_request_error", "No."))


@kind
def _repaired_output(site: Site) -> Task:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    site.agent(output_schema=schema)
    return site.run(said("no JSON"), said('{"n": 1}'))


@kind
def _empty_answer(site: Site) -> Task:
    site.agent()
    return site.run(said(""), said("Sorry."))


@kind
def _thinking(site: Site) -> Task:
    site.agent(*TOOLS[:1])
    call = tool_use(("echo", {}))
    return site.run({**call, "content": [THOUGHT, *call["content"]]}, said("done"))


@kind
def _sandboxed_function(site: Site) -> Task:
    site.define(function_definition())
    site.define({"kind": "agent", "name": "Agent", "type": "function", "function": "double", "config": CONFIG})
    return site.run(value={"x": 21})


@kind
def _function_of_a_model(site: Site) -> Task:
    site.define(function_definition())
    tool = {"kind": "tool", "name": "twice", "type": "function", "function": "double", "cache": "1h"}
    site.agent(tool)
    return site.run(tool_use(("twice", {"x": 21})), tool_use(("twice", {"x": 21})), said("done"))


@kind
def _unsafe_function_agent(site: Site) -> Task:
    site.define({**ACT, "effect": "unsafe"})
    site.define({"kind": "agent", "name": "Agent", "type": "function", "tool": "act", "config": CONFIG})
    return site.run(value={"answer": {"sent": True}, "log": str(site.log)})


@kind
def _sequential(site: Site) -> Task:
    site.chain("Act", "Act")
    return site.run(value={"answer": {"answer": "end"}})


@kind
def _parallel(site: Site) -> Task:
    site.chain("Act", "Other", "Act", strategy="parallel", max_parallel=2)
    return site.run(value={"answer": 5})


@kind
def _for_each_then_another(site: Site) -> Task:
    # The input of the second one names the sub-tasks of the first.
    site.define(TOOLS[0], {"kind": "agent", "name": "Echo", "type": "function", "tool": "echo", "config": CONFIG})
    site.chain({"agent": "Act", "for_each": "items"}, "Echo")
    return site.run(value={"items": [{"answer": 1}, {"answer": 1}, {"answer": [2.0]}]}, labels={"a": "b"})


@kind
def _collected_failures(site: Site) -> Task:
    site.chain({"agent": "Act", "for_each": "items"}, on_child_failure="collect")
    return site.run(value={"items": [{"answer": 1}, FAILING]})


@kind
def _nested_failure(site: Site) -> Task:
    site.chain("Act", name="Inner")
    site.chain("Inner", "Act", strategy="parallel", on_child_failure="collect")
    return site.run(value=FAILING)


@kind
def _fallback_chain(site: Site) -> Task:
    site.chain({"agent": "Act", "for_each": "items"}, "Act", strategy="fallback")
    return site.run(value={"items": [FAILING], "answer": 2})


@kind
def _router(site: Site) -> Task:
    site.chain("Act", "Other", strategy="router")
    return site.run(value={"answer": "Which trains are old?"})


@kind
def _model_router(site: Site) -> Task:
    site.chain("Act", "Other", strategy="router", router_model=MODEL)
    choice = {"agent": "Other", "scores": {"Act": 0.1, "Other": 0.9}, "reason": "So."}
    return site.run(said("what?"), said(json.dumps(choice)), value={"answer": "Act"})


@kind
def _sub_agents_of_a_model(site: Site) -> Task:
    site.define(*TOOLS)
    site.agent(tools=["help"])
    calls = tool_use(("help", {"answer": 1}), ("help", {"answer": 1}), ("help", {"answer": 2}))
    return site.run(calls, said("done"))


@kind
def _conversation_with_sub_agents(site: Site) -> Task:
    site.define(*TOOLS)
    for name in ("First", "Second"):
        site.agent(name=name)
    line = {"kind": "agent", "name": "Agent", "type": "function", "config": CONFIG}
    site.define({**line, "relations": [{"agent": "First"}, {"agent": "Second"}]})
    return site.run(said("one"), said("two"), conversation_id="talk", key="tenant")


@kind
def _timer(site: Site) -> Task:
    site.agent(*TOOLS[:2])
    wait = ("act", {"answer": {"$wait": {"seconds": 0.01}}})
    task = site.run(tool_use(wait, ("echo", {})), said("done"))
    return site.end(task)


@kind
def _signal(site: Site) -> Task:
    site.agent(*TOOLS[:2])
    task = site.run(tool_use(("act", {"answer": {"$wait": {"signal": "paid"}}})), said("done"))
    site.client.signal(task, "paid", {"amount": 7})
    return site.end(task)


@kind
def _approvals(site: Site) -> Task:
    site.define(*TOOLS)
    site.agent(tools=["careful", "checked"])
    task = site.run(tool_use(("careful", {"answer": 1})), tool_use(("checked", {"answer": 2})), said("done"))
    site.client.decide(task, "approve", step=2, value={"answer": 3})
    site.worker.run_due()
    site.client.decide(task, "reject", step=5, reason="No.")
    return site.end(task)


@kind
def _approved_agent(site: Site) -> Task:
    site.define(ACT, {"kind": "agent", "name": "Agent", "type": "function", "tool": "act",
                      "config": {**CONFIG, "approval": True}})  # fmt: skip
    task = site.run(value={"answer": 1})
    site.client.decide(task, "approve", step=1)
    return site.end(task)


@kind
def _search(site: Site) -> Task:
    site.agent({"kind": "tool", "name": "web", "type": "web_search"})
    return site.run(blocks(web_search("boats", ("Boats sink", "https://news.example/boats")), "They sink."))


@kind
def _messages(site: Site) -> Task:
    site.agent(system_prompt="Be brief.")
    user = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
    given = [{"role": "system", "content": "Rule."}, user, {"role": "assistant", "content": "Hi"}, user]
    return site.run(said("done"), messages=given)


@kind
def _file_in_the_input(site: Site) -> Task:
    site.agent()
    file = site.client.upload(pdf("The moon is made of rock."), name="moon.pdf")
    return site.run(said("Rock."), value={"paper": {"$file": file["id"]}})


@kind
def _image_of_a_tool(site: Site) -> Task:
    site.agent(*TOOLS[:2])
    large = {"type": "base64", "media_type": "image/png", "data": b64(png(3, 2, padding=80_000))}
    shown = {"$content": [{"type": "text", "text": "See:"}, {"type": "image", "source": large}]}
    return site.run(tool_use(("act", {"answer": shown})), said("done"))


@kind
def _memory(site: Site) -> Task:
    site.agent({"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": "tenant"}})
    create = ("memory", {"command": "create", "path": "/memories/a", "file_text": "b"})
    view = ("memory", {"command": "view", "path": "/memories/a"})
    return site.run(tool_use(create), tool_use(view), tool_use(view), said("done"), key="tenant")


@kind
def _batch_lane(site: Site) -> Task:
    site.agent(*TOOLS[:1], config={"lane": "batch"})
    return site.run(tool_use(("echo", {})), said("done"), lane="direct")


@kind
def _retried(site: Site) -> Task:
    site.define({**ACT, "name": "act"})
    site.define({"kind": "agent", "name": "Agent", "type": "function", "tool": "act", "config": CONFIG})
    return site.end(site.run(value={"do": "fail", "times": 1}))


@kind
def _attempts_used_up(site: Site) -> Task:
    site.define(ACT, {"kind": "agent", "name": "Agent", "type": "function", "tool": "act", "config": CONFIG})
    return site.end(site.run(value=FAILING))


@kind
def _invalid_input(site: Site) -> Task:
    site.chain({"agent": "Act", "for_each": "items"})
    return site.run(value={"items": "none"})


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_recording_replays_unchanged(make: Callable[[Site], Task], site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(site)
    assert task.final, task
    case = record(site.client, task.id, name="case", redacted=[])
    calls = len(site.api.requests)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    forget_model_client()
    trial = site.client.submit_trial(case["task"], level="replay")
    site.worker.run_all()
    ended = site.client.get(trial)
    run = record(site.client, ended.id, name="run", redacted=[])["task"]
    assert of_replay(parse_case(case, where="case"), parse_recording(run)) == [], (task, ended)
    assert len(site.api.requests) == calls
    assert sum(each["cost_microdollars"] for each in site.client.executions(ended)) == 0


def test_another_model_is_no_other_path(site: Site) -> None:
    recording = record(site.client, _fallback_model(site).id, name="case", redacted=[])["task"]
    site.agent(model="claude-opus-5-5", config={"fallback_models": ["claude-sonnet-5"]})
    trial = site.client.submit_trial(recording, level="replay")
    assert site.end(trial).succeeded
