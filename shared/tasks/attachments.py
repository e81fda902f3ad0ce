"""The files of a task's messages and input: large ones in base64 are stored, references are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from shared.access.scope import Scope
from shared.contracts import content, media
from shared.contracts.content import OUR_FILE, Block, Content, our_file
from shared.contracts.media import PDF, TEXT, Media
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput
from shared.tasks import files
from shared.tasks.files import NewFile

LARGE = 64 << 10
"""Characters of base64 from which a file is stored apart, so that journals and pages stay small."""
Store = Callable[[NewFile], str]


def stored(blocks: Content, store: Store) -> Content:
    """Return content in which large files are references.

    Args:
        store: stores a file and returns its id.
    """
    if isinstance(blocks, str):
        return blocks
    return [_stored(block, store) for block in blocks]


def check(
    connection: Connection,
    namespace: str,
    messages: Sequence[dict[str, Any]],
    value: JsonValue = None,
    *,
    scope: Scope | None = None,
) -> None:
    """Check that the files of messages and of an input exist, are of the right kind, and fit into one request.

    Args:
        scope: that of the key; None: it reaches the whole namespace.

    Raises:
        InvalidInput: one does not.
        TooLarge: there are too many, or they are too large.
    """
    places = list(_places(messages))
    named = list(dict.fromkeys(content.files_in(value)))
    for id in named:
        if not OUR_FILE.fullmatch(id):
            raise InvalidInput(
                f'The input refers to the file {id[:100]!r}: {{"$file": …}} takes the id of a file uploaded here.'
            )
    kept = content.kept_files([each["content"] for each in messages], value)
    known = files.media_of(connection, namespace, sorted(kept), scope)
    for id in named:
        if id not in known:
            raise _missing("The input", id)
    found = [known[id] for id in named]
    for where, block in places:
        if (facts := _facts(block, known, where)) is not None:
            found.append(facts)
    if unknown := kept - known.keys():
        raise _missing("The task", min(unknown))
    media.check_together(found, what="The task")
    _check_citations([each["content"] for each in messages])


def has_files(messages: Sequence[dict[str, Any]] | None, value: JsonValue) -> bool:
    """Return whether there is anything for `check`."""
    return any(isinstance(each["content"], list) for each in messages or ()) or content.names_files(value)


def _stored(block: Block, store: Store) -> Block:
    if block["type"] == "tool_result":
        return {**block, "content": stored(block["content"], store)}
    source = block.get("source")
    if not isinstance(source, dict):
        return block
    if source["type"] == "content":
        return {**block, "source": {**source, "content": stored(source["content"], store)}}
    if source["type"] != "base64" or len(source["data"]) < LARGE:
        return block
    data = media.decode(source["data"], where="data")
    new = NewFile(data, content.facts_of(source), str(block["title"])[:255] if block.get("title") else None)
    return {**block, "source": {"type": "file", "file_id": store(new)}}


def _places(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Block]]:
    for place, message in enumerate(messages):
        for block in content.media_in(message["content"]):
            yield f"messages[{place}]", block


def _facts(block: Block, known: dict[str, Media], where: str) -> Media | None:
    """Return the facts of a block's file; None if the API has it, or it is a text in the block."""
    if block["source"]["type"] == "base64":
        return content.facts_of(block["source"])
    id = our_file(block)
    if id is None:
        return None
    if id not in known:
        raise _missing(where, id)
    facts = known[id]
    if facts.is_image != (block["type"] == "image") or (
        block["type"] == "document" and facts.media_type not in (PDF, TEXT)
    ):
        raise InvalidInput(
            f"{where}: the file {id} is {facts.media_type}, which a block of type {block['type']!r} cannot show.",
            path=where,
        )
    return facts


def _check_citations(messages: Sequence[Content]) -> None:
    """The API takes the documents of a request with citations, or without, and its search results too."""
    for kind in sorted(content.CITABLE):
        cited = {content.is_cited(each) for said in messages for each in content.citable(said) if each["type"] == kind}
        if len(cited) > 1:
            raise InvalidInput(
                f"Some blocks of type {kind!r} have citations enabled, and others do not: the API takes all or none. "
                "Set `citations` on each of them."
            )


def _missing(where: str, id: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: there is no file {id}. Upload it with POST /v1/files or `minion files put`, in the namespace of the "
        "task, and use the id of the answer.",
        path=where,
    )
