"""The function store: versions by hash, contracts on both sides, and nothing run outside the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from shared.definitions.function_store import FunctionStore
from shared.definitions.store import DefinitionStore
from shared.errors import FunctionError, InvalidDefinition, InvalidInput, InvalidOutput, NotFound, TooLarge
from shared.functions.runner import run_function
from tests.support.lifecycle_driver import LifecycleDriver

NUMBER = {"type": "object", "required": ["x"], "properties": {"x": {"type": "number"}}, "additionalProperties": False}
DOUBLE = "def double(x):\n    return 2 * x\n"


@pytest.fixture
def store(database: Engine) -> Iterator[FunctionStore]:
    with Session(database) as session:
        yield FunctionStore(session)


def store_function(store: FunctionStore, name: str, code: str, **settings: Any) -> Any:
    return asyncio.run(store.store_function(name=name, code=code, **settings))


def execute(store: FunctionStore, name: str, arguments: Any = None, **options: Any) -> Any:
    return asyncio.run(store.execute_function(name, {} if arguments is None else arguments, **options))


def define(store: FunctionStore, name: str, body: str, **settings: Any) -> None:
    store_function(store, name, f"def {name}({settings.pop('takes', '')}):\n    {body}\n", **settings)


def test_slow_checks_do_not_cost_the_transaction(store: FunctionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL would end it after a lease."""
    allowed: list[str] = []
    applied = DefinitionStore.apply

    def note(self: DefinitionStore, *arguments: Any) -> Any:
        allowed.append(self.session.scalar(text("SHOW idle_in_transaction_session_timeout")))
        return applied(self, *arguments)

    monkeypatch.setattr(DefinitionStore, "apply", note)
    define(store, "one", "return 1")
    assert allowed == ["1min"]


# ---------------------------------------------------------------------------------------------- as documented


async def documented(session: Session) -> Any:
    store = FunctionStore(session)
    await store.store_function(
        name="search_docs",
        code="""async def search_docs(query: str) -> List[str]: ...""",
        description="Searches",
        input_schema={"type": "object", "properties": {"query": {"type": "string"}}},
        output_schema={"type": ["array", "null"]},
        is_async=True,
    )
    return await store.execute_function("search_docs", {"query": "..."})


def test_documented_example_works_without_import_of_list(database: Engine) -> None:
    with Session(database) as session:
        assert asyncio.run(documented(session)) is None


@pytest.mark.parametrize("annotation", ["List[str]", "1/0", "print('evaluated')", "nowhere.Nothing", "'a string'"])
def test_annotations_are_never_evaluated(store: FunctionStore, annotation: str) -> None:
    code = f"async def f(x: {annotation} = 1) -> {annotation}:\n    y: {annotation} = x\n    return [y]\n"
    store_function(store, "f", code, is_async=True)
    value, outcome = run_function(store.get("f"), {}, engine=store.engine)
    assert (value, outcome.stdout) == ([1], "")


def test_an_async_function_is_awaited(store: FunctionStore) -> None:
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x\n"
    store_function(store, "f", code, is_async=True, allowed_imports=["asyncio"])
    assert execute(store, "f", {"x": "ü"}) == "ü"


# -------------------------------------------------------------------------------------------------- versions


def test_a_version_is_named_by_its_hash(store: FunctionStore) -> None:
    first = store_function(store, "double", DOUBLE)
    same = store_function(store, "double", DOUBLE)
    better = store_function(store, "double", DOUBLE + "# better\n")
    assert (first.number, same.number, better.number) == (1, 1, 2)
    assert first.checksum == same.checksum != better.checksum
    assert len(first.checksum) == 64
    assert execute(store, "double", {"x": 2}, version=1) == 4
    assert store_function(store, "double", DOUBLE).number == 1
    assert store.get("double").number == 1


@pytest.mark.parametrize(
    "change",
    [{"description": "new"}, {"input_schema": NUMBER}, {"output_schema": {}}, {"timeout": 5.0}, {"version": "2"}],
)
def test_a_contract_is_part_of_the_version(store: FunctionStore, change: dict[str, Any]) -> None:
    assert store_function(store, "double", DOUBLE).number == 1
    assert store_function(store, "double", DOUBLE, **change).number == 2


