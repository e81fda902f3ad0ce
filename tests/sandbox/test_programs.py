"""Programs that call the host's functions: what they can do, and what the host receives."""

from __future__ import annotations

import datetime
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.sandbox import (
    Asleep,
    Call,
    Calls,
    Event,
    Failed,
    Finished,
    ProgramLimits,
    Reply,
    ReplyError,
    Sandbox,
)
from shared.sandbox.confined.zygote import OVERTIME
from shared.sandbox.exchange import SHORT_CALL, Conversation
from shared.sandbox.fork_server import ForkServer

# Two depend on how they are called: they have a loop or a module of another name.
EXCEPTIONS = ("sync_drives_loop", "local_imports_and_main")
CORPUS = json.loads((Path(__file__).parent / "data" / "honest.json").read_text(encoding="utf-8"))
HONEST = [function for function in CORPUS if function["name"] not in EXCEPTIONS]
FUNCTIONS = {"double": ("number",), "fail": ("reason",), "pair": ("first", "second")}
NOW = 1_800_000_000.0
BEGINNING = datetime.datetime.fromtimestamp(NOW, datetime.UTC)


def answer(call: Call) -> Reply | ReplyError:
    """Reply as honest functions would."""
    if call.name == "fail":
        return ReplyError(call.id, f"no luck: {call.arguments['reason']}")
    if call.name == "pair":
        return Reply(call.id, call.arguments)
    return Reply(call.id, 2 * call.arguments["number"])


def play(sandbox: Sandbox, source: str, *, seed: str = "s", **options: Any) -> list[Event]:
    """Run a program to its end, and return all events."""
    with sandbox.program(source, FUNCTIONS, seed=seed, now=NOW, **options) as program:
        events = [program.start()]
        while isinstance(event := events[-1], Calls | Asleep):
            events.append(program.resume([answer(call) for call in event.calls] if isinstance(event, Calls) else []))
    return events


def value_of(sandbox: Sandbox, source: str, **options: Any) -> Any:
    """Return the value of a program that must finish."""
    end = play(sandbox, source, **options)[-1]
    assert isinstance(end, Finished), end
    return end.value


def failure_of(sandbox: Sandbox, source: str, **options: Any) -> Failed:
    """Return the end of a program that must fail."""
    end = play(sandbox, source, **options)[-1]
    assert isinstance(end, Failed), end
    return end


def calls_of(events: list[Event]) -> list[list[Call]]:
    return [list(event.calls) for event in events if isinstance(event, Calls)]


def test_arguments_depend_on_earlier_results(sandbox: Sandbox) -> None:
    source = "number = 1\nfor _ in range(4):\n    number = await double(number=number)\nreturn number"
    events = play(sandbox, source)
    assert events[-1] == Finished(16, "")
    expected = [Call(id, "double", {"number": 2 ** (id - 1)}, line=3) for id in (1, 2, 3, 4)]
    assert calls_of(events) == [[call] for call in expected]


@pytest.mark.parametrize(
    "source",
    [
        "return await asyncio.gather(*[double(number=n) for n in range(3)])",
        "async with asyncio.TaskGroup() as group:\n"
        "    tasks = [group.create_task(double(n)) for n in range(3)]\n"
        "[task.result() for task in tasks]",
        "tasks = [asyncio.create_task(double(number=n)) for n in range(3)]\nresult = [await task for task in tasks]",
        "import asyncio\nasync def main():\n    return list(await asyncio.gather(double(0), double(1), double(2)))\n"
        "if __name__ == '__main__':\n    asyncio.run(main())",
    ],
    ids=["gather", "task group", "tasks", "asyncio.run"],
)
def test_parallel_calls_come_as_one_event(sandbox: Sandbox, source: str) -> None:
    events = play(sandbox, source)
    assert [[call.arguments["number"] for call in calls] for calls in calls_of(events)] == [[0, 1, 2]]
    assert events[-1] == Finished([0, 2, 4], "")


