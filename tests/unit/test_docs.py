"""The documentation agrees with the code: tables, diagram, commands, examples and links."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

import minions
from minions.errors import BY_CODE
from orchestrator.cli import app
from orchestrator.schedules.store import ScheduleDefinition
from shared import errors
from shared.access.roles import PERMISSIONS, Permission, Role
from shared.contracts.code_mode import CodeMode
from shared.contracts.documents import (
    AgentConfig,
    AgentDefinition,
    FunctionConfig,
    FunctionDefinition,
    McpCall,
    McpOAuth,
    McpServerDefinition,
    RelationDefinition,
    ToolDefinition,
    parse_definition,
)
from shared.contracts.requests import TaskRequest
from shared.definitions.files import load
from shared.sandbox import SAFE_IMPORTS
from shared.sandbox.confined.wire import FAULT_TYPES
from shared.settings import Settings, StdioProgram
from shared.tasks import states
from workers.outcomes import Snoozed

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NO_FIELDS = {"kind"}
PACKAGES = ("minions", "orchestrator", "shared", "workers", "migrations")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading!r}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without heads and code marks."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    ruled = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for index, row in enumerate(cells) if index not in ruled and index + 1 not in ruled]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(body, id=f"{file.name}-{number}")
        for file in PAGES
        for number, (language, body) in enumerate(BLOCK.findall(file.read_text(encoding="utf-8")))
        if language in languages
    ]


def test_quickstart_is_two_commands():
    language, body = BLOCK.findall((ROOT / "README.md").read_text())[0]
    assert (language, body.split("\n")) == ("sh", ["make demo", "make test", ""])


def test_state_diagram_matches_the_transition_table():
    assert f"```text\n{states.diagram()}\n```" in page("concepts.md")


def test_every_setting_is_documented_with_its_default():
    documented = {codes(row[0])[0]: row[1].strip("`") for row in rows(section(page("production.md"), "Settings"))}
    fields = {
        str(field.validation_alias or f"MINION_{name.upper()}"): field for name, field in Settings.model_fields.items()
    }
    assert documented.keys() == fields.keys()
    plain = {name: field.default for name, field in fields.items() if isinstance(field.default, str | int | float)}
    assert {name: documented[name] for name in plain} == {name: str(value) for name, value in plain.items()}


@pytest.mark.parametrize(
    ("file", "heading", "model"),
    [
        ("definitions.md", "Agent", AgentDefinition),
        ("definitions.md", "Relations", RelationDefinition),
        ("definitions.md", "Config of an agent", AgentConfig),
        ("definitions.md", "Tool", ToolDefinition),
        ("definitions.md", "Function", FunctionDefinition),
        ("definitions.md", "Config of a function", FunctionConfig),
        ("code-mode.md", "Settings", CodeMode),
        ("mcp-client.md", "Server", McpServerDefinition),
        ("mcp-client.md", "Tool of a server", McpCall),
        ("mcp-client.md", "OAuth", McpOAuth),
        ("mcp-client.md", "Programs as servers", StdioProgram),
    ],
)
def test_every_definition_field_is_documented_with_its_default(file: str, heading: str, model: type[BaseModel]):
    documented = {codes(row[0])[0]: row[1] for row in rows(section(page(file), heading))}
    fields = {name: field for name, field in model.model_fields.items() if name not in NO_FIELDS}
    assert documented.keys() == fields.keys()
    for name, field in fields.items():
        if field.is_required():
            assert documented[name] == "required", name
        elif isinstance(field.default, str | int | float):
            expected = json.dumps(field.default) if field.default in ("", True, False) else str(field.default)
            assert documented[name] == f"`{expected}`", name


def test_every_task_field_is_documented():
    documented = {codes(row[0])[0] for row in rows(section(page("enqueueing.md"), "Fields of a task"))}
    assert documented == set(TaskRequest.model_fields)


def test_every_schedule_field_is_documented():
    documented = {codes(row[0])[0] for row in rows(page("schedules.md").partition("## When")[0])}
    assert documented == set(ScheduleDefinition.model_fields) - {"name"}


def test_permissions_of_roles_are_documented():
    table = rows(section(page("access.md"), "Roles"))
    documented = {codes(row[0])[0]: [cell == "yes" for cell in row[1:]] for row in table}
    assert documented == {
        str(permission): [permission in PERMISSIONS[role] for role in Role] for permission in Permission
    }


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_every_command_is_documented():
    documented = {codes(row[0])[0].removeprefix("minion ") for row in rows(page("cli.md")) if "minion " in row[0]}
    assert documented == set(_commands())


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_commands_and_options_in_the_text_exist(file: Path):
    known = _commands()
    for name, rest in re.findall(
        r"\bminion ([a-z][a-z-]*)([^`\n|]*)", "\n".join(_code(file.read_text(encoding="utf-8")))
    ):
        assert name in known, f"minion {name}"
        command = known[name]
        words = rest.split("#")[0].split()
        if hasattr(command, "commands") and words and words[0].isalpha():
            assert words[0] in command.commands, f"minion {name} {words[0]}"
            command = command.commands[words[0]]
        elif hasattr(command, "default"):
            command = command.commands[command.default]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert used <= options | {"--help", "--json"}, f"minion {name} {rest}"


def _code(text: str) -> list[str]:
    """Return shell blocks and code in the text."""
    shell = [body for language, body in BLOCK.findall(text) if language in ("sh", "bash")]
    return shell + codes(BLOCK.sub("", text))


def test_make_targets_in_the_text_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)\b", "\n".join(_code(file.read_text(encoding="utf-8")))):
            assert target in targets, f"{file.name}: make {target}"


def _kinds(root: type[errors.MinionError]) -> list[type[errors.MinionError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


def test_every_exit_code_is_documented():
    documented = {int(row[0]) for row in rows(section(page("cli.md"), "Exit codes"))}
    assert documented == {kind.exit_code for kind in _kinds(errors.MinionError)} | {0, 2, 130}


def test_every_problem_code_is_documented_with_its_status():
    documented = {}
    for cells in rows(section(page("http-api.md"), "Errors")):
        documented |= {code: int(cells[1][:3]) for code in codes(cells[0])}
    ours = {kind.code: kind.status for kind in _kinds(errors.MinionError)}
    assert {code: ours[code] for code in BY_CODE} == {code: documented[code] for code in BY_CODE}


def test_every_route_is_documented():
    from orchestrator.api import health
    from orchestrator.api.app import GUARDED

    routers = [module.router for module in (health, *GUARDED)]
    routes = {(method, route.path_format) for router in routers for route in router.routes for method in route.methods}
    documented = {(codes(row[0])[0], codes(row[1])[0]) for row in rows(page("http-api.md")) if "`/" in row[1]}
    assert documented == routes


def test_every_reason_of_why_is_documented_with_its_state():
    documented = {codes(row[0])[0]: set(row[1].split(", ")) for row in rows(page("why.md"))}
    final = {str(state): {str(state)} for state in states.FINAL}
    waiting = {reason: {"waiting"} for reason in _wait_reasons()}
    assert documented.keys() == _literal_reasons() | final.keys() | waiting.keys()
    assert {reason: documented[reason] for reason in final | waiting} == final | waiting
    assert set.union(*documented.values()) == set(states.State)


def _literal_reasons() -> set[str]:
    """Return the codes that `orchestrator.explain` itself answers with."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "orchestrator/explain.py").read_text()))
        if isinstance(node, ast.Call)
    ]
    answers = [call.args[0] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "answer"]
    return {first.value for first in answers if isinstance(first, ast.Constant)}


