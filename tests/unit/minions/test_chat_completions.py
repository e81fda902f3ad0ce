"""The scripted server as OpenAI's own client sees it, and what it refuses as OpenAI's API does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from minions import testing
from minions.testing import KEY, MessagesApi, messages_api, text, tool_use

HI = [{"role": "user", "content": "Hi"}]
CALL = {"id": "c", "type": "function", "function": {"name": "act", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}
OPEN = {"type": "object", "properties": {"n": {"type": "integer"}}}


def tool(name: str = "act", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, **function}}


def form(schema: Any, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with messages_api() as api:
        yield api


@pytest.fixture
def client(api: MessagesApi) -> Iterator[Any]:
    with openai.OpenAI(base_url=api.chat_url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client: Any) -> Any:
    """Makes a plain call."""

    def create(messages: Any = HI, **fields: Any) -> Any:
        return client.chat.completions.create(model="gpt-5", messages=messages, **fields)

    return create


def test_script_answers_openais_client(api: MessagesApi, ask: Any) -> None:
    usage = {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 100}
    api.script = [{**tool_use(("act", {"n": 1}), ("act", {"n": 2}), said="So:"), "usage": usage}]
    answer = ask(tools=[tool()])
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So:")
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"n": 1}', '{"n": 2}']
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (107, 5)
    assert answer.usage.prompt_tokens_details.cached_tokens == 100


def test_stream_is_that_of_the_plain_answer(api: MessagesApi, client: Any) -> None:
    api.script = [tool_use(("act", {"n": 1}), ("act", {"n": 2}), said="One two three")]
    with client.chat.completions.stream(model="gpt-5", messages=HI, tools=[tool()]) as stream:
        choice = stream.get_final_completion().choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One two three")
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"n": 1}', '{"n": 2}']


def test_wrong_key_is_refused(api: MessagesApi) -> None:
    stranger = openai.OpenAI(base_url=api.chat_url, api_key="wrong", max_retries=0)
    with stranger as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="gpt-5", messages=HI)  # type: ignore[arg-type]


def test_error_of_the_script_has_its_headers(api: MessagesApi, ask: Any) -> None:
    api.script = [testing.error(429, message="slow down", headers={"retry-after": "3"}), text("Hi.")]
    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        ask()
    assert refused.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("messages", "fields", "why"),
    [
        ([], {}, "empty array"),
        (HI, {"max_tokens": 1, "max_completion_tokens": 1}, "at the same time"),
        (HI, {"stop": list("abcde")}, "array too long"),
        (HI, {"tools": [tool("a b")]}, "string does not match pattern"),
        (HI, {"tools": [tool(parameters={"type": "array"})]}, "must be a JSON Schema of"),
        (HI, {"tools": [tool(parameters=OPEN, strict=True)]}, "'additionalProperties' is required"),
        (HI, {"tool_choice": "auto"}, "only allowed when 'tools' are specified"),
        (HI, {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "no function named"),
        (HI, {"response_format": form({**OPEN, "additionalProperties": False})}, "including every key in properties"),
        ([{"role": "robot", "content": "Hi"}], {}, "Invalid value: 'robot'"),
        ([{"role": "user", "content": None}], {}, "expected a string, got null"),
        ([{"role": "user", "content": [{"type": "document"}]}], {}, "Invalid value: 'document'"),
        ([*HI, RESULT], {}, "must be a response to a preceding message"),
        ([*HI, CALLED, *HI], {}, "did not have response messages: c"),
        ([*HI, CALLED], {}, "did not have response messages: c"),
    ],
)
def test_request_that_the_api_refuses_is_refused(ask: Any, messages: Any, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(messages, **fields)
    assert why in str(refused.value)


def test_turn_with_the_results_of_its_calls_is_accepted(api: MessagesApi, ask: Any) -> None:
    api.script = [text("Done.")]
    assert ask([*HI, CALLED, RESULT], response_format=form(OPEN, strict=False)).choices[0].message.content == "Done."