def test_concurrent_stores_on_one_session(store: FunctionStore) -> None:
    async def all_at_once() -> list[int]:
        stored = await asyncio.gather(*[store.store_function(f"f{n}", f"def f{n}(): return {n}") for n in range(4)])
        results = await asyncio.gather(*[store.execute_function(f"f{n}", {}) for n in range(4)])
        assert [function.number for function in stored] == [1] * 4
        return results

    assert asyncio.run(all_at_once()) == [0, 1, 2, 3]


def test_the_callers_own_work_is_neither_committed_nor_held(database: Engine) -> None:
    with Session(database) as session:
        session.execute(text("INSERT INTO conversations (id) VALUES ('mine')"))
        store_function(FunctionStore(session), "double", DOUBLE)
        session.rollback()
        assert session.scalar(text("SELECT count(*) FROM conversations")) == 0
        assert session.scalar(text("SELECT count(*) FROM functions")) == 1


def test_looking_up_leaves_no_transaction_open(database: Engine) -> None:
    with Session(database) as session:
        store = FunctionStore(session)
        store_function(store, "double", DOUBLE)
        execute(store, "double", {"x": 1})
        assert not session.in_transaction()


@pytest.mark.parametrize("version", [0, 2, -1, 1 << 31, 10**40, True, "1", 1.0])
def test_a_version_that_is_not_there_is_named(store: FunctionStore, version: Any) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(NotFound, match="The function 'double' has no version"):
        execute(store, "double", {"x": 1}, version=version)


@pytest.mark.parametrize("name", ["nothing", "", "x" * 100_000, "ü"])
def test_a_function_that_is_not_there_is_named(store: FunctionStore, name: str) -> None:
    with pytest.raises(NotFound, match="There is no function named"):
        execute(store, name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_the_database_cannot_hold_is_refused(store: FunctionStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"):
        execute(store, name)


# ------------------------------------------------------------------------------------------------ bad sources


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n    pass\n", r"function 'f' cannot be stored: line 1, column 7: syntax error"),
        ("def f():\n    return (\n", "line 2, column 12: syntax error"),
        ("def f():\npass\n", "line 2, column 1: syntax error"),
        ("x = 1\n", "cannot be stored: the source defines no function 'f' at its top level"),
        ("", "defines no function 'f'"),
        ("class A:\n    def f(self): pass\n", "defines no function 'f'"),
        ("import os\ndef f(): pass\n", "line 1, column 1: "),
        ("def f():\n    import subprocess\n", "line 2, column 5: "),
        ("def f():\n    return eval('1')\n", "line 2, column 12: "),
        ("def f():\n    return f.__globals__\n", "line 2, column 12: the name '__globals__'"),
        ("def f(a, /): pass\n", "line 1, column 7: the parameter 'a' is positional-only"),
        ("def f():\n" + "    return " + "(" * 500 + ")" * 500, "cannot be stored"),
        ("def f(): return 'x\0'", "cannot be stored"),
        ("# " + "x" * 300_000 + "\ndef f(): pass", "cannot be stored"),
    ],
)
def test_a_source_that_cannot_run_is_refused_with_the_place(
    store: FunctionStore, database: Engine, code: str, message: str
) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        store_function(store, "f", code, input_schema={"properties": {}})
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM functions")) == 0


