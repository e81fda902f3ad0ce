"""Runs one function or program: compile, execute its module, call the entry point, encode the returned value.

The host trusts nothing here. The code is written so that a well-behaved function gets a clear answer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import linecache
import marshal
import sys
import traceback
from collections.abc import Callable
from types import CoroutineType, MappingProxyType, ModuleType
from typing import Any

from . import event_loop, policy, program_source, validator, wire
from .calls import Line, NotAwaited, TooLarge
from .capture import Capture, StdoutTooLarge
from .program import Program
from .request import Request

MODULE_NAME = "function"
MAX_MESSAGE = 2_000
MAX_TRACEBACK = 8_000


class Fault(Exception):
    """An expected end without a value; `facts` is reported to the host."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = {"type": kind, "message": message[:MAX_MESSAGE], **facts}


OPERATIONS = ("call", "compile", "program", "validate")


def serve(request: Request, line: Line) -> bytes:
    """Perform a request and return the reply's bytes. A program exchanges messages on the line until then."""
    if request.operation == "validate":
        return _reply(wire.PROBLEMS, _validate(request))
    if request.operation == "compile":
        return _reply(wire.CODE, marshal.dumps(validator.compile_source(_text(request))))
    capture = Capture(request.max_stdout)
    sys.stdout = sys.stderr = capture
    kind, body = _guarded(request, capture, line)
    return _reply(kind, body, capture.take())


def _reply(kind: bytes, body: bytes, printed: bytes = b"") -> bytes:
    return b"".join((wire.REPLY.pack(kind, len(body), len(printed)), body, printed))


def _text(request: Request) -> str:
    """Return the source, without the byte order mark that some editors write at the beginning."""
    return request.source.decode("utf-8-sig")


def _validate(request: Request) -> bytes:
    schema = json.loads(request.arguments)
    findings = validator.find_problems(
        _text(request), request.entrypoint, request.allowed, schema, json.loads(request.context) is not None
    )
    return json.dumps([finding.as_list() for finding in findings], ensure_ascii=False).encode()


def _guarded(request: Request, capture: Capture, line: Line) -> tuple[bytes, bytes]:
    """Turn any result or exception into a kind and a body."""
    try:
        body = _run_program(request, line, capture) if _is_program(request) else _call(request)
        if capture.overflowed:
            raise StdoutTooLarge
    except BaseException as error:
        return wire.FAULT, _fault_body(_describe(error, request, capture))
    return wire.VALUE, body


def _fault_body(facts: dict[str, Any]) -> bytes:
    # A well-behaved exception may quote text that strict JSON cannot represent.
    facts["message"] = facts["message"].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    body = json.dumps(facts).encode()
    if len(body) > wire.MAX_REPORT:
        body = json.dumps({**facts, "traceback": None}).encode()
    return body


def _call(request: Request) -> bytes:
    arguments = json.loads(request.arguments)
    context = json.loads(request.context)
    if context is not None:
        arguments["context"] = _read_only(context)
    module = _load(request)
    function = getattr(module, request.entrypoint, None)
    if not callable(function):
        raise Fault("no_entrypoint", f"the source defines no function {request.entrypoint!r}")
    value = function(**arguments)
    if isinstance(value, CoroutineType) or hasattr(value, "__await__"):
        value = event_loop.run(value)
    return _encode(value, request.max_output)


def _run_program(request: Request, line: Line, capture: Capture) -> bytes:
    program = Program(request, line, capture)
    module = _load(request, "__main__")
    program.furnish(module)
    return _encode(program.run(module), request.max_output)


def _is_program(request: Request) -> bool:
    return request.operation == "program"


def _load(request: Request, name: str = MODULE_NAME) -> ModuleType:
    """Load the function's module. It is in `sys.modules`, as dataclasses and pickling of classes expect."""
    module = ModuleType(name)
    sys.modules[name] = module
    code = _compile(request)
    if request.check:
        module.__dict__["__builtins__"] = policy.restricted_builtins(request.allowed, of_program=_is_program(request))
    exec(code, module.__dict__)  # noqa: S102 the purpose of this package
    return module


def _code(request: Request) -> Any:
    if request.code:
        return marshal.loads(request.code)  # noqa: S302 made by a child like this one, for this source
    if _is_program(request):
        return program_source.compile_program(_text(request))
    return validator.compile_source(_text(request))


def _compile(request: Request) -> Any:
    try:
        code = _code(request)
    except SyntaxError as error:
        facts = {"line": error.lineno, "column": error.offset}
        raise Fault("syntax_error", f"syntax error: {error.msg} (line {error.lineno})", **facts) from None
    except ValueError as error:
        raise Fault("syntax_error", f"the source cannot be compiled: {error}") from None
    except (RecursionError, MemoryError):
        # Python's parser reports deep nesting as a lack of memory. The host distinguishes the two by the memory used.
        raise Fault("recursion", "the source is nested too deeply to be compiled") from None
    if request.check and (name := policy.forbidden_in_code(code)):
        raise _forbidden(request, name)
    return code


