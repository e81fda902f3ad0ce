"""The MCP client against a raw server: eras, and every way in which a server can be broken, slow, huge or lie."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mcp_types.methods import validate_client_request

from shared.mcp import protocol
from shared.mcp.client import McpClient
from shared.mcp.eras import Era, Known
from shared.mcp.faults import McpFault, RpcError
from shared.mcp.http import FixedHeaders, HttpTransport
from shared.settings import Settings
from tests.support.mcp_server import Answer, RawServer, events, json_answer, raw_server

SETTINGS = Settings(allow_private_addresses=["127.0.0.1"])
ABOUT = {"protocolVersion": protocol.LEGACY, "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
ACCEPTED = (202, {}, b"")
EVENT = b'data: {"jsonrpc": "2.0", "id": %d, "result": {"content": []}}\n\n'
PING = b'data: {"jsonrpc": "2.0", "id": "p", "method": "ping"}\n\n'
SAMPLING = b'data: {"jsonrpc": "2.0", "id": 9, "method": "sampling/createMessage", "params": {}}\n\n'
PROGRESS = b'event: message\r\nid: 7\r\ndata: {"jsonrpc": "2.0",\r\ndata: "method": "notifications/progress"}\r\n\r\n'
DONE: dict[str, Any] = {"content": []}


def client(
    raw: RawServer, era: Era | None = None, *, seconds: float = 20.0, authorization: Any = None, **capabilities: Any
) -> McpClient:
    transport = HttpTransport(
        raw.url, SETTINGS, seconds=seconds, max_bytes=1024, authorization=authorization or FixedHeaders({})
    )
    return McpClient(transport, era or Era(), capabilities)


def call(raw: RawServer, era: Era | None = None, **options: Any) -> Any:
    with client(raw, era, **options) as connected:
        return connected.request("tools/call", {"name": "a", "arguments": {}}, name="a")


def ok(body: bytes, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": kind}, body


def rpc(number: int, message: str = "no", **data: Any) -> bytes:
    error = {"code": number, "message": message, "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()


@pytest.mark.parametrize("status", [404, 405])
def test_address_of_the_earlier_transport_is_explained(status: int) -> None:
    said = f"HTTP with SSE, which is not supported: HTTP {status}: Cannot POST"
    refusal = (status, {}, b"Cannot POST /sse")
    with raw_server(refusal, refusal, discovers=False) as raw, pytest.raises(McpFault, match=said) as caught:
        call(raw)
    assert (caught.value.taken, caught.value.detail["status"]) == (False, status)


def test_modern_messages_follow_the_reference_schema() -> None:
    with raw_server() as raw:
        call(raw, extensions={"io.modelcontextprotocol/tasks": {}})
    assert raw.methods == ["server/discover", "tools/call"]
    for headers, message in raw.asked:
        validate_client_request(message["method"], protocol.MODERN, message["params"])
        assert (headers["Mcp-Method"], headers["MCP-Protocol-Version"]) == (message["method"], protocol.MODERN)
        assert headers["Accept"] == "application/json, text/event-stream"
    assert headers["Mcp-Name"] == "a"


REFUSALS: dict[str, Any] = {
    "method not found": {"error": {"code": protocol.METHOD_NOT_FOUND, "message": "no"}},
    "bad request": (400, {}, b"no"),
    "no route": (404, {}, b""),
    "error of a gateway": (404, {}, b'{"error": {"message": "Unrecognized URL", "type": "invalid_request_error"}}'),
    "not initialized": (400, {}, rpc(-32000, "Bad Request: Server not initialized")),
    "crash": (500, {}, b"Internal Server Error"),
    "page": (200, {"Content-Type": "text/html"}, b"<html>"),
    "nothing": (200, {"Content-Type": "application/json"}, b""),
    "invalid request": (400, {}, rpc(protocol.INVALID_REQUEST)),
    "unsupported version": (400, {}, rpc(protocol.UNSUPPORTED_VERSION, supported=["2025-06-18"])),
    "discovers without the version": {"supportedVersions": ["2025-11-25"]},
    "discovers nonsense": {"supportedVersions": 3},
}


@pytest.mark.parametrize("how", REFUSALS)
def test_legacy_server_is_initialized(how: str) -> None:
    about = {**ABOUT, "protocolVersion": "2025-06-18"}
    with raw_server(REFUSALS[how], about, ACCEPTED, DONE, discovers=False) as raw:
        assert call(raw) == DONE
    assert raw.methods == ["server/discover", "initialize", "notifications/initialized", "tools/call"]
    headers, message = raw.asked[-1]
    validate_client_request("initialize", protocol.LEGACY, raw.asked[1][1]["params"])
    validate_client_request("tools/call", "2025-06-18", message["params"])
    assert headers["MCP-Protocol-Version"] == "2025-06-18"
    assert "Mcp-Session-Id" not in headers


LOST: dict[str, Any] = {
    "the protocol's way": (404, {}, rpc(-32001, "Session not found")),
    "plain text": (404, {}, b"session not found"),
    "TypeScript example": (400, {}, rpc(-32000, "Bad Request: No valid session ID provided")),
    "TypeScript after a restart": (400, {}, rpc(-32000, "Bad Request: Server not initialized")),
    "Java": (400, {}, b'{"jsonRpcError": {"code": -32603, "message": "Session ID missing"}}'),
    "Go": (400, {"Content-Type": "text/plain"}, b"Invalid session ID\n"),
}


@pytest.mark.parametrize("how", LOST)
def test_session_is_sent_back_and_begun_again_when_lost(how: str) -> None:
    def assign(_: Any, message: Any) -> Answer:
        status, headers, body = json_answer(message, ABOUT)
        return status, {**headers, "Mcp-Session-Id": "s-1"}, body

    lost, era = LOST[how], Era()
    beginning = [(400, {}, b""), assign, ACCEPTED]
    with raw_server(*beginning, DONE, lost, *beginning, DONE, discovers=False) as raw:
        assert call(raw, era) == DONE
        assert raw.asked[2][0]["Mcp-Session-Id"] == raw.asked[3][0]["Mcp-Session-Id"] == "s-1"
        assert call(raw, era) == DONE
    assert raw.methods.count("initialize") == 2
    assert raw.methods[-1] == "tools/call"


def test_faulty_parameter_does_not_begin_a_session() -> None:
    era = Era(Known(protocol.LEGACY, {}, "s"))
    refused = (400, {}, rpc(-32602, "the session_id is required"))
    with raw_server(refused) as raw, pytest.raises(RpcError, match="is required"):
        call(raw, era)
    assert raw.methods == ["tools/call"]


@pytest.mark.parametrize("refused", [(400, {}, rpc(protocol.INVALID_REQUEST)), (404, {}, b"")])
def test_changed_era_is_asked_for_again(refused: Any) -> None:
    era = Era(Known(protocol.MODERN, {}))
    with raw_server(refused, refused, ABOUT, ACCEPTED, DONE, discovers=False) as raw:
        assert call(raw, era) == DONE
    assert raw.methods[1:3] == ["server/discover", "initialize"]
    assert era.known is not None
    assert not era.known.is_modern


def test_requests_of_a_legacy_server_are_refused() -> None:
    era = Era(Known(protocol.LEGACY, {}, "s"))
    with raw_server(events(PING, PROGRESS, SAMPLING, EVENT), ACCEPTED, ACCEPTED) as raw:
        assert call(raw, era) == DONE
    [ping, sampling] = [message for _, message in raw.asked[1:]]
    assert ping == {"jsonrpc": "2.0", "id": "p", "result": {}}
    assert (sampling["id"], sampling["error"]["code"]) == (9, protocol.METHOD_NOT_FOUND)


def test_requests_of_a_modern_server_are_ignored() -> None:
    with raw_server(events(PING, EVENT)) as raw:
        assert call(raw) == DONE
    assert raw.methods == ["server/discover", "tools/call"]


def test_incompatible_server_is_not_initialized() -> None:
    too_new = (400, {}, rpc(protocol.UNSUPPORTED_VERSION, "too old", supported=["2031-01-01"]))
    with raw_server(too_new, discovers=False) as raw, pytest.raises(RpcError, match="too old"):
        call(raw)
    assert raw.methods == ["server/discover"]


def test_unknown_version_is_a_final_fault() -> None:
    unknown = {**ABOUT, "protocolVersion": ["x"]}
    with (
        raw_server((400, {}, b""), unknown, discovers=False) as raw,
        pytest.raises(McpFault, match="it speaks version"),
    ):
        call(raw)


HUGE = json.dumps({"jsonrpc": "2.0", "id": 2, "result": {"content": "x" * 5000}}).encode()
DEEP = b'{"id": 2, "result": ' + b"[" * 200 + b"]" * 200 + b"}"
FINAL: dict[str, tuple[Any, str]] = {
    "not JSON": (ok(b"<html>"), "is not valid JSON"),
    "not UTF-8": (ok(b'{"id": 2, "result": {"a": "\xff'), "is not valid JSON"),
    "not an object": (ok(b"[1]"), "is not a JSON-RPC message"),
    "empty": (ok(b""), "is not valid JSON"),
    "no content type": ((200, {}, b"x"), "no content type"),
    "HTML": (ok(b"x", "text/html"), "text/html"),
    "another id": (ok(b'{"jsonrpc": "2.0", "id": 99, "result": {}}'), "a request that was not made"),
    "true as id": (ok(b'{"jsonrpc": "2.0", "id": true, "result": {}}'), "a request that was not made"),
    "text as id": (ok(b'{"jsonrpc": "2.0", "id": "2", "result": {}}'), "a request that was not made"),
    "no result": (ok(b'{"jsonrpc": "2.0", "id": 2, "result": []}'), "has no result"),
    "error without code": (ok(b'{"jsonrpc": "2.0", "id": 2, "error": {"code": true}}'), "has no code"),
    "error without message": (ok(b'{"jsonrpc": "2.0", "id": 2, "error": {"code": 1}}'), "without a message"),
    "NUL": (ok(b'{"id": 2, "result": {"content": "a\\u0000"}}'), r"U\+0000"),
    "NaN": (ok(b'{"id": 2, "result": {"content": NaN}}'), "NaN"),
    "duplicate keys": (ok(b'{"id": 2, "id": 2, "result": {}}'), "twice"),
    "nested deeply": (ok(DEEP), "deep"),
    "huge": (ok(HUGE), "more than 1024 bytes"),
    "huge refusal": ((400, {}, b"x" * 5000), "more than 1024 bytes"),
    "huge event": (events(b"data: " + b"x" * 5000), "more than 1024 bytes"),
    "huge event of many lines": (events(*[b"data: " + b"x" * 100 + b"\n"] * 20), "more than 1024 bytes"),
    "event that is not JSON": (events(b"data: x\n\n"), "is not valid JSON"),
    "redirect": ((307, {"Location": "http://127.0.0.1/"}, b""), "to 'http://127.0.0.1/', which is not followed"),
    "gzip": ((200, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"x"), "encoded as 'gzip'"),
    "refusal": ((403, {}, b"not for you\n"), "HTTP 403: not for you$"),
    "refusal without a text": ((403, {}, b""), "HTTP 403$"),
    "error": ({"error": {"code": -32602, "message": "Unknown tool"}}, r"Unknown tool \(JSON-RPC error -32602\)"),
    "error with status": ((400, {}, rpc(-32602, "bad")), r"bad \(JSON-RPC error -32602\)"),
    "long error": ({"error": {"code": 1, "message": "x" * 900}}, "x" * 900),
}


@pytest.mark.parametrize("how", FINAL)
def test_misbehaviour_is_a_final_fault(how: str) -> None:
    answer, said = FINAL[how]
    with raw_server(answer) as raw, pytest.raises(McpFault, match=said) as caught:
        call(raw)
    assert not caught.value.temporary
    assert raw.methods == ["server/discover", "tools/call"]
    assert len(caught.value.message) < 3000


def hang_up(handler: Any, _: Any) -> None:
    handler.close_connection = True


def promise_more(handler: Any, _: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


TEMPORARY: dict[str, tuple[Any, bool | None]] = {
    "hangs up": (hang_up, None),
    "body is cut": (promise_more, None),
    "empty stream": (events(b": nothing\n\nevent: ping\ndata: x\n\n"), None),
    "stream is cut": (events(b'data: {"jsonrpc'), None),
    "408": ((408, {}, b"x"), True),
    "425": ((425, {}, b"x"), True),
    "500": ((500, {}, b"x"), True),
    "502 of a gateway": ((502, {}, b'{"error": {"code": 502, "message": "no upstream"}}'), True),
    "503": ((503, {"Retry-After": "7"}, rpc(1)), False),
    "429": ((429, {"Retry-After": "7"}, b"x"), False),
}


@pytest.mark.parametrize("how", TEMPORARY)
def test_temporary_fault_says_whether_it_was_taken(how: str) -> None:
    answer, taken = TEMPORARY[how]
    with raw_server(answer) as raw, pytest.raises(McpFault) as caught:
        call(raw)
    assert raw.methods == ["server/discover", "tools/call"]
    assert (caught.value.temporary, caught.value.taken) == (True, taken)
    assert caught.value.retry_after == (7.0 if taken is False else None)


@pytest.mark.parametrize("how", [how for how, (_, taken) in TEMPORARY.items() if not taken])
def test_request_is_not_taken_before_the_era_is_known(how: str) -> None:
    with raw_server(TEMPORARY[how][0], discovers=False) as raw, pytest.raises(McpFault) as caught:
        call(raw)
    assert (caught.value.temporary, caught.value.taken) == (True, False)
    assert raw.methods == ["server/discover"]


@pytest.mark.parametrize("refusal", [(503, {}, b""), (404, {}, b""), (400, {}, b"No such session")])
def test_call_ends_when_an_answer_is_refused(refusal: Any) -> None:
    era = Era(Known(protocol.LEGACY, {}, "s"))
    with raw_server(events(PING, EVENT), refusal) as raw:
        assert call(raw, era) == DONE


@pytest.mark.parametrize(("version", "tells"), [(protocol.LEGACY, True), (protocol.MODERN, False)])
def test_earlier_server_learns_that_a_call_is_given_up(version: str, tells: bool) -> None:
    known = Known(version, {}, "s" if tells else None)
    over = threading.Event()
    with raw_server(lambda *_: over.wait(20), ACCEPTED) as raw:
        with pytest.raises(McpFault, match="did not answer within") as caught:
            call(raw, Era(known), seconds=0.3)
        over.set()
    assert (caught.value.taken, caught.value.temporary) == (None, True)
    notices = [(headers["Mcp-Session-Id"], asked["params"]) for headers, asked in raw.asked[1:]]
    assert notices == ([("s", {"requestId": 1})] if tells else [])


# As servers send them: events with all fields, comments, empty events to begin with, a byte order mark.
STREAMS: dict[str, bytes] = {
    "TypeScript": b"id: 0_a\nretry: 3000\ndata: \n\nevent: message\nid: 1_a\n" + EVENT,
    "Python": b": ping - 2026-11-30 10:00:00+00:00\r\n\r\nevent: message\r\n" + EVENT.replace(b"\n", b"\r\n"),
    "Go": b"event: message\nid: 0\n" + EVENT.replace(b"data: ", b"data:"),
    "C#": b"event: message\n" + EVENT.replace(b"data: ", b"data: \xef\xbb\xbf"),
    "others": b"event: endpoint\ndata: /x\n\nevent: message\n"
    + PROGRESS
    + b'data: {"method": "x", "a": "\\u0000"}\n\n'
    + EVENT,
}


@pytest.mark.parametrize("who", STREAMS)
def test_streams_of_servers_are_read(who: str) -> None:
    with raw_server(events(STREAMS[who])) as raw:
        assert call(raw) == DONE


BEGUN = b"id: a_0\nretry: 1\ndata:\n\n"


def test_ended_stream_of_an_earlier_server_is_continued() -> None:
    era = Era(Known(protocol.LEGACY, {}, "s"))
    more, last = events(b"id: a_1\n" + PROGRESS), events(b": x\n\nid: a_2\n" + EVENT.replace(b"%d", b"1"))
    with raw_server(events(BEGUN), more, last) as raw:
        assert call(raw, era) == DONE
    assert raw.methods == ["tools/call", "GET", "GET"]
    assert [headers.get("Last-Event-ID") for headers, _ in raw.asked] == [None, "a_0", "7"]
    assert {headers["Mcp-Session-Id"] for headers, _ in raw.asked} == {"s"}


@pytest.mark.parametrize(
    ("version", "begun", "asks"),
    [
        (protocol.LEGACY, BEGUN, 1),
        (protocol.LEGACY, b"retry: 1\ndata:\n\n", 0),
        (protocol.LEGACY, b"id: \xff\ndata:\n\n", 0),
        (protocol.LEGACY, b"id: a_0\n", 0),
        (protocol.MODERN, BEGUN, 0),
    ],
)
def test_stream_that_cannot_be_continued_is_a_fault(version: str, begun: bytes, asks: int) -> None:
    # Known here, not in the parameters: what is known about a server expires ten minutes after it was asked.
    known = Known(version, {}, "s" if version == protocol.LEGACY else None)
    with raw_server(events(begun)) as raw, pytest.raises(McpFault, match="without a response") as caught:
        call(raw, Era(known))
    assert (caught.value.taken, caught.value.temporary) == (None, True)
    assert raw.methods.count("GET") == asks


def test_endless_continuations_end_with_the_timeout() -> None:
    era = Era(Known(protocol.LEGACY, {}, "s"))
    with raw_server(*[events(BEGUN)] * 100) as raw, pytest.raises(McpFault, match="timeout") as caught:
        call(raw, era, seconds=0.5)
    assert (caught.value.taken, caught.value.temporary) == (None, True)


def test_error_keeps_the_status() -> None:
    with raw_server((401, {}, rpc(-32001, "Unauthorized"))) as raw, pytest.raises(RpcError) as caught:
        call(raw, Era(Known(protocol.MODERN, {})))
    assert caught.value.as_dict()["status"] == 401


def test_nothing_listens() -> None:
    with pytest.raises(McpFault, match="no answer: ConnectError") as caught:
        call(RawServer("http://127.0.0.1:1/mcp"))
    assert (caught.value.temporary, caught.value.taken) == (True, False)


@contextmanager
def dripping(text: bytes) -> Iterator[Callable[[Any, Any], None]]:
    """An answer that never ends, and its end."""
    stopped = threading.Event()

    def drip(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            while not stopped.wait(0.005):
                handler.wfile.write(text)
        except OSError:
            return

    try:
        yield drip
    finally:
        stopped.set()


@pytest.mark.parametrize("text", [b": still here\n\n", PROGRESS, b"x"])
def test_slow_server_is_left_after_the_timeout(text: bytes) -> None:
    with (
        dripping(text) as drip,
        raw_server(drip) as raw,
        pytest.raises(McpFault, match=r"did not answer within 0\.4 s") as caught,
    ):
        call(raw, seconds=0.4)
    assert (caught.value.temporary, caught.value.taken) == (True, None)


def test_endless_messages_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.mcp.client.MAX_MESSAGES", 50)
    with raw_server(events(*[PROGRESS] * 60, EVENT)) as raw, pytest.raises(McpFault, match="no response"):
        call(raw)


def test_renewed_credentials_are_used_once_more() -> None:
    class Renewing(FixedHeaders):
        def renew(self, status: int, headers: Any) -> bool:
            self._headers = {"Authorization": "new"}
            renewals.append((status, headers["www-authenticate"]))
            return True

    renewals: list[Any] = []
    refusal = (401, {"WWW-Authenticate": "Bearer"}, b"")
    with raw_server(refusal, DONE) as raw:
        assert call(raw, authorization=Renewing({"Authorization": "old"})) == DONE
    assert [headers["Authorization"] for headers, _ in raw.asked] == ["old", "old", "new"]
    assert renewals == [(401, "Bearer")]
    with raw_server(refusal, refusal) as raw, pytest.raises(McpFault, match="HTTP 401"):
        call(raw, authorization=Renewing({"Authorization": "old"}))
    assert len(raw.asked) == 3


SECRET = "s3cret/value"


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, SECRET.encode()),
        ok(b"{" + SECRET.encode()),
        {"error": {"code": 1, "message": SECRET}},
        ok(b'{"jsonrpc": "2.0", "id": 2, "error": {"code": 1, "message": "s3cret\\/\\u0076alue"}}'),
        events(b'data: {"id": %d, "error": {"code": 1, "message": "' + SECRET.encode() + b'"}}\n\n'),
        (302, {"Location": f"http://x/{SECRET}"}, b""),
        ok(b"", f"text/{SECRET}"),
    ],
)
def test_faults_never_repeat_a_secret(answer: Any) -> None:
    authorization = FixedHeaders({"X-Key": SECRET}, [SECRET])
    with raw_server(answer) as raw, pytest.raises(McpFault) as caught:
        call(raw, authorization=authorization)
    assert SECRET not in caught.value.message
    assert "s3cret" not in json.dumps([caught.value.as_dict(), str(caught.value)])
