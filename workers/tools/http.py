"""Tools of kind `http`: one request to an address fixed by the definition, with arguments in the places it names."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx2

from shared.contracts.content import CONTENT, Block
from shared.contracts.documents import PLACEHOLDER, HttpCall, ToolDefinition
from shared.contracts.json_schema import validate
from shared.contracts.media import IMAGE_TYPES, PDF
from shared.contracts.strict_json import JsonValue, digest, parse
from shared.database.connections import persistently
from shared.errors import ForbiddenAddress, InvalidInput, InvalidOutput, MinionError, NotConfigured, ToolError
from shared.outbound import NEVER_SENT, NOT_TAKEN, TEMPORARY, guarded_client, read_body
from shared.retry_after import retry_after
from shared.secret_store import fill_headers, references, scrub, times_of, values_of
from shared.settings import get_settings
from shared.tasks.directives import is_result
from shared.trace_context import HEADER
from workers.journal import Journal
from workers.outcomes import Interrupted
from workers.result_cache import ResultCache
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools.blocks import keeping_files
from workers.tools.trace import traceparent_of

MAX_REDIRECTS = 5
MAX_EXCERPT = 2_000


class HttpTool:
    """An HTTP request, made as one journal step with the tool's declared effect."""

    def __init__(self, definition: ToolDefinition, version_id: UUID, namespace: str) -> None:
        assert definition.http is not None
        self.definition = definition
        self.http = definition.http
        self.namespace = namespace
        self.cache = definition.cache and ResultCache(version_id, definition.cache, depends_on=self._stored_secrets)
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = definition.input_schema
        self.output_schema: dict[str, Any] | None = definition.output_schema
        self.strict = definition.strict
        self.deferred = definition.defer_loading
        self.effect = str(definition.effect)
        self.steps = 1

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Make the request as one step."""
        request = {"method": self.http.method, "url": self.http.url, "arguments": arguments}

        def perform(step: int) -> StepResult:
            what = f"The input of tool {self.name!r}"
            validate(self.http.closed(self.input_schema), arguments, what=what, error=InvalidInput)
            key = digest([str(task.origin_id), step, digest(request)])
            output = self._fetch(arguments, key, self._trace(task, step))
            if is_result(output):
                what = f"The output of tool {self.name!r}"
                validate(self.definition.output_schema, output, what=what, error=InvalidOutput)
            return StepResult(output)

        once = self.cache.around(perform, task, arguments) if self.cache else perform
        return journal.call("tool_call", self.name, request, keeping_files(once, task, self.name), effect=self.effect)

    def _fetch(self, arguments: JsonValue, key: str, trace: dict[str, str]) -> JsonValue:
        secrets = self._secrets()
        try:
            headers = fill_headers(self.http.headers, secrets)
        except NotConfigured as error:
            raise self._failure(error.message, retryable=False) from None
        request = _request(self.http, arguments, {**trace, **headers}, key)
        try:
            with guarded_client(get_settings(), seconds=self.http.timeout) as client:
                status, answered, body = self._exchange(client, request)
        except ForbiddenAddress as error:
            raise self._failure(error.message, retryable=False) from None
        except httpx2.RequestError as error:
            raise self._lost(error) from None
        except ToolError:
            raise
        except MinionError as error:
            raise self._failure(error.message, retryable=error.retryable) from None
        media_type = answered.get("content-type", "").partition(";")[0].strip().lower()
        if status < 400 and media_type in (*IMAGE_TYPES, PDF):
            return {CONTENT: [_block(media_type, body)]}
        said = scrub(body.decode("utf-8", "replace"), secrets.values())
        if status >= 400:
            raise self._refusal(status, answered, said)
        return self._result(said)

    def _trace(self, task: ClaimedTask, step: int) -> dict[str, str]:
        """Return the header with which the server continues the task's trace, unless the definition has its own."""
        if any(name.lower() == HEADER for name in self.http.headers):
            return {}
        parent = traceparent_of(task, step)
        return {HEADER: parent} if parent else {}

    def _secrets(self) -> dict[str, str]:
        names = references(self.http.headers.values())
        return persistently(values_of, names, self.namespace) if names else {}

    def _stored_secrets(self) -> JsonValue:
        """Return the names of the request's secrets, with the times at which they were set."""
        names = references(self.http.headers.values())
        return persistently(times_of, names, self.namespace) if names else None

    def _exchange(self, client: httpx2.Client, request: httpx2.Request) -> tuple[int, httpx2.Headers, bytes]:
        """Send the request, followed by a GET for each redirect; every hop is checked like the first."""
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, stream=True)
            try:
                following = response.next_request if response.is_redirect else None
                if following is None:
                    return response.status_code, response.headers, self._read(response)
            finally:
                response.close()
            if request.method != "GET":
                raise self._failure(
                    f"it answers {response.status_code} and redirects {request.method}, which is not followed", False
                )
            if _origin(following.url) != _origin(request.url):
                # Secrets for one host must not reach another.
                following = httpx2.Request("GET", following.url)
            request = following
        raise self._failure(f"more than {MAX_REDIRECTS} redirects", retryable=False)

    def _read(self, response: httpx2.Response) -> bytes:
        body = read_body(response, self.http.max_bytes)
        if body is None:
            raise self._failure(f"the response has more than {self.http.max_bytes} bytes (max_bytes)", False)
        return body

    def _result(self, said: str) -> JsonValue:
        """Return the response as JSON, or as text if it is not JSON; only the part that `result` names."""
        try:
            value = parse(said, what="the response") if said.strip() else None
        except InvalidInput:
            value = said.replace("\0", "\ufffd")
        for part in (self.http.result or "").split(".") if self.http.result else ():
            value = _part(value, part)
        return value

    def _refusal(self, status: int, headers: httpx2.Headers, said: str) -> ToolError:
        again = status in NOT_TAKEN or (status in TEMPORARY and self.definition.effect != "unsafe")
        error = self._failure(f"HTTP {status}: {said[:MAX_EXCERPT]}", again)
        if again and (seconds := retry_after(headers)) is not None:
            error.detail["retry_after"] = min(seconds, 86_400.0)
        error.detail["status"] = status
        return error

    def _lost(self, error: httpx2.RequestError) -> Exception:
        """Handle a missing or unreadable answer. It is unknown whether an unsafe request was processed."""
        never_sent = isinstance(error, NEVER_SENT)
        if self.definition.effect == "unsafe" and not never_sent:
            return Interrupted()
        return self._failure(f"no answer: {type(error).__name__}: {error}"[:500], retryable=True)

    def _failure(self, why: str, retryable: bool) -> ToolError:
        error = ToolError(f"The tool {self.name!r} ({self.http.method} {self.http.url}): {why}")
        error.retryable = retryable
        return error