def test_all_problems_of_a_source_are_listed(store: FunctionStore) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        store_function(store, "f", "import os\nimport socket\ndef f():\n    return open('x')\n")
    assert [(p["line"], p["column"]) for p in caught.value.detail["problems"]] == [(1, 1), (2, 1), (4, 12)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_schema": {"type": "nonsense"}}, r"input_schema is not a valid JSON Schema.*\$.type"),
        ({"output_schema": {"$ref": "https://example.com/x"}}, "points to nothing inside the schema"),
        ({"input_schema": {"properties": {"x": {}, "y": {}}}}, "'double' takes no such argument"),
        ({"allowed_imports": ["subprocess"]}, "config.allowed_imports: subprocess cannot be imported"),
        ({"allowed_imports": ["no such"]}, "is not the name of a module"),
        ({"timeout": -1}, "config.timeout"),
        ({"timeout": float("nan")}, "config.timeout"),
        ({"memory_limit": "128"}, "config.memory_limit: Input must be a valid integer"),
        ({"memory_limit": True}, "config.memory_limit"),
        ({"is_async": 1}, "config.is_async"),
        ({"colour": "red"}, "config.colour: Extra inputs"),
        ({"config": [1]}, "config"),
        ({"config": "x"}, "config"),
        ({"description": 5}, "description"),
        ({"entrypoint": "not a name"}, "entrypoint"),
    ],
)
def test_a_wrong_setting_is_named(store: FunctionStore, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        store_function(store, "double", DOUBLE, **settings)


@pytest.mark.parametrize("name", ["", "1a", "a b", "ü", "x" * 101, "a\n", None, 5])
def test_a_wrong_name_is_refused(store: FunctionStore, name: Any) -> None:
    with pytest.raises(InvalidDefinition, match="name: "):
        store_function(store, name, DOUBLE, entrypoint="double")


@pytest.mark.parametrize("code", [None, 5, b"def f(): pass", ["def f(): pass"]])
def test_a_source_is_text(store: FunctionStore, code: Any) -> None:
    with pytest.raises(InvalidDefinition, match="code: Input must be a valid string"):
        store_function(store, "f", code)


# ------------------------------------------------------------------------------------------------- contracts


def test_invalid_input_is_refused_with_all_violations(store: FunctionStore) -> None:
    store_function(store, "double", DOUBLE, input_schema=NUMBER)
    with pytest.raises(InvalidInput) as caught:
        execute(store, "double", {"y": 1, "z": 2})
    assert {fault["path"] for fault in caught.value.detail["violations"]} == {"$"}
    assert "'x' is a required property" in caught.value.message
    assert "'y', 'z' were unexpected" in caught.value.message
    assert "(version 1)" in caught.value.message


def test_an_output_that_breaks_the_schema_is_refused(store: FunctionStore) -> None:
    store_function(store, "double", DOUBLE, output_schema={"type": "string"})
    with pytest.raises(
        InvalidOutput, match=r"The output of function 'double' \(version 1\).*4 is not of type 'string'"
    ):
        execute(store, "double", {"x": 2})


@pytest.mark.parametrize("arguments", [[1], "x", 5, True])
def test_arguments_are_an_object(store: FunctionStore, arguments: Any) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(InvalidInput, match="must be an object, not"):
        execute(store, "double", arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "\0", "\ud800", {1: 2}, object(), {1}, b"x"])
def test_arguments_are_strict_json(store: FunctionStore, value: Any) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(InvalidInput, match="cannot be stored"):
        execute(store, "double", {"x": value})


def test_arguments_have_a_size(store: FunctionStore) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(TooLarge):
        execute(store, "double", {"x": "x" * (20 << 20)})


def test_unexpected_argument_is_an_error_of_the_function(store: FunctionStore) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(FunctionError, match="unexpected keyword argument 'y'"):
        execute(store, "double", {"x": 1, "y": 2})


@pytest.mark.parametrize("value", ["float('nan')", "{1, 2}", "b'x'", "object()", "'\\0'", "10**400", "{(1, 2): 3}"])
def test_a_value_that_is_not_json_is_refused(store: FunctionStore, value: str) -> None:
    define(store, "f", f"return {value}")
    with pytest.raises((FunctionError, InvalidInput, InvalidOutput)):
        execute(store, "f")


# ------------------------------------------------------------------------------------------- in the sandbox


def test_an_exception_names_the_function_and_its_version(store: FunctionStore) -> None:
    define(store, "f", "raise ValueError('no such thing')")
    with pytest.raises(FunctionError, match=r"Function 'f' \(version 1\): .*ValueError.*no such thing") as caught:
        execute(store, "f")
    assert (caught.value.detail["reason"], caught.value.retryable) == ("exception", False)


def test_a_function_ends_at_its_timeout(store: FunctionStore) -> None:
    define(store, "f", "while True: pass", timeout=0.5)
    with pytest.raises(FunctionError) as caught:
        execute(store, "f")
    assert caught.value.detail["reason"] == "timeout"


def test_a_function_ends_at_its_memory_limit(store: FunctionStore) -> None:
    define(store, "f", "return len(bytearray(512 << 20))", memory_limit=64)
    with pytest.raises(FunctionError) as caught:
        execute(store, "f")
    assert caught.value.detail["reason"] == "memory_limit"


