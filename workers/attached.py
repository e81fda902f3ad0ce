"""Files of an agent's input, and the citations of its answer."""

from __future__ import annotations

from typing import Any

from shared.contracts.content import Block, Content, files_in
from shared.contracts.strict_json import JsonValue
from shared.database.connections import persistently
from shared.errors import InvalidInput
from shared.tasks import files


def with_files_of_input(value: JsonValue, text: str, namespace: str, *, cited: bool) -> Content:
    """Return an input as content: its text, with a block before it for each file `{"$file": id}`.

    Args:
        cited: the model may cite the documents.

    Raises:
        InvalidInput: a file is missing.
    """
    ids = list(dict.fromkeys(files_in(value)))
    if not ids:
        return text
    facts = persistently(files.facts_of, namespace, ids)
    if missing := [id for id in ids if id not in facts]:
        raise InvalidInput(f"The input refers to the file {missing[0][:100]!r}, which does not exist. Upload it.")
    return [*(_block(id, facts[id], cited) for id in ids), {"type": "text", "text": text}]


def with_citations(answer: str, reply: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without a schema as an output; `citations` are those of its texts, exactly as received."""
    found = [each for block in reply["content"] if block["type"] == "text" for each in block.get("citations") or ()]
    return {"content": answer, "citations": found} if found else {"content": answer}


def _block(id: str, facts: dict[str, Any], cited: bool) -> Block:
    source = {"type": "file", "file_id": id}
    if str(facts["media_type"]).startswith("image/"):
        return {"type": "image", "source": source}
    document = {"type": "document", "source": source, "title": facts["name"] or id}
    return {**document, "citations": {"enabled": True}} if cited else document