@pytest.mark.parametrize(
    "source",
    [
        "def main():\n    return asyncio.run(double(4))\nmain()",
        "import asyncio as a\nclass A:\n    def main(self):\n        return a.run(double(4), debug=True)\nA().main()",
        "from asyncio import run\nasync def f(): return await double(4)\nrun(f())",
        "async def f(): return run()\ndef run(): return asyncio.run(double(4))\nreturn await f()",
        "task = asyncio.create_task(double(4))\nawait asyncio.sleep(0)\nasyncio.run(double(1))\nreturn await task",
        "async def f(): await asyncio.sleep(3600); return 8\nasyncio.run(f())",
    ],
)
def test_asyncio_run_works_anywhere(sandbox: Sandbox, source: str) -> None:
    assert value_of(sandbox, source) == 8


@pytest.mark.parametrize("function", HONEST, ids=lambda function: function["name"])
def test_honest_function_of_the_corpus_works_in_a_program(sandbox: Sandbox, function: dict[str, Any]) -> None:
    source = f"{function['code']}\nreturn f(**(await pair(1))['input'])"
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW, allowed_imports=function["imports"]) as program:
        assert isinstance(program.start(), Calls)
        event = program.resume([Reply(1, function)])
        while isinstance(event, Asleep):
            event = program.resume()
    assert isinstance(event, Finished), event
    assert event.value == function["expected"]


def test_further_parallel_calls_wait_for_room(sandbox: Sandbox) -> None:
    source = "return await asyncio.gather(*[double(n) for n in range(7)])"
    events = play(sandbox, source, limits=ProgramLimits(outstanding=3))
    assert [[call.id for call in calls] for calls in calls_of(events)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert events[-1] == Finished([0, 2, 4, 6, 8, 10, 12], "")
    large = "return len(await asyncio.gather(*[double('x' * 600) for n in range(3)]))"
    events = play(sandbox, large, limits=ProgramLimits(arguments=1500))
    assert [len(calls) for calls in calls_of(events)] == [2, 1]


def test_replies_are_delivered_in_the_order_of_the_host(sandbox: Sandbox) -> None:
    source = """
order = []
async def one(number):
    order.append(await double(number))
await asyncio.gather(one(1), one(2), one(3))
return order
"""
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
        assert isinstance(program.start(), Calls)
        event = program.resume([Reply(3, "c")])
        assert event == Calls((), waiting=(1, 2))
        assert program.resume([Reply(2, "b"), Reply(1, "a")]) == Finished(["c", "b", "a"], "")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("return 1\nreturn 2", 1),
        ("x = 3\nx + 1", 4),
        ("result = {'a': [1]}", {"a": [1]}),
        ("x = 1", None),
        ("", None),
        ("async def main():\n    return await double(4)\nmain()", 8),
        ("for n in range(9):\n    if n == 4:\n        return n", 4),
        ("total = 0\ndef add(n):\n    global total\n    total += n\nadd(2)\nadd(3)\ntotal", 5),
        ("n: int = 2\nif n:\n    m: int = 3\nreturn n * m", 6),
        ("from __future__ import annotations\ndef f(x: Nope) -> Nope: return x\nf(1)", 1),
        ("try:\n    return 1\nexcept:\n    return 2", 1),
        ("from dataclasses import asdict, dataclass\n@dataclass\nclass A:\n    n: int\nasdict(A(1))", {"n": 1}),
        ("async def each():\n    for n in range(2):\n        yield await double(n)\n[n async for n in each()]", [0, 2]),
        ("import json as j\nj.loads('[1]')", [1]),
        ("return await pair(1, second=2)", {"first": 1, "second": 2}),
    ],
)  # fmt: skip
def test_value_of_a_program(sandbox: Sandbox, source: str, value: object) -> None:
    assert value_of(sandbox, source) == value


