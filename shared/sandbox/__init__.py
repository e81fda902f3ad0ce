"""Runs untrusted Python functions, contained by the kernel.

    with Sandbox() as sandbox:
        outcome = sandbox.call("def double(x): return 2 * x", "double", {"x": 21})
        assert outcome.value == 42

`docs/sandbox.md` explains the layers, the levels and what the sandbox does not promise.
"""

from shared.sandbox.confined.modules import DEFAULT_IMPORTS, SAFE_IMPORTS
from shared.sandbox.host import Sandbox
from shared.sandbox.outcome import Limits, Outcome, Problem, SandboxFault, SandboxRefused
from shared.sandbox.program import Program, ProgramLimits
from shared.sandbox.program_events import Asleep, Call, Calls, Event, Failed, Finished, Reply, ReplyError

__all__ = [
    "DEFAULT_IMPORTS",
    "SAFE_IMPORTS",
    "Asleep",
    "Call",
    "Calls",
    "Event",
    "Failed",
    "Finished",
    "Limits",
    "Outcome",
    "Problem",
    "Program",
    "ProgramLimits",
    "Reply",
    "ReplyError",
    "Sandbox",
    "SandboxFault",
    "SandboxRefused",
]
