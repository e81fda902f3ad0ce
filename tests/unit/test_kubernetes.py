"""The Kubernetes manifests: their schemas, and what they promise about settings, secrets and confinement."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import minions
from orchestrator.capabilities import parse_capabilities
from shared.settings import Settings, secret_variables, variable_of
from tests.support.secrets_of_processes import NEEDED, without_place

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = sorted(file for file in (DEPLOY / "kubernetes").rglob("*.yaml") if file.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted(file.parent for file in DEPLOY.rglob("kustomization.yaml"))
# The oldest and the newest release of Kubernetes that they are checked against.
VERSIONS = ("1.29.0", kubernetes_validate.latest_version())
# Variables that are no settings of ours: Celery's.
FOREIGN = {"REMAP_SIGTERM"}


def objects(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]


def pods() -> list[Any]:
    found = [each for file in MANIFESTS for each in objects(file) if each["kind"] in ("Deployment", "Job")]
    return [pytest.param(each, id=each["metadata"]["labels"]["app.kubernetes.io/component"]) for each in found]


def component(workload: dict[str, Any]) -> str:
    return str(workload["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    return list(workload["spec"]["template"]["spec"]["containers"])


def test_every_process_has_a_manifest() -> None:
    assert sorted(component(each.values[0]) for each in pods()) == sorted([*NEEDED, "migrate-after"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_manifest_matches_the_schemas(file: Path, version: str) -> None:
    for each in objects(file):
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("workload", pods())
def test_variables_are_settings(workload: dict[str, Any]) -> None:
    variables = {variable_of(name) for name in Settings.model_fields}
    known = variables | {f"{secret}_FILE" for secret in secret_variables()} | FOREIGN
    for container in containers(workload):
        assert {each["name"] for each in container["env"]} <= known


def test_configuration_consists_of_settings_that_are_no_secrets() -> None:
    [configuration] = objects(DEPLOY / "kubernetes" / "base" / "configuration.yaml")
    assert configuration["data"].keys() <= {variable_of(name) for name in Settings.model_fields} - {*secret_variables()}


@pytest.mark.parametrize("workload", pods())
def test_process_receives_the_secrets_that_it_needs_and_no_others(workload: dict[str, Any]) -> None:
    for container in containers(workload):
        given = {each["name"].removesuffix("_FILE") for each in container["env"] if each["name"].endswith("_FILE")}
        assert given == NEEDED[component(workload).removesuffix("-after")], f"of {component(workload)}"
        assert not {each["name"] for each in container["env"]} & {*secret_variables()}, "secrets must be files"


@pytest.mark.parametrize("workload", pods())
def test_files_of_secrets_are_mounted(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    [volume] = [each["secret"] for each in pod["volumes"] if "secret" in each]
    for container in containers(workload):
        named = {each["value"] for each in container["env"] if each["name"].endswith("_FILE")}
        assert named == {f"/run/secrets/minions/{item['path']}" for item in volume["items"]}
    assert volume["defaultMode"] & 0o007 == 0


def test_every_secret_of_the_installation_has_a_place() -> None:
    missing = without_place()
    assert not missing, (
        f"No process receives {missing}: add it to tests/support/secrets_of_processes.py, and to the manifest of its "
        "process in deploy/kubernetes and its unit in deploy/systemd"
    )


@pytest.mark.parametrize("workload", pods())
def test_pod_has_no_more_rights_than_it_needs(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"memory"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert {"/tmp", "/var/lib/minions"} <= {each["mountPath"] for each in container["volumeMounts"]}


@pytest.mark.parametrize("workload", pods())
def test_image_is_the_release(workload: dict[str, Any]) -> None:
    assert {each["image"] for each in containers(workload)} == {f"minions:{minions.__version__}"}
    if workload["kind"] == "Job":
        assert workload["metadata"]["name"].endswith(minions.__version__)


def test_probes_ask_endpoints_that_exist() -> None:
    [orchestrator] = [each.values[0] for each in pods() if component(each.values[0]) == "orchestrator"]
    [container] = containers(orchestrator)
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    routes = (Path(__file__).resolve().parents[2] / "orchestrator" / "api" / "health.py").read_text(encoding="utf-8")
    assert all(f'"{path}"' in routes for path in paths.values())
    # Readiness depends on other servers; liveness must not.
    assert (paths["readinessProbe"], paths["livenessProbe"]) == ("/readyz", "/healthz")


def test_worker_hands_its_tasks_back_before_it_is_killed() -> None:
    [worker] = [each.values[0] for each in pods() if component(each.values[0]) == "worker"]
    [container] = containers(worker)
    assert {"name": "REMAP_SIGTERM", "value": "SIGQUIT"} in container["env"]
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 15
    probe = container["livenessProbe"]
    bound = re.search(r"\btimeout (\d+) celery inspect", probe["exec"]["command"][-1])
    assert bound
    assert int(bound[1]) < probe["timeoutSeconds"]


@pytest.mark.parametrize("folder", sorted((DEPLOY / "kubernetes" / "pools").iterdir()), ids=lambda folder: folder.name)
def test_pool_is_named_after_its_capability(folder: Path) -> None:
    [pool] = objects(folder / "kustomization.yaml")
    name = folder.name
    assert parse_capabilities(name) == name
    assert pool["nameSuffix"] == f"-{name}"
    assert pool["labels"][0]["pairs"] == {"minions/capability": name}
    [change] = yaml.safe_load(pool["patches"][0]["patch"])
    assert change["value"][:2] == ["worker", name]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_kustomization_names_files_that_exist(folder: Path) -> None:
    [kustomization] = objects(folder / "kustomization.yaml")
    for resource in kustomization["resources"]:
        assert (folder / resource).exists(), resource


def test_autoscaler_scales_a_pool_that_exists() -> None:
    scaled, token = objects(DEPLOY / "keda" / "scaledobject.yaml")
    pools = {f"minions-worker-{folder.name}" for folder in (DEPLOY / "kubernetes" / "pools").iterdir()}
    assert scaled["spec"]["scaleTargetRef"]["name"] in pools
    assert token["spec"]["secretTargetRef"] == [{"parameter": "token", "name": "minions", "key": "metrics-token"}]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed on this machine")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_kustomization_can_be_built(folder: Path) -> None:
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    named = [(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(built.stdout)]
    assert len(set(named)) == len(named) > 0
    for each in yaml.safe_load_all(built.stdout):
        if "keda.sh" not in each["apiVersion"]:
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