def test_failed_call_raises_tool_error(sandbox: Sandbox) -> None:
    source = "try:\n    await fail(reason='x')\nexcept ToolError as error:\n    return str(error)"
    assert value_of(sandbox, source) == "no luck: x"
    failed = failure_of(sandbox, "n = 1\nawait fail(reason='x')")
    assert (failed.cause, failed.fault.type, failed.fault.line) == ("exception", "exception", 2)
    assert failed.fault.message == "ToolError: no luck: x"
    grouped = "async with asyncio.TaskGroup() as group:\n    group.create_task(fail(reason='y'))\n"
    assert failure_of(sandbox, grouped).fault.message == "ToolError: no luck: y"


@pytest.mark.parametrize(
    ("source", "type_", "line", "text"),
    [
        ("n = 1\nn / 0", "exception", 2, "ZeroDivisionError"),
        ("n = (", "syntax_error", 1, "never closed"),
        ("yield 1", "syntax_error", 1, "'yield' outside function"),
        ("n = 1\nimport os", "import_denied", 2, "'os'"),
        ("import pandas", "import_denied", 1, "a program can import modules of the standard library that only compute"),
        ("n = 1\nopen('x')", "forbidden_name", 2, "'open'"),
        ("().__class__.__bases__", "forbidden_name", 1, "__bases__"),
        ("n = 1\ndouble(number=n)\nreturn 1", "exception", 2, "without await"),
        ("n = 1\nasyncio.create_task(double(number=n))\nreturn 1", "exception", 2, "without await"),
        ("double(1, 2)", "exception", 1, "takes 1 arguments without a name, and got 2"),
        ("double(1, number=2)", "exception", 1, "two values for the argument 'number'"),
        ("await double({1})", "exception", 1, "must be JSON values: Object of type set"),
        ("await double(float('nan'))", "exception", 1, "must be JSON values"),
        ("await double('\\ud800')", "exception", 1, "half of a surrogate pair"),
        ("n = []\nn.append(n)\nawait double(n)", "exception", 3, "Circular"),
        ("n = []\nfor _ in range(9000): n = [n]\nawait double(n)", "exception", 3, "nested too deeply"),
        ("n = []\nfor _ in range(200): n = [n]\nawait double(n)", "invalid_output", None, "deeper than 100"),
        ("await double('x' * 2_000_000)", "arguments_too_large", 1, "the limit is 262144"),
        ("return {1, 2}", "invalid_output", None, "type set"),
        ("return 'x' * 2_000_000", "output_too_large", None, "the limit is 1048576"),
        ("print('x' * 70_000)", "stdout_too_large", None, "the limit is 65536"),
        ("for n in range(99):\n    await double(n)", "too_many_calls", 2, "more than 20 calls"),
        ("await asyncio.gather(*[double(n) for n in range(99)])", "too_many_calls", 1, "more than 20 calls"),
        ("while True:\n    await asyncio.sleep(1)", "too_many_calls", None, "more than 20 calls"),
        ("await asyncio.Event().wait()", "timeout", None, "the program waits for something that can never happen"),
        ("await double(1)\nwhile True: pass", "timeout", None, "the program is still running after 0.3 s"),
        ("n = bytearray(200 << 20)", "memory_limit", None, "the program needs more memory than its limit of 128 MB"),
        ("import time\ntime.sleep(1)", "exception", 2, "await asyncio.sleep"),
        ("def f(): return f()\nf()", "recursion", 1, "RecursionError"),
        ("x = " + "-" * 100_000 + "1", "recursion", None, "nested too deeply"),
        ("#" * 200_000, "source_too_large", None, "131072"),
        ("'\ud800'", "syntax_error", None, "surrogate"),
    ],
)  # fmt: skip
def test_failure_is_explained(sandbox: Sandbox, source: str, type_: str, line: int | None, text: str) -> None:
    fault = failure_of(sandbox, source, limits=ProgramLimits(timeout=0.3, calls=20)).fault
    assert (fault.type, fault.line) == (type_, line), fault
    assert text in fault.message


