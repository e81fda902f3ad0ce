"""A program waits for a task of an MCP server as for any call: it ends, and runs again against its journal."""

from __future__ import annotations

from typing import Any

from minions import testing
from minions.testing import MessagesApi, tool_use
from tests.conftest import Define
from tests.integration.agents.test_remote_tasks import Site, configured, definitions, jobs, shop_with_jobs, site
from tests.support.mcp_tasks import Jobs, question

__all__ = ["configured", "jobs", "shop_with_jobs", "site"]
CODE = """
first = await build(target="a")
second = await deploy(target=first)
return [first, second]
"""


def test_program_waits_for_remote_tasks_and_questions(
    site: Site, jobs: Jobs, shop_with_jobs: Any, define: Define, messages_api: MessagesApi
) -> None:
    schema = {"type": "object", "properties": {"target": {"type": "string"}}, "required": ["target"]}
    tools = [each for each in definitions(shop_with_jobs[0].url, "build", "deploy") if each["kind"] != "agent"]
    config = {"capabilities": ["work"], "code_mode": True}
    define(*tools[:1], *[{**tool, "input_schema": schema, "description": "Does it."} for tool in tools[1:]])
    define(
        {"kind": "agent", "name": "Coder", "model": "claude-sonnet-5-5", "tools": ["build", "deploy"], "config": config}
    )
    messages_api.script = [tool_use(("run_program", {"code": CODE})), testing.text("Done.")]
    task = site.tasks.submit("Coder", "Go.")
    site.worker.run_due()
    assert site.state(task) == ("waiting", "remote_task")
    assert "(build, called in line 2 of the program of step 2) waits for task job-1" in site.why(task).sentence
    jobs.job.finish("built")
    site.poll()
    site.worker.run_due()
    deployed = jobs.jobs["job-2"]
    # The call that has ended is not kept beside the next one.
    assert site.rows() == 1
    assert deployed.arguments == {"target": "built"}
    deployed.ask(q=question())
    site.poll()
    assert "asks for input for step 4 (deploy, called in line 3 of the program of step 2): " in site.why(task).sentence
    site.decide(task, "approve", {"branch": "main"})
    site.poll()
    deployed.finish("deployed")
    done = site.finish(task)
    assert (done["state"], done["output"]) == ("succeeded", {"content": "Done."})
    assert len(jobs.calls) == 2
    [program] = [step for step in site.tasks.steps(task) if step["name"] == "run_program"]
    assert program["output"]["result"] == ["built", "deployed"]
