"""The system-call filters: which calls remain, with which arguments, and why.

A filter is a list of rules. A call without a rule fails with EPERM: it is refused, and well-behaved code that
made it by accident continues. A call with no legitimate use here ends the process immediately, so that an
attempt is seen. Classic BPF reads 32-bit words; if a rule looks at the low word of an argument only, the
kernel itself takes a 32-bit value there and ignores the rest.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from . import libc
from .syscalls import Architecture

KILL = 0x80000000
ALLOW = 0x7FFF0000
PROT_EXEC = 0x4
PROT_READ_WRITE = 0x3
MAP_PRIVATE = 0x02
MAP_KINDS = 0x0F | 0x100 | 0x40000
"""The bits of mmap's flags for sharing, MAP_GROWSDOWN and MAP_HUGETLB."""

MADV_DONTNEED, MADV_FREE = 4, 8
CHANNEL = 0
"""The descriptor of a child's channel, its only descriptor."""

CLONE_THREAD = 0x10000
CLONE_FORK_ONLY = 0x01200000 | 0xFF
"""The flags that glibc's fork passes: CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID and the signal of the parent."""
HIGHEST_STATIC_CLOCK = 11
FUTEX_COMMAND = 0xFF
FUTEX_PRIVATE = 0x80
FUTEX_COMMANDS = tuple(FUTEX_PRIVATE | command for command in (0, 1, 9, 10))  # WAIT, WAKE, WAIT_BITSET, WAKE_BITSET
SIGKILL = 9
AF_UNIX = 1


def refuse(number: int) -> int:
    """Return the verdict "fail with this errno"."""
    return 0x00050000 | number


REFUSE = refuse(errno.EPERM)


@dataclass(frozen=True)
class Test:
    """A condition on one argument.

    Attributes:
        argument: 0 to 5.
        kind: "equal" to one of the values, "at_most" the first value, or "clear" of that value's bits.
        values: what to compare with.
        mask: applied to the argument first.
    """

    argument: int
    kind: str
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True)
class Rule:
    """One system call, the reason for its rule, and the verdicts if all tests hold and if one does not."""

    call: str
    reason: str
    tests: tuple[Test, ...] = ()
    verdict: int = ALLOW
    otherwise: int = REFUSE


NO_EXEC = Test(2, "clear", (PROT_EXEC,))
OWN_MEMORY = Test(3, "equal", (MAP_PRIVATE,), MAP_KINDS)
"""Shared memory belongs to a kernel file: it stays when it is unmapped, and no process limit counts it. Memory that
grows downwards counts as a stack, not as data."""


def _channel_only(call: str, reason: str) -> Rule:
    return Rule(call, reason, (Test(0, "equal", (CHANNEL,)),), otherwise=refuse(errno.EBADF))


def _static_clock(call: str, reason: str) -> Rule:
    test = Test(0, "at_most", (HIGHEST_STATIC_CLOCK,))
    return Rule(call, reason + "; numbers above name another process's clock", (test,))


COMPUTE = (
    Rule("mmap", "memory for objects; never executable, never shared", (NO_EXEC, OWN_MEMORY)),
    Rule("mprotect", "the allocator grows its heaps; never less, which would stay in memory and not count as data",
         (Test(2, "equal", (PROT_READ_WRITE,)),)),
    Rule("munmap", "memory given back"),
    Rule("mremap", "large blocks grow in place; keeps its protection"),
    Rule("madvise", "the allocator returns pages; no huge ones, of which a part keeps the whole",
         (Test(2, "equal", (MADV_DONTNEED, MADV_FREE)),)),
    Rule("brk", "small blocks of the C allocator"),
    Rule("rt_sigaction", "asyncio.run looks at SIGINT; handlers stay inside the process"),
    Rule("rt_sigprocmask", "the interpreter's shutdown and abort paths"),
    Rule("rt_sigreturn", "return from a handler"),
    Rule("sched_yield", "time.sleep(0) and lock hand-over"),
    Rule("getpid", "logging and uuid ask; with a pid namespace the answer says nothing"),
    _static_clock("clock_gettime", "time.* where the vDSO cannot answer"),
    _static_clock("clock_getres", "time.get_clock_info"),
    _static_clock("clock_nanosleep", "time.sleep"),
    Rule("nanosleep", "the C library's sleep"),
    Rule("gettimeofday", "time where the vDSO cannot answer"),
    Rule("time", "time where the vDSO cannot answer (x86_64 only)"),
    Rule("futex", "locks, without priority inheritance or requeueing; private: others wake who waits in a shared file",
         (Test(1, "equal", FUTEX_COMMANDS, FUTEX_COMMAND),)),
    Rule("getrandom", "uuid4, secrets, random seeds"),
    Rule("getrusage", "time.process_time on some builds; the child's own numbers"),
    Rule("prlimit64", "a child lowers its own limits when it learns the call's; of itself only",
         (Test(0, "equal", (0,)),)),
    Rule("restart_syscall", "the kernel resumes an interrupted sleep"),
    Rule("exit", "end of the process"),
    Rule("exit_group", "end of the process"),
)  # fmt: skip

