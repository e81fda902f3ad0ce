"""Attacks of our own: on the protocol, on the limits, and on other calls. The policy is off."""

from __future__ import annotations

import struct

import pytest

from shared.sandbox import Outcome, Sandbox
from shared.sandbox.exchange import PAUSE, SMALL_PIECE
from shared.sandbox.replies import Inbox


def attack(sandbox: Sandbox, source: str, **options: float) -> Outcome:
    """Run `f` with all of Python available."""
    return sandbox.call(source, "f", {}, check=False, **{"timeout": 10.0, **options})  # type: ignore[arg-type]


def writes(*parts: bytes) -> str:
    """Return a function that sends these bytes on its channel, then waits."""
    return f"import os, time\ndef f():\n    for part in {parts!r}: os.write(0, part)\n    time.sleep(60)"


def reply(kind: bytes, body: bytes, printed: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("!cII", kind, len(body) if length is None else length, len(printed)) + body + printed


@pytest.mark.parametrize(
    ("forged", "type_"),
    [
        (reply(b"V", b"[1", b""), "invalid_output"),
        (reply(b"V", b"NaN"), "invalid_output"),
        (reply(b"V", b"1e999"), "invalid_output"),
        (reply(b"V", b'"\\ud800"'), "invalid_output"),
        (reply(b"V", b'"\xff"'), "invalid_output"),
        (reply(b"V", b'"\\u0000"'), "invalid_output"),
        (reply(b"V", b"[" * 5000), "invalid_output"),
        (reply(b"V", b"1" * 5000), "invalid_output"),
        (reply(b"V", b"", length=1 << 30), "output_too_large"),
        (reply(b"F", b"", length=1 << 30), "security"),
        (reply(b"F", b'{"type": "unavailable", "message": "x"}'), "security"),
        (reply(b"F", b'{"type": ["timeout"]}'), "security"),
        (reply(b"F", b"[]"), "security"),
        (reply(b"P", b'[["a"]]'), "security"),
        (reply(b"X", b"1"), "security"),
        (reply(b"V", b"1") + b"extra", "security"),
    ],
    ids=range(16),
)
def test_forged_reply_is_refused(bare_sandbox: Sandbox, forged: bytes, type_: str) -> None:
    outcome = attack(bare_sandbox, writes(forged))
    assert outcome.error is not None
    assert outcome.error.type == type_


@pytest.mark.parametrize("dense", [b"[],", b"{},", b'{"":0},', b"0,", b'"",', b'"', b"[", b"]"])
def test_dense_reply_is_refused(bare_sandbox: Sandbox, dense: bytes) -> None:
    head = reply(b"V", b"[", length=4_000_000)
    source = f"""
import os, time
def f():
    reply = ({head!r} + {dense!r} * 4_000_000)[:{len(head) + 3_999_999}]
    while reply: reply = reply[os.write(0, reply):]
    time.sleep(60)
"""
    outcome = attack(bare_sandbox, source, timeout=20.0)
    assert outcome.error is not None
    assert outcome.error.type == ("invalid_output" if dense == b"]" else "output_too_large")


def test_reply_in_single_bytes_is_read_in_few_steps(bare_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bare_sandbox.layers  # its self-test is over
    pieces = []
    add = Inbox.add

    def count(inbox: Inbox, data: bytes) -> bool:
        pieces.append(len(data))
        return add(inbox, data)

    monkeypatch.setattr(Inbox, "add", count)
    body = b"[" + b" " * 20_000 + b"]"
    source = f"import os, time\ndef f():\n    for byte in {reply(b'V', body)!r}: os.write(0, bytes([byte]))\n"
    outcome = attack(bare_sandbox, f"{source}    time.sleep(60)", timeout=60.0)
    assert outcome.value == []
    assert sum(pieces) == len(reply(b"V", body))
    small = sum(size < SMALL_PIECE for size in pieces[:-1])
    assert outcome.duration >= small * PAUSE


def test_forged_reply_is_at_most_the_function_s_own_value(bare_sandbox: Sandbox) -> None:
    outcome = attack(bare_sandbox, writes(reply(b"V", b"7")))
    assert outcome.value == 7
    assert outcome.cpu_time > 0


def test_forged_counters_are_ignored(bare_sandbox: Sandbox) -> None:
    source = """
import resource, time
def f():
    resource.getrusage = time.process_time = lambda *_: 0
    x = bytearray(20 << 20)
    sum(range(5_000_000))
"""
    outcome = attack(bare_sandbox, source)
    assert outcome.cpu_time > 0.002
    assert outcome.peak_memory > 19 << 20


def test_slow_bytes_do_not_extend_the_time_limit(bare_sandbox: Sandbox) -> None:
    source = "import os, time\ndef f():\n    while True:\n        os.write(0, bytes(1)); time.sleep(0.01)"
    outcome = attack(bare_sandbox, source, timeout=0.3)
    assert outcome.error is not None
    assert outcome.error.type in ("timeout", "security")


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    for byte in reply: os.write(0, bytes([byte])); time.sleep(0.01)",
        "def f():\n    x = 7 ** 3_000_000\n    while True: x = divmod(x * x, 3)[0] % (x + 2)",
        "class D:\n    def __del__(self):\n        while True: pass\n"
        "async def g():\n    d = D()\n    while True: yield 1\n"
        "async def f():\n    async for _ in g(): break",
    ],
    ids=["a reply in drops", "C code that looks up for nothing", "a generator that does not close"],
)
def test_function_that_refuses_to_end_is_killed(bare_sandbox: Sandbox, source: str) -> None:
    head = f"import os, time\nreply = {reply(b'V', b'[' + b' ' * 9_999 + b']')!r}\n"
    outcome = attack(bare_sandbox, head + source, timeout=0.3)
    assert outcome.error is not None
    assert outcome.error.type == "timeout"


