"""Client and server as their wheels install them, outside the checkout: their files, and that they run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import minions
from orchestrator.local.embedded import scratch_dir
from tests.acceptance.conftest import System, clean_environment, start_up, stop, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = {"minions-client": ROOT / "minions", "minions-server": ROOT}
PACKAGES = {
    "minions-client": {"minions"},
    "minions-server": {"migrations", "orchestrator", "pytest_minions", "shared", "workers"},
}
BOTH = pytest.mark.parametrize("name", SOURCES)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source archive of each distribution, and the wheel that was built from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    for source in SOURCES.values():
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
        subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that contains both wheels, and sees this session's other packages."""
    python, packages = new_environment(tmp_path_factory.mktemp("server"))
    install(python, *built.glob("*.whl"))
    # After the wheels' own packages; the editable installs in this session's environment are not followed.
    (packages / "session.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def caller(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that contains the client's wheel, httpx2, what httpx2 needs, and nothing else."""
    python, packages = new_environment(tmp_path_factory.mktemp("caller"))
    for name in closure("httpx2"):
        for file in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            (packages / file).symlink_to(str(distribution(name).locate_file(file)))
    install(python, wheel_of(built, "minions-client"))
    return python


@pytest.fixture(scope="module")
def system(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """`minion up` of the installed server, started in an empty folder."""
    with scratch_dir() as folder:
        system = start_up(
            clean_environment(folder / "data"), "--no-flower", python=server, cwd=tmp_path_factory.mktemp("empty")
        )
        yield system
        stop(system)
        wait_until(lambda: not system.processes(), seconds=5, what="every process has ended")


def new_environment(folder: Path) -> tuple[Path, Path]:
    """Return the Python and the site-packages of a new virtual environment without pip."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", packages


def install(python: Path, *wheels: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, *map(str, wheels)], check=True, capture_output=True)


def closure(name: str) -> set[str]:
    """Return the name of a distribution, and of all its dependencies here without extras."""
    needed = map(Requirement, distribution(name).requires or ())
    names = (each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""}))
    return {canonicalize_name(name)}.union(*map(closure, names))


def wheel_of(built: Path, name: str) -> Path:
    (wheel,) = built.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def metadata(built: Path, name: str) -> Message:
    wheel = wheel_of(built, name)
    with zipfile.ZipFile(wheel) as archive:
        folder = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        return HeaderParser().parsestr(archive.read(f"{folder}/METADATA").decode())


@BOTH
def test_wheel_contains_only_its_packages(built: Path, name: str) -> None:
    with zipfile.ZipFile(wheel_of(built, name)) as archive:
        files = archive.namelist()
    folders = {file.partition("/")[0] for file in files}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == PACKAGES[name]
    assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files)
    assert {f"{package}/py.typed" for package in PACKAGES[name]} <= set(files)


def test_wheel_contains_the_files_of_the_pages(built: Path) -> None:
    with zipfile.ZipFile(wheel_of(built, "minions-server")) as archive:
        files = set(archive.namelist())
    kinds = ("*.html", "*.css", "*.js")
    wanted = {str(file.relative_to(ROOT)) for kind in kinds for file in (ROOT / "orchestrator").rglob(kind)}
    assert "orchestrator/pages/assets/pages.js" in wanted
    assert wanted <= files


@BOTH
def test_source_archive_contains_no_tests(built: Path, name: str) -> None:
    (archive,) = built.glob(f"{name.replace('-', '_')}-*.tar.gz")
    with tarfile.open(archive) as opened:
        files = {file.partition("/")[2] for file in opened.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= files
    assert not [file for file in files if file.startswith(("tests", "benchmarks", "minions/"))]


@BOTH
def test_both_distributions_have_the_version_of_the_client(built: Path, name: str) -> None:
    assert metadata(built, name)["Version"] == minions.__version__


def test_client_needs_only_httpx2_and_server_needs_this_client(built: Path) -> None:
    client, server = (metadata(built, name).get_all("Requires-Dist") or [] for name in SOURCES)
    needed = [each for each in map(Requirement, client) if each.marker is None]  # the others belong to an extra
    assert [each.name for each in needed] == ["httpx2"]
    assert f"minions-client=={minions.__version__}" in server


def test_installed_client_has_no_packages_beyond_httpx2(caller: Path) -> None:
    code = "from importlib.metadata import distributions as found; print(*(each.name for each in found()))"
    done = subprocess.run([caller, "-c", code], capture_output=True, text=True, check=True)
    assert {canonicalize_name(name) for name in done.stdout.split()} == {"minions-client", *closure("httpx2")}


def test_every_module_of_the_installed_client_imports(caller: Path, tmp_path: Path) -> None:
    modules = [f"minions.{file.stem}" for file in (ROOT / "minions").glob("*.py") if file.stem != "__init__"]
    done = subprocess.run(
        [caller, "-W", "error", "-c", f"import minions, {', '.join(modules)}; print(minions.__file__)"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(caller.parent.parent))


def test_installed_client_declares_functions_without_pydantic(caller: Path, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import minions\n@minions.function(input_schema={'type': 'object'}, output_schema={})\ndef f(n): return n\n"
        "desk = minions.Agent('desk', function=f)"
    )
    done = subprocess.run([caller, "-m", "minions.modules", "shop"], cwd=tmp_path, capture_output=True, text=True)
    assert [each["name"] for each in json.loads(done.stdout)] == ["f", "desk"], done.stderr


def test_installed_server_runs_tasks_from_an_empty_folder(system: System) -> None:
    assert json.loads(system.run("submit", "echo", '{"from": "the wheel"}', "--wait").stdout) == {"from": "the wheel"}
    code = "import minions, shared; print(minions.__file__, shared.__file__)"
    where = subprocess.run([system.python, "-c", code], cwd=system.cwd, capture_output=True, text=True, check=True)
    assert all(file.startswith(str(system.python.parent.parent)) for file in where.stdout.split())


def test_installed_server_contains_the_demo(system: System) -> None:
    code = "from orchestrator.demo import AGENTS; print(AGENTS / 'inspect.yaml')"
    file = subprocess.run([system.python, "-c", code], cwd=system.cwd, capture_output=True, text=True, check=True)
    assert system.run("apply", file.stdout.strip()).returncode == 0
    done = system.run("submit", "list-distributions", '{"only": ["minions-server", "minions-client"]}', "--wait")
    assert done.returncode == 0, done.stderr
    expected = [{"name": name, "version": minions.__version__} for name in ("minions-client", "minions-server")]
    assert json.loads(done.stdout)["distributions"] == expected


def test_installed_server_contains_the_pages_of_the_login(system: System) -> None:
    with httpx2.Client(base_url=json.loads((system.folder / "run.json").read_text())["api_url"]) as browser:
        form = browser.get("/login").raise_for_status().text
        (style,) = re.findall(r'rel="stylesheet" href="([^"]+)"', form)
        assert browser.get(style).raise_for_status().headers["content-type"].startswith("text/css")
        (token,) = re.findall(r'name="form_token" value="(\w+)"', form)
        fields = {"form_token": token, "key": (system.folder / "api_key").read_text().strip()}
        done = browser.post("/login", data=fields, headers={"Origin": str(browser.base_url).rstrip("/")})
        assert "You are logged in" in browser.get(done.headers["location"]).raise_for_status().text
        assert browser.get("/").headers["location"] == "/overview"
        overview = browser.get("/overview").raise_for_status().text
        (script,) = re.findall(r'<script type="module" src="([^"]+)"', overview)
        assert browser.get(script).raise_for_status().headers["content-type"].startswith("text/javascript")


def test_installed_client_submits_to_the_installed_server(system: System, caller: Path, tmp_path: Path) -> None:
    assert submitted_from(caller, system, tmp_path) == ["a caller", "unknown_agent"]


@pytest.mark.soak  # installs from the package index
def test_installed_client_works_with_celery_5_4_and_redis_5(built: Path, system: System, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = str(wheel_of(built, "minions-client"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "celery[redis]==5.4.*", "redis==5.*", wheel], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    assert submitted_from(python, system, tmp_path, imports="celery, kombu, redis") == ["a caller", "unknown_agent"]


def submitted_from(python: Path, system: System, cwd: Path, imports: str = "os") -> list[str]:
    """Return the output of a caller that submits one task to a known agent, and one to an unknown agent."""
    facts = json.loads((system.folder / "run.json").read_text())
    environment = {"MINION_API_URL": facts["api_url"], "MINION_API_KEY": (system.folder / "api_key").read_text()}
    code = (
        f"import {imports}\n"
        "from minions import Client, errors\n"
        "with Client() as client:\n"
        "    print(client.submit('echo', {'from': 'a caller'}).result(timeout=60)['from'])\n"
        "    try: client.submit('unknown', {})\n"
        "    except errors.UnknownAgent as error: print(error.code)\n"
    )
    command = [python, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