REFUSED = (
    Rule("execve", "no program is ever started", verdict=KILL),
    Rule("execveat", "no program is ever started", verdict=KILL),
    Rule("ptrace", "no process is ever looked into", verdict=KILL),
    *(
        Rule(call, "no library calls it by accident, and exploits of the kernel do", verdict=KILL)
        for call in ("add_key", "bpf", "io_uring_setup", "keyctl", "mount", "perf_event_open", "request_key",
                     "userfaultfd")
    ),
    Rule("fork", "one process a call (x86_64 only)", verdict=KILL),
    Rule("vfork", "one process a call (x86_64 only)", verdict=KILL),
    Rule("clone3", "the C library falls back to clone, whose arguments a filter can read",
         verdict=refuse(errno.ENOSYS)),
)  # fmt: skip

CHILD_RULES = (
    *COMPUTE,
    _channel_only("read", "the request"),
    _channel_only("write", "the reply"),
    Rule("close", "the channel, when the reply is out"),
    Rule("poll", "waiting for the request while warming up (x86_64 only)"),
    Rule("ppoll", "waiting for the request while warming up"),
    *REFUSED,
    # A thread is refused with an errno (Python raises "can't start new thread"); a fork is an attempt to escape.
    Rule("clone", "one process, one thread a call", (Test(0, "clear", (CLONE_THREAD,)),), KILL),
)

ZYGOTE_RULES = (
    *COMPUTE,
    Rule("read", "children read their request"),
    Rule("write", "children write their reply"),
    Rule("close", "channels that were handed over"),
    Rule("close_range", "a fresh child closes what it must not have"),
    Rule("dup2", "a fresh child puts its channel in place (x86_64 only)"),
    Rule("dup3", "a fresh child puts its channel in place"),
    Rule("fcntl", "flags of those descriptors"),
    Rule("socketpair", "a child's channel: local, never a network", (Test(0, "equal", (AF_UNIX,)),)),
    Rule("sendmsg", "notices to the host, with descriptors"),
    Rule("sendto", "notices to the host"),
    Rule("recvfrom", "orders of the host"),
    Rule("recvmsg", "processes of the host that join, with their descriptors"),
    Rule("poll", "waiting for orders and ends (x86_64 only)"),
    Rule("ppoll", "waiting for orders and ends"),
    Rule("clone", "a new child; no new namespace, no shared memory, no thread",
         (Test(0, "clear", (~CLONE_FORK_ONLY & 0xFFFFFFFF,)),)),
    Rule("wait4", "children that ended"),
    Rule("pidfd_open", "a handle on a child that no other process can take over"),
    Rule("kill", "ending a child; no other signal", (Test(1, "equal", (SIGKILL,)),)),
    Rule("setrlimit", "limits of a fresh child (some C libraries)"),
    Rule("prctl", "parent-death signal of a fresh child"),
    Rule("seccomp", "a fresh child adds the strict filter above this one"),
    Rule("set_robust_list", "the C library's fork"),
    Rule("rseq", "the C library's fork"),
    Rule("gettid", "the C library's and Python's fork"),
    Rule("fork", "the C library's fork, where it is not clone (musl on x86_64)"),
    *(rule for rule in REFUSED if rule.call != "fork"),
)  # fmt: skip

_LOAD, _AND, _EQUAL, _GREATER, _AT_LEAST, _BITS, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand & 0xFFFFFFFF)


def _test_block(test: Test, otherwise: int) -> list[bytes]:
    """Load and compare one argument: continue with the next instruction if the test holds, else return the verdict."""
    block = [_instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * test.argument)]
    if test.mask != 0xFFFFFFFF:
        block.append(_instruction(_AND, test.mask))
    if test.kind == "equal":
        # A match jumps over the remaining comparisons and the verdict.
        rest = range(len(test.values), 0, -1)
        block += [_instruction(_EQUAL, value, jump, 0) for value, jump in zip(test.values, rest, strict=True)]
    else:
        block.append(_instruction(_GREATER if test.kind == "at_most" else _BITS, test.values[0], 0, 1))
    return [*block, _instruction(_RETURN, otherwise)]


def _rule_block(rule: Rule, number: int) -> list[bytes]:
    block = [instruction for test in rule.tests for instruction in _test_block(test, rule.otherwise)]
    block.append(_instruction(_RETURN, rule.verdict))
    return [_instruction(_EQUAL, number, 0, len(block)), *block]


def assemble(rules: Iterable[Rule], architecture: Architecture, default: int = REFUSE) -> bytes:
    """Assemble the filter program for the rules whose calls this architecture has; other calls get the default."""
    program = [
        _instruction(_LOAD, _OFFSET_ARCHITECTURE),
        _instruction(_EQUAL, architecture.audit, 1, 0),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD, _OFFSET_NUMBER),
        _instruction(_AT_LEAST, architecture.highest, 0, 1),
        _instruction(_RETURN, KILL),
    ]
    for rule in rules:
        number = architecture.numbers.get(rule.call)
        if number is not None:
            program += _rule_block(rule, number)
    program.append(_instruction(_RETURN, default))
    return b"".join(program)


_SET_MODE_FILTER = 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class Filter:
    """An assembled filter, ready to be installed any number of times."""

    def __init__(self, rules: Iterable[Rule], architecture: Architecture, default: int = REFUSE) -> None:
        code = assemble(rules, architecture, default)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.cast(self._code, ctypes.c_void_p))
        # Prepared once: each object that is created or read in a new child costs it a page.
        self._install = libc.prepared_syscall(
            architecture.numbers["seccomp"], _SET_MODE_FILTER, 0, ctypes.byref(self._program)
        )

    def install(self) -> None:
        """Install the filter on this process, permanently.

        Raises:
            OSError: the kernel has no seccomp, or the process may still gain privileges.
        """
        self._install()
