"""Definitions: applied from files, stored as versions, exported to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from orchestrator.cli import app
from shared.contracts.documents import AgentDefinition, FunctionDefinition, ToolDefinition, parse_definition
from shared.contracts.visible_text import visible
from shared.definitions.apply import export_definitions, store_definitions
from shared.definitions.files import dump, load
from shared.definitions.function_store import FunctionStore
from shared.definitions.store import Change, DefinitionStore
from shared.errors import FileFault, InvalidDefinition, NotFound
from shared.registry import AgentRegistry
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition, function_definition
from tests.support.lifecycle_driver import concurrently

TWICE = {"kind": "tool", "name": "twice", "type": "function", "function": "double"}
DOUBLER = {"kind": "agent", "name": "Doubler", "type": "function", "tool": "twice"}
ASKER = {"kind": "agent", "name": "Asker", "tools": ["twice", "noop"]}
BETTER = "def double(x):\n    return x + x\n"


def brief(changes: list[Change]) -> list[str]:
    """`changed tool twice 2 (function double)`."""
    return [f"{c.action} {c.kind} {c.name} {c.version}" + (f" ({c.because})" if c.because else "") for c in changes]


def count(database: Engine, table: str) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")))


def apply(database: Engine, *definitions: dict[str, Any], dry_run: bool = False) -> list[str]:
    """As `minion apply` does it, code checks included."""
    with Session(database) as session:
        return brief(store_definitions(session, [parse_definition(d) for d in definitions], dry_run=dry_run))


# -------------------------------------------------------------------------------------------------- warnings

ROUTER = {"kind": "agent", "name": "Router", "type": "function", "relations": [{"agent": "Asker"}]}


def test_a_model_that_is_not_known_is_a_warning(define: Define) -> None:
    asker = {"kind": "agent", "name": "Asker", "model": "gpt-4o"}
    router = {**ROUTER, "config": {"chain_strategy": "router", "router_model": "claude-sonnet-9"}}
    for _ in ("created", "unchanged"):
        first, second = define(asker, router)
        assert (
            "agent 'Asker', model: no configured provider and no price list knows the model 'gpt-4o'"
            in (first.warnings[0])
        )
        assert "agent 'Router', config.router_model:" in second.warnings[0]


@pytest.mark.parametrize("model", [None, "auto", "offline", "claude-sonnet-5-5", "claude-opus-4-5-20251101"])
def test_a_model_that_is_known_is_no_warning(define: Define, model: str | None) -> None:
    [change] = define({"kind": "agent", "name": "Asker", "model": model})
    assert change.warnings == ()


def test_strict_turns_warnings_into_refusals(database: Engine) -> None:
    unknown = parse_definition({"kind": "agent", "name": "Asker", "model": "gpt-4o"})
    with Session(database) as session:
        with pytest.raises(InvalidDefinition, match="knows the model 'gpt-4o'"):
            store_definitions(session, [unknown], strict=True)
        with pytest.raises(InvalidDefinition, match="knows the model 'gpt-4o'"):
            AgentRegistry(session).register_agent(unknown, strict=True)
        assert count(database, "agents") == 0
        assert "knows the model 'gpt-4o'" in AgentRegistry(session).register_agent(unknown).warnings[0]


def test_apply_prints_warnings(database: Engine, tmp_path: Path) -> None:
    (tmp_path / "asker.yaml").write_text("{kind: agent, name: Asker, model: gpt-4o}")
    command = ["apply", str(tmp_path), "--dry-run"]
    shown = CliRunner().invoke(app, command).output
    assert "warning: agent 'Asker', model:" in " ".join(shown.split())
    [change] = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert "'gpt-4o'" in change["warnings"][0]
    refused = CliRunner().invoke(app, [*command, "--strict"]).exception
    assert isinstance(refused, InvalidDefinition)
    assert "'gpt-4o'" in refused.message


# -------------------------------------------------------------------------------------------------- versions


def test_new_definitions_are_created_known_ones_unchanged(define: Define) -> None:
    everything = [ASKER, DOUBLER, TWICE, NOOP, function_definition()]
    created = ["created function double 1", "created tool twice 1", "created tool noop 1"]
    assert brief(define(*everything)) == [*created, "created agent Asker 1", "created agent Doubler 1"]
    assert brief(define(*everything)) == [line.replace("created", "unchanged") for line in brief(define(*everything))]
    assert all(change.action == "unchanged" for change in define(*everything))


@pytest.mark.parametrize(
    "change",
    [
        {"description": "new"},
        {"input_schema": {"type": "object"}},
        {"output_schema": {}},
        {"config": {"capabilities": ["work"], "max_attempts": 4}},
        {"config": {"capabilities": ["other"]}},
    ],
)
def test_every_change_of_an_agent_is_a_new_version(define: Define, change: dict[str, Any]) -> None:
    define(NOOP, agent_definition("A"))
    assert brief(define(agent_definition("A") | change)) == ["changed agent A 2"]
    assert brief(define(agent_definition("A") | change)) == ["unchanged agent A 2"]
    assert brief(define(agent_definition("A"))) == ["changed agent A 1"]


def test_number_kind_and_field_order_make_no_new_version(define: Define) -> None:
    schema = {"type": "object", "properties": {"a": {"minimum": 1, "maximum": 2.0}}}
    same = {"type": "object", "properties": {"a": {"minimum": 1.0, "maximum": 2}}}
    define(NOOP, agent_definition("A", input_schema=schema))
    turned = dict(reversed(agent_definition("A", input_schema=same).items()))
    assert brief(define(turned)) == ["unchanged agent A 1"]


def test_numbers_normalised_by_database_make_no_new_version(define: Define, database: Engine) -> None:
    schema = {"enum": [1e16, 1e22, 1e23, 1e-7, 0.1, -0.0, 5e-324, 123456789012345678901234567890, 1.5e300 / 1e10]}
    define(NOOP, agent_definition("A", input_schema=schema), function_definition(input_schema=schema))
    with Session(database) as session:
        exported = export_definitions(session)
        assert {c.action for c in DefinitionStore(session, lambda f: None).apply(exported)} == {"unchanged"}
        FunctionStore(session).get("double")


def test_changed_function_gives_followers_new_versions(define: Define) -> None:
    define(
        NOOP,
        TWICE,
        DOUBLER,
        ASKER,
        function_definition(),
        {**DOUBLER, "name": "Direct", "tool": None, "function": "double"},
    )
    assert brief(define(function_definition(code=BETTER))) == [
        "changed function double 2",
        "changed tool twice 2 (function double)",
        "changed agent Asker 2 (tool twice)",
        "changed agent Direct 2 (function double)",
        "changed agent Doubler 2 (tool twice)",
    ]
    assert brief(define(function_definition()))[-1] == "changed agent Doubler 1 (tool twice)"


def test_followers_applied_too_are_reported_once(define: Define) -> None:
    define(TWICE, DOUBLER, function_definition())
    assert brief(define(DOUBLER, TWICE, function_definition(code=BETTER))) == [
        "changed function double 2",
        "changed tool twice 2",
        "changed agent Doubler 2",
    ]


def test_pinned_references_stay(define: Define, database: Engine) -> None:
    define(
        function_definition(),
        {**TWICE, "function": "double@1"},
        {**DOUBLER, "tool": "twice@1"},
        {**ASKER, "tools": ["twice@1"]},
    )
    assert brief(define(function_definition(code=BETTER))) == ["changed function double 2"]
    with database.connect() as connection:
        pinned = text("SELECT f.number FROM tool_versions t JOIN function_versions f ON f.id = t.function_version_id")
        assert list(connection.scalars(pinned)) == [1]


@pytest.mark.parametrize("reference", ["double@2", "double@999999999", "nothing", "nothing@1"])
def test_unknown_references_are_refused(define: Define, database: Engine, reference: str) -> None:
    with pytest.raises(InvalidDefinition, match="tool 'twice', function: "):
        define(function_definition(), {**TWICE, "function": reference})
    assert count(database, "functions") == 0


@pytest.mark.parametrize(
    "reference", ["double@", "double@0", "double@-1", "double@1.5", "double@1e3", "double@9999999999", "@1", "a b"]
)
def test_references_are_names_with_or_without_a_number(reference: str) -> None:
    with pytest.raises(InvalidDefinition, match="function: "):
        parse_definition({**TWICE, "function": reference})


# ------------------------------------------------------------------------------------------------ all or none


def test_dry_run_reports_and_stores_nothing(database: Engine) -> None:
    assert apply(database, function_definition(), TWICE, dry_run=True) == [
        "created function double 1",
        "created tool twice 1",
    ]
    assert count(database, "functions") == 0
    assert apply(database, function_definition(), TWICE) == ["created function double 1", "created tool twice 1"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (function_definition("bad", "def bad(:\n"), r"function 'bad' cannot be stored: line 1, column \d+: "),
        (function_definition("bad", "def other(): pass\n"), "defines no function 'bad'"),
        (function_definition("bad", "import os\ndef bad(): pass\n"), "line 1, column 1"),
        (function_definition("bad", config={"allowed_imports": ["subprocess"]}), "subprocess cannot be imported"),
        ({**TWICE, "name": "bad", "function": "nothing"}, "no function named 'nothing'"),
        ({**DOUBLER, "name": "Bad", "tool": "nothing"}, "no tool named 'nothing'"),
        ({**DOUBLER, "name": "Bad", "tool": None, "relations": [{"agent": "Nobody"}]}, "no agent named 'Nobody'"),
        ({"kind": "tool", "name": "ask", "type": "agent", "agent": "Nobody"}, "no agent named 'Nobody'"),
    ],
)
def test_one_error_stores_nothing(database: Engine, broken: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        apply(database, function_definition(), TWICE, DOUBLER, broken)
    for table in ("agents", "tools", "functions", "agent_versions", "tool_versions", "function_versions"):
        assert count(database, table) == 0


def test_duplicate_definition_is_refused(define: Define) -> None:
    with pytest.raises(InvalidDefinition, match="The agent 'A' is defined twice"):
        define(NOOP, agent_definition("A"), agent_definition("A"))


def test_an_agent_and_a_tool_may_share_a_name(define: Define) -> None:
    assert len(define(NOOP, agent_definition("noop"))) == 2


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string"}, 'its `type` is "string"'),
        ({"type": ["object", "null"]}, 'its `type` is ["object", "null"]'),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, "it has `$ref` at its top level"),
        ({"type": "object", "oneOf": [{"required": ["a"]}]}, "it has `oneOf` at its top level"),
        ({"anyOf": [{"required": ["a"]}]}, "it has `anyOf` at its top level"),
        ({"type": "object", "allOf": [{}]}, "it has `allOf` at its top level"),
        ({"properties": {"first name": {}}}, "its property 'first name'"),
    ],
)
def test_tools_unusable_by_models_are_refused(define: Define, schema: dict[str, Any], why: str) -> None:
    """The API refuses every turn of an agent with such a tool; an agent that runs the tool by itself is free to."""
    tool, stored = {**NOOP, "input_schema": schema}, function_definition(input_schema=schema)
    alone = {"kind": "agent", "name": "Alone", "type": "function", "tool": "noop"}
    define(tool, alone, stored, TWICE)
    for name in ("noop", "twice"):
        with pytest.raises(InvalidDefinition, match=r"agent 'Asker', tools.0: ") as refused:
            define({**ASKER, "tools": [name]})
        assert why in refused.value.message
    define(function_definition(), {**NOOP, "input_schema": {"properties": {"a": {}}}}, ASKER)
    with pytest.raises(InvalidDefinition, match=r"agent 'Asker', tools.0: "):
        define(stored)


def test_two_applies_at_once_make_each_version_once(database: Engine) -> None:
    rounds = concurrently(*[lambda: apply(database, function_definition(), TWICE, DOUBLER)] * 4)
    assert sum(line.startswith("created") for lines in rounds for line in lines) == 3
    rounds = concurrently(
        *[lambda n=n: apply(database, function_definition(code=f"def double(x):\n    return {n}\n")) for n in range(4)]
    )
    with database.connect() as connection:
        numbers = list(connection.scalars(text("SELECT number FROM function_versions ORDER BY number")))
        followers = connection.scalar(text("SELECT count(*) FROM agent_versions"))
    assert numbers == [1, 2, 3, 4, 5]
    assert followers == 5


# ---------------------------------------------------------------------------------------------------- circles

ASK_A = {"kind": "tool", "name": "ask", "type": "agent", "agent": "A"}


def chain(name: str, *agents: str) -> dict[str, Any]:
    return {"kind": "agent", "name": name, "type": "function", "relations": [{"agent": a} for a in agents]}


@pytest.mark.parametrize(
    ("definitions", "circle"),
    [
        ([chain("A", "A")], "A -> A"),
        ([chain("A", "B"), chain("B", "A")], "A -> B -> A"),
        ([chain("A", "B"), chain("B", "C", "D"), chain("C", "E"), chain("D", "E"), chain("E", "A")], "A -> B -> "),
        ([ASK_A, {"kind": "agent", "name": "A", "tools": ["ask"]}], "A -> A"),
        ([ASK_A, {"kind": "agent", "name": "A", "type": "function", "tool": "ask"}], "A -> A"),
        ([ASK_A, {"kind": "agent", "name": "A", "tools": ["ask@1"]}], "A -> A"),
        ([ASK_A, chain("A", "B"), {"kind": "agent", "name": "B", "tools": ["ask"]}], "A -> B -> A"),
    ],
)
def test_agents_that_call_each_other_in_a_circle_are_refused(
    define: Define, database: Engine, definitions: list[dict[str, Any]], circle: str
) -> None:
    with pytest.raises(InvalidDefinition, match=f"form a circle: {circle}"):
        define(*definitions)
    assert count(database, "agents") == 0


def test_circle_through_stored_definitions_is_refused(define: Define) -> None:
    define(NOOP, agent_definition("C"), chain("B", "C"), chain("A", "B", "C"))
    with pytest.raises(InvalidDefinition, match="form a circle: A -> C -> A"):
        define(chain("C", "A"))


def test_a_circle_through_a_tool_that_changes_is_refused(define: Define) -> None:
    define(NOOP, agent_definition("B"), {**ASK_A, "agent": "B"}, {"kind": "agent", "name": "A", "tools": ["ask"]})
    with pytest.raises(InvalidDefinition, match="A -> A"):
        define(ASK_A)


def test_pinned_tool_calls_its_pinned_agent(define: Define) -> None:
    define(NOOP, agent_definition("B"), {**ASK_A, "agent": "B"}, {"kind": "agent", "name": "A", "tools": ["ask@1"]})
    define(ASK_A)


def test_a_rollback_into_a_circle_is_refused(define: Define, database: Engine) -> None:
    define(NOOP, agent_definition("B"), chain("A", "B"))
    define(agent_definition("A"))
    define(chain("B", "A"))
    with Session(database) as session:
        registry = AgentRegistry(session)
        with pytest.raises(InvalidDefinition, match="circle"):
            registry.roll_back("A", 1)
        assert registry.get_agent("A").version == 2


# --------------------------------------------------------------------------------------------------- rollback


@pytest.fixture
def registry(database: Engine, define: Define) -> AgentRegistry:
    """Agent A at version 1 again, after version 2."""
    define(function_definition(), TWICE, {**DOUBLER, "name": "A", "description": "old"})
    define({**DOUBLER, "name": "A", "description": "new"})
    with Session(database) as session:
        registry = AgentRegistry(session)
    registry.roll_back("A", 1, "it was better")
    return registry


def standing(registry: AgentRegistry) -> tuple[int, str, str]:
    agent = registry.get_agent("A")
    return agent.version, agent.status, agent.description


def test_rollback_holds_when_newest_text_is_reapplied(registry: AgentRegistry, define: Define) -> None:
    assert brief(define({**DOUBLER, "name": "A", "description": "new"})) == ["unchanged agent A 2"]
    assert standing(registry) == (1, "rolled_back", "old")


def test_a_rollback_is_held_when_a_function_changes(registry: AgentRegistry, define: Define) -> None:
    assert brief(define(function_definition(code=BETTER))) == [
        "changed function double 2",
        "changed tool twice 2 (function double)",
    ]
    assert brief(define({**DOUBLER, "name": "A", "description": "new"}, TWICE)) == [
        "unchanged tool twice 2",
        "unchanged agent A 2",
    ]
    assert standing(registry) == (1, "rolled_back", "old")


def test_a_new_text_ends_a_rollback(registry: AgentRegistry, define: Define) -> None:
    assert brief(define({**DOUBLER, "name": "A", "description": "newest"})) == ["changed agent A 3"]
    assert standing(registry) == (3, "active", "newest")


def test_rollback_to_newest_version_ends_the_rollback(registry: AgentRegistry) -> None:
    registry.roll_back("A", 2)
    assert standing(registry) == (2, "active", "new")


def test_disabled_agent_stays_disabled_when_rolled_back(registry: AgentRegistry, define: Define) -> None:
    registry.roll_back("A", 2)
    registry.set_status("A", "disabled", "it answers nonsense")
    registry.roll_back("A", 1, "it was better")
    assert standing(registry) == (1, "disabled", "old")
    registry.set_status("A", "active")
    assert standing(registry) == (1, "rolled_back", "old")
    assert brief(define({**DOUBLER, "name": "A", "description": "new"})) == ["unchanged agent A 2"]
    registry.set_status("A", "disabled")
    registry.roll_back("A", 2)
    registry.set_status("A", "active")
    assert standing(registry) == (2, "active", "new")


@pytest.mark.parametrize("version", [0, -1, 3, 1 << 31, 10**30, True, 1.0, "1", None])
def test_rollback_to_unknown_version_is_refused(registry: AgentRegistry, version: Any) -> None:
    with pytest.raises(NotFound, match="has no version"):
        registry.roll_back("A", version)
    assert standing(registry) == (1, "rolled_back", "old")


# ------------------------------------------------------------------------------------------- out and in again

ODD = "Ünïcødé 🙂 \t tab, trailing space \nline: two\n\n  - 'a' \"b\" # no comment\r\nCRLF\x85\u2028\ufeff{%}\x7f"
EVERYTHING: list[dict[str, Any]] = [
    function_definition(description=ODD, input_schema={"enum": ["no", "1e3", "~", "2026-01-01", 1e16, None]}),
    function_definition("code", f'def code(x):\n\tif x:\n\t\treturn """{"  " * 3}\n\n"""\n    \n\n\n# {ODD!r}\n'),
    function_definition(
        "no_newline", "def no_newline(): return 'ü'", entrypoint="no_newline", config={"version": "1.0"}
    ),
    NOOP,
    {**NOOP, "name": "odd", "effect": "unsafe", "description": "  leading and trailing  \n"},
    {**NOOP, "name": "yes", "description": "null"},
    TWICE,
    {**TWICE, "name": "pinned", "function": "double@1", "output_schema": {"$ref": "#/$defs/a", "$defs": {"a": {}}}},
    ASKER | {"system_prompt": ODD * 3, "model": "claude-sonnet-4-5", "config": {"temperature": 0.25}},
    DOUBLER | {"config": {"soft_time_limit": 100, "time_limit": 330, "capabilities": ["on", "123"]}},
    chain("Chain.of-many", "Doubler", "Asker") | {"config": {"chain_strategy": "parallel", "soft_time_limit": 600}},
    {"kind": "tool", "name": "ask", "type": "agent", "agent": "Doubler", "effect": "idempotent"},
    {"kind": "agent", "name": "Each", "type": "function", "relations": [{"agent": "Doubler", "for_each": "items"}]},
]


def test_an_export_applies_again_unchanged(define: Define, database: Engine, tmp_path: Path) -> None:
    define(*EVERYTHING)
    with Session(database) as session:
        exported = export_definitions(session)
        assert len(exported) == len(EVERYTHING)
        for definition in exported:
            (tmp_path / f"{definition.kind}-{definition.name}.yaml").write_text(dump(definition), encoding="utf-8")
        again = load(tmp_path)
        assert sorted(again, key=repr) == sorted(exported, key=repr)
        assert {change.action for change in DefinitionStore(session, lambda f: None).apply(again)} == {"unchanged"}


@pytest.mark.parametrize("folder", ["taken", "taken/below"])
def test_an_export_that_cannot_be_written_is_refused(
    define: Define, database: Engine, tmp_path: Path, folder: str
) -> None:
    define(*EVERYTHING)
    (tmp_path / "taken").touch()
    done = CliRunner().invoke(app, ["export", str(tmp_path / folder)])
    assert isinstance(done.exception, FileFault)
    assert f"cannot be written to {tmp_path / folder}" in done.exception.message


def test_an_export_in_one_stream_is_the_same(define: Define, database: Engine, tmp_path: Path) -> None:
    define(*EVERYTHING)
    with Session(database) as session:
        exported = export_definitions(session)
    (tmp_path / "all.yaml").write_text("---\n".join(dump(definition) for definition in exported), encoding="utf-8")
    assert load(tmp_path) == exported


def test_an_export_works_in_an_empty_database(define: Define, database: Engine) -> None:
    define(*EVERYTHING)
    with Session(database) as session:
        exported = export_definitions(session)
        tables = "agents, tools, functions"
        session.execute(text(f"TRUNCATE {tables} CASCADE"))
        assert {c.action for c in DefinitionStore(session, lambda f: None).apply(exported)} == {"created"}
        assert export_definitions(session) == exported


texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
        st.sampled_from(" \n\t:-#'\"|>%@`!&*?{}[],\r\x85\u2028\ufeff\u202e\x1b\U000e00410123456789eE.+~yn"),
    ),
    max_size=40,
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(description=texts, code=texts, value=texts, soft=st.integers(1, 500), late=st.integers(1, 500))
def test_every_text_survives_a_file(
    tmp_path: Path, description: str, code: str, value: str, soft: int, late: int
) -> None:
    definitions = [
        FunctionDefinition(
            name="f", code=code, description=description, input_schema={"enum": [value, {value: [value]}]}
        ),
        AgentDefinition(
            name="X",
            system_prompt=description,
            config={"soft_time_limit": soft, "time_limit": soft + late},  # type: ignore[arg-type]
        ),
        ToolDefinition(name="t", type="builtin", builtin=value or "x", description=code),
    ]
    file = tmp_path / "definitions.yaml"
    written = "---\n".join(map(dump, definitions))
    file.write_text(written, encoding="utf-8", newline="")
    assert load(file) == definitions
    assert visible(written) == written


# ------------------------------------------------------------------------------------------------------ files

HEAD = "kind: agent\nname: X\n"


def loaded(folder: Path, content: str | bytes, name: str = "x.yaml") -> list[Any]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(file)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    plain = {"kind": "agent", "name": "X", "description": '🙂\t"', "config": {"max_tokens": 5}}
    expected = [AgentDefinition.model_validate(plain)]
    assert loaded(tmp_path, yaml.safe_dump(plain)) == expected
    assert loaded(tmp_path, json.dumps(plain, indent="\t"), "x.json") == expected
    assert loaded(tmp_path, json.dumps([plain]), "x.json") == expected
    assert loaded(tmp_path, yaml.safe_dump([plain]), "x.yml") == expected
    assert loaded(tmp_path, b"\xef\xbb\xbf" + json.dumps(plain).encode(), "x.json") == expected


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.yaml", "a.json", "below/c.yml"):
        agent_name = name.replace("/", ".")
        (tmp_path / name).write_text(json.dumps({"kind": "agent", "name": agent_name}))
    (tmp_path / "README.md").write_text("not a definition")
    assert [definition.name for definition in load(tmp_path)] == ["a.json", "b.yaml", "below.c.yml"]


def test_code_in_a_separate_file(tmp_path: Path) -> None:
    code = "def f():\n\treturn 'ü'\n"
    (tmp_path / "f.py").write_text(code, encoding="utf-8")
    [definition] = loaded(tmp_path, "kind: function\nname: f\ncode_file: f.py\n")
    assert definition.code == code


def test_plain_yaml_words_are_read_as_in_json(tmp_path: Path) -> None:
    """In YAML 1.1 these are a boolean, a date, 90, 8, a number with separators, and a text."""
    schema = "input_schema: {enum: [no, 2026-01-01, 1:30, 1_000, 1e3, true, ~, 'true', .5]}\n"
    [definition] = loaded(tmp_path, HEAD + "description: 2026-11-22\nconfig: {max_attempts: 010}\n" + schema)
    assert definition.description == "2026-11-22"
    assert definition.config.max_attempts == 10
    assert definition.input_schema == {"enum": ["no", "2026-01-01", "1:30", "1_000", 1000.0, True, None, "true", 0.5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + "name: Y\n", "the key 'name' appears twice"),
        (HEAD + "config: {a: 1, a: 2}\n", "the key 'a' appears twice"),
        ("a: &x 1\nb: *x\n", "aliases"),
        (HEAD + "colour: red\n", "colour: Extra inputs are not permitted"),
        (HEAD + "config: {colour: red}\n", "config.colour: Extra inputs"),
        (HEAD + "config: {max_attempts: true}\n", "config.max_attempts: Input must be a valid integer"),
        (HEAD + "config: {max_attempts: '3'}\n", "config.max_attempts: Input must be a valid integer"),
        (HEAD + "config: {max_attempts: 0}\n", "config.max_attempts: .*greater than or equal to 1"),
        (HEAD + "config: {temperature: .nan}\n", "config.temperature: Input must be a finite number"),
        (HEAD + "config: {capabilities: []}\n", "config.capabilities"),
        (HEAD + "config: {capabilities: [a, a]}\n", "listed twice"),
        (HEAD + "config: {capabilities: [celery]}\n", "queue that Minions uses itself"),
        (HEAD + "config: {capabilities: ['a,b']}\n", "config.capabilities.0"),
        (HEAD + "config: {soft_time_limit: 10, time_limit: 10}\n", "must be more than soft_time_limit"),
        (HEAD + "config: []\n", "config: Input must be"),
        (HEAD + "description: 5\n", "description: Input must be a valid string"),
        (HEAD + "description: [a]\n", "description: Input must be a valid string"),
        (HEAD + "tools: noop\n", "tools: Input must be a valid list"),
        (HEAD + "tools: [a, a@2]\n", "the tool 'a' is listed twice"),
        (HEAD + "input_schema: true\n", "input_schema: Input must be a valid dictionary"),
        (HEAD + "input_schema: {type: nonsense}\n", r"'X', input_schema is not a valid JSON Schema.*\$.type"),
        (HEAD + "input_schema: {properties: {5: {}}}\n", "a key that is not text"),
        (HEAD + "input_schema: {default: !!timestamp 2026-01-01}\n", "a date is not a JSON value"),
        (HEAD + "input_schema: {default: !!binary aGVsbG8=}\n", "a bytes is not a JSON value"),
        (HEAD + "input_schema: {default: .inf}\n", "inf is not a JSON number"),
        (HEAD + 'input_schema: {default: "a\\0"}\n', r"U\+0000"),
        (HEAD + "type: function\n", "exactly one of `function`, `tool` or `relations`"),
        (HEAD + "type: function\ntool: a\nfunction: b\n", "exactly one of .* not function and tool"),
        (HEAD + "type: function\ntool: a\nmodel: offline\n", "must not have `model` or `tools`"),
        (HEAD + "type: function\ntool: a\nconfig: {temperature: 0.5}\n", "no model that could honour temperature"),
        (HEAD + "model: claude-sonnet-5-5\nconfig: {temperature: 0.5}\n", "cannot honour temperature=0.5"),
        (HEAD + "tool: a\n", "under `tools`"),
        ("kind: agent\nname: ''\n", "name: String must match"),
        (f"kind: agent\nname: {'x' * 101}\n", "name: String must match"),
        ("kind: agent\n", "name: Field required"),
        ("kind: tool\nname: a.b\ntype: builtin\nbuiltin: x\n", "a tool's name must have only letters"),
        ("kind: tool\nname: a\ntype: function\nbuiltin: x\n", "needs `function:`"),
        ("kind: tool\nname: a\ntype: function\nfunction: x\neffect: unsafe\n", "effect must be pure"),
        ("kind: tool\nname: a\ntype: teapot\n", "type: Input must be"),
        ("kind: function\nname: a-b\ncode: x\n", "is not a Python name: set `entrypoint:`"),
        ("kind: function\nname: f\ncode: 5\n", "code: Input must be a valid string"),
        ("kind: function\nname: f\ncode: x\ncode_file: x.py\n", "both `code` and `code_file`"),
        ("kind: function\nname: f\ncode_file: 5\n", "code_file must be the path of a file"),
        ("kind: function\nname: f\ncode: x\nconfig: {memory_limit: 1}\n", "memory_limit"),
        ("kind: function\nname: f\ncode: x\nconfig: {timeout: 0}\n", "timeout"),
        ("kind: function\nname: f\ncode: x\nconfig: {allowed_imports: ['os; x']}\n", "is not the name of a module"),
        ("kind: recipe\n", "`kind` must be agent, tool, function or mcp_server, not 'recipe'"),
        ("kind: [agent]\n", "`kind` must be"),
        ("5\n", "a definition must be an object with `kind`, not int"),
        ("kind: [\n", "is not valid YAML"),
        (b"\xff\xfe", "is not UTF-8"),
        ("[" * 5000, "nested too deeply"),
        (HEAD + f"description: {'1' * 5000}\n", "cannot be read"),
        (HEAD + "description: !!bool maybe\n", "cannot be read"),
        (HEAD + "description: !!python/object:os.system {}\n", "is not valid YAML"),
    ],
)
def test_error_in_a_file_names_its_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message) as caught:
        loaded(tmp_path, content)
    assert str(tmp_path / "x.yaml") in caught.value.message
    assert len(caught.value.message) < 3000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "agent", "kind": "tool"}', "the key 'kind' stands twice"),
        ('{"kind": "agent", "name": "X", "input_schema": {"minimum": NaN}}', "NaN is not a JSON number"),
        ("{'kind': 'agent'}", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_json_files_are_strict_json(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        loaded(tmp_path, content, "x.json")


def test_paths_without_definitions_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDefinition, match=r"contains no .yaml, .yml, .json file"):
        load(tmp_path)
    with pytest.raises(FileFault, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(FileFault, match=r"code_file .*nothing\.py: there is no such file"):
        loaded(tmp_path, "kind: function\nname: f\ncode_file: nothing.py\n")
    with pytest.raises(InvalidDefinition, match="it contains no definitions"):
        loaded(tmp_path, "# nothing yet\n---\n")
