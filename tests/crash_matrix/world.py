"""The tasks of the matrix: their agents and tools, and a model and a web service that both record their requests.

The agent `lead` reads an image and takes seven model turns: a function, two builtin tools, one of which returns an
image, and an HTTP tool together; a web search and code in a container, then two unsafe tools, a pure one and a note; a
sub-agent (`helper`, two turns in the batch lane and a tool); three agents without a model, whose tasks are one pack; a
tool that a person must approve; a sub-agent in code mode (`coder`); the answer, which one model refuses and another one
gives. The program of `coder` makes three calls in a loop, each with the result of the one before, and a person must
approve the second. The models decide by the contents of the conversation, never by the number of requests: a repeated
request gets the same reply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from minions import testing
from shared.tasks import files
from tests.support.media_files import b64, png

NUMBER = 20
FIRST, SECOND = "claude-sonnet-5-5", "claude-opus-5"
"""The models of `lead`: the first one refuses to answer in the end, and the second one does."""
SENT, DRAWN = png(3, 2, padding=70_000), png(2, 3, padding=70_000)
"""The images in the task's message and in the result of `draw`: both are so large that they become files."""
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(SENT)}}
IMAGES = {files.id_of(SENT), files.id_of(DRAWN)}
NOTE = "/memories/run.md"
FOUND = ("Boats", "https://example.com/boats")
CONTAINER, EXPIRES = "container_1", "2099-01-01T00:00:00Z"
PROGRAM = f"""
n = {NUMBER + 5}
for call in (charge, refund, mail):
    done = await call(n=n)
    n = sum(done.values()) + 1
return n
"""
# Each agent's tool calls, turn by turn; the turn after them is the answer.
SCRIPT: dict[str, list[list[tuple[str, dict[str, Any]]]]] = {
    "lead": [
        [("double", {"n": NUMBER}), ("draw", {"n": NUMBER}), ("charge", {"n": NUMBER}), ("order", {"n": NUMBER})],
        [
            ("mail", {"n": NUMBER}),
            ("ship", {"n": NUMBER}),
            ("price", {"n": NUMBER}),
            ("memory", {"command": "create", "path": NOTE, "file_text": "Shipped."}),
        ],
        [("ask", {"n": NUMBER})],
        [("early", {"n": NUMBER + 2}), ("middle", {"n": NUMBER + 3}), ("late", {"n": NUMBER + 4})],
        [("refund", {"n": NUMBER})],
        [("solve", {"n": NUMBER})],
    ],
    "helper": [[("charge", {"n": NUMBER + 1})]],
    "coder": [[("run_program", {"code": PROGRAM})]],
}
USED_BY_API = {("lead", 2): [*testing.web_search("boats", FOUND), *testing.code_execution("python count.py", "2")]}
"""Blocks of tools that the API runs itself, before the calls of a turn."""
REQUESTS = {"lead": len(SCRIPT["lead"]) + 2, "helper": len(SCRIPT["helper"]) + 1, "coder": len(SCRIPT["coder"]) + 1}
"""Model requests: one for each turn, and one for the answer that is refused."""
EFFECTS = {
    "lead": {
        "double": "pure",
        "draw": "pure",
        "charge": "idempotent",
        "order": "idempotent",
        "mail": "unsafe",
        "ship": "unsafe",
        "price": "pure",
        "refund": "unsafe",
    },
    "helper": {"charge": "idempotent"},
    "coder": {"charge": "idempotent", "refund": "unsafe", "mail": "unsafe"},
    "early": {"peek": "pure"},
    "middle": {"charge": "idempotent"},
    "late": {"peek": "pure"},
}
"""Effects outside of the installation. (A note is in PostgreSQL.)"""
BATCHED = ("helper",)
"""Agents whose model calls are in the batch lane: none of them is ever repeated."""
PACKED = ("early", "middle", "late")
"""Agents whose tasks travel in one pack, in this order. The tool of each has the agent's name."""
HELPED = {"charge": {"charged": NUMBER + 1}}


def digest(image: str) -> str:
    """Return a short form of an image in base64."""
    return hashlib.sha256(image.encode()).hexdigest()


RESULTS = {
    "double": 2 * NUMBER,
    "draw": digest(b64(DRAWN)),
    "charge": {"charged": NUMBER},
    "order": {"ordered": NUMBER},
    "mail": {"mailed": NUMBER},
    "ship": {"shipped": NUMBER},
    "price": {"priced": NUMBER},
    "memory": f"File created successfully at: {NOTE}",
    "ask": {"content": json.dumps(HELPED)},
    "early": {"peeked": NUMBER + 3},
    "middle": {"charged": NUMBER + 3},
    "late": {"peeked": NUMBER + 5},
    "refund": {"refunded": NUMBER},
    "solve": {"content": json.dumps({"program": {"result": NUMBER + 8}})},
}
OF_CODER = {"refund": {"refunded": NUMBER + 6}, "mail": {"mailed": NUMBER + 7}}
ANSWER = {"content": json.dumps({**RESULTS, "seen": [digest(b64(SENT)), FOUND[1], CONTAINER]})}
AGENTS = ("lead", "helper", "coder", *PACKED)
CLAIMS = {**dict.fromkeys(AGENTS, 1), "lead": 5, "helper": 3, "coder": 2}
"""Claims of an undisturbed run. Those of `lead`: the start, after the sub-agent, after the pack, after the approval,
after the other sub-agent. Those of `helper`: the start, and after each call. Those of `coder`: the start, and after the
approval.
"""

INPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
BUILTIN = ("draw", "peek", "charge", "mail", "refund")
HTTP = {"order": "PUT", "ship": "POST", "price": "GET"}


