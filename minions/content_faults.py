"""Images, documents and tool results that the Messages API refuses, for the server of `minions.testing`."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from typing import Any

Block = dict[str, Any]

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
SIGNATURES = (
    ("image/jpeg", b"\xff\xd8\xff"),
    ("image/png", b"\x89PNG\r\n\x1a\n"),
    ("image/gif", b"GIF8"),
    ("image/webp", b"RIFF"),
)
MAX_IMAGE_BYTES = 5 << 20
MAX_IMAGES = 600
MAX_PAGES = 600
MAX_PIXELS = 8000
MANY_IMAGES = 20
MAX_PIXELS_OF_MANY = 2000
PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
# An id of Anthropic's Files API.
FILE_ID = re.compile(r"file_(?![0-9a-f]{64}$)[A-Za-z0-9]+")


def content_fault(body: dict[str, Any]) -> str | None:
    """Return the API's error text for the content of a request; None if the API takes it."""
    messages = body.get("messages") or []
    for place, block in _placed(messages):
        if fault := _fault(block):
            return f"{place}.{block['type']}.{fault}"
    return _pair_fault(messages) or _total_fault(messages) or _citation_fault(body, messages)


def _placed(messages: list[dict[str, Any]]) -> Iterator[tuple[str, Block]]:
    for number, message in enumerate(messages):
        if isinstance(message.get("content"), list):
            yield from _nested(message["content"], f"messages.{number}.content")


def _nested(content: list[Block], where: str) -> Iterator[tuple[str, Block]]:
    for number, block in enumerate(content):
        place = f"{where}.{number}"
        if block.get("type") in ("image", "document"):
            yield place, block
            if isinstance(inner := (block.get("source") or {}).get("content"), list):
                yield from _nested(inner, f"{place}.document.source.content")
        elif isinstance(block.get("content"), list):
            yield from _nested(block["content"], f"{place}.{block.get('type')}.content")


def _fault(block: Block) -> str | None:
    source = block.get("source") or {}
    match source.get("type"):
        case "base64":
            fault = _image_fault(source) if block["type"] == "image" else _pdf_fault(source)
            return fault and f"source.base64{fault}"
        case "url":
            return (
                None if str(source.get("url")).startswith("https://") else "source.url: Only HTTPS URLs are supported."
            )
        case "file":
            id = str(source.get("file_id"))
            return None if FILE_ID.fullmatch(id) else f"source.file.file_id: File not found: {id}"
        case "text" | "content" if block["type"] == "document":
            return None
    return "source: Input does not match any of the expected types"


def _image_fault(source: Block) -> str | None:
    declared = source.get("media_type")
    if declared not in IMAGE_TYPES:
        return ".media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'"
    if len(source["data"]) > MAX_IMAGE_BYTES:
        return f": image exceeds 5 MB maximum: {len(source['data'])} bytes > {MAX_IMAGE_BYTES} bytes"
    data = _decoded(source["data"])
    if data is None:
        return ".data: Invalid base64 data"
    found = next((kind for kind, signature in SIGNATURES if data.startswith(signature)), None)
    if found is None:
        return ".data: Could not process image"
    if found != declared:
        return f": The image was specified using the {declared} media type, but the image appears to be a {found} image"
    if max(_size(data)) > MAX_PIXELS:
        return f".data: At least one of the image dimensions exceed max allowed size: {MAX_PIXELS} pixels"
    return None


def _pdf_fault(source: Block) -> str | None:
    if source.get("media_type") != "application/pdf":
        return ".media_type: Input should be 'application/pdf'"
    data = _decoded(source["data"])
    if data is None:
        return ".data: Invalid base64 data"
    return None if b"%PDF-" in data[:1029] else ".data: The PDF specified was not valid."


def _pair_fault(messages: list[dict[str, Any]]) -> str | None:
    """Each call must be answered in the next message, and nothing else may be."""
    spoken = [message for message in messages if message.get("role") != "system"]
    calls: list[str] = []
    for number, message in enumerate(spoken):
        blocks = message["content"] if isinstance(message.get("content"), list) else []
        answers = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
        if missing := [call for call in calls if call not in answers]:
            return (
                f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
                "next message."
            )
        if stray := [answer for answer in answers if answer not in calls]:
            return (
                f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {stray[0]}. Each "
                "`tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        if twice := [answer for answer in answers if answers.count(answer) > 1]:
            return (
                f"messages.{number}: each tool_use must have a single result. Found multiple `tool_result` blocks with "
                f"id: {twice[0]}"
            )
        if any(block.get("type") != "tool_result" for block in blocks[: len(answers)]):
            return (
                f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{answers[0]}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
                "message."
            )
        calls = [block["id"] for block in blocks if block.get("type") == "tool_use"]
        if len({*calls}) < len(calls):
            return f"messages.{number}: `tool_use` ids must be unique"
    return None


def _total_fault(messages: list[dict[str, Any]]) -> str | None:
    blocks = [block for _, block in _placed(messages)]
    images = [block for block in blocks if block["type"] == "image"]
    if len(images) > MAX_IMAGES:
        return f"messages: too many images: {len(images)} images > {MAX_IMAGES} maximum"
    held = [_decoded(block["source"]["data"]) or b"" for block in images if block["source"]["type"] == "base64"]
    if len(images) > MANY_IMAGES and any(max(_size(data)) > MAX_PIXELS_OF_MANY for data in held):
        return (
            "messages: At least one of the image dimensions exceed max allowed size for many-image requests: "
            f"{MAX_PIXELS_OF_MANY} pixels"
        )
    papers = [block["source"]["data"] for block in blocks if block["type"] == "document" and "data" in block["source"]]
    if sum(len(PAGE.findall(_decoded(paper) or b"")) for paper in papers) > MAX_PAGES:
        return f"messages: A maximum of {MAX_PAGES} PDF pages may be provided."
    return None


def _citation_fault(body: dict[str, Any], messages: list[dict[str, Any]]) -> str | None:
    cited = [
        bool((block.get("citations") or {}).get("enabled"))
        for _, block in _placed(messages)
        if block["type"] == "document"
    ]
    if any(cited) and not all(cited):
        return "messages: citations must be enabled on all documents or on none"
    if any(cited) and (body.get("output_config") or {}).get("format"):
        return "output_config.format: structured outputs cannot be used with citations"
    return None


def _decoded(data: str) -> bytes | None:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def _size(data: bytes) -> tuple[int, int]:
    """Return width and height of a PNG; of other images, none is known here."""
    if data.startswith(SIGNATURES[1][1]) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    return 0, 0
