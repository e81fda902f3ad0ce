"""A local server for Claude's Messages API, for deterministic tests of agents without a key or costs.

    from minions import testing

    def test_my_agent(monkeypatch):
        with testing.messages_api() as api:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)   # for the workers that the test starts
            monkeypatch.setenv("ANTHROPIC_API_KEY", testing.KEY)
            api.script = [testing.tool_use(("search", {"q": "boats"})), testing.text("Two boats.")]
            ...
            assert len(api.requests) == 2

It supports streams and plain replies, token counting, errors, and streams that are slow or break off. Requests that the
API itself refuses (blank texts, errors of tools without a text, misplaced system messages, too many cache marks or in a
wrong order, tools whose schema is not that of an object, schemas that cannot constrain a model, forced tools beside
thinking, features without their beta header or with values out of bounds, images and documents of a wrong type or size,
tool calls without results, citations beside a format, tools of the API that the model does not take) get a 400.
Requests with `diagnostics` are compared with the previous one, as the API does. Tools that the API runs are supported:
`said(web_search("boats"), …)`.
Message Batches are supported too, with their faults: see `MessagesApi.batch_faults` and `MessagesApi.hold_batches`.
The same script answers the Chat Completions API, at `api.chat_url`, and the platforms of Claude: Google Cloud, Amazon
Bedrock and Microsoft Foundry, whose addresses end like that of the Messages API.
From the command line:

    python -m minions.testing replies.json --port 8787
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from minions import chat_completions
from minions.content_faults import content_fault
from minions.server_tool_replies import (
    code_execution,
    said,
    tool_fault,
    tool_search,
    uses_of,
    web_fetch,
    web_search,
)

__all__ = [
    "KEY",
    "USAGE",
    "Batch",
    "MessagesApi",
    "code_execution",
    "error",
    "events_of",
    "messages_api",
    "said",
    "text",
    "tool_search",
    "tool_use",
    "web_fetch",
    "web_search",
]

KEY = "sk-test-key"
USAGE = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100}
# Texts and tool inputs are sent in pieces, which exposes a client that does not join them.
PIECES = 3
PROPERTY = r"[a-zA-Z0-9_.-]{1,64}"
MAX_CACHE_MARKS = 4
# Keywords that a constrained answer must not have.
UNCONSTRAINABLE = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems"}
    | {"uniqueItems", "patternProperties", "propertyNames", "if", "not", "oneOf", "dependentRequired", "prefixItems"}
)
# Models with `speed`; the second need a beta header for it.
FAST_MODELS = r"claude-(fable-5-2|mythos-5-2|opus-5-5|opus-5)(-\d{8})?"
FAST_BY_BETA = r"claude-opus-5(-\d{8})?"
LEAST_TASK_BUDGET = 20_000
LEAST_COMPACTION = 50_000
BATCHES = "/v1/messages/batches"
MESSAGES = re.compile(r".*/v1/messages")
IN_GOOGLE_CLOUD = re.compile(r".*/publishers/anthropic/models/([^/:]+):(?:streamRawPredict|rawPredict)")
COUNTS = re.compile(r".*/v1/messages/count_tokens|.*/models/count-tokens:rawPredict")
CUSTOM_ID = r"[a-zA-Z0-9_-]{1,64}"
MAX_BATCH = 100_000
# Models that accept no `system` messages.
WITHOUT_SYSTEM_MESSAGES = r"claude-([123]\b|instant|opus-4-[0-7]\b|opus-4-2025|(sonnet|haiku)-(4|5(?!-\d{1,2}\b))).*"

Reply = dict[str, Any]


def text(said: str, stop_reason: str = "end_turn", **more: Any) -> Reply:
    """Return a reply of text. `more` is as for `MessagesApi.script`."""
    return {"content": [{"type": "text", "text": said}], "stop_reason": stop_reason, **more}


def cited(*parts: str | tuple[str, list[dict[str, Any]]], **more: Any) -> Reply:
    """Return a reply of texts, of which some have citations: `cited("It says: ", ("the moon is rock", [{…}]))`."""
    blocks = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "text", "text": part[0], "citations": part[1]}
        for part in parts
    ]
    return {"content": blocks, "stop_reason": "end_turn", **more}


def tool_use(*calls: tuple[str, dict[str, Any]], said: str = "", **more: Any) -> Reply:
    """Return a reply that calls tools, given as names and inputs."""
    content: list[dict[str, Any]] = [{"type": "text", "text": said}] if said else []
    for number, (name, arguments) in enumerate(calls, 1):
        content.append({"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments})
    return {"content": content, "stop_reason": "tool_use", **more}


def refusal(category: str | None = None, explanation: str | None = None, said: str = "", **more: Any) -> Reply:
    """Return a reply that refuses to answer: before its first word, or after what it has said."""
    details = {"type": "refusal", "category": category, "explanation": explanation}
    content = [{"type": "text", "text": said}] if said else []
    return {"content": content, "stop_reason": "refusal", "stop_details": details, **more}


def compaction(summary: str | None, *blocks: dict[str, Any], stop_reason: str = "end_turn", **more: Any) -> Reply:
    """Return a reply before which the API has compacted the conversation. None: it could not.

    Args:
        blocks: those after the summary; none with the stop reason `compaction`.
    """
    summed_up = {"type": "compaction", "content": summary, "encrypted_content": None}
    return {"content": [summed_up, *blocks], "stop_reason": stop_reason, **more}


def error(status: int, kind: str = "api_error", message: str = "scripted", **more: Any) -> Reply:
    """Return an API error."""
    return {"status": status, "error": {"type": kind, "message": message}, **more}


@dataclass
class Batch:
    """A Message Batch.

    Attributes:
        requests: as in the creation: `{"custom_id", "params"}`.
        results: the lines of its results, once it has ended.
        cancelled: it was cancelled before it ended.
    """

    id: str
    requests: list[dict[str, Any]]
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    results: list[Reply] = field(default_factory=list)
    cancelled: bool = False

    def as_json(self) -> Reply:
        """Return the batch as the API shows it."""
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        kinds = {line["custom_id"]: line["result"]["type"] for line in self.results}
        for request in self.requests:
            counts[kinds.get(request["custom_id"], "processing" if self.ended_at is None else "errored")] += 1
        status = "ended" if self.ended_at else "canceling" if self.cancelled else "in_progress"
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": counts,
            "created_at": self.created_at.isoformat(),
            "expires_at": (self.created_at + timedelta(hours=24)).isoformat(),
            "ended_at": self.ended_at and self.ended_at.isoformat(),
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": f"https://api.invalid{BATCHES}/{self.id}/results" if self.ended_at else None,
        }


@dataclass
class MessagesApi:
    """The server's script and its record.

    Attributes:
        url: value for `ANTHROPIC_BASE_URL`.
        script: replies from `text`, `tool_use` and `error`, or whole recorded messages. Each request takes the next
            one; the last one is repeated. A reply may also hold

            - `if`: a text. Every request that contains it gets this reply; the first match precedes all other replies
            - `headers`: of the response
            - `seconds`: to wait before the response, and `pause`: between two events of a stream
            - `cut`: break the connection after this many events, and `end`: end the stream properly after this many
            - `error_after`: `[events, kind, message]`: an `error` event in the middle of a stream
            - `batch`: `expired` or `canceled`: what becomes of the request if it is in a batch; `missing`: it has no
              result there, and `twice`: it has two
        requests: the bodies of all requests for messages, including those that got an error.
        headers: the headers of these requests, with names in lower case.
        counted: the bodies of all requests to count tokens.
        seconds: to wait before every reply.
        hold_batches: batches are in processing until `end_batches` is called; else they end at once.
        batch_faults: what becomes of the next creations of batches: `lost` (the batch is created, and the answer is
            lost), `never` (the connection breaks, and there is no batch), or a reply from `error`.
        lost_containers: containers that have expired: a request that has one of them is refused.
        batches: the batches by id, the oldest first. The results of each are in the reverse order of its requests.
    """

    url: str = ""
    script: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    counted: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    hold_batches: bool = False
    batch_faults: list[str | Reply] = field(default_factory=list)
    lost_containers: set[str] = field(default_factory=set)
    batches: dict[str, Batch] = field(default_factory=dict)
    _diagnosed: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def chat_url(self) -> str:
        """The address of the same server for clients of the Chat Completions API."""
        return f"{self.url}/v1"

    def reset(self) -> None:
        """Forget script, requests and batches: the server is as if it had just started."""
        with self._lock:
            vars(self).update({**vars(MessagesApi(url=self.url)), "_lock": self._lock})

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Reply]:
        """Return status and reply for a message request. Override it for custom behaviour."""
        self.note(headers, body)
        with self._lock:
            reply = self._next(body)
        time.sleep(reply.get("seconds", self.seconds))
        if "error" in reply:
            return reply["status"], {**reply, "type": "error"}
        return 200, self.message(body, reply)

    def note(self, headers: dict[str, str], body: dict[str, Any]) -> None:
        """Record the request."""
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)

    def message(self, body: dict[str, Any], reply: Reply) -> Reply:
        """Complete a reply that contains only the relevant fields to a whole message."""
        name = f"msg_{len(self.requests)}"
        uses = uses_of(reply["content"])
        return {
            "id": name,
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "stop_sequence": None,
            "usage": {**USAGE, "server_tool_use": uses} if uses else USAGE,
            **({"diagnostics": self._diagnose(name, body)} if "diagnostics" in body else {}),
            **reply,
        }

    def _diagnose(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Compare a request with the one that it names as the previous; return None if it only adds to that."""
        previous = body["diagnostics"].get("previous_message_id")
        before = self._diagnosed.get(previous)
        self._diagnosed[name] = body
        if previous is None:
            return None
        if before is None:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        for part in ("model", "system", "tools", "messages"):
            was, now = _unmarked(before.get(part)), _unmarked(body.get(part))
            if now[: len(was)] != was if part == "messages" else now != was:
                missed = {"type": f"{part}_changed", "cache_missed_input_tokens": self.count(before)}
                return {"cache_miss_reason": missed}
        return None

    def count(self, body: dict[str, Any]) -> int:
        """Return the tokens of a request: a quarter of its characters."""
        self.counted.append(body)
        return len(json.dumps([body.get("system"), body.get("tools"), body.get("messages")])) // 4

    def container_fault(self, body: dict[str, Any]) -> str | None:
        """Return the error text for a request with a container that has expired."""
        name = body.get("container")
        return f"container: Container {name!r} has expired" if name in self.lost_containers else None

    def create_batch(self, requests: list[dict[str, Any]]) -> Batch:
        """Create a batch, as a creation does, or another user of the key."""
        batch = Batch(f"msgbatch_{len(self.batches) + 1:04}", requests)
        self.batches[batch.id] = batch
        if not self.hold_batches:
            self.end_batches(batch.id)
        return batch

    def end_batches(self, *ids: str) -> None:
        """End the processing of these batches, or of all: their requests take replies from the script."""
        for batch in [self.batches[each] for each in ids or tuple(self.batches)]:
            if batch.ended_at is None:
                batch.results = [
                    line for request in reversed(batch.requests) for line in self._lines(request, batch.cancelled)
                ]
                batch.ended_at = datetime.now(UTC)

    def show_batch(self, batch: Batch) -> Reply:
        """Return a batch as the API shows it to a request for it. Override it for custom behaviour."""
        return batch.as_json()

    def results_of(self, batch: Batch) -> Iterator[Reply]:
        """Yield the lines of a batch's results. Override it for custom behaviour."""
        yield from batch.results

    def _lines(self, request: dict[str, Any], cancelled: bool) -> list[Reply]:
        """Return the lines of a request in the results of its batch: one, none or two."""
        name, body = request["custom_id"], request["params"]
        if cancelled:
            return [{"custom_id": name, "result": {"type": "canceled"}}]
        if fault := _fault(body) or _feature_fault({}, body) or self.container_fault(body):
            return [{"custom_id": name, "result": _errored({"type": "invalid_request_error", "message": fault})}]
        status, reply = self.answer({}, body)
        match reply.get("batch"):
            case "expired" | "canceled" as kind:
                return [{"custom_id": name, "result": {"type": kind}}]
            case "missing":
                return []
        result = _errored(reply["error"]) if status != 200 else {"type": "succeeded", "message": _batched(reply)}
        return [{"custom_id": name, "result": result}] * (2 if reply.get("batch") == "twice" else 1)

    def _next(self, body: dict[str, Any]) -> Reply:
        whole = json.dumps(body, ensure_ascii=False)
        for reply in self.script:
            if "if" in reply and reply["if"] in whole:
                return reply
        in_order = [reply for reply in self.script if "if" not in reply]
        if len(in_order) > 1:
            self.script.remove(in_order[0])
        return (
            in_order[0] if in_order else error(400, "invalid_request_error", "the script has no reply to this request")
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Connections that wait to be accepted. With the default of five, callers at the same time are refused."""


@contextmanager
def messages_api(api: MessagesApi | None = None, port: int = 0) -> Iterator[MessagesApi]:
    """Serve the API on a loopback port.

    Args:
        api: a custom API; by default a scripted one.
        port: 0 for any free port.
    """
    api = api or MessagesApi()
    server = _Server(("127.0.0.1", port), _handler(api))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def events_of(message: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a message as the events of a stream: names and data."""
    used = message.get("usage")
    edits = {name: message[name] for name in ("context_management",) if name in message}
    begun = {name: value for name, value in message.items() if name not in _DIRECTIONS and name not in edits}
    ended = {name: begun.pop(name, None) for name in ("stop_reason", "stop_sequence", "stop_details", "container")}
    usage = used and {**used, "output_tokens": 1}
    nothing_yet: Reply = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield "message_start", {"message": {**begun, **nothing_yet}}
    yield "ping", {}
    for index, block in enumerate(message["content"]):
        empty, deltas = _taken_apart(block)
        yield "content_block_start", {"index": index, "content_block": empty}
        for delta in deltas:
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    counted = used and {"output_tokens": used.get("output_tokens", 0)}
    yield "message_delta", {"delta": ended, "usage": counted, **edits}
    yield "message_stop", {}


def _taken_apart(block: dict[str, Any]) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """Split a block into its initial form and the deltas that complete it."""
    match block["type"]:
        case "text":
            texts = [{"type": "text_delta", "text": part} for part in _pieces(block["text"])]
            cited = [{"type": "citations_delta", "citation": each} for each in block.get("citations") or ()]
            return {**block, "text": "", **({"citations": []} if cited else {})}, [*texts, *cited]
        case "tool_use" | "server_tool_use":
            parts = ["", *_pieces(json.dumps(block["input"]))] if block["input"] else [""]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
        case "thinking":
            thought = [{"type": "thinking_delta", "thinking": part} for part in _pieces(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block.get("signature", "")}
            return {**block, "thinking": "", "signature": ""}, [*thought, signed]
        case "compaction":
            delta = {name: block.get(name) for name in ("content", "encrypted_content")}
            return {**block, "content": None, "encrypted_content": None}, [{"type": "compaction_delta", **delta}]
    return block, []


def _pieces(whole: str) -> list[str]:
    size = max(1, -(-len(whole) // PIECES))
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _handler(api: MessagesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are two writes: on a kept-alive connection the second would wait 40 ms for an ACK.
        disable_nagle_algorithm = True

        def handle(self) -> None:
            with suppress(ConnectionError):  # the caller disconnected
                super().handle()

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            with suppress(BrokenPipeError, ConnectionResetError):
                if not _has_key(headers):
                    self._send(401, error(401, "authentication_error", "invalid x-api-key"))
                else:
                    self._show_batches()

        def _show_batches(self) -> None:
            parts = urlsplit(self.path)
            name, _, what = parts.path.removeprefix(BATCHES).strip("/").partition("/")
            if not name:
                self._send(200, _listed(api, parse_qs(parts.query)))
            elif name not in api.batches:
                self._send(404, error(404, "not_found_error", f"{name} not found"))
            elif what != "results":
                self._send(200, api.show_batch(api.batches[name]))
            else:
                self._begin(200, {}, {"content-type": "application/x-jsonl", "transfer-encoding": "chunked"})
                for line in api.results_of(api.batches[name]):
                    # As the API does: characters are not escaped.
                    self._write_chunk(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
                self.wfile.write(b"0\r\n\r\n")

        def _create_batch(self, body: dict[str, Any]) -> None:
            if fault := _batch_fault(body):
                self._send(400, error(400, "invalid_request_error", fault))
                return
            fate = api.batch_faults.pop(0) if api.batch_faults else None
            if isinstance(fate, dict):
                self._send(fate["status"], fate)
                return
            batch = None if fate == "never" else api.create_batch(body["requests"])
            if fate is None and batch is not None:
                self._send(200, batch.as_json())
            else:
                self.close_connection = True

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length", 0))
            sent = self.rfile.read(size)
            if len(sent) < size:
                return
            body = json.loads(sent or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            with suppress(BrokenPipeError, ConnectionResetError):
                self._answer(headers, body)

        def _answer(self, headers: dict[str, str], body: dict[str, Any]) -> None:
            path = self.path.partition("?")[0]
            if path.endswith(chat_completions.PATH):
                self._complete_chat(headers, body)
                return
            if in_google_cloud := IN_GOOGLE_CLOUD.fullmatch(path):
                body = {"model": in_google_cloud[1], **body}
            if not _has_key(headers):
                api.note(headers, body)
                self._send(401, error(401, "authentication_error", "invalid x-api-key"))
            elif COUNTS.fullmatch(path):
                self._send(200, {"input_tokens": api.count(body)})
            elif path == BATCHES:
                self._create_batch(body)
            elif path.endswith("/cancel") and (batch := api.batches.get(path.split("/")[-2])):
                batch.cancelled = batch.ended_at is None
                self._send(200, batch.as_json())
            elif not (in_google_cloud or MESSAGES.fullmatch(path)):
                self._send(404, error(404, "not_found_error", self.path))
            elif fault := _fault(body) or _feature_fault(headers, body) or api.container_fault(body):
                api.note(headers, body)
                self._send(400, error(400, "invalid_request_error", fault))
            else:
                status, reply = api.answer(headers, body)
                if status == 200 and body.get("stream"):
                    self._stream(reply)
                else:
                    self._send(status, reply)

        def _complete_chat(self, headers: dict[str, str], body: dict[str, Any]) -> None:
            if not _has_key(headers):
                api.note(headers, body)
                self._send_chat(401, error(401, message="Incorrect API key provided."))
            elif fault := chat_completions.request_fault(body):
                api.note(headers, body)
                self._send_chat(400, error(400, "invalid_request_error", fault))
            else:
                status, reply = api.answer(headers, body)
                if status == 200 and body.get("stream"):
                    self._stream_chat(reply)
                else:
                    self._send_chat(status, reply)

        def _send_chat(self, status: int, reply: Reply) -> None:
            fault = reply.get("error")
            shown = chat_completions.error_body(status, fault) if fault else chat_completions.completion(reply)
            self._send_json(status, reply, shown)

        def _stream_chat(self, reply: Reply) -> None:
            self._begin(200, reply, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            number, kind, message = reply.get("error_after", (None, "", ""))
            fault = chat_completions.error_body(200, {"type": kind, "message": message})
            for place, chunk in enumerate(itertools.islice(chat_completions.chunks(reply), reply.get("end"))):
                if place == reply.get("cut"):
                    self.close_connection = True
                    return
                time.sleep(reply.get("pause", 0.0))
                self._write_chunk(f"data: {json.dumps(fault if place == number else chunk)}\n\n".encode())
                if place == number:
                    break
            else:
                if "end" not in reply:
                    self._write_chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")

        def _send(self, status: int, reply: Reply) -> None:
            if "error" in reply:
                shown = {"type": "error", "error": reply["error"]}
            else:
                shown = {name: value for name, value in reply.items() if name not in _DIRECTIONS}
            self._send_json(status, reply, shown)

        def _send_json(self, status: int, reply: Reply, shown: Any) -> None:
            data = json.dumps(shown).encode()
            self._begin(status, reply, {"content-type": "application/json", "content-length": str(len(data))})
            self.wfile.write(data)

        def _begin(self, status: int, reply: Reply, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, **reply.get("headers", {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def _write_chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _stream(self, reply: Reply) -> None:
            self._begin(200, reply, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            for number, (name, data) in enumerate(_directed(reply)):
                if number == reply.get("cut"):
                    self.close_connection = True
                    return
                time.sleep(reply.get("pause", 0.0))
                self._write_chunk(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode())
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _has_key(headers: dict[str, str]) -> bool:
    return KEY in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer "))


def _listed(api: MessagesApi, query: dict[str, list[str]]) -> Reply:
    """Return a page of the batches, the newest first."""
    newest = [*reversed(tuple(api.batches.values()))]
    if "after_id" in query:
        ids = [batch.id for batch in newest]
        newest = newest[ids.index(query["after_id"][0]) + 1 :]
    limit = int(query.get("limit", ["20"])[0])
    page = newest[:limit]
    return {
        "data": [batch.as_json() for batch in page],
        "has_more": len(newest) > limit,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


def _batch_fault(body: dict[str, Any]) -> str | None:
    """Return the API's error text for a batch that it refuses as a whole."""
    names = [request.get("custom_id", "") for request in body.get("requests") or []]
    if not 1 <= len(names) <= MAX_BATCH:
        return f"requests: List should have 1 to {MAX_BATCH} items"
    for number, name in enumerate(names):
        if not re.fullmatch(CUSTOM_ID, name):
            return f"requests.{number}.custom_id: String should match pattern '^{CUSTOM_ID}$'"
    return None if len({*names}) == len(names) else "requests: custom_id must be unique"


def _errored(fault: dict[str, Any]) -> Reply:
    return {"type": "errored", "error": {"type": "error", "error": fault, "request_id": None}}


def _batched(message: Reply) -> Reply:
    """Return a message as it is in the results of a batch."""
    shown = {name: value for name, value in message.items() if name not in _DIRECTIONS}
    return {**shown, "usage": message["usage"] and {**message["usage"], "service_tier": "batch"}}


def _fault(body: dict[str, Any]) -> str | None:
    """Return the API's own error text for an invalid request, as far as agents encounter it."""
    for number, tool in enumerate(body.get("tools", ())):
        # (The API's own tools have no schema.)
        if "input_schema" in tool and (fault := _schema_fault(tool["input_schema"])):
            return f"tools.{number}.custom.input_schema{fault}"
        if tool.get("strict") and (fault := _grammar_fault(tool["input_schema"])):
            return f"tools.{number}.custom: {fault}"
    if fault := _choice_fault(body) or tool_fault(body):
        return fault
    form = (body.get("output_config") or {}).get("format")
    if form and (fault := _grammar_fault(form["schema"])):
        return f"output_config.format.schema: {fault}"
    if not all(text.strip() for text in body.get("stop_sequences", ())):
        return "stop_sequences: each stop sequence must contain non-whitespace"
    if "messages" not in body:
        return "messages: Field required"
    for number, message in enumerate(body["messages"]):
        if not message.get("content"):
            return f"messages.{number}: all messages must have non-empty content"
        for index, block in enumerate(message["content"]):
            if block_fault := _block_fault(block):
                return f"messages.{number}.content.{index}.{block_fault}"
    if fault := content_fault(body):
        return fault
    if fault := _system_fault(body.get("model", ""), [message.get("role", "") for message in body["messages"]]):
        return fault
    if (marks := json.dumps(body).count('"cache_control": {')) > MAX_CACHE_MARKS:
        return f"A maximum of {MAX_CACHE_MARKS} blocks with cache_control may be provided. Found {marks}."
    if fault := _mark_fault(body):
        return fault
    said = {"system": [body.get("system", ())], "messages": [message["content"] for message in body["messages"]]}
    for place, contents in said.items():
        for spoken in itertools.chain.from_iterable(map(_texts, contents)):
            if not spoken.strip():
                rule = "contain non-whitespace text" if spoken else "be non-empty"
                return f"{place}: text content blocks must {rule}"
    return None


def _mark_fault(body: dict[str, Any]) -> str | None:
    """Check the marks of the prompt cache: longer ones come first, and some places must have none."""
    shorter = False
    for place, block in _blocks(body):
        if (mark := block.get("cache_control")) is None:
            continue
        if block.get("type") in ("thinking", "redacted_thinking") or block.get("defer_loading"):
            return f"{place}.cache_control: Extra inputs are not permitted"
        if mark.get("ttl", "5m") == "1h" and shorter:
            return (
                f"{place}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: `tools`, `system`, "
                "`messages`."
            )
        shorter = shorter or mark.get("ttl", "5m") == "5m"
    return None


def _blocks(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts of a prompt in their order, with their places."""
    system = body.get("system")
    contents = {"tools": body.get("tools", ()), "system": system if isinstance(system, list) else ()}
    contents |= {f"messages.{number}.content": each["content"] for number, each in enumerate(body["messages"])}
    for place, blocks in contents.items():
        for number, block in enumerate(blocks):
            if isinstance(block, dict):
                yield f"{place}.{number}", block


def _unmarked(part: Any) -> Any:
    """Return a part of a prompt without the marks of the cache, and with texts as blocks."""
    if isinstance(part, list):
        return [_unmarked(each) for each in part]
    if not isinstance(part, dict):
        return part if part is not None else []
    content = part.get("content")
    texts = {"content": [{"type": "text", "text": content}]} if "role" in part and isinstance(content, str) else {}
    return {name: _unmarked(value) for name, value in {**part, **texts}.items() if name != "cache_control"}


def _feature_fault(headers: dict[str, str], body: dict[str, Any]) -> str | None:
    """Check features that only some models have, or that need a beta header."""
    betas = headers.get("anthropic-beta", "").split(",")
    model = body.get("model", "")
    if "speed" in body and not re.fullmatch(FAST_MODELS, model):
        return "speed: this model does not support fast mode"
    if "speed" in body and re.fullmatch(FAST_BY_BETA, model) and "fast-mode-2026-02-01" not in betas:
        return "speed: Extra inputs are not permitted"
    budget = (body.get("output_config") or {}).get("task_budget")
    if budget and "task-budgets-2026-03-13" not in betas:
        return "output_config.task_budget: Extra inputs are not permitted"
    if budget and budget["total"] < LEAST_TASK_BUDGET:
        return f"output_config.task_budget.total: Input should be greater than or equal to {LEAST_TASK_BUDGET}"
    for number, edit in enumerate((body.get("context_management") or {}).get("edits", ())):
        kind, place = edit["type"], f"context_management.edits.{number}"
        beta = "compact-2026-01-12" if kind.startswith("compact_") else "context-management-2025-06-27"
        if beta not in betas:
            return "context_management: Extra inputs are not permitted"
        if kind.startswith("clear_thinking_") and number:
            return f"{place}: `{kind}` strategy must be first in the list"
        if kind.startswith("clear_thinking_") and body.get("thinking", {}).get("type") == "disabled":
            return f"{place}: `{kind}` strategy requires `thinking` to be enabled or adaptive"
        tokens = (edit.get("trigger") or {}).get("value", LEAST_COMPACTION)
        if kind.startswith("compact_") and tokens < LEAST_COMPACTION:
            return f"{place}.trigger.value: Input should be greater than or equal to {LEAST_COMPACTION}"
    return None


def _block_fault(block: str | dict[str, Any]) -> str | None:
    if not isinstance(block, dict) or block["type"] != "tool_result":
        return None
    content = block.get("content")
    if not block.get("is_error"):
        return None
    if not content:
        return "tool_result: content cannot be empty if `is_error` is true"
    shown = isinstance(content, list) and any(each["type"] != "text" for each in content)
    return "tool_result: all content must be type `text` if `is_error` is true" if shown else None


def _system_fault(model: str, roles: list[str]) -> str | None:
    """Check the positions of `system` messages: after a user's, and either before the model's or last."""
    for number, role in enumerate(roles):
        if role != "system":
            continue
        if number == 0:
            return "messages.0: use the top-level 'system' parameter for the initial system prompt"
        if re.fullmatch(WITHOUT_SYSTEM_MESSAGES, model):
            return "role 'system' is not supported on this model"
        if roles[number - 1] != "user" or roles[number + 1 : number + 2] not in ([], ["assistant"]):
            return (
                f"messages.{number}: role 'system' must follow a user message, and precede an assistant message or end"
            )
    return None


def _schema_fault(schema: dict[str, Any]) -> str | None:
    if "type" not in schema:
        return ".type: Field required"
    if schema["type"] != "object":
        return ".type: Input should be 'object'"
    if schema.keys() & {"oneOf", "allOf", "anyOf"}:
        return ": input_schema does not support oneOf, allOf, or anyOf at the top level"
    if not all(re.fullmatch(PROPERTY, name) for name in schema.get("properties", ())):
        return f".properties: Property keys should match pattern '^{PROPERTY}$'"
    return None


def _choice_fault(body: dict[str, Any]) -> str | None:
    choice = body.get("tool_choice")
    if choice is None:
        return None
    names = [tool.get("name") for tool in body.get("tools", ())]
    if not names:
        return "tool_choice: may only be specified while providing tools"
    if choice["type"] == "tool" and choice.get("name") not in names:
        return f"Tool '{choice.get('name')}' not found in provided tools"
    thinks = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    if thinks and choice["type"] in ("any", "tool"):
        return "Thinking may not be enabled when tool_choice forces tool use."
    return None


def _grammar_fault(schema: Any) -> str | None:
    """Return the error text for a schema to which the API cannot constrain the model."""
    if not isinstance(schema, dict):
        return "boolean schemas are not supported"
    kind = schema.get("type")
    if kind == "object" and schema.get("additionalProperties") is not False:
        return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if banned := sorted(schema.keys() & UNCONSTRAINABLE):
        return f"For '{kind}' type, property '{banned[0]}' is not supported"
    below = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    below += [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return next(filter(None, map(_grammar_fault, below)), None)


def _texts(content: str | list[dict[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return [content]
    results = [each for block in content if block.get("type") == "tool_result" for each in block.get("content") or ()]
    return [block["text"] for block in [*content, *results] if isinstance(block, dict) and "text" in block]


_DIRECTIONS = frozenset({"if", "headers", "seconds", "pause", "cut", "end", "error_after", "batch"})


def _directed(reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a stream as its reply specifies."""
    if "error_after" in reply:
        number, kind, message = reply["error_after"]
        yield from itertools.islice(events_of(reply), number)
        yield "error", {"error": {"type": kind, "message": message}}
    else:
        yield from itertools.islice(events_of(reply), reply.get("end"))


def main() -> None:
    """Serve a script until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m minions.testing", description="Serve scripted replies of Claude.")
    parser.add_argument("script", type=Path, help="a JSON file with a list of replies")
    parser.add_argument("--port", type=int, default=8787)
    arguments = parser.parse_args()
    try:
        script = json.loads(arguments.script.read_text(encoding="utf-8"))
        if not isinstance(script, list) or not all(isinstance(reply, dict) for reply in script):
            raise ValueError("a script must be a list of replies, each an object")
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.script} cannot be used: {error}")
    try:
        with messages_api(MessagesApi(script=script), arguments.port) as api:
            print(f"export ANTHROPIC_BASE_URL={api.url} ANTHROPIC_API_KEY={KEY}", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    except OSError as error:
        parser.error(f"port {arguments.port} cannot be used: {error.strerror}. Choose another one with --port")


if __name__ == "__main__":
    main()
