"""Results of calls: values, blocks for the model, errors, and whatever a hostile server sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.content import content_in
from shared.contracts.strict_json import check
from shared.errors import InvalidOutput, ToolError
from shared.mcp.results import MAX_BLOCKS, output_of
from shared.tasks.directives import is_result
from tests.support.media_files import b64, jpeg_header, pdf, png

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def text(said: Any) -> dict[str, Any]:
    return {"type": "text", "text": said}


def output(*blocks: Any, schema: dict[str, Any] | None = None, **fields: Any) -> Any:
    return output_of({"content": list(blocks), **fields}, schema, name="t")


@pytest.mark.parametrize(
    ("blocks", "value"),
    [
        ([], None),
        ([text("hello")], "hello"),
        ([text("a"), text("b")], "a\n\nb"),
        ([text('{"a": [1]}')], {"a": [1]}),
        ([text("[1, 2]")], [1, 2]),
        ([text("12")], "12"),
        ([text('{"a": NaN}')], '{"a": NaN}'),
        ([text("")], ""),
    ],
)
def test_text_becomes_a_value(blocks: list[Any], value: Any) -> None:
    assert output(*blocks) == value


def test_structured_content_replaces_its_text() -> None:
    assert output(text('{"n": 1}'), structuredContent={"n": 1}, schema=SCHEMA) == {"n": 1}
    assert output(structuredContent=None) is None


def test_null_means_absent() -> None:
    assert output(text("hello"), structuredContent=None, isError=None, _meta=None) == "hello"
    assert output_of({"content": None, "structuredContent": {"n": 1}}, SCHEMA, name="t") == {"n": 1}
    assert output_of({"content": None}, None, name="t") is None
    assert output(structuredContent=None, schema={"type": "null"}) is None


@pytest.mark.parametrize("fields", [{}, {"structuredContent": {"n": "1"}}, {"structuredContent": None}])
def test_structured_content_must_match(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidOutput):
        output(text("x"), schema=SCHEMA, **fields)


def test_usual_name_of_a_type_is_accepted() -> None:
    [block] = output({"type": "image", "data": b64(jpeg_header(2, 1)), "mimeType": "image/jpg"})["$content"]
    assert block["source"]["media_type"] == "image/jpeg"


def test_images_and_documents_become_blocks() -> None:
    image = {"type": "image", "data": b64(png()), "mimeType": "image/png", "annotations": {"priority": 1}}
    paper = {"type": "resource", "resource": {"uri": "a://b", "blob": b64(pdf("x")), "mimeType": "application/pdf"}}
    blocks = output(image, paper, structuredContent={"n": 1})["$content"]
    assert [block["type"] for block in blocks] == ["image", "document", "text"]
    assert json.loads(blocks[2]["text"]) == {"n": 1}


def test_structured_content_does_not_repeat_the_data_of_blocks() -> None:
    image = {"type": "image", "data": b64(png()), "mimeType": "image/png"}
    archive = {"type": "resource", "resource": {"uri": "a://b", "blob": "AAAA", "mimeType": "application/zip"}}
    blocks = output(image, archive, structuredContent={"content": [image, archive], "n": 1})["$content"]
    structured = json.loads(blocks[-1]["text"])
    assert structured["content"][0] == {**image, "data": "[see above]"}
    assert structured["content"][1]["resource"]["blob"] == "[see above]"
    assert structured["n"] == 1


@pytest.mark.parametrize(("uri", "fields"), [("a://" + "x" * 600, {"title": "a://" + "x" * 496}), (None, {}), (3, {})])
def test_title_of_a_text_fits(uri: Any, fields: dict[str, Any]) -> None:
    [block] = output({"type": "resource", "resource": {"uri": uri, "text": "a text"}})["$content"]
    assert block == {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "a text"},
        **fields,
    }


def test_text_in_base64_becomes_a_document() -> None:
    resource = {"uri": "a://b", "mimeType": "text/plain; charset=utf-8", "blob": b64("hé".encode())}
    [block] = output({"type": "resource", "resource": resource})["$content"]
    assert block["source"] == {"type": "text", "media_type": "text/plain", "data": "hé"}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "image", "data": "AAAA", "mimeType": "image/png"}, "not passed on"),
        ({"type": "image", "data": "%%", "mimeType": "image/png"}, "not passed on"),
        ({"type": "image", "data": 3, "mimeType": "image/png"}, "not passed on"),
        ({"type": "image", "data": "AAAA", "mimeType": "image/svg+xml"}, "image/svg+xml, 3 bytes"),
        ({"type": "image"}, "None, without data"),
        ({"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}, "models receive no audio"),
        ({"type": "resource_link", "uri": "a://b", "name": "n"}, "[resource n, a://b]"),
        ({"type": "resource_link", "uri": 3}, "[resource ]"),
        ({"type": "resource", "resource": {"uri": "a://b", "blob": "AAAA", "mimeType": "x/y"}}, "do not receive"),
        ({"type": "resource", "resource": {"uri": "a://b", "text": " "}}, "[resource a://b]"),
        ({"type": "resource", "resource": {"blob": b64(b"a\0"), "mimeType": "text/plain"}}, "do not receive"),
        ({"type": "resource", "resource": {"blob": b64(b"\xff"), "mimeType": "text/plain"}}, "do not receive"),
        ({"type": "resource", "resource": {"blob": 3, "mimeType": "text/plain"}}, "without data"),
        ({"type": "resource", "resource": 3}, "unknown kind"),
        ({"type": "video", "data": "x" * 9000}, "unknown kind"),
        ({"type": "text", "text": 3}, "unknown kind"),
        ({"type": ["text"]}, "unknown kind"),
        (None, "unknown kind"),
        ("text", "unknown kind"),
    ],
)
def test_other_blocks_become_lines_of_text(block: Any, said: str) -> None:
    [made] = output(block)["$content"]
    assert made["type"] == "text"
    assert said in made["text"]
    assert len(made["text"]) < 2100


def test_many_blocks_are_cut() -> None:
    blocks = output(*[{"type": "audio"}] * (MAX_BLOCKS + 5))["$content"]
    assert blocks[-1]["text"] == "[5 more blocks are left out]"
    assert len(blocks) == MAX_BLOCKS + 1


@pytest.mark.parametrize("blocks", [[], [text("x" * 50_000)], [{"type": "image"}]])
def test_error_is_final_and_bounded(blocks: list[Any]) -> None:
    with pytest.raises(ToolError, match="The tool 't' failed") as caught:
        output(*blocks, isError=True, schema=SCHEMA)
    assert not caught.value.retryable
    assert len(caught.value.message) < 10_100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a$\ud7ff<\x1b", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "resource", "$wait", "$snooze", "$content", "n"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(st.fixed_dictionaries({}, optional={"content": JSON, "structuredContent": JSON, "isError": JSON}))
def test_any_result_is_harmless(result: dict[str, Any]) -> None:
    try:
        value = output_of(result, None, name="t")
    except (InvalidOutput, ToolError):
        return
    check(value)
    if not is_result(value):
        assert content_in(value, where="it") is not None
        assert all(block["type"] in ("text", "image", "document") for block in value["$content"])