def test_traceback_shows_the_program_alone(sandbox: Sandbox) -> None:
    source = "async def f(n):\n    return await double(n) / 0\nawait asyncio.wait_for(f(1), 5)"
    fault = failure_of(sandbox, source).fault
    assert fault.traceback is not None
    assert [line.strip() for line in fault.traceback.splitlines() if "File" in line] == [
        'File "<program>", line 3, in <module>',
        'File "<program>", line 2, in f',
    ]
    assert "return await double(n) / 0" in fault.traceback


def test_printed_text_survives_the_kill(sandbox: Sandbox) -> None:
    source = "print('one')\nawait double(1)\nprint('two')\nawait double(2)\nprint('lost')\nwhile True: pass"
    assert failure_of(sandbox, source, limits=ProgramLimits(timeout=0.3)).stdout == "one\ntwo\n"
    assert play(sandbox, "print('a')\nawait double(1)\nprint('ü')")[-1] == Finished(None, "a\nü\n")
    assert play(sandbox, "print('\\0' * 40)\nawait double(1)\nprint('\\0' * 40)", limits=ProgramLimits(stdout=90))[
        -1
    ] == (Finished(None, ("\ufffd" * 40 + "\n") * 2))
    flood = "for _ in range(5):\n    print('x' * 29)\n    await double(1)"
    failed = failure_of(sandbox, flood, limits=ProgramLimits(stdout=100))
    assert failed.fault.type == "stdout_too_large"
    assert failed.stdout.replace("\n", "")[:97] == "x" * 97


# --- time and random numbers -----------------------------------------------------------------------------

UNCERTAIN = """
import datetime, random, secrets, time, uuid
from datetime import date, datetime as moment
found = [
    time.time(), time.time_ns(), time.monotonic(), time.perf_counter(), time.process_time(), time.strftime("%c"),
    time.ctime(), list(time.localtime()), list(time.gmtime()), time.asctime(), time.clock_gettime(0),
    str(moment.now()), str(moment.now(datetime.UTC)), str(moment.utcnow()), str(date.today()), str(moment.today()),
    random.random(), random.Random().random(), random.SystemRandom().random(), random.sample(range(99), 3),
    secrets.token_hex(), secrets.choice(range(10**9)), str(uuid.uuid4()), str(uuid.uuid1()), random.randbytes(4).hex(),
    list({"alpha", "beta", "gamma", "delta"}), repr(random.seed()), random.random(), asyncio.get_running_loop().time(),
]
await double(1)
return [found, time.time(), random.random()]
"""


def test_same_seed_gives_the_same_program(sandbox: Sandbox) -> None:
    first = value_of(sandbox, UNCERTAIN)
    with Sandbox() as another:
        assert value_of(another, UNCERTAIN) == first
    other = value_of(sandbox, UNCERTAIN, seed="t")
    differences = [a == b for a, b in zip(first[0], other[0], strict=True)]
    assert differences == [True] * 16 + [False] * 9 + [True, True, False, True]
    moment = datetime.datetime.fromisoformat(first[0][12])
    assert BEGINNING < moment < BEGINNING + datetime.timedelta(seconds=0.001)


def test_order_of_tasks_does_not_depend_on_their_addresses(sandbox: Sandbox) -> None:
    source = """
tasks = {asyncio.create_task(double(n)) for n in range(9)}
done, _ = await asyncio.wait(tasks)
numbers = [await double(await task) for task in done]
for first in asyncio.as_completed([double(n) for n in range(9)]):
    numbers.append(await double(await first))
return [numbers, [task.get_name() for task in done], asyncio.current_task().get_name()]
"""
    events = play(sandbox, source)
    assert isinstance(events[-1], Finished)
    for _ in range(3):
        with Sandbox() as another:
            assert play(another, source) == events


