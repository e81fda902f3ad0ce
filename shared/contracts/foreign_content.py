"""Blocks of content in the shapes of OpenAI and LangChain, converted to those of the Messages API.

A block is converted exactly, or refused by its type and place. Ids and indexes of blocks, which are no content, are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from shared.contracts.media import IMAGE_TYPES, PDF, TEXT, decode
from shared.errors import InvalidInput

Block = dict[str, Any]

DATA_URL = re.compile(r"data:([a-zA-Z0-9.+/-]+)?((?:;[a-zA-Z0-9-]+=[^;,]*)*)(;base64)?,")
TEXTS = ("input_text", "output_text")  # OpenAI's Responses API
OF_LANGCHAIN = frozenset({"source_type", "base64", "url", "file_id"})
# LangChain numbers the blocks of a message, and names them; neither is content.
NAMES = frozenset({"id", "index"})


def is_foreign(block: Mapping[str, Any]) -> bool:
    """Return whether a block has a shape that is not the Messages API's, and that is read here."""
    kind = block.get("type")
    if kind in ("image_url", "input_image", "file", "input_file", "text-plain", *TEXTS):
        return True
    # Those of the API have a `source`.
    return kind == "image" and "source" not in block and not OF_LANGCHAIN.isdisjoint(block)


def converted(block: Mapping[str, Any], where: str) -> Block:
    """Return a foreign block in the form of the Messages API, which the caller checks.

    Raises:
        InvalidInput: it cannot be converted exactly.
    """
    # The id of a file is content.
    names = NAMES - {"id"} if block.get("source_type") == "id" else NAMES
    fields = {name: value for name, value in block.items() if name not in names and value is not None}
    kind = fields.pop("type")
    match kind:
        case "input_text" | "output_text":
            return _text(fields, where)
        case "image_url":
            return _image_url(fields, where)
        case "input_image":
            url = fields.pop("image_url", None)
            return _openai_file({**fields, "file_url": url}, "image", where)
        case "input_file":
            return _openai_file(fields, "document", where)
        case "file" if "file" in fields:
            held = fields.pop("file")
            _refuse_others(fields, kind, where)
            if not isinstance(held, Mapping):
                _refuse(where, "a `file` that is not an object")
            return _openai_file(dict(held), "document", f"{where}.file")
    return _langchain(fields, str(kind), where)


def _text(fields: dict[str, Any], where: str) -> Block:
    text = fields.pop("text", None)
    for name in ("annotations", "logprobs"):
        if not fields.get(name):
            fields.pop(name, None)
    _refuse_others(fields, "text", where)
    return {"type": "text", "text": text}


def _image_url(fields: dict[str, Any], where: str) -> Block:
    held = fields.pop("image_url", None)
    _refuse_others(fields, "image_url", where)
    given = {"url": held} if isinstance(held, str) else dict(held) if isinstance(held, Mapping) else {}
    _refuse_detail(given, f"{where}.image_url")
    url = given.pop("url", None)
    _refuse_others(given, "image_url", f"{where}.image_url")
    return {"type": "image", "source": _from_url(url, f"{where}.image_url")}


def _openai_file(fields: dict[str, Any], kind: str, where: str) -> Block:
    """Convert a file by data, address or id."""
    _refuse_detail(fields, where)
    title: Block = {"title": fields.pop("filename")} if fields.get("filename") else {}
    fields.pop("filename", None)
    given = {name: fields.pop(name, None) for name in ("file_data", "file_url", "file_id")}
    _refuse_others(fields, "file", where)
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        _refuse(where, "files without exactly one of `file_data`, `file_url` (or `image_url`) and `file_id`")
    value = given[found[0]]
    if found[0] == "file_id":
        return {"type": kind, "source": {"type": "file", "file_id": value}, **title}
    if found[0] == "file_data" and not (isinstance(value, str) and value.startswith("data:")):
        source = _from_base64(value, PDF, f"{where}.file_data")
    else:
        source = _from_url(value, f"{where}.{found[0]}")
    return _block_of(source, title, kind)


