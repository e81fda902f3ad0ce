"""What the suite prescribes and agents do not have: images, audio, sampling, prompts with arguments.

They are tools, resources and prompts of the reference server, served by our server's transport beside its agents. So
these scenarios test the transport, its limits and its envelope, and say nothing about agents.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from mcp.server import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolRequestParams,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    PaginatedRequestParams,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)

from orchestrator.mcp.server import McpServer
from tests.mcp_conformance.agents import another_agent, store

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
IMAGE = ImageContent(type="image", data=PIXEL, mime_type="image/png")

SEAL = "intact"

fixture = MCPServer("fixture", log_level="ERROR")


class ConformanceServer(McpServer):
    """Our server, with the fixture's tools, resources and prompts beside its own."""

    async def _list_tools(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> Any:
        own = await super()._list_tools(context, params)
        if own.next_cursor is None:
            own.tools += (await _asked(context, "tools/list", params)).tools
        return own

    async def _call_tool(self, context: ServerRequestContext, params: CallToolRequestParams) -> Any:
        name = _content((params.input_responses or {}).get("user_name"), "name")
        if params.name == "test_tool_with_task" and name is not None:
            # The agent's task is that of a call without the client's answers.
            arguments = {"name": name, "seconds": 1}
            return await super()._call_tool(context, CallToolRequestParams(name="slow_greet", arguments=arguments))
        names = {tool.name for tool in await fixture.list_tools()}
        if params.name in names:
            return await _asked(context, "tools/call", params)
        return await super()._call_tool(context, params)

    async def _list_resources(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> Any:
        own = await super()._list_resources(context, params)
        own.resources += (await _asked(context, "resources/list", params)).resources
        return own

    async def _list_templates(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> Any:
        own = await super()._list_templates(context, params)
        own.resource_templates += (await _asked(context, "resources/templates/list", params)).resource_templates
        return own

    async def _read_resource(self, context: ServerRequestContext, params: Any) -> Any:
        if str(params.uri).startswith("test://") and "nonexistent" not in str(params.uri):
            return await _asked(context, "resources/read", params)
        return await super()._read_resource(context, params)

    async def _list_prompts(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> Any:
        own = await super()._list_prompts(context, params)
        own.prompts += (await _asked(context, "prompts/list", params)).prompts
        return own

    async def _get_prompt(self, context: ServerRequestContext, params: Any) -> Any:
        if params.name.startswith("test_"):
            return await _asked(context, "prompts/get", params)
        return await super()._get_prompt(context, params)


def add_completions(server: McpServer) -> None:
    """Have a server complete the arguments of the fixture's prompts."""
    entry = _entry("completion/complete")
    server.add_request_handler("completion/complete", entry.params_type, entry.handler)


async def _asked(context: ServerRequestContext, method: str, params: Any) -> Any:
    return await _entry(method).handler(context, params)


def _entry(method: str) -> Any:
    return fixture._lowlevel_server.get_request_handler(method)


def _form(message: str, **properties: str) -> ElicitRequest:
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}
    asked = {**schema, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=asked))


def _sample(text: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=100))


def _content(answer: Any, name: str) -> Any:
    return (answer.content or {}).get(name) if isinstance(answer, ElicitResult) else None


# -------------------------------------------------------------------------------------------------------------- tools


@fixture.tool()
def test_image_content() -> list[ImageContent]:
    """Returns an image."""
    return [IMAGE]


@fixture.tool()
def test_audio_content() -> list[AudioContent]:
    """Returns audio."""
    return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


@fixture.tool()
def test_embedded_resource() -> list[EmbeddedResource]:
    """Returns a resource."""
    return [_resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@fixture.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Returns text, an image and a resource."""
    text = TextContent(type="text", text="Multiple content types test:")
    return [text, IMAGE, _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')]


@fixture.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Needs sampling."""
    declared = ctx.session.client_capabilities
    if declared is None or declared.sampling is None:
        missing = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs the capability `sampling`.", missing)
    return "The client has it."


@fixture.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Asks for input."""
    return InputRequiredResult(input_requests={"user_name": _form("What is your name?", name="string")})


@fixture.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Logs nothing that was not asked for."""
    await asyncio.sleep(0)
    return "Nothing was logged."


@fixture.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Asks for a name."""
    name = _content((ctx.input_responses or {}).get("user_name"), "name")
    if name is not None:
        return f"Hello, {name}!"
    return InputRequiredResult(input_requests={"user_name": _form("What is your name?", name="string")})


@fixture.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Asks for a model's answer."""
    if "capital_question" in (ctx.input_responses or {}):
        return "The model has answered."
    return InputRequiredResult(input_requests={"capital_question": _sample("What is the capital of France?")})


@fixture.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Asks for the client's roots."""
    if "client_roots" in (ctx.input_responses or {}):
        return "The client has roots."
    return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})


