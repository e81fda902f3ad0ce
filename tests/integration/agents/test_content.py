"""Blocks of content, from each entry point to the bytes that reach the Messages API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from shared.errors import InvalidInput, MinionError
from shared.tasks import files
from shared.tasks.files import NewFile
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.media_files import GIF, b64, pdf, png
from tests.support.processes import ROOT

EXAMPLE = ROOT / "examples" / "contracts"
SMALL = png()
LARGE = png(3, 2, padding=80_000)
PAPER = pdf("The moon is made of rock.", "It has no air.")
CITATION = {
    "type": "page_location",
    "cited_text": "The moon is made of rock.",
    "document_index": 0,
    "document_title": "Moon",
    "start_page_number": 1,
    "end_page_number": 2,
}


def image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": b64(data)}}


def document(data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": b64(data)},
        **more,
    }


def by_id(kind: str, id: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "file", "file_id": id}, **more}


def say(what: str) -> dict[str, Any]:
    return {"type": "text", "text": what}


@pytest.fixture
def send(define_agent: DefineAgent, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task with these messages; returns it and the requests of its calls."""
    define_agent()

    def run(*messages: Any, script: Any = None, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        messages_api.requests.clear()
        messages_api.script = script or [testing.text("Fine.")]
        task = tasks.submit("Agent", messages=list(messages), **fields)
        inline_worker.run_all()
        return tasks.get(task), messages_api.requests

    return run


@pytest.fixture
def upload(database: Engine) -> Any:
    """Stores a file; returns its id."""

    def put(data: bytes, name: str | None = None) -> str:
        with database.begin() as connection:
            return files.store(connection, "default", NewFile.read(data, None, name), uploaded_by="test")[0]

    return put


def test_blocks_reach_the_model_as_they_are(send: Any) -> None:
    content = [
        say("First."),
        image(SMALL),
        image(GIF, "image/gif"),
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        document(PAPER, title="Moon", context="Astronomy"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Rock."}},
        {"type": "document", "source": {"type": "content", "content": [say("A."), image(SMALL)]}},
        {"type": "search_result", "source": "https://example.org", "title": "T", "content": [say("R.")]},
        say("Second."),
    ]
    task, [request] = send({"role": "user", "content": content})
    assert task["output"] == {"content": "Fine."}, task["error"]
    assert plain(request) == [{"role": "user", "content": content}]


def test_large_files_are_stored_and_sent(send: Any, tasks: Tasks, database: Engine) -> None:
    id = files.id_of(LARGE)
    task, [request] = send({"role": "user", "content": [image(LARGE), say("What is it?")]})
    assert task["messages"][0]["content"] == [by_id("image", id), say("What is it?")]
    assert plain(request)[0]["content"][0] == image(LARGE)
    [step] = tasks.steps(task["id"])
    assert step["input"]["messages"] == [{"role": "user", "content": [by_id("image", id), say("What is it?")]}]
    with database.connect() as connection:
        held = connection.scalars(text("SELECT file_id FROM task_files WHERE task_id = :task"), {"task": task["id"]})
        assert list(held) == [id]


def test_files_by_id_are_sent_as_their_contents(send: Any, upload: Any) -> None:
    letter, paper, photo = upload(b"Dear Ann", "letter.txt"), upload(PAPER, "paper.pdf"), upload(SMALL)
    foreign = by_id("document", "file_011CNha8iCJcU1wXNR6q4V8w")
    asked = [by_id("document", letter), by_id("document", paper), by_id("image", photo), foreign, say("?")]
    task, [request] = send({"role": "user", "content": asked})
    assert task["state"] == "succeeded", task["error"]
    sent = plain(request)[0]["content"]
    assert sent[0]["source"] == {"type": "text", "media_type": "text/plain", "data": "Dear Ann"}
    assert sent[1:] == [document(PAPER), image(SMALL), foreign, say("?")]


def test_files_in_an_input_become_blocks(send: Any, upload: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    paper = upload(PAPER, "paper.pdf")
    _, requests = send("Hello")
    requests.clear()
    task = tasks.submit("Agent", {"ask": "Who?", "paper": {"$file": paper}})
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    sent = plain(requests[0])[0]["content"]
    assert sent[0] == document(PAPER, title="paper.pdf")
    assert json.loads(sent[1]["text"]) == {"ask": "Who?", "paper": {"$file": paper}}
    with pytest.raises(InvalidInput, match="there is no file"):
        tasks.submit("Agent", {"$file": "file_" + "0" * 64})


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (by_id("image", "file_" + "0" * 64), "there is no file file_000"),
        (image(SMALL, "image/jpeg"), "its media type is image/jpeg, but its content is image/png"),
        (image(b"<svg/>", "image/svg+xml"), r"the media type 'image/svg\+xml' is not accepted"),
        (document(b"no"), "its media type is application/pdf, but its content is text/plain"),
        (image(png(9000, 1)), "9000 × 1 pixels, and the API takes 8000"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x y"}}, "not valid base64"),
        ({"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}, "https:// address"),
        ({**say("x"), "colour": "red"}, r"content\[1\].colour: a block of type 'text' has no such member"),
        ({"type": "video", "url": "https://example.org"}, r"content\[1\]: blocks of type 'video' are not supported"),
    ],
)
def test_bad_blocks_are_refused_at_submission(
    define_agent: DefineAgent, tasks: Tasks, block: dict[str, Any], said: str
) -> None:
    define_agent()
    with pytest.raises(MinionError, match=said):
        tasks.submit("Agent", messages=[{"role": "user", "content": [say("See:"), block]}])


def test_citations_reach_the_output_and_the_journal(send: Any, tasks: Tasks) -> None:
    cited = {**say("It is rock."), "citations": [CITATION]}
    reply = testing.cited("Well: ", ("It is rock.", [CITATION]), " Done.")
    paper = document(PAPER, title="Moon", citations={"enabled": True})
    task, _ = send({"role": "user", "content": [paper, say("Of what?")]}, script=[reply])
    assert task["output"] == {"content": "Well: It is rock. Done.", "citations": [CITATION]}
    [step] = tasks.steps(task["id"])
    assert step["output"]["content"][1] == cited


def test_citations_of_a_conversation_apply_to_all_its_documents(send: Any) -> None:
    cited, plain_paper = document(PAPER, citations={"enabled": True}), document(PAPER)
    answer = {"$content": [{**plain_paper, "citations": {"enabled": False}}]}
    send({"role": "user", "content": [plain_paper, say("A")]}, conversation_id="mixed")
    script = [tool_use(("act", {"do": "answer", "answer": answer})), testing.text("Seen.")]
    task, requests = send({"role": "user", "content": [cited, say("B")]}, conversation_id="mixed", script=script)
    assert task["state"] == "succeeded", task["error"]
    first, _, second, _, result = (message["content"] for message in plain(requests[1]))
    assert [first[0], second[0], *result[0]["content"]] == [cited] * 3
    with pytest.raises(InvalidInput, match="Some blocks of type 'document' have citations enabled"):
        send({"role": "user", "content": [cited, plain_paper]})


def test_no_format_is_sent_with_citations(send: Any, define_agent: DefineAgent) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    define_agent(output_schema=schema)
    script = [testing.text('{"n": 1}')]
    _, [plain_call] = send({"role": "user", "content": [document(PAPER), say("?")]}, script=script)
    assert "format" in plain_call["output_config"]
    cited = document(PAPER, citations={"enabled": True})
    task, [call] = send({"role": "user", "content": [cited, say("?")]}, script=[testing.text('{"n": 1}')])
    assert task["output"] == {"n": 1}
    assert "output_config" not in call


def test_submitted_tool_calls_are_sent_exactly(send: Any) -> None:
    said = [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
                {"type": "tool_use", "id": "toolu_x", "name": "echo", "input": {"b": 1, "a": [2]}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_x", "content": [say("Seen."), image(SMALL)]}],
        },
        {"role": "assistant", "content": [say("Good."), {**say("Cited."), "citations": [CITATION]}]},
        {"role": "user", "content": "And?"},
    ]
    task, [request] = send(*said)
    assert task["state"] == "succeeded", task["error"]
    assert plain(request) == said


@pytest.mark.parametrize("given", [(0, 1), (0, 2), (0, 1, 3)])
def test_tool_calls_without_their_results_are_refused(define_agent: DefineAgent, tasks: Tasks, given: Any) -> None:
    define_agent()
    call = {"type": "tool_use", "id": "toolu_x", "name": "echo", "input": {}}
    said = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_x", "content": "x"}]},
        {"role": "user", "content": "Well?"},
    ]
    with pytest.raises(InvalidInput, match=r"messages.[12].: (it must begin|there is no|the call)"):
        tasks.submit("Agent", messages=[said[place] for place in given])


def test_conversation_keeps_files_for_its_next_task(send: Any) -> None:
    first = [image(LARGE), say("A"), say("B")]
    send({"role": "user", "content": first}, conversation_id="talk")
    task, [request] = send("And now?", conversation_id="talk")
    assert task["state"] == "succeeded", task["error"]
    assert plain(request)[0] == {"role": "user", "content": first}


def test_tool_returns_blocks_by_their_shape(send: Any, define: Define, tasks: Tasks, database: Engine) -> None:
    answer = {"$content": [say("A photo:"), image(LARGE)]}
    script = [tool_use(("act", {"do": "answer", "answer": answer})), testing.text("Seen.")]
    task, requests = send("Look", script=script)
    assert task["state"] == "succeeded", task["error"]
    [result] = plain(requests[1])[2]["content"]
    assert result == {"type": "tool_result", "tool_use_id": "toolu_1", "content": [say("A photo:"), image(LARGE)]}
    id = files.id_of(LARGE)
    assert tasks.steps(task["id"])[1]["output"] == {"$content": [say("A photo:"), by_id("image", id)]}
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM task_files WHERE file_id = :id"), {"id": id}) == 1


def test_model_gives_a_sub_agent_only_files_of_its_task(send: Any, upload: Any) -> None:
    own, foreign, missing = upload(b"own"), upload(b"foreign"), "file_" + "0" * 64
    ask = [("help", {"answer": 1, "file": {"$file": id}}) for id in (own, foreign, missing)]
    said = {"role": "user", "content": [by_id("document", own)]}
    task, requests = send(said, script=[tool_use(*ask), testing.text("Seen.")])
    assert task["state"] == "succeeded", task["error"]
    results = plain(requests[1])[2]["content"]
    assert [result.get("is_error", False) for result in results] == [False, True, True]
    assert results[2]["content"] == f"The file {missing} is not one of this task."


def test_example_answers_with_citations(
    upload: Any, database: Engine, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    messages_api.script = json.loads((EXAMPLE / "replies.json").read_text())
    with Session(database) as session:
        store_definitions(session, load(EXAMPLE / "contracts.yaml"))
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET capabilities = capabilities || '{contracts}'"))
    asked = {"question": "When can it be ended?", "contract": {"$file": upload(PAPER, "contract.pdf")}}
    task = tasks.submit("contract-reader", asked)
    inline_worker.run_all()
    output = tasks.get(task)["output"]
    assert output["content"] == "Each party may end the contract with a notice of 30 days."
    assert [each["start_page_number"] for each in output["citations"]] == [2]
    [block, _] = plain(messages_api.requests[0])[0]["content"]
    assert block == document(PAPER, title="contract.pdf", citations={"enabled": True})


def test_json_that_looks_like_blocks_stays_json(send: Any) -> None:
    value = [say("x"), image(SMALL)]
    script = [tool_use(("act", {"do": "answer", "answer": value})), testing.text("Seen.")]
    _, requests = send("Look", script=script)
    [result] = plain(requests[1])[2]["content"]
    assert json.loads(result["content"]) == value


def test_sql_submission_takes_blocks(
    define_agent: DefineAgent, database: Engine, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define_agent()
    messages_api.script = [testing.text("Fine.")]
    submit = text("SELECT minion_submit('Agent', messages => CAST(:messages AS jsonb))")
    good = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(SMALL)}"}}],
    }
    bad = {"role": "user", "content": [image(SMALL, "image/gif")]}
    with database.begin() as connection:
        accepted = [connection.scalar(submit, {"messages": json.dumps([each])}) for each in (good, bad)]
    inline_worker.run_all()
    assert tasks.get(str(accepted[0]))["state"] == "succeeded"
    assert plain(messages_api.requests[0])[0]["content"] == [image(SMALL)]
    assert "its content is image/png" in tasks.get(str(accepted[1]))["error"]["message"]


def test_earlier_releases_hand_blocks_back(send: Any, tasks: Tasks, database: Engine) -> None:
    texts, _ = send({"role": "user", "content": [say("a"), say("b")]})
    text_only, _ = send({"role": "user", "content": "a"}, {"role": "user", "content": [say("b")]})
    with database.connect() as connection:
        formats = dict(connection.execute(text("SELECT id::text, journal_format FROM tasks")).all())  # type: ignore[arg-type]
    assert (formats[str(texts["id"])], formats[str(text_only["id"])]) == (2, 1)


def test_sub_agent_returns_blocks(
    define_agent: DefineAgent, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define_agent()
    answer = {"$content": [say("A photo:"), image(LARGE)]}
    messages_api.script = [tool_use(("help", {"do": "answer", "answer": answer})), testing.text("Seen.")]
    task = tasks.submit("Agent", "Look")
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Seen."}
    [result] = plain(messages_api.requests[1])[2]["content"]
    assert result["content"] == [say("A photo:"), image(LARGE)]


def test_tool_cannot_show_files_of_others(send: Any, upload: Any) -> None:
    secret = upload(LARGE)
    answer = {"$content": [by_id("image", secret)]}
    task, requests = send("Look", script=[tool_use(("act", {"do": "answer", "answer": answer})), testing.text("No.")])
    assert task["state"] == "succeeded"
    [result] = plain(requests[1])[2]["content"]
    assert (result["is_error"], "is not one of this task" in result["content"]) == (True, True)


def test_old_parts_of_a_conversation_are_summarised_with_their_files(send: Any, define_agent: DefineAgent) -> None:
    define_agent({"history_tokens": 500})
    for number in range(4):
        send(
            {"role": "user", "content": [image(LARGE), say(f"Number {number}. " + "More. " * 150)]},
            conversation_id="talk",
        )
    task, requests = send("And now?", conversation_id="talk")
    assert task["state"] == "succeeded", task["error"]
    summarised = str(requests[0]["messages"])
    assert "[image: file_" in summarised
