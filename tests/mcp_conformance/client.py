"""The client under test of the conformance suite: the suite appends the address of its server, and reads nothing else.

It uses what workers use: the client and its transport, the list of tools, the headers of parameters, the questions of a
server, and client credentials. Answers to questions are their default values.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from shared.contracts.documents import McpOAuth
from shared.mcp import questions, remote_tasks
from shared.mcp.authorization import ClientCredentials
from shared.mcp.client import McpClient
from shared.mcp.eras import Era
from shared.mcp.faults import McpFault
from shared.mcp.http import Authorization, FixedHeaders, HttpTransport
from shared.mcp.listing import ListedTool, list_tools
from shared.mcp.parameters import headers_of
from shared.mcp.resource_metadata import authorization_servers
from shared.settings import Settings

# The suite's servers are on this machine.
SETTINGS = Settings(allow_private_addresses=["127.0.0.1", "::1", "localhost"])
SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
CONTEXT: dict[str, Any] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
SECONDS = 20.0
MOST_ROUNDS = 5


def main() -> None:
    """Play one scenario."""
    url = sys.argv[1]
    play = SCENARIOS.get(SCENARIO, call_every_tool)
    with connect(url, _credentials(url)) as client:
        play(client)


def connect(url: str, authorization: Authorization) -> McpClient:
    """Return a client."""
    transport = HttpTransport(url, SETTINGS, seconds=SECONDS, max_bytes=4 << 20, authorization=authorization)
    return McpClient(transport, Era(), remote_tasks.CAPABILITIES)


def call_every_tool(client: McpClient) -> None:
    """Call each tool that can be used, with arguments that match its schema."""
    for tool in list_tools(client):
        if tool.fault is None:
            call(client, tool, {name: _example(part) for name, part in _properties(tool).items()})


def make_wanted_calls(client: McpClient) -> None:
    """Make the calls that the scenario wants."""
    tools = {tool.name: tool for tool in list_tools(client)}
    for asked in CONTEXT["toolCalls"]:
        call(client, tools[asked["name"]], asked["arguments"])


def list_only(client: McpClient) -> None:
    """List the tools."""
    list_tools(client)


def return_the_schema(client: McpClient) -> None:
    """Send a schema back as it was listed."""
    tools = {tool.name: tool for tool in list_tools(client)}
    call(client, tools["json_schema_echo"], {"schema": tools["json_schema_2020_12_tool"].input_schema})


def call(client: McpClient, tool: ListedTool, arguments: dict[str, Any]) -> Mapping[str, Any]:
    """Call a tool, and answer its questions."""
    more: dict[str, Any] = {}
    for _ in range(MOST_ROUNDS):
        result = client.request(
            "tools/call",
            {"name": tool.name, "arguments": arguments, **more},
            name=tool.name,
            headers=headers_of(tool.input_schema, arguments),
        )
        if result.get("resultType") != "input_required":
            return result
        asked = questions.read(result["inputRequests"])
        more = {"inputResponses": questions.responses(asked.requests, "approve", asked.proposed)}
        if "requestState" in result:
            more["requestState"] = result["requestState"]
    raise McpFault("it asks without end", taken=True)


def _properties(tool: ListedTool) -> dict[str, Any]:
    return dict(tool.input_schema.get("properties", {}))


def _example(schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return {"number": 2, "integer": 2, "boolean": True, "object": {}, "array": []}.get(str(kind), "x")


def _credentials(url: str) -> Authorization:
    """Return the credentials of a scenario. An operator would look up the issuer as this does, once."""
    if not SCENARIO.startswith("auth/") or "client_secret" not in CONTEXT:
        return FixedHeaders({})
    issuer = authorization_servers(url, SETTINGS)[0]
    oauth = McpOAuth(
        client_id=CONTEXT["client_id"], client_secret="${secret:S}", issuer=issuer, scope=None, token_url=None
    )
    return ClientCredentials(oauth, url, CONTEXT["client_secret"], SETTINGS, {})


SCENARIOS: dict[str, Callable[[McpClient], None]] = {
    "http-custom-headers": make_wanted_calls,
    "json-schema-ref-no-deref": list_only,
    "json-schema-2020-12-preservation": return_the_schema,
    "request-metadata": list_only,
}

if __name__ == "__main__":
    main()
