"""The bytes between the host, the zygote and its children.

There are two connections. The *control* socket (SOCK_SEQPACKET) joins the host and the zygote; both are trusted.
The *channel* (SOCK_STREAM) joins the host and one child: one request goes in, one reply comes out, and
nothing that arrives from it is trusted before `shared.sandbox.replies` has checked it.
"""

from __future__ import annotations

import struct

# --- channel: host to child -------------------------------------------------------------------------------
REQUEST = struct.Struct("!?QQQII7I")
"""Policy on, address space, data, CPU seconds, bounds of the value and of the printed text; then the lengths of the
parts that follow: operation, entry point, allowed imports (a line each), source, compiled code, JSON arguments, JSON
context."""

# --- channel: child to host -------------------------------------------------------------------------------
REPLY = struct.Struct("!cII")
"""Kind, length of the body, length of the captured output; then both."""

VALUE = b"V"
"""The body is the returned value as JSON."""
FAULT = b"F"
"""The body is a JSON object with `type`, `message` and further facts."""
PROBLEMS = b"P"
"""The body is a JSON list of `[message, line, column, code]`."""
CODE = b"C"
"""The body is compiled code, which only another child may load."""

CALLS = b"T"
"""The body is a JSON list of `[function, line, arguments]`: calls of a program, which now waits for replies."""
ASLEEP = b"S"
"""The body is a JSON number: the seconds after which a program that waits for nothing else continues."""

RESUME = struct.Struct("!I")
"""Host to a program that waits: the length of a JSON list, `[now, [[number, ok, value or text], …]]`. Where `now` is
null, no time passes but that of a sleep. Numbers count the program's calls from 1."""

MAX_REPORT = 64 << 10
"""A fault or a list of problems is never longer than this many bytes."""

# --- control ----------------------------------------------------------------------------------------------
ORDER = struct.Struct("!cQd")
"""Host to zygote: the order, the child's number, seconds."""

WATCH = b"W"
"""Kill the child if it is still there after that number of seconds."""
MORE = b"M"
"""Park more children; the number says how many."""
KILL = b"K"
"""Kill the child."""
STATUS = b"S"
"""Report how the child ended, as soon as it has."""

SHARE = b"O"
"""Let other processes of the host join. Only the host may order it, after its self-test."""

NOTICE = struct.Struct("!cQi")
"""Zygote to host: the event, the child's number, a number."""

PARKED = b"P"
"""A child is parked; its channel and its pidfd are attached."""
ENDED = b"E"
"""The child has ended; the number is its wait status."""
HELLO = b"H"
"""The zygote is ready; its facts follow the notice as JSON."""
LOADING = b"I"
"""The zygote imports a package; its name follows the notice as JSON, or null after the last one."""
REFUSED = b"R"
"""A package is not available, and this zygote has ended; name and reason follow the notice as JSON."""
FAILED = b"F"
"""The zygote cannot serve; the reason follows the notice as JSON."""
LOST = b"L"
"""The zygote cannot continue, but another one may; the reason follows the notice as JSON."""

MAX_CONTROL = 64 << 10

# --- ways to end ------------------------------------------------------------------------------------------
FAULT_TYPES = frozenset({
    "arguments_too_large", "cpu_limit", "crashed", "exception", "forbidden_name", "import_denied", "input_too_large",
    "invalid_input", "invalid_output", "memory_limit", "no_entrypoint", "output_too_large", "recursion",
    "security", "source_too_large", "stdout_too_large", "syntax_error", "timeout", "too_many_calls", "unavailable",
})  # fmt: skip
CHILD_FAULT_TYPES = FAULT_TYPES - {"cpu_limit", "crashed", "unavailable", "input_too_large", "too_many_calls"}
"""Ends that a child may report about itself. Only the host determines the others."""

DEADLOCK = "waits for something that can never happen"
MAX_DEPTH = 100
"""Maximum nesting of a value, in either direction."""
MAX_VALUES = 250_000
"""Maximum number of values and keys in a reply."""