def test_early_exit_does_not_hide_cpu_time(bare_sandbox: Sandbox) -> None:
    source = f"""
import ctypes
def f():
    sum(range(1_000_000))
    libc, answer = ctypes.CDLL(None), {reply(b"V", b"7")!r}
    write, leave = libc.write, libc._exit
    write(0, answer, len(answer)); leave(0)
"""
    outcomes = [attack(bare_sandbox, source) for _ in range(20)]
    assert all(outcome.error.type == "crashed" if outcome.error else outcome.cpu_time > 0 for outcome in outcomes)


def test_closed_channel_does_not_stop_the_time_limit(bare_sandbox: Sandbox) -> None:
    outcome = attack(bare_sandbox, "import os\ndef f():\n    os.close(0)\n    while True: pass", timeout=0.3)
    assert outcome.error is not None
    assert outcome.error.type == "timeout"


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGALRM", "SIGXCPU", "SIGINT", "SIGSEGV"])
def test_ignored_signals_do_not_stop_the_time_limit(bare_sandbox: Sandbox, signal: str) -> None:
    source = f"import signal\ndef f():\n    signal.signal(signal.{signal}, signal.SIG_IGN)\n    while True: pass"
    outcome = attack(bare_sandbox, source, timeout=0.2)
    assert outcome.error is not None
    assert outcome.error.type == "timeout"


@pytest.mark.parametrize(
    "call",
    [
        "ctypes.CDLL(None).syscall(57)",  # fork
        "ctypes.CDLL(None).syscall(56, 0x10011, 0, 0, 0, 0) < 0 or 'ran'",  # clone with CLONE_THREAD
        "ctypes.CDLL(None).syscall(59, b'/bin/sh', None, None)",  # execve
        "ctypes.CDLL(None).syscall(322, 0, b'', None, None, 0x1000)",  # execveat
        "ctypes.CDLL(None).syscall(101, 0, 0, 0, 0)",  # ptrace
        "ctypes.CDLL(None).syscall(165, b'x', b'/', b'tmpfs', 0, None)",  # mount
        "ctypes.CDLL(None).syscall(248, b'user', b'x', b'x', 1, -3)",  # add_key
        "ctypes.CDLL(None).syscall(249, b'user', b'x', None, 0)",  # request_key
        "ctypes.CDLL(None).syscall(250, 0, -3, 0)",  # keyctl
        "ctypes.CDLL(None).syscall(298, None, 0, -1, -1, 0)",  # perf_event_open
        "ctypes.CDLL(None).syscall(321, 0, None, 0)",  # bpf
        "ctypes.CDLL(None).syscall(323, 1)",  # userfaultfd
        "ctypes.CDLL(None).syscall(425, 4, (ctypes.c_char * 120)())",  # io_uring_setup
    ],
)
def test_forbidden_system_call_kills(bare_sandbox: Sandbox, call: str) -> None:
    outcome = attack(bare_sandbox, f"import ctypes\ndef f(): return {call}")
    if "0x10011" in call:
        assert outcome.value is True
    else:
        assert outcome.error is not None
        assert outcome.error.type == "security"


