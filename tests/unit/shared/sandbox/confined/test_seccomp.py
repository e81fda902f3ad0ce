"""Run the assembled filters in an interpreter of classic BPF: the effect of each rule, on both machines."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sandbox.confined import seccomp
from shared.sandbox.confined.seccomp import ALLOW, CHILD_RULES, KILL, REFUSE, ZYGOTE_RULES, assemble, refuse
from shared.sandbox.confined.syscalls import ARCHITECTURES, Architecture

X86 = ARCHITECTURES["x86_64"]
ARM = ARCHITECTURES["aarch64"]


def run(program: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Return the verdict of a program on one call."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=iIQ6Q", number, audit, 0, *(value & (2**64 - 1) for value in padded))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x06:
            return int(operand)
        else:
            tests = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}
            at += if_true if tests.get(operation, bool(accumulator & operand)) else if_false


def child(call: str, *arguments: int, machine: Architecture = X86) -> int:
    return run(assemble(CHILD_RULES, machine), machine.audit, machine.numbers[call], arguments)


def zygote(call: str, *arguments: int, machine: Architecture = X86) -> int:
    return run(assemble(ZYGOTE_RULES, machine), machine.audit, machine.numbers[call], arguments)


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("read", (0,), ALLOW),
        ("read", (1,), refuse(errno.EBADF)),
        ("write", (0,), ALLOW),
        ("write", (3,), refuse(errno.EBADF)),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 0, 0x4022), ALLOW),
        ("mmap", (0, 4096, 7, 0x22), REFUSE),
        ("mmap", (0, 4096, 3, 0x21), REFUSE),
        ("mmap", (0, 4096, 3, 0x23), REFUSE),
        ("mmap", (0, 4096, 3, 0x40022), REFUSE),
        ("madvise", (0, 4096, 4), ALLOW),
        ("madvise", (0, 4096, 8), ALLOW),
        ("madvise", (0, 4096, 14), REFUSE),
        ("mmap", (0, 4096, 3, 0x122), REFUSE),
        ("mprotect", (0, 4096, 3), ALLOW),
        ("mprotect", (0, 4096, 1), REFUSE),
        ("mprotect", (0, 4096, 0), REFUSE),
        ("mprotect", (0, 4096, 4), REFUSE),
        ("mprotect", (0, 4096, 7), REFUSE),
        ("futex", (0, 128), ALLOW),
        ("futex", (0, 137 | 256), ALLOW),
        ("futex", (0, 9 | 256), REFUSE),
        ("futex", (0, 0), REFUSE),
        ("futex", (0, 6), REFUSE),
        ("clock_gettime", (1,), ALLOW),
        ("clock_gettime", (11,), ALLOW),
        ("clock_gettime", (-6,), REFUSE),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), REFUSE),
        ("clone", (17,), KILL),
        ("clone", (0x3D0F00,), REFUSE),
        ("clone3", (), refuse(errno.ENOSYS)),
        ("execve", (), KILL),
        ("execveat", (), KILL),
        ("ptrace", (), KILL),
        ("add_key", (), KILL),
        ("bpf", (), KILL),
        ("io_uring_setup", (), KILL),
        ("keyctl", (), KILL),
        ("mount", (), KILL),
        ("perf_event_open", (), KILL),
        ("request_key", (), KILL),
        ("userfaultfd", (), KILL),
        ("openat", (), REFUSE),
        ("socket", (), REFUSE),
        ("kill", (1, 9), REFUSE),
        ("seccomp", (), REFUSE),
        ("prctl", (), REFUSE),
        ("memfd_create", (), REFUSE),
        ("exit_group", (), ALLOW),
    ],
)
def test_filter_of_children(machine: Architecture, call: str, arguments: tuple[int, ...], verdict: int) -> None:
    assert child(call, *arguments, machine=machine) == verdict


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("clone", (0x01200011,), ALLOW),
        ("clone", (0x10000000 | 17,), REFUSE),
        ("clone", (0x00000100 | 17,), REFUSE),
        ("kill", (5, 9), ALLOW),
        ("kill", (5, 15), REFUSE),
        ("socketpair", (1,), ALLOW),
        ("socketpair", (2,), REFUSE),
        ("socket", (1,), REFUSE),
        ("openat", (), REFUSE),
        ("execve", (), KILL),
        ("mmap", (0, 1, 5, 0x22), REFUSE),
        ("mmap", (0, 1, 3, 0x01), REFUSE),
    ],
)
def test_filter_of_zygote(machine: Architecture, call: str, arguments: tuple[int, ...], verdict: int) -> None:
    assert zygote(call, *arguments, machine=machine) == verdict


def test_foreign_calls_kill() -> None:
    program = assemble(CHILD_RULES, X86)
    i386 = 0x40000003
    assert run(program, i386, 20) == KILL
    assert run(program, X86.audit, 0x40000000 + 39) == KILL
    assert run(program, X86.audit, -1) == KILL


@given(st.integers(0, 0x3FFFFFFF))
def test_unlisted_numbers_are_refused(number: int) -> None:
    named = {X86.numbers[rule.call] for rule in CHILD_RULES if rule.call in X86.numbers}
    if number not in named:
        assert run(assemble(CHILD_RULES, X86), X86.audit, number) == REFUSE


@given(st.sampled_from(CHILD_RULES), st.tuples(*[st.integers(0, 2**64 - 1)] * 6))
def test_high_words_change_nothing(rule: seccomp.Rule, arguments: tuple[int, ...]) -> None:
    low = tuple(value & 0xFFFFFFFF for value in arguments)
    if rule.call in X86.numbers:
        assert child(rule.call, *arguments) == child(rule.call, *low)


def test_every_rule_has_a_reason_and_appears_once() -> None:
    for rules in (CHILD_RULES, ZYGOTE_RULES):
        assert all(len(rule.reason) > 8 for rule in rules)
        assert len({rule.call for rule in rules}) == len(rules)


def test_zygote_permits_every_call_of_its_children() -> None:
    """Filters add up: a call that the zygote's filter refuses is refused in its children too."""
    allowed = {rule.call for rule in ZYGOTE_RULES if rule.verdict == ALLOW}
    assert {rule.call for rule in CHILD_RULES if rule.verdict == ALLOW} <= allowed