def _langchain(fields: Block, kind: str, where: str) -> Block:
    """Convert a standard block of LangChain: of version 0 (`source_type`), or of version 1 (`base64`, `url`, …)."""
    for name in ("metadata", "extras"):
        if not fields.get(name):
            fields.pop(name, None)
    version_0 = fields.pop("source_type", None)
    media_type = fields.pop("mime_type", None)
    if version_0 is not None:
        member = {"base64": "data", "url": "url", "id": "id", "text": "text"}.get(str(version_0))
        if member is None:
            _refuse(where, f"blocks with the source_type {str(version_0)[:50]!r}")
        given = {member: fields.pop(member, None)}
    else:
        given = {name: fields.pop(name) for name in ("base64", "url", "file_id", "text") if name in fields}
    title: Block = {name: fields.pop(name) for name in ("title", "context") if name in fields}
    if "filename" in fields:
        title.setdefault("title", fields.pop("filename"))
    _refuse_others(fields, kind, where)
    if len(given) != 1 or (kind == "image" and "text" in given):
        _refuse(where, f"{kind} blocks without exactly one of `base64`, `url`, `file_id` and `text`")
    [(name, value)] = given.items()
    wanted = "image" if kind == "image" else "document"
    match name:
        case "base64" | "data":
            if media_type is None:
                _refuse(where, f"{kind} blocks with data and without a `mime_type`")
            source = _from_base64(value, media_type, f"{where}.{name}")
        case "url":
            source = _from_url(value, f"{where}.url")
            if media_type in IMAGE_TYPES:
                return {"type": "image", "source": source, **title}
        case "text":
            source = {"type": "text", "media_type": TEXT, "data": value}
        case _:
            source = {"type": "file", "file_id": value}
            wanted = "image" if media_type in IMAGE_TYPES else wanted
    return _block_of(source, title, wanted)


def _block_of(source: Block, title: Block, wanted: str) -> Block:
    """Return an image or a document, by the type of its data."""
    if source["type"] == "base64":
        wanted = "image" if str(source["media_type"]).startswith("image/") else "document"
    elif source["type"] == "text":
        wanted = "document"
    # An image of the API has no title; its name says nothing to the model.
    return {"type": wanted, "source": source, **({} if wanted == "image" else title)}


def _from_url(url: Any, where: str) -> Block:
    """Return the source of an address: the bytes of a `data:` URL, or the address itself."""
    if not isinstance(url, str):
        _refuse(where, "addresses that are not text")
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    match = DATA_URL.match(url)
    if match is None or not match[3]:
        _refuse(where, "`data:` URLs that are not `data:TYPE;base64,…`")
    return _from_base64(url[match.end() :], match[1] or TEXT, where)


def _from_base64(data: Any, media_type: str, where: str) -> Block:
    if not isinstance(data, str):
        _refuse(where, "data that is not base64 text")
    if media_type == TEXT:
        try:
            return {"type": "text", "media_type": TEXT, "data": decode(data, where=where).decode()}
        except UnicodeDecodeError:
            _refuse(where, "plain text that is not UTF-8")
    return {"type": "base64", "media_type": media_type, "data": data}


def _refuse_detail(fields: dict[str, Any], where: str) -> None:
    """Refuse a resolution, which the Messages API does not have. `auto` asks for none."""
    if fields.pop("detail", "auto") not in ("auto", None):
        raise InvalidInput(f"{where}.detail: the Messages API has no resolution of images. Leave it out.", path=where)


def _refuse_others(fields: Mapping[str, Any], kind: str, where: str) -> None:
    if fields:
        name = str(min(fields, key=str))[:50]
        raise InvalidInput(f"{where}.{name}: it has no counterpart in the Messages API. Leave it out.", path=where)


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidInput(f"{where}: {what} are not supported. Send a block as the Messages API takes it.", path=where)