@fixture.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Asks for a confirmation, with a state."""
    if ctx.request_state == "asked" and "confirm" in (ctx.input_responses or {}):
        return "state-ok"
    return InputRequiredResult(input_requests={"confirm": _form("Please confirm", ok="boolean")}, request_state="asked")


@fixture.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Asks for three things at once."""
    asked = {
        "user_name": _form("What is your name?", name="string"),
        "greeting": _sample("Generate a greeting"),
        "client_roots": ListRootsRequest(),
    }
    if asked.keys() <= (ctx.input_responses or {}).keys():
        return "All three have arrived."
    return InputRequiredResult(input_requests=asked, request_state="three")


@fixture.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Asks for a name, then for a colour."""
    state, responses = json.loads(ctx.request_state or "{}"), ctx.input_responses or {}
    if "name" in state and "step2" in responses:
        return f"{state['name']} likes {_content(responses['step2'], 'color')}."
    if (name := _content(responses.get("step1"), "name")) is not None:
        second = {"step2": _form("Step 2: What is your favorite color?", color="string")}
        return InputRequiredResult(input_requests=second, request_state=json.dumps({"name": name}))
    first = {"step1": _form("Step 1: What is your name?", name="string")}
    return InputRequiredResult(input_requests=first, request_state=json.dumps({"round": 1}))


@fixture.tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Asks for a confirmation; a state that is not its own is refused."""
    if ctx.request_state is None:
        asked = {"confirm": _form("Please confirm", ok="boolean")}
        return InputRequiredResult(input_requests=asked, request_state=SEAL)
    if ctx.request_state != SEAL:
        raise MCPError(INVALID_PARAMS, "The state was changed.")
    return "The state is intact."


@fixture.tool()
async def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Asks for what the client can give."""
    declared = ctx.session.client_capabilities
    asked: dict[str, Any] = {}
    if declared is not None and declared.sampling is not None:
        asked["sample"] = _sample("Say hello")
    if declared is not None and declared.elicitation is not None:
        asked["ask"] = _form("What is your name?", name="string")
    return InputRequiredResult(input_requests=asked, request_state="asked")


@fixture.tool()
async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
    """Asks for a name, and then becomes a task of an agent: see `ConformanceServer`."""
    return InputRequiredResult(input_requests={"user_name": _form("What is your name?", name="string")})


@fixture.tool()
async def test_trigger_tool_change() -> str:
    """Changes the list of tools: it stores another agent."""
    await asyncio.to_thread(store, [another_agent()])
    return "There is another agent."


# ------------------------------------------------------------------------------------------------ resources and prompts


def _resource(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _said(text: str) -> UserMessage:
    return UserMessage(role="user", content=TextContent(type="text", text=text))


@fixture.resource("test://static-text")
def static_text() -> str:
    """Text."""
    return "This is the content of the static text resource."


@fixture.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """An image."""
    return base64.b64decode(PIXEL)


@fixture.resource("test://template/{id}/data", mime_type="application/json")
def of_template(id: str) -> str:
    """What the address says."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@fixture.prompt()
def test_simple_prompt() -> list[UserMessage]:
    """Has no arguments."""
    return [_said("This is a simple prompt for testing.")]


@fixture.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    """Has two arguments."""
    return [_said(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]


@fixture.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """Has a resource."""
    resource = _resource(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [UserMessage(role="user", content=resource), _said("Please process the embedded resource above.")]


@fixture.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """Has an image."""
    return [UserMessage(role="user", content=IMAGE), _said("Please analyze the image above.")]


@fixture.prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    """Asks for a context."""
    context = _content((ctx.input_responses or {}).get("user_context"), "context")
    if context is not None:
        return [_said(f"Use this context: {context}")]
    return InputRequiredResult(input_requests={"user_context": _form("Which context?", context="string")})


@fixture.completion()
async def complete(ref: Any, argument: Any, context: Any) -> Completion:
    """Knows two values."""
    values = [value for value in ("paris", "park") if value.startswith(argument.value)]
    return Completion(values=values, total=len(values), has_more=False)
