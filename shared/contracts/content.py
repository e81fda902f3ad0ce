"""Content of messages: text, or a list of blocks as the Messages API takes them.

`read` checks what a submitter sends and returns the form that is stored: text, if the content is nothing else, or
blocks. Foreign blocks are converted. What cannot be sent to the API is refused by its place. Nothing is left out but
blank texts, which the API refuses, `cache_control`, because the marks of the prompt cache are ours, and the ids and
indexes of LangChain's blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from shared.contracts import media
from shared.contracts.foreign_content import converted, is_foreign
from shared.contracts.media import IMAGE_TYPES, PDF, TEXT, Media
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput

Block = dict[str, Any]
Content = str | list[Block]

CONTENT = "$content"
FILE = "$file"
OUR_FILE = re.compile(r"file_[0-9a-f]{64}")
ANY_FILE = re.compile(r"file_[A-Za-z0-9_-]{1,200}")
HTTPS = re.compile(r"https://[^\s/?#]+\S*")
MAX_URL = 8192

# Written by a model or by the API's tools; they are passed exactly, because some are signed.
OF_MODEL = frozenset(
    "thinking redacted_thinking server_tool_use web_search_tool_result web_fetch_tool_result "
    "code_execution_tool_result bash_code_execution_tool_result text_editor_code_execution_tool_result "
    "tool_search_tool_result advisor_tool_result mcp_tool_use mcp_tool_result mcp_tool_listing container_upload "
    "compaction fallback".split()
)
MATERIAL = ("text", "image", "document", "search_result")
CITABLE = frozenset({"document", "search_result"})
BY_ROLE = {
    "user": (*MATERIAL, "tool_result"),
    "assistant": ("text", "tool_use", *sorted(OF_MODEL)),
    "system": ("text",),
    "tool": ("text",),
}
MEMBERS = {
    "text": {"text", "citations"},
    "image": {"source", "transformations"},
    "document": {"source", "title", "context", "citations"},
    "search_result": {"source", "title", "content", "citations"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "tool_use": {"id", "name", "input", "caller"},
}
SOURCES = {"image": ("base64", "url", "file"), "document": ("base64", "text", "content", "url", "file")}
SOURCE_MEMBERS = {
    "base64": {"media_type", "data"},
    "text": {"media_type", "data"},
    "content": {"content"},
    "url": {"url"},
    "file": {"file_id"},
}


def read(content: Any, role: str, *, where: str) -> Content | None:
    """Return the content of a message in the form that is stored; None if it is neither text nor blocks.

    Raises:
        InvalidInput: a block is not one that this role may have, or is not valid.
        TooLarge: a file exceeds a limit of the API.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return None
    blocks = _read(content, BY_ROLE[role], where)
    if not blocks:
        return None
    if role in ("system", "tool"):
        if cited := [place for place, block in enumerate(blocks) if "citations" in block]:
            _refuse(f"{where}[{cited[0]}].citations", f"a message of role {role!r} has none. Leave them out")
        return "\n\n".join(block["text"] for block in blocks)
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def read_block(block: Any, allowed: Sequence[str], *, where: str) -> Block:
    """Return a block in the form that is stored.

    Raises:
        InvalidInput: it is not one of the allowed types, or is not valid.
        TooLarge: its file exceeds a limit of the API.
    """
    if isinstance(block, str):
        return {"type": "text", "text": block}
    fields = dict(block) if isinstance(block, Mapping) else _attributes(block)
    if fields.get("type") is None and fields.keys() == {"text"}:
        fields = {"type": "text", **fields}
    if is_foreign(fields):
        fields = converted(fields, where)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in allowed:
        named = "without a type" if kind is None else f"of type {str(kind)[:50]!r}"
        raise InvalidInput(
            f"{where}: blocks {named} are not supported here. Send one of {', '.join(allowed[:5])}, or a text that "
            "says the same.",
            path=where,
        )
    if kind in OF_MODEL:
        return _without_marks(fields)
    fields.pop("cache_control", None)
    fields = {name: value for name, value in fields.items() if value is not None}
    if unknown := sorted(fields.keys() - MEMBERS[kind] - {"type"}):
        _refuse(f"{where}.{unknown[0][:50]}", f"a block of type {kind!r} has no such member. Leave it out")
    return CHECKS[kind](fields, where)