REFUSED = {
    "openat": (257, -100, "b'/'", 0),
    "open": (2, "b'/'", 0),
    "socket": (41, 1, 1, 0),
    "socketpair": (53, 1, 1, 0, "(ctypes.c_int * 2)()"),
    "dup": (32, 0),
    "pipe2": (293, "(ctypes.c_int * 2)()", 0),
    "memfd_create": (319, "b'x'", 0),
    "shmget": (29, 0, 4096, 0o1600),
    "msgget": (68, 0, 0o1600),
    "mq_open": (240, "b'x'", 0o102, 0o600, "None"),
    "prctl": (157, 38, 0, 0, 0, 0),
    "seccomp": (317, 0, 0, "None"),
    "kill": (62, 1, 0),
    "kill all": (62, -1, 0),
    "tgkill": (234, 1, 1, 0),
    "pidfd_open": (434, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "process_vm_readv": (310, 1, "None", 0, "None", 0, 0),
    "process_madvise": (440, 0, "None", 0, 0, 0),
    "prlimit64 of another": (302, 1, 7, "None", "None"),
    "sched_setaffinity": (203, 0, 8, "(ctypes.c_ulong * 1)(1)"),
    "setpriority": (141, 0, 0, 19),
    "unshare": (272, 0x10000000),
    "setns": (308, 0, 0),
    "personality": (135, 0x0400000),
    "modify_ldt": (154, 0, "None", 0),
    "arch_prctl": (158, 0x1002, 0),
    "mlock": (149, "None", 0),
    "pkey_mprotect": (329, "None", 0, 7, -1),
    "executable mmap": (9, "None", 4096, 7, 0x22, -1, 0),
    "timer_create": (222, 1, "None", "(ctypes.c_int * 1)()"),
    "clock of another process": (228, "(~1 << 3) | 2", "(ctypes.c_long * 2)()"),
    "sendmsg": (46, 0, "None", 0),
    "recvmsg": (47, 0, "None", 0),
    "shutdown": (48, 0, 2),
    "write to another descriptor": (1, 1, "b'x'", 1),
    "ioctl": (16, 0, 0x541B, "(ctypes.c_int * 1)()"),
    "futex requeue": (202, "(ctypes.c_int * 1)()", 3, 1, 1, "(ctypes.c_int * 1)()", 0),
    "futex lock_pi": (202, "(ctypes.c_int * 1)()", 6, 0, "None", "None", 0),
    "getppid": (110,),
    "getuid": (102,),
    "uname": (63, "(ctypes.c_char * 400)()"),
    "sysinfo": (99, "(ctypes.c_char * 200)()"),
    "wait4": (61, -1, "None", 1, "None"),
    "close_range": (436, 0, 9, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_system_call_is_refused(bare_sandbox: Sandbox, name: str) -> None:
    arguments = ", ".join(
        f"ctypes.c_long({value})" if isinstance(value, int) or value.startswith("(~") else value
        for value in REFUSED[name]
    )
    outcome = attack(bare_sandbox, f"import ctypes\ndef f(): return ctypes.CDLL(None).syscall({arguments})")
    assert outcome.error is not None or outcome.value == -1


def test_only_the_channel_is_open(bare_sandbox: Sandbox) -> None:
    source = """
import ctypes
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    return [n for n in range(1, 300) if libc.close(n) == 0 or ctypes.get_errno() != 9]
"""
    assert attack(bare_sandbox, source).value == []


def test_limits_cannot_be_raised(bare_sandbox: Sandbox) -> None:
    source = """
import resource
def f():
    raised = []
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            number = getattr(resource, name)
            soft, hard = resource.getrlimit(number)
            try:
                resource.setrlimit(number, (resource.RLIM_INFINITY,) * 2)
            except (ValueError, OSError):
                continue
            if hard != resource.RLIM_INFINITY: raised.append(name)
    return raised
"""
    assert attack(bare_sandbox, source).value == []


def test_many_small_mappings_count_as_memory(bare_sandbox: Sandbox) -> None:
    source = """
import ctypes
def f():
    libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    n = 0
    while libc.mmap(None, 1 << 16, 3, 0x22 if n % 2 else 0x21, -1, 0) != 2**64 - 1: n += 1
    return n >> 4
"""
    assert attack(bare_sandbox, source, memory_limit=64).value <= 66


def test_no_state_reaches_the_next_call(bare_sandbox: Sandbox) -> None:
    source = """
import builtins, sys, json
def f():
    seen = hasattr(builtins, "mark") or hasattr(json, "mark") or "mark" in sys.path
    builtins.mark = json.mark = 1
    sys.path.append("mark")
    json.dumps = lambda *_, **__: "forged"
    return seen
"""
    outcomes = [attack(bare_sandbox, source) for _ in range(6)]
    assert {str(outcome.value or outcome.error) for outcome in outcomes} == {
        str(outcomes[0].value or outcomes[0].error)
    }
    assert bare_sandbox.call("def f(): return [1]", "f", {}).value == [1]


@pytest.mark.parametrize(
    "source",
    [
        "class S(str):\n    def encode(self, *a): return b'{}'\ndef f(): return S('x')",
        "class I(int):\n    def __repr__(self): return '[[['\ndef f(): return I(3)",
        "class D(dict):\n    def items(self): return [('a', float('nan'))]\ndef f(): return D(a=1)",
        "class L(list):\n    def __iter__(self): return iter([1] * 10)\ndef f(): return L([1, 2])",
        "class F(float):\n    def __repr__(self): return 'NaN'\ndef f(): return F(1.5)",
        "class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(): raise E",
        "class M(type):\n    __name__ = property(lambda s: 1 / 0)\n"
        "class E(Exception, metaclass=M): pass\ndef f(): raise E",
        "class A:\n    def __await__(self): return iter([1, 2, 3])\ndef f(): return A()",
        "class A:\n    def __getattr__(self, n): raise KeyboardInterrupt\ndef f(): return A()",
        "def f(): raise BaseExceptionGroup('g', [GeneratorExit()])",
        "import json\njson.dumps = None\ndef f(): return 1",
        "import json\njson.loads = json.JSONEncoder.default = lambda *a, **k: 1 / 0\ndef f(): return 1",
        "import sys\nsys.stdout = sys.stderr = None\ndef f(): return 1",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
        "import sys\nsys.set_int_max_str_digits(0)\ndef f(): return 10 ** 100_000",
        "import builtins\nbuiltins.len = builtins.isinstance = None\ndef f(): return 1",
        "import sys\nsys.modules.clear()\ndef f(): return 1",
        "import gc\nfor o in gc.get_objects():\n    if type(o) is dict: o.clear()\ndef f(): return 1",
        "import ctypes\ndef f(): ctypes.string_at(0)",
        "import os\ndef f(): os._exit(0)",
        "import os\ndef f(): os.abort()",
        "import sys\nsys.settrace(lambda *a: 1 / 0)\ndef f(): return 1",
        "import sys\ndef h(*a):\n    raise ValueError\nsys.addaudithook(h)\ndef f(): return 1",
        "import asyncio\nasync def f():\n    asyncio.get_running_loop().stop()\n    await asyncio.sleep(1)",
        "import asyncio\nasync def f():\n    asyncio.get_running_loop().close()",
        "import asyncio\nasync def f():\n    asyncio.current_task().cancel()\n    await asyncio.sleep(0)",
        "import threading\ndef f(): threading.Thread(target=print).start()",
        "def f(): return locals()",
        "f = type('f', (), {'__new__': lambda c: c})",
        "import sys\nsys.unraisablehook = None\nclass D:\n    def __del__(self): raise ValueError\n"
        "def f():\n    D()\n    return 1",
    ],
)
def test_odd_function_leaves_a_working_sandbox(bare_sandbox: Sandbox, source: str) -> None:
    outcome = attack(bare_sandbox, source, timeout=2.0)
    assert isinstance(outcome, Outcome)
    assert outcome.error is None or outcome.error.type != "unavailable"
    assert bare_sandbox.call("def f(): return 'fine'", "f", {}).value == "fine"
