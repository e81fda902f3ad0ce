"""Local server that speaks the streaming Messages API for benchmarks: it takes little processor time.

    python -m benchmarks.model_server SECONDS TURNS PORT

Each reply has 20 events, spread evenly over SECONDS. A conversation gets TURNS replies, and all but the last one call
the tool `echo_number`. The server counts the earlier replies in the request, so it keeps no state.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

EVENTS = 20
TEXTS = EVENTS - 9
WORDS = "The licence text was read and compared; "
CALLED = b'"tool_result"'


def main() -> None:
    """Serve until the process is terminated."""
    seconds, turns, port = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    asyncio.run(serve(port, seconds, turns))


async def serve(port: int, seconds: float, turns: int) -> None:
    """Serve on loopback."""
    replies = [_reply(call=True), _reply(call=False)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                if b"count_tokens" in head.split(b"\r\n", 1)[0]:
                    writer.write(_plain(b'{"input_tokens": 6000}'))
                    continue
                last = body.count(CALLED) >= turns - 1
                writer.write(HEAD)
                for event in replies[last]:
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await asyncio.sleep(seconds / EVENTS)
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=1 << 20, backlog=4096)
    async with server:
        await server.serve_forever()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nrequest-id: req_1\r\n\r\n"


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _reply(*, call: bool) -> list[bytes]:
    """The events of one reply."""
    usage = {"input_tokens": 6000, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-bench", "content": []}
    tool = {"type": "tool_use", "id": "toolu_1", "name": "echo_number", "input": {}}
    texts = TEXTS if call else TEXTS + 3
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *[{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS}}] * texts,
        {"type": "content_block_stop", "index": 0},
    ]
    if call:
        partial = {"type": "input_json_delta", "partial_json": '{"value": 1}'}
        events += [
            {"type": "content_block_start", "index": 1, "content_block": tool},
            {"type": "content_block_delta", "index": 1, "delta": partial},
            {"type": "content_block_stop", "index": 1},
        ]
    stop = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    events += [{"type": "message_delta", "delta": stop, "usage": {"output_tokens": 150}}, {"type": "message_stop"}]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


if __name__ == "__main__":
    main()