def _forbidden(request: Request, name: str) -> Fault:
    """Return the refusal, with the place if the source's tree shows it."""
    finding = validator.first_forbidden(_text(request), request.allowed)
    if finding is None:
        return Fault("forbidden_name", f"the name {name!r} is not allowed")
    place = f"line {finding.line}, column {finding.column}"
    return Fault("forbidden_name", f"{finding.message} ({place})", line=finding.line, column=finding.column)


def _read_only(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _read_only(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(_read_only(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    """Convert a context, or a part of it, for JSON; other types that JSON does not know are refused."""
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(
        f"it holds a value of type {type(value).__name__}. Return dictionaries, lists, strings, numbers, booleans and "
        "None, and convert anything else first"
    )


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=_plain)


def _encode(value: Any, limit: int) -> bytes:
    try:
        body = _ENCODER.encode(value).encode()
    except RecursionError:
        message = f"the returned value is nested more than {wire.MAX_DEPTH} levels deep"
        raise Fault("invalid_output", message, limit=wire.MAX_DEPTH) from None
    except UnicodeEncodeError:
        raise Fault("invalid_output", "a returned string holds half of a surrogate pair") from None
    except (TypeError, ValueError) as error:
        raise Fault("invalid_output", f"the returned value is not JSON: {error}") from None
    if len(body) > limit:
        raise _too_large("output_too_large", "the returned value", limit, len(body))
    return body


def _too_large(kind: str, what: str, limit: int, observed: int) -> Fault:
    return Fault(kind, f"{what} has {observed} bytes, the limit is {limit}", limit=limit, observed=observed)


def _describe(error: BaseException, request: Request, capture: Capture) -> dict[str, Any]:
    """Return the facts about an exception that ended the call."""
    if isinstance(error, Fault):
        return error.facts
    if isinstance(error, StdoutTooLarge) or capture.overflowed:
        written = capture.written
        return _too_large("stdout_too_large", "the printed text", request.max_stdout, written).facts
    if isinstance(error, event_loop.Deadlock):
        return {"type": "timeout", "message": f"the {_subject(request)} {wire.DEADLOCK}"}
    if isinstance(error, NotAwaited):
        return {"type": "exception", "message": str(error), "line": error.line}
    if isinstance(error, TooLarge):
        what = f"the call of {error.name}"
        return {**_too_large("arguments_too_large", what, error.limit, error.observed).facts, "line": error.line}
    if isinstance(error, MemoryError):
        # The function's data is freed with its frames: there is room again for the report.
        error.__traceback__ = None
        return _out_of_memory(request)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return _out_of_memory(request)
    try:
        source = _text(request)
        lines = source.splitlines(keepends=True)
        for filename in _FILENAMES:
            linecache.cache[filename] = (len(source), None, lines, filename)
        return _describe_exception(error)
    except BaseException:
        return {"type": "exception", "message": "an exception that cannot be shown"}


def _subject(request: Request) -> str:
    return "program" if _is_program(request) else "function"


def _out_of_memory(request: Request) -> dict[str, Any]:
    return {"type": "memory_limit", "message": f"the {_subject(request)} ran out of memory"}


def _describe_exception(error: BaseException) -> dict[str, Any]:
    kind = next((kind for test, kind in _KINDS if test(error)), "exception")
    frames = traceback.extract_tb(_first(error).__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in _FILENAMES]
    text = "".join(traceback.format_list([frame for frame in frames if _is_shown(frame)]))[-MAX_TRACEBACK:]
    facts: dict[str, Any] = {"type": kind, "message": _message(error)[:MAX_MESSAGE], "traceback": text}
    if lines:
        facts["line"] = lines[-1]
    if kind == "recursion":
        facts["limit"] = facts["observed"] = sys.getrecursionlimit()
    return facts


def _is_shown(frame: traceback.FrameSummary) -> bool:
    """Return whether a frame is part of the traceback: not those of asyncio, above the function, and of the sandbox."""
    return not frame.filename.startswith((_OWN_FOLDER, _ASYNCIO_FOLDER))


def _first(error: BaseException) -> BaseException:
    """Return the exception itself, or the first one in a group."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _message(error: BaseException) -> str:
    """Return the type and text of an exception; those of its parts if it is a group."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(map(_message, error.exceptions)))
    return f"{type(error).__name__}: {error}"


def _is_refused_call(error: BaseException) -> bool:
    return isinstance(error, PermissionError) and error.errno == errno.EPERM


def _is_missing_builtin(error: BaseException) -> bool:
    return isinstance(error, NameError) and getattr(error, "name", None) in policy.ABSENT_BUILTINS


_OWN_FOLDER = __file__.rpartition("/")[0]
_ASYNCIO_FOLDER = asyncio.__file__.rpartition("/")[0]
_FILENAMES = (validator.FILENAME, program_source.FILENAME)
_KINDS: tuple[tuple[Callable[[BaseException], bool], str], ...] = (
    (lambda error: isinstance(error, policy.ImportDenied), "import_denied"),
    (lambda error: isinstance(error, RecursionError), "recursion"),
    (_is_missing_builtin, "forbidden_name"),
    (_is_refused_call, "security"),
)
