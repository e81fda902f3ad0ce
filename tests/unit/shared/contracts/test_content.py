"""Content of messages: blocks of the Messages API, blocks of other libraries, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.content import (
    check_pairs,
    cites,
    content_in,
    describe,
    files_in,
    media_in,
    outline,
    read,
    read_block,
)
from shared.errors import InvalidInput, MinionError
from tests.support.media_files import b64, pdf, png

PNG, PDF = b64(png()), b64(pdf("x"))
OURS = "file_" + "ab" * 32
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
LINK = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
PAPER = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
NOTE = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Größe"}}
DATA_PNG, DATA_PDF = f"data:image/png;base64,{PNG}", f"data:application/pdf;base64,{PDF}"


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        # OpenAI: chat completions, then responses
        ({"type": "image_url", "image_url": {"url": DATA_PNG}}, IMAGE),
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}}, LINK),
        ({"type": "image_url", "image_url": DATA_PNG}, IMAGE),
        ({"type": "file", "file": {"file_data": DATA_PDF, "filename": "a.pdf"}}, {**PAPER, "title": "a.pdf"}),
        ({"type": "input_text", "text": "x"}, {"type": "text", "text": "x"}),
        ({"type": "output_text", "text": "x", "annotations": [], "logprobs": []}, {"type": "text", "text": "x"}),
        ({"type": "input_image", "image_url": DATA_PNG, "detail": "auto"}, IMAGE),
        ({"type": "input_image", "file_id": OURS}, {"type": "image", "source": {"type": "file", "file_id": OURS}}),
        ({"type": "input_file", "file_data": PDF, "filename": "a.pdf"}, {**PAPER, "title": "a.pdf"}),
        ({"type": "input_file", "file_url": "https://example.org/a.pdf"}, {
            "type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}
        }),
        # LangChain: version 0, then version 1
        ({"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "image", "source_type": "url", "url": "https://example.org/a.png"}, LINK),
        ({"type": "file", "source_type": "base64", "data": PDF, "mime_type": "application/pdf"}, PAPER),
        ({"type": "file", "source_type": "id", "id": OURS}, {
            "type": "document", "source": {"type": "file", "file_id": OURS}
        }),
        ({"type": "image", "base64": PNG, "mime_type": "image/png", "id": "lc_1", "index": 0, "extras": {}}, IMAGE),
        ({"type": "image", "url": "https://example.org/a.png"}, LINK),
        ({"type": "file", "base64": PDF, "mime_type": "application/pdf"}, PAPER),
        ({"type": "file", "base64": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "text-plain", "text": "Größe", "mime_type": "text/plain"}, NOTE),
        ({"type": "file", "base64": b64("Größe".encode()), "mime_type": "text/plain", "title": "t"}, {
            **NOTE, "title": "t"
        }),
    ],
)  # fmt: skip
def test_foreign_blocks_are_converted(foreign: dict[str, Any], ours: dict[str, Any]) -> None:
    assert read_block(foreign, ("text", "image", "document"), where="b") == ours
    assert read_block(ours, ("text", "image", "document"), where="b") == ours


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "image_url", "image_url": {"url": DATA_PNG, "detail": "high"}}, "b.image_url.detail: "),
        ({"type": "image_url", "image_url": {"url": "data:image/png,xx"}}, "`data:` URLs that are not"),
        ({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}, "b.source.url: it must be a public"),
        ({"type": "image_url"}, "addresses that are not text"),
        ({"type": "file", "file": {"file_id": "file-abc"}}, "b.source.file_id: it must be the id of a file"),
        ({"type": "file", "file": {}}, "files without exactly one of"),
        ({"type": "output_text", "text": "x", "annotations": [{"type": "url_citation"}]}, "b.annotations: "),
        ({"type": "image", "source_type": "gs", "data": PNG}, "source_type 'gs'"),
        ({"type": "image", "base64": PNG}, "without a `mime_type`"),
        ({"type": "image", "base64": PNG, "mime_type": "image/png", "extras": {"a": 1}}, "b.extras: "),
        ({"type": "file", "base64": b64(b"\xff"), "mime_type": "text/plain"}, "not UTF-8"),
        ({"type": "input_audio", "input_audio": {}}, "b: blocks of type 'input_audio' are not supported"),
        ({**IMAGE, "source": {**IMAGE["source"], "data": PNG[:-1]}}, "b.source.data: the data is not valid base64"),
        ({**IMAGE, "source": {**IMAGE["source"], "name": "x"}}, "check 'name'"),
        ({**PAPER, "citations": True}, "b.citations: it must be"),
        ({**PAPER, "title": 5}, "b.title: it must be text"),
        ({"type": "text", "text": "x", "citations": "yes"}, "b.citations: it must be a list of citations"),
        ({**NOTE, "source": {**NOTE["source"], "data": " "}}, "data that is not blank"),
        (
            {"type": "document", "source": {"type": "content", "content": [PAPER]}},
            "b.source.content[0]: blocks of type",
        ),
        ({"type": "document", "source": {"type": "content", "content": []}}, "a list of at least one block"),
        ({"type": "document", "source": {"type": "content", "content": [" "]}}, "one block that is not blank"),
    ],
)
def test_what_cannot_be_converted_exactly_is_refused(block: dict[str, Any], said: str) -> None:
    with pytest.raises(MinionError) as refused:
        read_block(block, ("text", "image", "document"), where="b")
    assert said in refused.value.message


def test_content_keeps_the_borders_of_texts() -> None:
    texts = [{"type": "text", "text": text} for text in ("a", "\n", "b")]
    assert read(texts, "user", where="c") == [texts[0], texts[2]]
    assert read(texts[:1], "user", where="c") == "a"
    assert read(texts, "system", where="c") == "a\n\nb"
    assert read(texts[1:2], "user", where="c") is None


def test_cache_marks_are_left_out() -> None:
    block = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "citations": None}
    assert read_block(block, ("text",), where="b") == {"type": "text", "text": "a"}
    found = {"type": "mcp_tool_result", "tool_use_id": "m", "content": [block], "cache_control": None}
    plain = {
        "type": "mcp_tool_result",
        "tool_use_id": "m",
        "content": [{"type": "text", "text": "a", "citations": None}],
    }
    assert read([found], "assistant", where="c") == [plain]


def test_citations_of_a_system_message_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"c\[1\].citations: a message of role 'system' has none"):
        read(["a", {"type": "text", "text": "b", "citations": [{"type": "page_location"}]}], "system", where="c")


def test_blocks_of_a_model_are_passed_exactly() -> None:
    blocks = [
        {"type": "thinking", "thinking": "x", "signature": "s", "unknown": None},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": 1, "a": 2}},
    ]
    assert read(blocks, "assistant", where="c") == blocks
    with pytest.raises(InvalidInput, match="blocks of type 'thinking'"):
        read(blocks, "user", where="c")


def test_results_of_calls_become_blocks() -> None:
    def result(**more: Any) -> Any:
        return read([{"type": "tool_result", "tool_use_id": "t", **more}], "user", where="c")[0]["content"]

    assert result(content="x") == [{"type": "text", "text": "x"}]
    assert result(content=[IMAGE, "y"]) == [IMAGE, {"type": "text", "text": "y"}]
    assert result(content=["", IMAGE, " "]) == [IMAGE]
    assert result() == result(content="") == result(content=[]) == result(content=[" "]) == []
    for wrong in ({"content": {}}, {"is_error": True}, {"is_error": True, "content": [IMAGE]}):
        with pytest.raises(InvalidInput, match=r"c\[0\].content: "):
            result(**wrong)


def test_pairs_of_calls_and_results_must_be_whole() -> None:
    call = ("assistant", [{"type": "tool_use", "id": "t", "name": "f", "input": {}}])
    answer = ("user", [{"type": "tool_result", "tool_use_id": "t", "content": []}])
    check_pairs([call, answer, ("assistant", "Done.")])
    say = [{"type": "text", "text": "x"}]
    check_pairs([call, ("user", answer[1] + say)])
    twice = [[("assistant", call[1] * 2), answer], [call, ("user", answer[1] * 2)], [call, ("user", say + answer[1])]]
    for wrong in ([call], [answer], [call, ("user", "x")], [call, answer, answer], *twice):
        with pytest.raises(InvalidInput):
            check_pairs(wrong)


def test_blocks_of_a_tool_must_be_explicit() -> None:
    assert content_in({"$content": [IMAGE, "x"]}, where="o") == [IMAGE, {"type": "text", "text": "x"}]
    for value in ([IMAGE], {"content": [IMAGE]}, {"$content": [IMAGE], "more": 1}, IMAGE, "x", None):
        assert content_in(value, where="o") is None
    assert content_in({"$content": ["", IMAGE]}, where="o") == [IMAGE]
    for value in ("x", [{"type": "tool_use"}]):
        with pytest.raises(InvalidInput):
            content_in({"$content": value}, where="o")


def test_files_of_an_input_are_found_anywhere() -> None:
    value = {"a": {"$file": "x"}, "b": [{"c": {"$file": "y"}}, {"$file": 5}], "d": {"$file": "z", "e": 1}, "f": "$file"}
    assert list(files_in(value)) == ["x", "y"]


def test_media_and_citations_are_found_in_results() -> None:
    cited = {**PAPER, "citations": {"enabled": True}}
    inner = {"type": "document", "source": {"type": "content", "content": [LINK]}}
    content = [{"type": "tool_result", "tool_use_id": "t", "content": [cited, inner]}]
    assert list(media_in(content)) == [cited, inner, LINK]
    assert cites(content)
    assert not cites([PAPER, {**PAPER, "citations": {"enabled": False}}])


def test_blocks_have_a_short_line() -> None:
    assert describe(LINK) == "[image: https://example.org/a.png]"
    assert describe({**PAPER, "title": "a.pdf"}).startswith("[document 'a.pdf': application/pdf, ")
    assert outline([{"type": "text", "text": "x"}, {"type": "tool_use", "id": "t"}]) == "x\n\n[tool_use]"
