"""Time and size of each page with many tasks: 200 agents, 5 % failures, trees, long journals and large outputs.

    python -m benchmarks.pages [--tasks N] [--requests N] [--chromium] [--json]

Rows are created by SQL, on a private PostgreSQL. A page is requested one at a time over HTTP, with a login, from a
server in this process. `/readyz` shows what a request costs that reads nothing: compare with it on a busy machine, or
look at the processor time of this process (server and client, without PostgreSQL).
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import uvicorn
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.environment import Environment
from benchmarks.filling import vacuum
from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from orchestrator.observe.statistician import Statistician
from orchestrator.pages import site
from orchestrator.pages.rendering import asset_names
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings
from tests.support.browser import Browser
from tests.support.chromium import ARGUMENTS, find_chromium

AGENTS = 200
BATCH = 50_000
TREE = 51
"""Tasks of a tree, with its root."""
TREES = 20
STEPS = 200
"""Steps of the longest journal."""
LARGE = 2 << 20
GOAL_SECONDS, GOAL_BYTES, GOAL_PAINT_SECONDS = 0.15, 150_000, 1.0
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
VERSIONS = 100
"""Of one agent and one function."""
BODY = "    # A line of a long function, with 'text' and numbers such as 42.\n    x = str(x) + 'text'\n" * 200
TOOL = {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"}

WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('bench', '{bench}', 100, 'solo', 'bench', 1, '0', now() + interval '1 day')"
)
# Of 100 tasks, 5 have failed, 1 is pending and 1 waits for a person; the others have succeeded.
FILL = (
    """
    INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, key, labels, created_at)
        SELECT i.id, a.name, a.active_version_id, '{"value": 1}', i.id, i.id, 'tenant-' || i.n % 50,
               CASE WHEN i.n % 10 = 0 THEN '{"env": "prod"}'::jsonb ELSE '{}' END, now()
            FROM (SELECT n, minion_uuidv7() AS id FROM generate_series(1, :tasks) AS n) AS i
            JOIN agents a ON a.name = 'agent-' || i.n % :agents
    """,
    """
    INSERT INTO task_status (task_id, state, capability, claim, agent_name, key, wait_reason, rank)
        SELECT id, s.state, 'bench', 1, agent_name, key, CASE s.state WHEN 'waiting' THEN 'approval' END, 0
            FROM tasks, LATERAL (SELECT get_byte(uuid_send(id), 15) AS byte) AS b,
            LATERAL (SELECT CASE WHEN byte < 13 THEN 'failed' WHEN byte < 15 THEN 'pending'
                                 WHEN byte < 17 THEN 'waiting' ELSE 'succeeded' END AS state) AS s
            WHERE NOT EXISTS (SELECT FROM task_status t WHERE t.task_id = tasks.id)
    """,
    """
    INSERT INTO executions (task_id, claim, worker_id, outcome, finished_at, cost_microdollars, input_tokens)
        SELECT task_id, 1, (SELECT id FROM workers LIMIT 1),
               CASE state WHEN 'waiting' THEN 'suspended' ELSE state END, now(), 1200, 900
            FROM task_status s WHERE state <> 'pending'
            AND NOT EXISTS (SELECT FROM executions e WHERE e.task_id = s.task_id)
    """,
    """
    INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim, input, output, finished_at)
        SELECT task_id, 1, CASE state WHEN 'waiting' THEN 'wait' ELSE 'tool_call' END, 'echo',
               CASE state WHEN 'waiting' THEN 'started' ELSE 'finished' END,
               encode(sha256(task_id::text::bytea), 'hex'), 1,
               CASE state WHEN 'waiting' THEN '{"approval": {"value": 1}}'::jsonb ELSE '{"value": 1}' END,
               CASE state WHEN 'waiting' THEN NULL ELSE '{"value": 1}'::jsonb END,
               CASE state WHEN 'waiting' THEN NULL ELSE now() END
            FROM task_status s WHERE state <> 'pending'
            AND NOT EXISTS (SELECT FROM steps e WHERE e.task_id = s.task_id)
    """,
    """
    INSERT INTO task_outcomes (task_id, state, output, error, error_fingerprint, ended_in)
        SELECT task_id, state, CASE state WHEN 'succeeded' THEN '{"value": 1}'::jsonb END,
               CASE state WHEN 'failed' THEN '{"type": "tool_error", "message": "It broke."}'::jsonb END,
               CASE state WHEN 'failed' THEN 'f' || get_byte(uuid_send(task_id), 14) % 20 END, NULL
            FROM task_status s WHERE state IN ('succeeded', 'failed')
            AND NOT EXISTS (SELECT FROM task_outcomes o WHERE o.task_id = s.task_id)
    """,
)
GROW_TREES = text(
    """
    WITH chosen AS (SELECT task_id AS id, row_number() OVER (ORDER BY task_id) AS n FROM task_status
                  WHERE state = 'succeeded' ORDER BY task_id LIMIT :tree * :trees)
    UPDATE tasks t SET root_id = r.id, parent_id = NULLIF(r.id, t.id), depth = CASE WHEN r.id = t.id THEN 0 ELSE 1 END,
           parent_step = CASE WHEN r.id <> t.id THEN 1 END
        FROM chosen s JOIN chosen r ON r.n = s.n - (s.n - 1) % :tree WHERE t.id = s.id
    """
)
LONG_JOURNAL = text(
    """
    INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim, input, output, finished_at)
        SELECT :task, n, CASE WHEN n % 2 = 0 THEN 'model_call' ELSE 'tool_call' END, 'step', 'finished', 'x', 1,
                jsonb_build_object('messages', ARRAY[jsonb_build_object('role', 'user', 'content', repeat('a', 1000))]),
               jsonb_build_object('content', ARRAY[jsonb_build_object('type', 'text', 'text', repeat('b', 1000))]),
               now() FROM generate_series(2, :steps) AS n
    """
)
LARGE_OUTPUT = text(
    "UPDATE task_outcomes SET output = (SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, :bytes / 36) n) "
    "WHERE task_id = :task"
)
# Ends of rows that SQL created are not counted, so their counts are created too: hours of 14 days, and 90 days.
COUNTS = text(
    """
    INSERT INTO statistics (grain, kind, bucket, namespace, agent, version, capability, tenant, outcome, step, name,
                            count, microdollars, input_tokens, run_seconds, runs, waits)
        SELECT g.grain, k.kind, b.bucket, 'default', 'agent-' || a, 1, 'bench', 'tenant-' || a % 50,
               CASE k.kind WHEN 'failure' THEN '' WHEN 'step' THEN 'finished' ELSE k.outcome END, k.step,
               CASE k.kind WHEN 'failure' THEN 'f' || a % 20 WHEN 'step' THEN 'claude-sonnet-5-5' ELSE '' END,
               k.count, CASE k.kind WHEN 'step' THEN 1200 ELSE 0 END, CASE k.kind WHEN 'step' THEN 900 ELSE 0 END, 1,
               CASE WHEN k.kind IN ('execution', 'step') THEN array_fill(k.count, ARRAY[20]) ELSE '{}' END,
               CASE k.kind WHEN 'execution' THEN array_fill(k.count, ARRAY[12]) ELSE '{}' END
            FROM (VALUES ('hour', interval '1 h', 336), ('day', interval '1 d', 90)) AS g (grain, width, buckets),
            LATERAL (SELECT date_trunc(g.grain, now(), 'UTC') - n * g.width AS bucket
                         FROM generate_series(0, g.buckets - 1) AS n) AS b,
            generate_series(0, :agents - 1) AS a,
            (VALUES ('task', 'succeeded', '', 95::bigint), ('task', 'failed', '', 5),
                    ('execution', 'succeeded', '', 95), ('execution', 'failed', '', 5),
                    ('step', '', 'model_call', 95), ('failure', '', 'tool_error', 5))
                AS k (kind, outcome, step, count)
    """
)
SOME = text("SELECT task_id FROM task_status WHERE state = :state ORDER BY task_id DESC OFFSET :skip LIMIT 1")
ROOT = text("SELECT root_id FROM tasks WHERE depth = 1 LIMIT 1")


OPERATIONS = (
    "alerts",
    "silences",
    "schedules",
    "limits",
    "budgets",
    "webhooks",
    "secrets",
    "files",
    "memory",
    "keys",
    "audit",
)
# 100 of what operators set, a message and an audit row for each 10 tasks, 1,000 alerts.
FILL_OPERATIONS = (
    """
    INSERT INTO schedules (namespace, name, cron, timezone, missed, request, enabled, next_at)
        SELECT 'default', 'bench-' || n, '*/5 * * * *', 'UTC', 'once', '{"agent": "agent-1"}', true, now()
            FROM generate_series(1, 100) AS n
    """,
    """
    INSERT INTO limits (namespace, scope, name, max_running) SELECT 'default', 'agent', 'agent-' || n, 5
        FROM generate_series(1, 100) AS n
    """,
    """
    INSERT INTO standing_budgets (scope, namespace, name, period, timezone, tokens, on_breach)
        SELECT 'agent', 'default', 'agent-' || n, 'day', 'UTC', 1000000, 'wait' FROM generate_series(1, 100) AS n
    """,
    """
    INSERT INTO webhooks (namespace, name, url, secret, events, states, agents, labels, roots_only, enabled)
        VALUES ('default', 'bench', 'https://example.com/hook', 'whsec_', '{tasks}', '{}', '{}', '{}', true, true)
    """,
    """
    INSERT INTO webhook_deliveries (webhook_id, task_id, state, status, attempts)
        SELECT w.id, s.task_id, s.state, 'delivered', 1 FROM webhooks w, (SELECT * FROM task_status
            WHERE state IN ('succeeded', 'failed') LIMIT :tasks / 10) AS s
    """,
    """
    INSERT INTO secrets (namespace, name, ciphertext) SELECT 'default', 'secret' || n, 'x'
        FROM generate_series(1, 100) AS n
    """,
    """
    INSERT INTO alerts (rule, namespace, subject, agent, sentence, state, resolved_at, facts)
        SELECT 'anomaly.failures', 'default', 'agent-' || n, 'agent-' || n % 200, 'Tasks fail.',
               CASE WHEN n > 50 THEN 'resolved' ELSE 'firing' END, CASE WHEN n > 50 THEN now() END, '{}'
            FROM generate_series(1, 1000) AS n
    """,
    """
    INSERT INTO audit_log (nonce, act, actor, target, namespace, before, after)
        SELECT gen_random_uuid(), 'task.cancel', 'ci', n::text, 'default', '{"state": "pending"}',
               '{"state": "cancelled"}' FROM generate_series(1, :tasks / 10) AS n
    """,
)
ALERT = text("SELECT id FROM alerts WHERE state = 'firing' ORDER BY id LIMIT 1")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chromium", action="store_true", help="measure the first content in a real Chromium too")
    options = parser.parse_args()
    with Environment(replies=()):
        engine = get_engine()
        fill(engine, options.tasks)
        with served() as url:
            measured = measure(url, engine, options.requests, in_chromium=options.chromium)
    print(json.dumps(measured) if options.json else table(measured, options.tasks))


def fill(engine: Engine, tasks: int) -> None:
    """Add the tasks."""
    migrate(engine)
    names = [f"agent-{n}" for n in range(AGENTS)]
    config = {"capabilities": ["bench"]}
    agents = [{"kind": "agent", "name": name, "type": "function", "tool": "echo", "config": config} for name in names]
    with Session(engine) as session:
        store_definitions(session, [parse_definition(definition) for definition in (TOOL, *agents)])
        for version in range(VERSIONS):
            code = f"def long(x):\n    version = {version}\n{BODY}    return x\n"
            changed = [
                {"kind": "function", "name": "long", "code": code, "config": {"safe_mode": False}},
                {"kind": "tool", "name": "long", "type": "function", "function": "long"},
                {**agents[7], "description": f"Version {version} of an agent. " * 100},
            ]
            store_definitions(session, [parse_definition(definition) for definition in changed])
    with engine.begin() as connection:
        connection.execute(WORKER)
    for done in range(0, tasks, BATCH):
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in FILL:
                connection.execute(text(statement), {"tasks": min(BATCH, tasks - done), "agents": AGENTS})
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(COUNTS, {"agents": AGENTS})
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(GROW_TREES, {"tree": TREE, "trees": TREES})
        journal = connection.scalar(SOME, {"state": "succeeded", "skip": 1})
        connection.execute(LONG_JOURNAL, {"task": journal, "steps": STEPS})
        large = connection.scalar(SOME, {"state": "succeeded", "skip": 2})
        connection.execute(LARGE_OUTPUT, {"task": large, "bytes": LARGE})
        for statement in FILL_OPERATIONS:
            connection.execute(text(statement), {"tasks": tasks})
    vacuum(engine)
    Statistician(get_settings(), engine).run_once()


@contextmanager
def served() -> Iterator[str]:
    """Serve the API and the pages; the value is the address."""
    settings = get_settings().model_copy(update={"api_port": 0})
    app = create_app(settings)
    site.add_to(app)
    with listen(settings) as listener:
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        # As the orchestrator does.
        gc.freeze()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            release(app)
            server.should_exit = True
            thread.join(20)


def paths(engine: Engine) -> dict[str, str]:
    """Return the pages by a name."""
    with engine.connect() as connection:
        failed = connection.scalar(SOME, {"state": "failed", "skip": 0})
        waiting = connection.scalar(SOME, {"state": "waiting", "skip": 0})
        journal = connection.scalar(SOME, {"state": "succeeded", "skip": 1})
        large = connection.scalar(SOME, {"state": "succeeded", "skip": 2})
        middle = connection.scalar(text("SELECT task_id FROM task_status ORDER BY task_id OFFSET 1000 LIMIT 1"))
        root = connection.scalar(ROOT)
        alert = connection.scalar(ALERT)
    query = "/tasks?q="
    return {
        "nothing (/readyz)": "/readyz",
        "overview": "/overview",
        "overview, 30 days": "/overview?last=30d",
        "tasks": "/tasks",
        "tasks far down": f"/tasks?cursor={middle}",
        "tasks: state": f"{query}state:failed",
        "tasks: agent and state": f"{query}agent:agent-7+state:failed",
        "tasks: label, 1 d": f"{query}label:env=prod+since:1d",
        "tasks: key": f"{query}key:tenant-3",
        "tasks: error": f"{query}error:f3",
        "tasks: cost": f"{query}cost:>0.5",
        "tasks: cost and state": f"{query}cost:>0.5+state:failed",
        "tasks: no such label": f"{query}label:env=none",
        "task, failed": f"/tasks/{failed}",
        f"task, {STEPS} steps": f"/tasks/{journal}",
        "task, output of 2 MB": f"/tasks/{large}",
        "step": f"/tasks/{journal}/steps/100",
        "conversation": f"/tasks/{journal}/conversation",
        "sub-tasks of a tree": f"/tasks/{root}/subtasks",
        "graph of a tree": f"/tasks/{root}/graph",
        "bulk act, dry run": "/bulk-acts/new?q=state:failed&act=replay",
        "bulk act, dry run by label": "/bulk-acts/new?q=label:env=prod&act=label",
        "palette": "/palette",
        "inbox": "/inbox",
        "decision": f"/inbox/{waiting}",
        **{place: f"/{place}" for place in OPERATIONS},
        "alert": f"/alerts/{alert}",
        "webhook": "/webhooks/bench",
        "schedule": "/schedules/bench-1",
        "audit: act": "/audit?act=limit",
        "audit: target": "/audit?target=77",
        "audit: no such actor": "/audit?actor=none",
        "agents": "/agents",
        "agent": "/agents/agent-7?a=1&b=100",
        "agent, to try": "/agents/agent-7/try",
        "functions": "/functions",
        "function": "/functions/long?a=1&b=100",
        "tools": "/tools",
        "tool": "/tools/echo",
        "errors": "/errors",
        "errors, 90 days": "/errors?last=90d&state=all",
        "errors, resolved": "/errors?last=90d&state=resolved",
        "error": "/errors/f3",
        "error, replay": "/bulk-acts/new?act=replay&q=error%3Af3",
        "workers": "/workers",
        "capabilities": "/capabilities",
        "analytics": "/analytics",
        "analytics: agent and key": "/analytics?by=agent&by=key&last=7d&measure=dollars",
        "analytics: 90 days": "/analytics?by=version&last=90d",
        "analytics, CSV": "/analytics/csv?by=agent&by=key",
    }


def measure(url: str, engine: Engine, requests: int, *, in_chromium: bool) -> list[dict[str, Any]]:
    """Return seconds and bytes of each page."""
    browser = Browser(url, url)
    assert browser.log_in(get_settings().require_api_key()).status_code == 303
    cookies = {name: value for name, (value, _) in browser.cookies.items()}
    with httpx2.Client(base_url=url, cookies=cookies, trust_env=False, timeout=60) as http:
        assets = sum(len(gzip.compress(http.get(path).content)) for path in assets_of(http.get("/overview").text))
        found = []
        for name, path in paths(engine).items():
            seconds, answer, used = [], http.get(path), time.process_time()
            for _ in range(requests):
                began = time.perf_counter()
                answer = http.get(path)
                seconds.append(time.perf_counter() - began)
            cpu = (time.process_time() - used) / requests
            p95 = statistics.quantiles(seconds, n=20)[-1]
            size = len(gzip.compress(answer.content)) + (assets if path != "/readyz" else 0)
            median = statistics.median(seconds)
            found.append(
                {"page": name, "status": answer.status_code, "p50": median, "p95": p95, "cpu": cpu, "bytes": size}
            )
    if in_chromium:
        for each, paint in zip(found, first_contents(url, cookies, list(paths(engine).values())), strict=True):
            each["paint"] = paint
    return found


def first_contents(url: str, cookies: dict[str, str], addresses: list[str]) -> list[float | None]:
    """Return the seconds until Chromium shows the first content of each page; None: it shows none (a download)."""
    found: list[float | None] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        context = browser.new_context()
        context.add_cookies([{"name": name, "value": value, "url": url} for name, value in cookies.items()])
        for address in addresses:
            page = context.new_page()
            paint = None
            with suppress(PlaywrightError):
                page.goto(url + address)
                page.wait_for_function(PAINT, timeout=5000)
                paint = page.evaluate(PAINT)
            found.append(paint and paint / 1000)
            page.close()
        browser.close()
    return found


def assets_of(page: str) -> list[str]:
    """Return the addresses of the scripts and style sheets of a page, those that scripts import too."""
    names = [name for name in asset_names() if name not in ("pages.js", "pages.css")]
    linked = [part.partition('"')[0] for part in page.split('="') if part.startswith(("/assets/", "/login/style"))]
    return [*linked, *(f"/assets/{name}" for name in names)]


def table(measured: list[dict[str, Any]], tasks: int) -> str:
    """Return the table, with what misses its goal marked."""
    lines = [f"{tasks:,} tasks; goals: p95 below {GOAL_SECONDS * 1000:.0f} ms, {GOAL_BYTES:,} bytes with all assets"]
    lines.append(f"{'page':28}{'status':>8}{'p50 ms':>10}{'p95 ms':>10}{'cpu ms':>10}{'bytes':>10}{'content ms':>12}")
    for each in measured:
        missed = each["p95"] >= GOAL_SECONDS or each["bytes"] >= GOAL_BYTES or each["status"] != 200
        paint = each.get("paint")
        missed |= paint is not None and paint >= GOAL_PAINT_SECONDS
        figures = (
            f"{each['p50'] * 1000:>10.1f}{each['p95'] * 1000:>10.1f}{each['cpu'] * 1000:>10.1f}{each['bytes']:>10,}"
        )
        content = f"{paint * 1000:>12.0f}" if paint is not None else f"{'':12}"
        lines.append(f"{each['page']:28}{each['status']:>8}{figures}{content}{'  missed' if missed else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