def is_blank(block: Block) -> bool:
    """Return whether a block is a text without a visible character, which the API refuses."""
    return block["type"] == "text" and not block["text"].strip()


def as_text_if_plain(content: Content) -> Content:
    """Return the text of a content that has nothing else, not even citations; other content is returned as it is."""
    if isinstance(content, list) and all(block.keys() == {"type", "text"} for block in content):
        return text_of(content)
    return content


def text_of(content: Content) -> str:
    """Return the text of a content, its blocks as paragraphs. Other blocks are not in it."""
    if isinstance(content, str):
        return content
    return "\n\n".join(block["text"] for block in content if block.get("type") == "text")


def outline(content: Content) -> str:
    """Return the content as text, with a short line for each block that is none."""
    return content if isinstance(content, str) else "\n\n".join(map(describe, content))


def describe(block: Block) -> str:
    """Return a text block's text, or a short line about any other block."""
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text"))
    source = block.get("source")
    if kind in ("image", "document") and isinstance(source, dict):
        title = f" {block['title']!r}" if block.get("title") else ""
        return f"[{kind}{title}: {_origin(source)}]"
    if kind == "search_result":
        return f"[search result {block.get('title')!r}: {source}]"
    return f"[{kind}]"


def is_of_model(message: Mapping[str, Any]) -> bool:
    """Return whether a message is a model's: its blocks are passed exactly, may have any form, and name no file."""
    return bool(message["role"] == "assistant")


def media_in(content: Content) -> Iterator[Block]:
    """Yield the images and documents of a content, those in tool results and in documents too."""
    for block in content if isinstance(content, list) else ():
        if block.get("type") in ("image", "document"):
            yield block
            if block["source"].get("type") == "content":
                yield from media_in(block["source"]["content"])
        elif block.get("type") == "tool_result":
            yield from media_in(block.get("content") or "")


def our_files(content: Content) -> Iterator[str]:
    """Yield the ids of the files stored here that a content refers to, each as often as it does."""
    for block in media_in(content):
        if (id := our_file(block)) is not None:
            yield id


def our_file(block: Block) -> str | None:
    """Return the id of an image's or document's file if it is stored here."""
    source = block["source"]
    is_ours = source.get("type") == "file" and OUR_FILE.fullmatch(source["file_id"])
    return source["file_id"] if is_ours else None


def citable(content: Content) -> Iterator[Block]:
    """Yield the documents and search results of a content, those in tool results too."""
    for block in content if isinstance(content, list) else ():
        if block.get("type") in CITABLE:
            yield block
        elif block.get("type") == "tool_result":
            yield from citable(block.get("content") or "")


def is_cited(block: Block) -> bool:
    """Return whether citations are enabled on a document or a search result."""
    return bool((block.get("citations") or {}).get("enabled", False))


def cites(content: Content) -> bool:
    """Return whether a content has a document or a search result on which citations are enabled."""
    return any(map(is_cited, citable(content)))


def content_in(value: JsonValue, *, where: str) -> list[Block] | None:
    """Return the blocks of a tool's result `{"$content": [block, …]}`; None if it is another value.

    Raises:
        InvalidInput, TooLarge: a block is not valid.
    """
    if not isinstance(value, dict) or value.keys() != {CONTENT}:
        return None
    given = value[CONTENT]
    if not isinstance(given, list):
        _refuse(where, f"{CONTENT} must be a list of blocks")
    return _read(given, MATERIAL, where)


def files_in(value: JsonValue) -> Iterator[str]:
    """Yield the ids of the files in an input: the values of objects `{"$file": id}`, in order."""
    if isinstance(value, dict):
        if value.keys() == {FILE} and isinstance(value[FILE], str):
            yield value[FILE]
        else:
            for part in value.values():
                yield from files_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from files_in(part)


def names_files(value: JsonValue) -> bool:
    """Return whether an input has a member `$file` anywhere."""
    return any(True for _ in _members(value, FILE))


def kept_files(messages: JsonValue, value: JsonValue) -> set[str]:
    """Return the ids of our files that are kept with a task's messages and input, wherever they are in them.

    `minion_file_ids` in SQL finds the same. A key that submits a task may read these files from then on.
    """
    sources = [
        each
        for source in _members(messages, "source")
        for each in (source if isinstance(source, list) else [source])
        if isinstance(each, dict)
    ]
    ids = [*(source.get("file_id") for source in sources), *_members(value, FILE)]
    return {id for id in ids if isinstance(id, str) and OUR_FILE.fullmatch(id)}