def definitions(queue: str, service: str) -> list[dict[str, Any]]:
    """Return agents and tools.

    Args:
        queue: the capability that serves all agents.
        service: the web service's URL.
    """
    effects = {**EFFECTS["early"], **EFFECTS["lead"]}
    tools: list[dict[str, Any]] = [
        *({"name": name, "type": "builtin", "builtin": f"crash-{name}", "effect": effects[name]} for name in BUILTIN),
        {"name": "double", "type": "function", "function": "double"},
        {"name": "ask", "type": "agent", "agent": "helper"},
        {"name": "solve", "type": "agent", "agent": "coder"},
        *({"name": name, "type": "agent", "agent": name} for name in PACKED),
    ]
    tools += [
        {"name": name, "type": "http", "http": {"method": method, "url": f"{service}/{name}"}, "effect": effects[name]}
        for name, method in HTTP.items()
    ]
    config = {"capabilities": [queue], "max_attempts": 10}
    agents = {
        "helper": ["charge"],
        "coder": [*EFFECTS["coder"]],
        "lead": ["search", "code", *(tool for turn in SCRIPT["lead"] for tool, _ in turn)],
    }
    special = {"helper": {"lane": "batch"}, "coder": {"code_mode": True}, "lead": {"fallback_models": [SECOND]}}
    return [
        {"kind": "function", "name": "double", "code": "def double(n: int) -> int:\n    return 2 * n\n"},
        *(
            {"kind": "tool", "description": name, "input_schema": INPUT, "approval": name == "refund", **tool}
            for tool in tools
            for name in [tool["name"]]
        ),
        {"kind": "tool", "name": "search", "type": "web_search"},
        {"kind": "tool", "name": "code", "type": "code_execution"},
        {"kind": "tool", "name": "memory", "type": "memory", "memory": {"per": "tenant"}},
        *(
            {
                "kind": "agent",
                "name": name,
                "model": FIRST,
                "system_prompt": name,
                "tools": tools,
                "config": {**config, **special[name]},
            }
            for name, tools in agents.items()
        ),
        *(
            {"kind": "agent", "name": name, "type": "function", "tool": tool, "config": config}
            for name in PACKED
            for tool in EFFECTS[name]
        ),
    ]


class Model(testing.MessagesApi):
    """The model's API. `seen` is called when a request has arrived, and when half of a streamed reply is sent."""

    def __init__(self, seen: Callable[[str, int, str], None]) -> None:
        super().__init__()
        self.seen = seen

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the answer of the agent's script in this turn of the conversation."""
        agent = _agent(body["system"])
        turn = sum(message["role"] == "assistant" for message in body["messages"]) + 1
        number = turn + (body["model"] == SECOND)
        self.seen(agent, number, "request received")
        message = self.message(body, _reply(agent, turn, body))
        message["content"] = _Halved(message["content"], lambda: self.seen(agent, number, "half of the reply sent"))
        return 200, message


class _Halved(list[Any]):
    """The blocks of a reply, with a call before the last one: only streams iterate over them."""

    def __init__(self, blocks: list[Any], half: Callable[[], None]) -> None:
        super().__init__(blocks)
        self.half = half

    def __iter__(self) -> Iterator[Any]:
        yield from self[:-1]
        self.half()
        yield self[-1]


def _agent(system: Any) -> str:
    """Return the agent of a system prompt, which may be text or blocks."""
    return str(system if isinstance(system, str) else system[0]["text"]).split()[0]


def _reply(agent: str, turn: int, body: dict[str, Any]) -> dict[str, Any]:
    script = SCRIPT[agent]
    if turn > len(script):
        if agent == "lead" and body["model"] == FIRST:
            return testing.refusal("cyber", "Not this.", said="First, ")
        return testing.text(json.dumps(_known(body)))
    reply = testing.tool_use(*script[turn - 1], said="Let me see.")
    for block in reply["content"]:
        if block["type"] == "tool_use":
            block["id"] = f"toolu_{turn}_{block['name']}"
    if used := USED_BY_API.get((agent, turn)):
        reply |= {"content": [*used, *reply["content"]], "container": {"id": CONTAINER, "expires_at": EXPIRES}}
    return reply


def _known(body: dict[str, Any]) -> dict[str, Any]:
    """Return the results of the tools in a request, by their names, and what else it has that must not be lost."""
    blocks = [block for each in body["messages"] if isinstance(each["content"], list) for block in each["content"]]
    results = {
        block["tool_use_id"].rpartition("_")[2]: _value(block["content"])
        for block in blocks
        if block["type"] == "tool_result"
    }
    seen = [digest(block["source"]["data"]) for block in blocks if block["type"] == "image"]
    seen += [
        found["url"] for block in blocks if block["type"] == "web_search_tool_result" for found in block["content"]
    ]
    seen += [body["container"]] if "container" in body else []
    return {**results, "seen": seen} if seen else results


def _value(content: Any) -> Any:
    """Return the value of a tool's result: an image's digest, or what its text says."""
    if isinstance(content, list) and content[0]["type"] == "image":
        return digest(content[0]["source"]["data"])
    said = content if isinstance(content, str) else "".join(block["text"] for block in content)
    return json.loads(said) if said.startswith(("{", "[")) or said.isdigit() else said


@contextmanager
def web_service(received: Callable[[str], int], made: Callable[[str, str | None, int], None]) -> Iterator[str]:
    """Serve the HTTP tools.

    Args:
        received: called with the tool's name before the effect, which happens even if the caller dies.
        made: called after the effect with the tool's name, the idempotency key, and the result of `received`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            tool = self.path.strip("/").partition("?")[0]
            made(tool, self.headers.get("idempotency-key"), received(tool))
            data = json.dumps(RESULTS[tool]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_POST = do_GET

        def handle(self) -> None:
            with suppress(ConnectionError):  # the caller was killed
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
