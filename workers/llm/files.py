"""The files of a model call: messages and the journal have references, the provider receives the contents."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from shared.contracts.content import is_of_model, our_file, our_files
from shared.contracts.media import MAX_REQUEST_BYTES, TEXT
from shared.database.connections import persistently
from shared.errors import InvalidInput, TooLarge
from shared.tasks import files
from workers.llm.base import ModelRequest

Block = dict[str, Any]


def with_files(request: ModelRequest) -> ModelRequest:
    """Return a request with the contents of our files in place of their ids. Ids of the provider's files stay.

    Raises:
        InvalidInput: a file is missing.
        TooLarge: they are larger than the API takes in one request.
    """
    named = [id for each in request.messages if not is_of_model(each) for id in our_files(each["content"])]
    if not named:
        return request
    sources: dict[str, Block] = {}
    size = 0
    for id in named:
        if id not in sources:
            sources[id] = persistently(_source, request.namespace, id)
        size += len(sources[id]["data"])
        if size > MAX_REQUEST_BYTES:
            raise TooLarge(
                f"The files of this model call have more than {MAX_REQUEST_BYTES:,} bytes in base64, which the API "
                "does not take. Send fewer or smaller files, or begin a new conversation."
            )
    messages = [
        each if is_of_model(each) else {**each, "content": _filled(each["content"], sources)}
        for each in request.messages
    ]
    return replace(request, messages=messages)


def _source(connection: Any, namespace: str, id: str) -> Block:
    facts = files.media_of(connection, namespace, [id]).get(id)
    data = files.data_of(connection, namespace, id)
    if facts is None or data is None:
        raise InvalidInput(f"The file {id} is gone. Upload it again and submit a new task.")
    if facts.media_type == TEXT:
        return {"type": "text", "media_type": TEXT, "data": data.decode()}
    return {"type": "base64", "media_type": facts.media_type, "data": base64.b64encode(data).decode()}


def _filled(content: Any, sources: dict[str, Block]) -> Any:
    return [_filled_block(block, sources) for block in content] if isinstance(content, list) else content


def _filled_block(block: Block, sources: dict[str, Block]) -> Block:
    if block.get("type") == "tool_result":
        return {**block, "content": _filled(block.get("content"), sources)}
    source = block.get("source")
    if block.get("type") not in ("image", "document") or not isinstance(source, dict):
        return block
    if source.get("type") == "content":
        return {**block, "source": {**source, "content": _filled(source["content"], sources)}}
    id = our_file(block)
    return block if id is None else {**block, "source": sources[id]}