def _members(value: JsonValue, name: str) -> Iterator[JsonValue]:
    """Yield the values of all members of that name."""
    if isinstance(value, dict):
        if name in value:
            yield value[name]
        for part in value.values():
            yield from _members(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _members(part, name)


def check_pairs(messages: Sequence[tuple[str, Content]]) -> None:
    """Check that each tool call is answered once, at the beginning of the next message, and nothing else is, as the API
    requires.

    Args:
        messages: roles and contents.

    Raises:
        InvalidInput: names the place of the first call or answer without the other.
    """
    open_calls: list[str] = []
    for place, (role, content) in enumerate(messages):
        blocks = content if isinstance(content, list) else []
        answers = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        where = f"messages[{place}]"
        if role != "system" and (missing := [call for call in open_calls if call not in answers]):
            _refuse(where, f"it must begin with the `tool_result` of the call {missing[0][:100]!r} before it")
        if stray := [answer for answer in answers if answer not in open_calls]:
            _refuse(where, f"there is no `tool_use` {stray[0][:100]!r} in the message before it")
        if (twice := _repeated(answers)) is not None:
            _refuse(where, f"it must have one `tool_result` of the call {twice[:100]!r}")
        if any(block["type"] != "tool_result" for block in blocks[: len(answers)]):
            _refuse(where, "each `tool_result` must be before all other blocks")
        if role != "system":
            open_calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
            if (twice := _repeated(open_calls)) is not None:
                _refuse(where, f"the id {twice[:100]!r} of a `tool_use` must be unique")
    if open_calls:
        _refuse(f"messages[{len(messages) - 1}]", f"the call {open_calls[0][:100]!r} has no `tool_result` after it")


def _text(block: Block, where: str) -> Block:
    if not isinstance(block.get("text"), str):
        _refuse(f"{where}.text", "it must be text")
    citations = block.get("citations", [])
    if not isinstance(citations, list) or not all(isinstance(each, dict) for each in citations):
        _refuse(f"{where}.citations", "it must be a list of citations, as an answer has them")
    return block if citations else {name: value for name, value in block.items() if name != "citations"}


def _image(block: Block, where: str) -> Block:
    return {**block, "source": _source(block.get("source"), "image", f"{where}.source")}


def _document(block: Block, where: str) -> Block:
    for name in ("title", "context"):
        if not isinstance(block.get(name, ""), str):
            _refuse(f"{where}.{name}", "it must be text")
    _check_citations(block, where)
    return {**block, "source": _source(block.get("source"), "document", f"{where}.source")}


def _search_result(block: Block, where: str) -> Block:
    for name in ("source", "title"):
        if not isinstance(block.get(name), str):
            _refuse(f"{where}.{name}", "it must be text")
    _check_citations(block, where)
    return {**block, "content": _blocks(block.get("content"), ("text",), f"{where}.content")}


def _tool_result(block: Block, where: str) -> Block:
    if not isinstance(block.get("tool_use_id"), str):
        _refuse(f"{where}.tool_use_id", "it must be the id of a `tool_use`")
    if not isinstance(block.get("is_error", False), bool):
        _refuse(f"{where}.is_error", "it must be true or false")
    given = block.get("content", [])
    if not isinstance(given, str | list):
        _refuse(f"{where}.content", "it must be text, or a list of blocks")
    # Text in our own results is JSON, which would be unpacked.
    content = _read([given] if isinstance(given, str) else given, MATERIAL, f"{where}.content")
    if block.get("is_error") and (not content or any(each["type"] != "text" for each in content)):
        _refuse(f"{where}.content", "the result of a call that failed must be text, and not blank")
    return {**block, "content": content}


def _tool_use(block: Block, where: str) -> Block:
    for name in ("id", "name"):
        if not isinstance(block.get(name), str):
            _refuse(f"{where}.{name}", "it must be text")
    if not isinstance(block.get("input"), dict):
        _refuse(f"{where}.input", "it must be an object")
    return block


CHECKS: dict[str, Callable[[Block, str], Block]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
    "tool_result": _tool_result,
    "tool_use": _tool_use,
}


def _blocks(given: Any, allowed: Sequence[str], where: str) -> list[Block]:
    blocks = _read(given, allowed, where) if isinstance(given, list) else []
    if not blocks:
        _refuse(where, "it must be a list of at least one block that is not blank")
    return blocks


def _read(given: Sequence[Any], allowed: Sequence[str], where: str) -> list[Block]:
    """Return blocks in the form that is stored, without blank texts."""
    blocks = [read_block(each, allowed, where=f"{where}[{place}]") for place, each in enumerate(given)]
    return [block for block in blocks if not is_blank(block)]


def _without_marks(block: Block) -> Block:
    """Return a block of a model without marks for the prompt cache, also in the blocks that it contains."""
    plain = {name: value for name, value in block.items() if name != "cache_control"}
    if isinstance(inner := plain.get("content"), list):
        plain["content"] = [_without_marks(each) if isinstance(each, dict) else each for each in inner]
    return plain


def _repeated(ids: Sequence[str]) -> str | None:
    """Return the first id that occurs again."""
    seen: set[str] = set()
    return next((id for id in ids if id in seen or seen.add(id)), None)  # type: ignore[func-returns-value]


def _source(given: Any, kind: str, where: str) -> Block:
    source = {**given} if isinstance(given, Mapping) else {}
    how = source.get("type")
    if how not in SOURCES[kind]:
        _refuse(where, f"the source of a block of type {kind!r} must have one of the types {', '.join(SOURCES[kind])}")
    if (members := source.keys() - {"type"}) != SOURCE_MEMBERS[how]:
        wrong = min(members ^ SOURCE_MEMBERS[how])
        _refuse(
            where, f"a source of type {how!r} has {' and '.join(sorted(SOURCE_MEMBERS[how]))}: check {wrong[:50]!r}"
        )
    match how:
        case "base64":
            _check_base64(source, kind, where)
        case "url" if not (isinstance(source["url"], str) and HTTPS.fullmatch(source["url"][: MAX_URL + 1])):
            _refuse(
                f"{where}.url", "it must be a public https:// address of at most 8,192 characters: the API reads it"
            )
        case "file" if not (isinstance(source["file_id"], str) and ANY_FILE.fullmatch(source["file_id"])):
            _refuse(f"{where}.file_id", "it must be the id of a file: file_…")
        case "text":
            if source["media_type"] != TEXT or not isinstance(source["data"], str) or not source["data"].strip():
                _refuse(where, f"a source of type 'text' has the media_type {TEXT}, and data that is not blank")
        case "content" if isinstance(source["content"], str):
            if not source["content"].strip():
                _refuse(f"{where}.content", "it is blank")
        case "content":
            source["content"] = _blocks(source["content"], ("text", "image"), f"{where}.content")
    return source


def _check_base64(source: Block, kind: str, where: str) -> None:
    allowed = IMAGE_TYPES if kind == "image" else (PDF,)
    if source["media_type"] not in allowed:
        _refuse(
            f"{where}.media_type",
            f"the media type {str(source['media_type'])[:100]!r} is not accepted for a block of type {kind!r}; "
            f"accepted are {', '.join(allowed)}",
        )
    facts_of(source, where)


def facts_of(source: Block, where: str = "source") -> Media:
    """Return the facts of a source in base64.

    Raises:
        InvalidInput, TooLarge: it is not valid.
    """
    if not isinstance(source["data"], str):
        _refuse(f"{where}.data", "it must be base64 text")
    return media.inspect(media.decode(source["data"], where=f"{where}.data"), source["media_type"], where=where)


def _check_citations(block: Block, where: str) -> None:
    citations = block.get("citations")
    if citations is not None and (
        not isinstance(citations, dict)
        or citations.keys() - {"enabled"}
        or not isinstance(citations.get("enabled", True), bool)
    ):
        _refuse(f"{where}.citations", 'it must be {"enabled": true} or {"enabled": false}')


def _attributes(item: Any) -> Block:
    """Return the members of a block that is an object, such as one of the SDK's."""
    dump = getattr(item, "model_dump", None)
    if callable(dump):
        return dict(dump(exclude_none=True))
    return {name: value for name in ("type", "text") if (value := getattr(item, name, None)) is not None}


def _origin(source: Block) -> str:
    match source.get("type"):
        case "base64":
            return f"{source.get('media_type')}, {len(str(source.get('data'))) * 3 // 4:,} bytes"
        case "url":
            return str(source.get("url"))
        case "file":
            return str(source.get("file_id"))
    return str(source.get("type"))


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidInput(f"{where}: {what}.", path=where)
