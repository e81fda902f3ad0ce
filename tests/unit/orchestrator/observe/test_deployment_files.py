"""The dashboard, the alert rules and the autoscaler's example name metrics and endpoints that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import promql_parser
import pytest
import yaml

from orchestrator.api.capabilities import ScaleQuery
from orchestrator.observe import metrics

ROOT = Path(__file__).resolve().parents[4]
DEPLOY = ROOT / "deploy"
DURATION = re.compile(r"\d+[smhd]")


def rules() -> list[dict[str, Any]]:
    parsed = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return [rule for group in parsed["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "minions.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[Any]:
    shown = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    alerts = [(rule["alert"], rule["expr"]) for rule in rules()]
    return [pytest.param(expression, id=f"{name}-{number}") for number, (name, expression) in enumerate(shown + alerts)]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_names_metrics_that_exist(expression: str) -> None:
    named = set(re.findall(r"\bminions_\w+", expression))
    assert named
    assert named <= metrics.names()


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_can_parse_every_expression(expression: str) -> None:
    promql_parser.parse(expression.replace("$__rate_interval", "1m"))


@pytest.mark.parametrize("expression", expressions())
def test_counters_are_read_as_rates(expression: str) -> None:
    for name in re.findall(r"\bminions_\w+(?:_total|_bucket)\b", expression):
        around = rf"(?:rate|increase)\({name}(?:{{[^}}]*}})?\["
        assert re.search(around, expression), name


@pytest.mark.parametrize("expression", expressions())
def test_labels_exist(expression: str) -> None:
    known = {label for each in (*metrics.COUNTERS, *metrics.HISTOGRAMS) for label in each.labels}
    known |= {"instance", "le", "state", "reason", "rule", "type"}
    used = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(", ")}
    used |= set(re.findall(r"[{,]\s*(\w+)=", expression))
    assert used <= known


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed on this machine")
@pytest.mark.parametrize(
    ("check", "file"),
    [(("rules",), "alerts.yaml"), (("config", "--syntax-only"), "scrape.yaml")],
    ids=["rules", "config"],
)
def test_promtool_accepts_the_files(check: tuple[str, ...], file: str) -> None:
    command = ["promtool", "check", *check, DEPLOY / "prometheus" / file]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_metric_is_shown() -> None:
    text = (DEPLOY / "grafana" / "minions.json").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics.names()}
    assert [name for name in sorted(families) if name not in text] == []


def test_alerts_are_complete() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) >= 10
    for rule in found:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert DURATION.fullmatch(rule.get("for", "0s"))


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_autoscaler_asks_a_question_that_the_api_answers() -> None:
    scaled, token = yaml.safe_load_all((DEPLOY / "keda" / "scaledobject.yaml").read_text())
    [trigger] = scaled["spec"]["triggers"]
    url = urlsplit(trigger["metadata"]["url"])
    assert re.fullmatch(r"/v1/capabilities/[a-z]+/scale", url.path)
    ScaleQuery(**{name: value[0] for name, value in parse_qs(url.query).items()})
    assert trigger["authenticationRef"]["name"] == token["metadata"]["name"]


def test_documented_metrics_are_those_that_exist() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(minions_\w+)`", page, re.MULTILINE))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics.names()}
    assert documented == families


def test_documented_metrics_have_their_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(minions_\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    for each in metrics.COUNTERS:
        assert re.findall(r"`(\w+)`", documented[f"{each.name}_total"]) == list(each.labels)
    for histogram in metrics.HISTOGRAMS:
        assert re.findall(r"`(\w+)`", documented[histogram.name]) == list(histogram.labels)
