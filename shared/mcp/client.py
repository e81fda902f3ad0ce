"""A synchronous MCP client for both eras of the protocol: 2026-07-28 without sessions, 2025-11-25 with them.

The reference client of the `mcp` package needs an event loop. Tools run in Celery's processes and threads, under time
limits that interrupt them, and through the transport that checks addresses, so this client is ours.

    with McpClient(transport, eras.of(version_id)) as client:
        result = client.request("tools/call", {"name": "lookup", "arguments": {"order": "A-17"}}, name="lookup")
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self

from shared.contracts.strict_json import check
from shared.errors import InvalidInput
from shared.mcp import protocol
from shared.mcp.eras import Era, Known
from shared.mcp.faults import McpFault, RpcError, SessionLost
from shared.mcp.transport import SESSION, Message, Transport

NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_MESSAGES = 10_000
"""Messages of a server for one request, such as notifications of progress."""
MAX_SAID = 2_000
CANCEL_SECONDS = 1.0
"""To tell a server that a request is cancelled, after its time."""
# HTTP statuses with which a server of 2025-11-25 may refuse a message of 2026-07-28.
NOT_UNDERSTOOD = frozenset({400, 404, 405, 406, 415, 422})
NO_ENDPOINT = (404, 405)
NOT_THERE = "its address is not an MCP endpoint, or one of the earlier transport HTTP with SSE, which is not supported"


class McpClient:
    """Requests to one server, in the era that it speaks.

    Args:
        transport: the way to it; closed with this client.
        era: what is known about the server, shared by the clients of a process.
        capabilities: what the client declares, such as `{"extensions": {"io.modelcontextprotocol/tasks": {}}}`.
    """

    def __init__(self, transport: Transport, era: Era, capabilities: Mapping[str, Any] | None = None) -> None:
        self.transport = transport
        self.era = era
        self.capabilities = dict(capabilities or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.transport.close()

    def server(self) -> Known:
        """Return what the server says about itself; it is asked if this is not known yet.

        Raises:
            McpFault: it cannot be reached, or speaks no version of the protocol that this client speaks.
        """
        known = self.era.recall()
        if known is not None:
            return known
        try:
            known = self.era.known = self._negotiate()
        except McpFault as fault:
            # Whatever became of these messages, the caller's request was not among them.
            fault.taken = False
            if not isinstance(fault, RpcError) and fault.detail.get("status") in NO_ENDPOINT:
                raise McpFault(f"{NOT_THERE}: {fault.message}", taken=False, **fault.detail) from None
            raise
        return known

    def request(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        is_storable: bool = True,
    ) -> Message:
        """Send a request and return the `result` of its response, unchanged: its `resultType` may also be
        `input_required` or `task`.

        A request that the server cannot have processed, because it lost the session or changed its era, is sent once
        more.

        Args:
            name: the tool, prompt, resource or task that it names, for the header `Mcp-Name`.
            meta: more fields of `_meta`, such as `traceparent`.
            headers: more headers of 2026-07-28, such as `Mcp-Param-Region`.
            is_storable: refuse a result that the database cannot store. Otherwise the caller must check its parts.

        Raises:
            RpcError: the server refused it.
            McpFault: any other failure.
        """
        known = self.server()
        try:
            return self._call(known, method, params, name, meta or {}, headers or {}, is_storable)
        except McpFault as fault:
            if not _contradicts(known, fault):
                raise
            self.era.known = None
        return self._call(self.server(), method, params, name, meta or {}, headers or {}, is_storable)

    def end_session(self) -> None:
        """End the session that the server keeps, if it does. No other client must need it."""
        known, self.era.known = self.era.known, None
        if known is not None and known.session is not None:
            self.transport.end_session(_legacy_headers(known))

    def _call(
        self,
        known: Known,
        method: str,
        params: Mapping[str, Any],
        name: str | None,
        meta: Mapping[str, Any],
        headers: Mapping[str, str],
        is_storable: bool,
    ) -> Message:
        if known.is_modern:
            return self._modern_call(method, params, name, meta, headers, is_storable=is_storable)
        with_meta = {**params, protocol.META: {**meta}} if meta else {**params}
        own = _legacy_headers(known)
        return self._exchange(method, with_meta, own, answers=True, is_storable=is_storable)[0]

    def _modern_call(
        self,
        method: str,
        params: Mapping[str, Any],
        name: str | None = None,
        meta: Mapping[str, Any] = NOTHING,
        headers: Mapping[str, str] = NOTHING,
        *,
        is_storable: bool = True,
    ) -> Message:
        own = {
            protocol.VERSION_KEY: protocol.MODERN,
            protocol.CLIENT_KEY: protocol.CLIENT,
            protocol.CAPABILITIES_KEY: self.capabilities,
        }
        named = {} if name is None else {protocol.NAME_HEADER: protocol.header_value(name)}
        every = {**headers, protocol.VERSION_HEADER: protocol.MODERN, protocol.METHOD_HEADER: method, **named}
        with_meta = {**params, protocol.META: {**meta, **own}}
        return self._exchange(method, with_meta, every, answers=False, is_storable=is_storable)[0]

    def _negotiate(self) -> Known:
        """Ask the server for its era: in the modern way first, which a legacy server does not understand."""
        if self.era.ends_when_asked:
            return self._initialize_first()
        try:
            about = self._discover()
        except RpcError as error:
            if error.number in protocol.ONLY_MODERN and not _has_legacy(_supported(error)):
                raise
            return self._initialize()
        except McpFault as fault:
            # An answer that is none is not understood either.
            if fault.taken or fault.detail.get("status") in NOT_UNDERSTOOD:
                return self._initialize()
            if not self.transport.restart():
                raise
            return self._initialize_first()
        supported = about.get("supportedVersions")
        if not isinstance(supported, list) or protocol.MODERN not in supported:
            return self._initialize()
        return Known(protocol.MODERN, about)

    def _initialize_first(self) -> Known:
        """Begin a session with a program that ends when anything else comes first."""
        self.era.ends_when_asked = False
        known = self._initialize()
        self.era.ends_when_asked = True
        return known

    def _discover(self) -> Message:
        """Ask the server what it supports, once more if it refuses the version, and lists it as supported."""
        try:
            return self._modern_call(protocol.DISCOVER, {})
        except RpcError as error:
            if error.number != protocol.UNSUPPORTED_VERSION or protocol.MODERN not in (_supported(error) or ()):
                raise
        return self._modern_call(protocol.DISCOVER, {})

    def _initialize(self) -> Known:
        """Begin a session of 2025-11-25."""
        params = {
            "protocolVersion": protocol.LEGACY,
            # Ours concern 2026-07-28: questions during a call, and tasks of another kind, are not supported.
            "capabilities": {},
            "clientInfo": protocol.CLIENT,
        }
        about, session = self._exchange("initialize", params, {}, answers=False)
        version = about.get("protocolVersion")
        if version not in protocol.LEGACY_VERSIONS:
            raise McpFault(
                f"it speaks version {str(version)[:50]!r} of the protocol, and this release {protocol.LEGACY} and "
                f"{protocol.MODERN}",
                taken=False,
            )
        known = Known(version, about, session)
        with self.transport.send({"jsonrpc": "2.0", "method": "notifications/initialized"}, _legacy_headers(known)):
            pass
        return known

    def _exchange(
        self,
        method: str,
        params: dict[str, Any],
        headers: Mapping[str, str],
        *,
        answers: bool,
        is_storable: bool = True,
    ) -> tuple[Message, str | None]:
        """Send a request; return its result, and the session that the server assigned.

        Args:
            answers: refuse requests of the server, which waits for an answer. Otherwise they are ignored.
        """
        id = next(self.era.ids)
        try:
            with self.transport.send(protocol.request(id, method, params), headers) as exchange:
                for count, message in enumerate(exchange.messages()):
                    if "method" not in message:
                        if is_storable or "error" in message:
                            _check(message)
                        return _result_in(message, id), exchange.session
                    if count >= MAX_MESSAGES:
                        raise McpFault("it sends one message after the other, but no response", taken=None)
                    if answers and "id" in message:
                        self._refuse(message, headers)
            raise McpFault("it ended the stream without a response", taken=None, temporary=True)
        except McpFault as fault:
            if answers and fault.taken is None:
                self._cancel(id, headers)
            raise

    def _cancel(self, id: int, headers: Mapping[str, str]) -> None:
        """Tell a server of 2025-11-25 that its response is no longer awaited: a closed connection does not say so."""
        self.transport.allow(CANCEL_SECONDS)
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}
        with suppress(McpFault), self.transport.send(notice, headers):
            pass

    def _refuse(self, request: Message, headers: Mapping[str, str]) -> None:
        """Answer a request of the server, which works on ours in the meantime, whether it reads the answer or not."""
        with suppress(McpFault), self.transport.send(_answer(request), headers):
            pass


def _contradicts(known: Known, fault: McpFault) -> bool:
    """Return whether a refusal means that what was known about the server is no longer true."""
    if isinstance(fault, SessionLost):
        return True
    if isinstance(fault, RpcError):
        return known.is_modern and fault.number in (protocol.UNSUPPORTED_VERSION, protocol.INVALID_REQUEST)
    return known.is_modern and fault.detail.get("status") in NOT_UNDERSTOOD


def _legacy_headers(known: Known) -> dict[str, str]:
    session = {} if known.session is None else {SESSION: known.session}
    return {protocol.VERSION_HEADER: known.version, **session}


def _supported(error: RpcError) -> list[Any] | None:
    """Return the versions that a server supports, if it says so with its refusal of one."""
    supported = error.data.get("supported") if isinstance(error.data, dict) else None
    return supported if isinstance(supported, list) else None


def _has_legacy(supported: Any) -> bool:
    return isinstance(supported, list) and any(version in supported for version in protocol.LEGACY_VERSIONS)


def _answer(request: Message) -> Message:
    """Return the response to a request of a server: this client offers nothing but `ping`."""
    response = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "ping":
        return {**response, "result": {}}
    return {**response, "error": {"code": protocol.METHOD_NOT_FOUND, "message": "This client has no such method."}}


def _check(response: Message) -> None:
    """Check that the database can store a response.

    Raises:
        McpFault: it cannot.
    """
    try:
        check(response, what="Its answer")
    except InvalidInput as error:
        raise McpFault(error.message, taken=True) from None


def _result_in(message: Message, id: int) -> Message:
    """Return the result in a response.

    Raises:
        RpcError: it is an error.
        McpFault: it is neither, or answers another request.
    """
    error = message.get("error")
    # Servers refuse what they could not read under another id.
    if isinstance(error, dict):
        number, said = error.get("code"), error.get("message")
        if not isinstance(number, int) or isinstance(number, bool):
            raise McpFault("its JSON-RPC error has no code", taken=True)
        text = said[:MAX_SAID] if isinstance(said, str) else "without a message"
        raise RpcError(f"{text} (JSON-RPC error {number})", number=number, data=error.get("data"))
    result = message.get("result")
    if message.get("id") != id or isinstance(message.get("id"), bool):
        raise McpFault("it answers a request that was not made", taken=True)
    if not isinstance(result, dict):
        raise McpFault("its response has no result", taken=True)
    return result