def test_functions_keep_real_clocks_and_random_numbers(sandbox: Sandbox) -> None:
    value_of(sandbox, UNCERTAIN)
    source = "import random, time\ndef f(): return [random.random(), time.time()]"
    one, two = (sandbox.call(source, "f", {}).value for _ in range(2))
    assert one[0] != two[0]
    assert abs(one[1] - time.time()) < 60


def test_replaced_classes_behave_like_the_real_ones(sandbox: Sandbox) -> None:
    source = """
import copy, email.utils
from datetime import date, datetime, timedelta
foreign = email.utils.parsedate_to_datetime("Mon, 20 Nov 1995 19:12:08 -0500")
class Mine(datetime): pass
assert isinstance(Mine.now(), Mine) and issubclass(Mine, date) and not isinstance(foreign, Mine)
assert email.utils.localtime().date() == date.today()
now = datetime.now()
match now:
    case date():
        pass
    case _:
        raise AssertionError
return [
    isinstance(foreign, datetime), isinstance(now, date), issubclass(datetime, date),
    isinstance(date.today(), datetime), type(now - timedelta(1)) is datetime, copy.deepcopy(now) == now,
    repr(datetime(2020, 1, 2)), str(type(now)),
    datetime.fromisoformat("2020-01-01") < now, now.date() == date.today(), datetime.strptime("2020", "%Y").year,
]
"""
    assert value_of(sandbox, source) == [
        True, True, True, False, True, True, "datetime.datetime(2020, 1, 2, 0, 0)", "<class 'datetime.datetime'>", True,
        True, 2020,
    ]  # fmt: skip


def test_host_sets_the_clock(sandbox: Sandbox) -> None:
    source = "import time\nseen = []\nfor n in range(3):\n    await double(n)\n    seen.append(int(time.time()))\nseen"
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        program.resume([Reply(1, 0)], now=NOW + 50)
        program.resume([Reply(2, 0)], now=NOW + 20)  # a clock never goes back
        assert program.resume([Reply(3, 0)]) == Finished([NOW + 50] * 3, "")


def test_sleep_takes_the_host_s_time_only(sandbox: Sandbox) -> None:
    source = "import time\nbegun = time.time()\nawait asyncio.sleep(3600)\nreturn round(time.time() - begun)"
    assert play(sandbox, source) == [Asleep(3600.0), Finished(3600, "")]
    ticking = "import time\nfor _ in range(9999): time.time()\nawait asyncio.sleep(5)\nreturn time.time() >= 5"
    assert play(sandbox, ticking) == [Asleep(5.0), Finished(True, "")]
    late = "try:\n    async with asyncio.timeout(5):\n        await double(1)\n        await asyncio.sleep(9)\n"
    late += "except TimeoutError:\n    return 'late'"
    events = play(sandbox, late)
    assert isinstance(events[1], Asleep)
    assert 4.9 < events[1].seconds < 5.1
    assert events[-1] == Finished("late", "")


def test_cancelled_calls_need_no_reply(sandbox: Sandbox) -> None:
    source = """
tasks = [asyncio.create_task(double(n)) for n in range(3)]
done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
for task in waiting:
    task.cancel()
return [await task for task in done][0] + await double(7)
"""
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        event = program.resume([Reply(2, 20)])
        assert isinstance(event, Calls)
        assert event.waiting == (1, 3, 4)
        assert program.resume([Reply(1, 0), Reply(4, 14)]) == Finished(34, "")


# --- the host --------------------------------------------------------------------------------------------