def _wait_reasons() -> set[str]:
    """Return the reasons that SQL functions and workers write, which `orchestrator.explain` passes on."""
    sql = "\n".join(file.read_text() for file in ROOT.glob("shared/tasks/sql/*.sql"))
    python = "\n".join(file.read_text() for file in ROOT.glob("workers/**/*.py"))
    chosen = re.search(r"FUNCTION minion_waits_for\(.*?\$\$;", sql, re.DOTALL)
    assert chosen
    return {
        *re.findall(r"wait_reason = '(\w+)'", sql),
        *re.findall(r"(?:THEN|ELSE) '(\w+)'", chosen[0]),
        *re.findall(r"(?:Snoozed|Postponed)\([^\n]*?, \"(\w+)\"", python),
        inspect.signature(Snoozed).parameters["reason"].default,
    }


def test_pages_named_in_code_and_examples_exist():
    named = {
        (file.name, path)
        for folder in (*PACKAGES, "examples")
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in (".py", ".sql", ".yaml")
        for path in re.findall(r"\bdocs/[\w-]+\.\w+", file.read_text(encoding="utf-8"))
    }
    assert ("explain.py", "docs/why.md") in named
    assert not [(file, path) for file, path in named if not (ROOT / path).is_file()]


def test_safe_imports_and_sandbox_faults_are_documented():
    listed = " ".join(codes(section(page("sandbox.md"), "What a function may import"))).split()
    assert set(listed) >= SAFE_IMPORTS
    assert set(codes(section(page("sandbox.md"), "Limits and errors"))) >= FAULT_TYPES