def test_printed_output_is_separate_from_the_value(store: FunctionStore) -> None:
    define(store, "f", "print('hello', 'wörld'); return 1")
    value, outcome = run_function(store.get("f"), {}, engine=store.engine)
    assert (value, outcome.stdout) == (1, "hello wörld\n")


def test_context_is_passed_to_functions_that_require_it(store: FunctionStore) -> None:
    define(store, "f", "return context['task_id']", takes="context", requires_context=True)
    define(store, "g", "return context", takes="context=None")
    assert execute(store, "f", context={"task_id": "7"}) == "7"
    assert execute(store, "g", context={"task_id": "7"}) is None


def test_allowed_imports_belong_to_the_version(store: FunctionStore) -> None:
    define(store, "f", "import statistics; return statistics.mean([1, 3])", allowed_imports=["statistics"])
    assert execute(store, "f") == 2
    with pytest.raises(InvalidDefinition, match="statistics"):
        define(store, "g", "import statistics; return 1")


# --------------------------------------------------------------------------------------- refused to be run


def tamper(database: Engine, change: str) -> None:
    driver = LifecycleDriver(database)
    driver.sql("ALTER TABLE function_versions DISABLE TRIGGER function_versions_immutable")
    driver.sql(f"UPDATE function_versions SET {change}")
    driver.sql("ALTER TABLE function_versions ENABLE TRIGGER function_versions_immutable")


@pytest.mark.parametrize(
    "change",
    [
        """definition = jsonb_set(definition, '{code}', '"def double(x): return 3"')""",
        """definition = jsonb_set(definition, '{entrypoint}', '"other"')""",
        """definition = jsonb_set(definition, '{config,safe_mode}', 'false')""",
        """definition = jsonb_set(definition, '{input_schema}', '{"type": "nonsense"}')""",
        "definition = definition - 'code'",
        """definition = '{}'""",
        """definition = '[]'""",
        """definition = '"x"'""",
        "checksum = repeat('0', 64)",
        "name = 'other'",
    ],
)
def test_changed_row_is_not_run(store: FunctionStore, database: Engine, change: str) -> None:
    store_function(store, "double", DOUBLE)
    tamper(database, change)
    with pytest.raises(FunctionError, match="does not match its stored SHA-256") as caught:
        execute(store, "double", {"x": 1})
    assert caught.value.detail["reason"] == "hash_mismatch"


def test_changed_row_is_replaced_by_a_new_version(store: FunctionStore, database: Engine) -> None:
    store_function(store, "double", DOUBLE)
    tamper(database, """definition = jsonb_set(definition, '{code}', '"def double(x): return 3"')""")
    with pytest.raises(FunctionError, match="another description"):
        store_function(store, "double", DOUBLE)
    assert store_function(store, "double", DOUBLE, description="Doubles").number == 2
    assert execute(store, "double", {"x": 1}) == 2


def test_a_quarantined_version_is_not_run(store: FunctionStore, database: Engine) -> None:
    store_function(store, "double", DOUBLE)
    LifecycleDriver(database).sql("UPDATE function_versions SET status = 'quarantined'")
    with pytest.raises(FunctionError, match=r"'double' \(version 1\) is quarantined") as caught:
        execute(store, "double", {"x": 1})
    assert caught.value.detail["reason"] == "quarantined"


@pytest.mark.parametrize("status", ["bogus", "", None, "rolled_back"])
def test_there_are_three_statuses(store: FunctionStore, status: Any) -> None:
    store_function(store, "double", DOUBLE)
    with pytest.raises(InvalidInput, match="must be one of active, deprecated, quarantined"):
        store.set_status("double", status)


def test_storing_the_same_code_again_does_not_end_a_quarantine(store: FunctionStore, database: Engine) -> None:
    store_function(store, "double", DOUBLE)
    LifecycleDriver(database).sql("UPDATE function_versions SET status = 'quarantined'")
    assert store_function(store, "double", DOUBLE).status == "quarantined"


def test_namespaces_do_not_see_each_other(database: Engine) -> None:
    with Session(database) as session:
        store_function(FunctionStore(session, "mine"), "double", DOUBLE)
        with pytest.raises(NotFound):
            execute(FunctionStore(session), "double", {"x": 1})