def test_time_of_the_host_counts_to_no_limit(sandbox: Sandbox) -> None:
    with sandbox.program(
        "await double(1)\nreturn 1", FUNCTIONS, seed="s", now=NOW, limits=ProgramLimits(timeout=0.5)
    ) as program:
        assert isinstance(program.start(), Calls)
        threading.Event().wait(0.6)
        assert program.resume([Reply(1, 2)]) == Finished(1, "")
    assert program.duration < 0.5
    assert 0 < program.cpu_time < 0.5


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process serves many programs: each reply may have been ready for a while."""
    receive = Conversation._receive

    def late(*arguments: Any) -> str | None:
        threading.Event().wait(0.2)
        return receive(*arguments)

    monkeypatch.setattr(Conversation, "_receive", late)


def test_time_of_a_busy_host_counts_to_no_limit(sandbox: Sandbox, busy: None) -> None:
    source = "for n in range(4): await double(n)\nreturn n"
    assert value_of(sandbox, source, limits=ProgramLimits(timeout=0.5)) == 3


def test_kill_is_no_timeout_after_a_busy_time(sandbox: Sandbox, busy: None) -> None:
    source = "for n in range(9): await double(n)"
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW, limits=ProgramLimits(timeout=0.5)) as program:
        program.start()
        for number in (1, 2, 3):
            program.resume([Reply(number, 0)])
        program._child.kill()
        program._child.has_ended(5)
        event = program.resume([Reply(4, 0)])
    assert program.duration > 0.5
    assert isinstance(event, Failed)
    assert event.cause == "unavailable"


def test_zygote_ends_no_program_that_waits(sandbox: Sandbox) -> None:
    source = "sum(range(10_000_000))\nawait double(1)\nreturn 1"
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW, limits=ProgramLimits(timeout=1.0)) as program:
        assert isinstance(program.start(), Calls)
        assert program.duration > SHORT_CALL  # long enough for the zygote to watch, too
        threading.Event().wait(1.0 + OVERTIME + 0.2)
        assert program.resume([Reply(1, 2)]) == Finished(1, "")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "\ud800", 10**5000, [[]] * 3_000_000],
    ids=["nan", "inf", "half", "long", "large"],
)
def test_unsuitable_result_is_a_tool_error(sandbox: Sandbox, value: object) -> None:
    source = "try:\n    await double(1)\nexcept ToolError as error:\n    return str(error)"
    with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        event = program.resume([Reply(1, value)])
    assert isinstance(event, Finished)
    assert event.value.startswith("the result cannot be passed to the program: ")


def test_deeply_nested_result_harms_only_the_call(sandbox: Sandbox) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with sandbox.program("await double(1)", FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        event = program.resume([Reply(1, value)])
    assert isinstance(event, Failed)
    assert "nested too deeply" in event.fault.message


def test_program_starts_once(sandbox: Sandbox) -> None:
    with sandbox.program("return 1", FUNCTIONS, seed="s", now=NOW) as program:
        assert program.start() == Finished(1, "")
        with pytest.raises(ValueError, match="once"):
            program.start()


@pytest.mark.parametrize("replies", [[Reply(2, 0)], [Reply(0, 0)], [Reply(-1, 0)], [Reply(1, 0), Reply(1, 0)], []])
def test_wrong_replies_of_the_host_are_refused(sandbox: Sandbox, replies: list[Reply]) -> None:
    with sandbox.program("return await double(1)", FUNCTIONS, seed="s", now=NOW) as program:
        with pytest.raises(ValueError, match="not running"):
            program.resume([])
        program.start()
        with pytest.raises(ValueError, match="repl"):
            program.resume(replies)
        assert program.resume([Reply(1, 5)]) == Finished(5, "")
        with pytest.raises(ValueError, match="not running"):
            program.resume([Reply(1, 5)])


def test_value_of_another_type_is_the_caller_s_mistake(sandbox: Sandbox) -> None:
    with sandbox.program("return await double(1)", FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        with pytest.raises(TypeError):
            program.resume([Reply(1, object())])
        assert program.resume([Reply(1, 3)]) == Finished(3, "")


@pytest.mark.parametrize("functions", [{"a-b": ()}, {"class": ()}, {"f": ("a b",)}, {"": ()}])
def test_invalid_names_of_functions_are_refused(sandbox: Sandbox, functions: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="not a name in Python"):
        sandbox.program("", functions, seed="s", now=NOW)


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"memory": -1}, {"cpu": float("nan")}, {"outstanding": 0}])
def test_invalid_limits_are_refused(sandbox: Sandbox, limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        sandbox.program("", FUNCTIONS, seed="s", now=NOW, limits=ProgramLimits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize("now", [float("nan"), float("inf")])
def test_invalid_time_is_refused(sandbox: Sandbox, now: float) -> None:
    with pytest.raises(ValueError, match="now must be"):
        sandbox.program("", FUNCTIONS, seed="s", now=now)
    with sandbox.program("return await double(1)", FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        with pytest.raises(ValueError, match="now must be"):
            program.resume([Reply(1, 2)], now=now)
        assert program.resume([Reply(1, 2)]) == Finished(2, "")


def test_closed_program_leaves_nothing_behind(sandbox: Sandbox) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    sandbox.call("def f(): pass", "f", {})
    before = descriptors()
    numbers = []
    for source in ("await double(1)", "await asyncio.sleep(1)") * 10:
        with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
            program.start()
            numbers.append(_pid(program._child.pidfd))
        program.close()
    _await(lambda: not any(Path(f"/proc/{number}").exists() for number in numbers))
    # Each of the three that wait for the next call has four.
    _await(lambda: descriptors() <= before + 3 * 4)


def test_forgotten_program_is_killed(sandbox: Sandbox) -> None:
    program = sandbox.program("await double(1)", FUNCTIONS, seed="s", now=NOW)
    program.start()
    child = os.dup(program._child.pidfd)
    del program
    assert select.select([child], [], [], 5)[0]
    os.close(child)


def test_program_whose_process_is_killed_may_be_repeated(sandbox: Sandbox) -> None:
    for kill_first in (True, False):
        source = "await double(1)\nwhile True: pass"
        with sandbox.program(source, FUNCTIONS, seed="s", now=NOW) as program:
            program.start()
            child = program._child
            if kill_first:
                child.kill()
                child.has_ended(5)
            else:
                threading.Timer(0.1, child.kill).start()
            event = program.resume([Reply(1, 2)])
        assert isinstance(event, Failed)
        assert event.cause == "unavailable"


def test_program_ends_with_its_zygote() -> None:
    with Sandbox() as sandbox, sandbox.program("await double(1)", FUNCTIONS, seed="s", now=NOW) as program:
        program.start()
        child, server = program._child, sandbox._server
        assert isinstance(server, ForkServer)
        os.kill(server.pid, signal.SIGKILL)
        assert child.has_ended(5)
        event = program.resume([Reply(1, 2)])
        assert isinstance(event, Failed)
        assert event.cause == "unavailable"


def test_time_limit_of_the_caller_ends_the_program(sandbox: Sandbox) -> None:
    class Struck(Exception):
        pass

    def strike(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with sandbox.program("while True: pass", FUNCTIONS, seed="s", now=NOW) as program:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Struck):
                program.start()
            child = os.dup(program._child.pidfd)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert select.select([child], [], [], 5)[0]
    os.close(child)


def test_programs_run_side_by_side(sandbox: Sandbox) -> None:
    programs = [sandbox.program("return await double(1)", FUNCTIONS, seed="s", now=NOW) for _ in range(6)]
    for program in programs:
        assert isinstance(program.start(), Calls)
    assert sandbox.call("def f(): return 1", "f", {}).value == 1
    for number, program in reversed(list(enumerate(programs))):
        assert program.resume([Reply(1, number)]) == Finished(number, "")


def test_insecure_development_runs_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_SANDBOX", "insecure-development")
    monkeypatch.setattr("shared.sandbox.levels.unsupported", lambda: "a system of tomorrow")
    with Sandbox() as sandbox:
        assert sandbox.level == "insecure"
        assert play(sandbox, "import random\nreturn [await double(4), random.random()]") == play(
            sandbox, "import random\nreturn [await double(4), random.random()]"
        )
        assert failure_of(sandbox, "1 / 0").fault.line == 1


def _pid(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def _await(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
