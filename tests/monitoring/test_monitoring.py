"""Dashboards, rules and alerts name only what there is; Prometheus's own tool runs their tests where there is one."""

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import errors
from cluster.errors import ApiError
from cluster.metrics.declared import DECLARED, Kind

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
LABELS = {metric.name: {*metric.all_labels, *["le"] * (metric.kind is Kind.HISTOGRAM)} for metric in DECLARED}
SERIES = {
    f"{metric.name}{suffix}": metric.name
    for metric in DECLARED
    for suffix in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
}
OF_RECORDED, OF_ALERTS = {"model"}, {"state"}


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for file in ("recording_rules.yml", "alerts.yml"):
        for rule in rules(file):
            yield rule.get("record") or rule["alert"], rule["expr"]
    for file in sorted((MONITORING / "grafana").glob("*.json")):
        page = json.loads(file.read_text())
        for panel in page["panels"]:
            for target in panel["targets"]:
                yield f"{file.name}: {panel['title']}", target["expr"]
        for variable in page["templating"]["list"][1:]:
            yield f"{file.name}: ${variable['name']}", variable["query"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_name_is_declared(where: str, expression: str) -> None:
    recorded = {rule["record"] for rule in rules("recording_rules.yml")}
    names = set(re.findall(r"\bmanta[a-z0-9_:]*", expression))
    assert names, f"{where} asks about nothing of ours"
    assert names - recorded <= SERIES.keys(), names - recorded - SERIES.keys()
    labels = {label for name in names for label in (OF_RECORDED if name in recorded else LABELS[SERIES[name]])}
    asked = [label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")]
    asked += re.findall(r'(\w+)=~?"', expression)
    assert set(asked) <= labels, f"{where}: {set(asked) - labels}"


def test_the_errors_of_ours_are_those_of_status_500_and_above() -> None:
    ours = {
        kind.code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, ApiError) and kind.status >= 500
    }
    found = [re.findall(r'outcome=~"([^"]*)"', rule["expr"]) for rule in rules("recording_rules.yml")]
    named = [set(pattern.split("|")) for patterns in found for pattern in patterns]
    assert len(named) == 4 and all(codes == ours for codes in named)


def test_alerts_tell_what_has_happened_and_how_urgent_it_is() -> None:
    alerts = rules("alerts.yml")
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket") and alert["annotations"]["summary"]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "recording_rules.yml", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_own_tool_agrees(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