OVERRIDES = [block for block in blocks("yaml") if block.values[0].startswith("services:")]
PATCHES = [block for block in blocks("yaml") if block.values[0].startswith("patches:")]
DEFINED = [block for block in blocks("yaml") if block not in OVERRIDES + PATCHES]


@pytest.mark.parametrize("body", PATCHES)
def test_patches_in_the_text_find_their_place(body: str):
    files = [file.read_text() for file in (ROOT / "deploy/kubernetes").rglob("*.yaml")]
    resources = [each for file in files for each in yaml.safe_load_all(file)]
    for patch in yaml.safe_load(body)["patches"]:
        target = patch["target"]
        [found] = [
            each for each in resources if (each["kind"], each.get("metadata", {}).get("name")) == tuple(target.values())
        ]
        for change in yaml.safe_load(patch["patch"]):
            place = found
            for step in change["path"].removesuffix("/-").split("/")[1:]:
                place = place[int(step) if isinstance(place, list) else step]
            assert isinstance(place, list)


@pytest.mark.parametrize("body", DEFINED)
def test_definitions_in_the_text_are_valid(body: str):
    for document in yaml.safe_load_all(body):
        parse_definition(document)


@pytest.mark.parametrize("body", OVERRIDES)
def test_overrides_in_the_text_name_services_of_the_compose_file(body: str):
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in yaml.safe_load(body)["services"].items():
        assert service.get("extends", {"service": name})["service"] in services


@pytest.mark.parametrize("folder", ["support", "builtin_tool", "moving_from_celery"])
def test_example_definitions_are_valid(folder: str):
    assert load(ROOT / "examples" / folder)


@pytest.mark.parametrize("body", blocks("json"))
def test_json_in_the_text_is_valid(body: str):
    json.loads(body)


@pytest.mark.parametrize("body", blocks("dockerfile"))
def test_dockerfiles_in_the_text_match_the_examples(body: str):
    assert body in {file.read_text(encoding="utf-8") for file in ROOT.glob("examples/*/Dockerfile")}


@pytest.mark.parametrize("body", blocks("python", "sql"))
def test_code_in_the_text_compiles_and_matches_the_examples(body: str):
    written = [file for kind in ("py", "sql") for file in (ROOT / "examples").rglob(f"*.{kind}")]
    examples = {file.read_text(encoding="utf-8") for file in written}
    if body.startswith('"""') or body.startswith("BEGIN"):
        assert body in examples
    if not body.startswith("BEGIN"):
        compile(body, "documentation", "exec")


@pytest.mark.parametrize("body", blocks("typescript"))
def test_typescript_in_the_text_is_from_the_example(body: str):
    assert body in (ROOT / "examples/typescript/refund.ts").read_text(encoding="utf-8")


def test_versions_for_typescript_are_those_of_the_example():
    package = json.loads((ROOT / "examples/typescript/package.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs/how-to/typescript.md").read_text(encoding="utf-8")
    for name, version in (package["dependencies"] | package["devDependencies"]).items():
        assert f"{name} {version}" in text


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_have_a_target(file: Path):
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path) if path else file
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}, target


def test_every_page_is_in_the_navigation_of_the_site_once():
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    generated = {"commands.md", "settings.md", "operations-of-the-api.md"}
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in PAGES if ROOT / "docs" in file.parents}
    assert sorted(named) == sorted(pages | generated)


def test_no_diagram_needs_a_script():
    assert not [file.name for file in PAGES if "```mermaid" in file.read_text(encoding="utf-8")]


def test_lines_are_short_enough_for_a_diff():
    for file in PAGES:
        long = [line for line in file.read_text(encoding="utf-8").splitlines() if len(line) > 130 and line[0] != "|"]
        assert not long, (file.name, long)