def _request(http: HttpCall, arguments: JsonValue, given: dict[str, str], key: str) -> httpx2.Request:
    rest = dict(arguments) if isinstance(arguments, dict) else {}
    if missing := [name for name in http.placeholders if name not in rest]:
        raise InvalidInput(f"The address needs {missing[0]!r}, which is not among the arguments.")
    url = _url(http, rest)
    rest = {name: value for name, value in rest.items() if name not in http.placeholders}
    behind = [name for name in rest if name in http.query or not http.has_body]
    headers = {"Accept": "application/json", "Idempotency-Key": key, **given}
    try:
        address = httpx2.URL(url)
        # Some servers ignore the case of a parameter's name.
        fixed = {name.casefold(): name for name in address.params}
        if taken := sorted(fixed.keys() & {name.casefold() for name in behind}):
            raise InvalidInput(
                f"The address already has a parameter {fixed[taken[0]]!r}, which no argument can change."
            )
        address = address.copy_merge_params({name: _text(rest.pop(name)) for name in behind})
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"The address cannot be built from these arguments: {error}.") from None
    if not http.has_body:
        return httpx2.Request(http.method, address, headers=headers)
    headers.setdefault("Content-Type", "application/json")
    return httpx2.Request(http.method, address, headers=headers, content=json.dumps(rest, ensure_ascii=False).encode())


def _url(http: HttpCall, arguments: dict[str, JsonValue]) -> str:
    """Return the address with its arguments. An argument never leaves its path segment: a segment that is empty, `.` or
    `..` would be another path, to which the headers' secrets would be sent too.
    """

    def put_in(part: str) -> str:
        return PLACEHOLDER.sub(lambda match: quote(_text(arguments[match[1]]), safe=""), part)

    path, mark, query = http.url.partition("?")
    segments = path.split("/")
    for number, segment in enumerate(segments):
        segments[number] = put_in(segment)
        if segments[number] != segment and segments[number] in ("", ".", ".."):
            raise InvalidInput(f"{segment} is a part of the address's path, which must not be empty, `.` or `..`.")
    return "/".join(segments) + mark + put_in(query)


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _block(media_type: str, body: bytes) -> Block:
    """Return an image or a PDF as a block."""
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(body).decode()}
    return {"type": "document" if media_type == PDF else "image", "source": source}


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _part(value: JsonValue, name: str) -> JsonValue:
    if isinstance(value, list) and name.isdecimal():
        return value[int(name)] if int(name) < len(value) else None
    return value.get(name) if isinstance(value, dict) else None