def test_compose_file_has_no_default_password_and_uses_loopback():
    written = (ROOT / "docker-compose.yml").read_text()
    compose = yaml.safe_load(written)
    secrets = re.findall(r"\$\{(\w*(?:PASSWORD|API_KEY|SECRET_KEY)\w*)([^}]*)\}", written)
    assert {name for name, _ in secrets} == {
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "MINION_API_KEY",
        "MINION_FLOWER_PASSWORD",
        "MINION_SECRET_KEY",
    }
    assert all(rest.startswith(":?") for _, rest in secrets)
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_procfile_uses_loopback_and_gives_the_first_port_to_the_api():
    lines = re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
    assert lines[0][0] == "web"
    assert not [command for _, command in lines if "HOST=" in command or "--address" in command]


OF_THE_ORCHESTRATOR = (
    "MINION_ALERT_URLS",
    "MINION_METRICS_TOKEN",
    "MINION_OIDC_CLIENT_SECRET",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
)


@pytest.mark.parametrize("secret", OF_THE_ORCHESTRATOR)
def test_compose_gives_a_secret_of_the_orchestrator_to_it_alone(secret: str):
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for variable in (secret, f"{secret}_FILE"):
        given = {name: one["environment"][variable] for name, one in services.items() if "env_file" in one}
        assert given.pop("orchestrator") == f"${{{variable}:-}}"
        assert set(given.values()) == {""}


@pytest.mark.parametrize("secret", ["ANTHROPIC_API_KEY", "MINION_PROVIDER_KEYS", "MINION_SECRET_KEY"])
def test_processes_that_do_not_need_a_secret_receive_neither_it_nor_its_file(secret: str):
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    without = {name for name, one in services.items() if one.get("environment", {}).get(secret) == ""}
    assert without >= {"flower"}
    assert {name for name in without if services[name]["environment"].get(f"{secret}_FILE") == ""} == without
    lines = re.findall(r"^\w+: (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
    assert [f"-u {secret}_FILE" in line for line in lines] == [f"-u {secret} " in line for line in lines]


def test_compose_file_stops_servers_last_and_bounds_its_checks():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = {name: one for name, one in compose["services"].items() if one["image"].startswith("minions:")}
    for name, service in services.items():
        if name != "migrate":
            assert service["depends_on"].keys() >= {"postgres", "redis"}, name
        if name.startswith("worker-"):
            check = service["healthcheck"]
            bound = re.search(r"\btimeout (\d+) celery inspect", check["test"][1])
            assert bound, name
            assert int(bound[1]) < int(check["timeout"].removesuffix("s")), name


@pytest.mark.parametrize("folder", [".", "examples/builtin_tool"])
def test_images_end_with_a_numeric_user(folder: str):
    users = re.findall(r"^USER (.+)$", (ROOT / folder / "Dockerfile").read_text(), re.MULTILINE)
    assert users[-1] == "10001:10001"  # Kubernetes' runAsNonRoot cannot check a name


def test_compose_passes_the_build_arguments_to_the_build_only():
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(services["migrate"]["build"]["args"]) == arguments
    given_env_file = {name: service for name, service in services.items() if "env_file" in service}
    assert given_env_file
    for name, service in given_env_file.items():
        assert service["environment"]["PIP_INDEX_URL"] == "", name


def test_every_file_names_the_built_version():
    files = [ROOT / "docker-compose.yml", *ROOT.glob("examples/*/Dockerfile"), *PAGES]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.name != "CHANGELOG.md"}
    image_or_wheel = re.compile(r"(?:\bminions:|\bminions_(?:client|server)-|\bminions-(?:client|server)==)(\d[\w.]*)")
    named = {name: set(image_or_wheel.findall(text)) for name, text in texts.items()}
    assert {name for name in named if named[name]} >= {"docker-compose.yml", "Dockerfile", "installing.md", "README.md"}
    assert set().union(*named.values()) == {minions.__version__}


def test_client_has_the_licence_of_the_server():
    assert (ROOT / "minions" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_git_ignores_the_passwords_of_the_compose_file():
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_compose_file_serves_every_capability_of_the_examples():
    definitions = [
        *load(ROOT / "orchestrator" / "demo" / "agents"),
        *load(ROOT / "shared" / "definitions" / "default_agents"),
    ]
    wanted = {d.config.capabilities[0] for d in definitions if isinstance(d, AgentDefinition)}
    for file, pattern in (("docker-compose.yml", r'"worker", "(\w+)"'), ("Procfile", r"minion worker (\w+)")):
        assert set(re.findall(pattern, (ROOT / file).read_text())) == wanted, file
