"""The rules for Prometheus: promtool takes them, each alert is tested both ways and explained, what pages show parses.

What they yield under load is asked of a real Prometheus in `test_panels`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from metrics.declarations import METRICS
from tests.grafana.queries import ROOT, RULES, alerts
from tests.support.processes import run

PROMETHEUS = ROOT / "deploy/prometheus"
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.glob("*.md")) if path.name != "metrics.md"]
_METRICS = {metric.name: metric for metric in METRICS}
_EXPRESSION = re.compile(r"`([^`\n]*\bentrepot_[a-z_]+[^`\n]*)`")


def heads(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


def expressions(page: Path) -> list[str]:
    """Return the PromQL of a page: what is in backticks and names a metric of ours, not the name alone."""
    found = [text.replace("\\|", "|") for text in _EXPRESSION.findall(page.read_text())]
    return [text for text in found if re.search(r"[({ ]", text) and not text.startswith("entrepot ")]


@pytest.mark.needs("promtool")
def test_promtool_takes_the_configuration_with_its_rules() -> None:
    said = run(["promtool", "check", "config", PROMETHEUS / "prometheus.yml"]).stdout
    assert len(re.findall(r"SUCCESS: [1-9]\d* rules found", said)) == len(RULES)


@pytest.mark.needs("promtool")
def test_every_alert_fires_when_it_should_and_is_quiet_when_not() -> None:
    run(["promtool", "test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml"))])


def test_every_alert_has_a_test_of_both_kinds() -> None:
    tested = "".join(path.read_text() for path in (PROMETHEUS / "tests").glob("*.yml"))
    cases = dict(re.findall(r"- name: (Entrepot\w+ (?:fires|is quiet))\n(.*?)(?=\n  - name:|\Z)", tested, re.DOTALL))
    assert set(cases) == {f"{name} {kind}" for name in alerts() for kind in ("fires", "is quiet")}
    for name, case in cases.items():
        assert f"alertname: {name.split()[0]}\n" in case
        assert ("exp_alerts: []" in case) == name.endswith("is quiet")


def test_every_alert_is_explained_in_its_order_and_says_where() -> None:
    page, rules = (DOCS / "alerts.md").read_text(), RULES[1].read_text()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == alerts()
    severity = re.findall(r"^          severity: (critical|warning)$", rules, re.MULTILINE)
    summary = [
        text.strip("'").replace("''", "'") for text in re.findall(r"^          summary: (.+)$", rules, re.MULTILINE)
    ]
    assert re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| (.+) \|$", page, re.MULTILINE) == [
        (name, name.lower(), level, told) for name, level, told in zip(alerts(), severity, summary, strict=True)
    ]
    assert re.findall(r"^          runbook_url: (.+)$", rules, re.MULTILINE) == [
        f"docs/alerts.md#{name.lower()}" for name in alerts()
    ]


def test_quantiles_are_compared_with_bounds_of_their_histogram() -> None:
    """Between two bounds a quantile is estimated: an alert would fire on what nobody measured."""
    compared = re.findall(r"histogram_quantile\(.*\(rate\((\w+)_bucket\[\w+\]\)\)\) > ([\d.]+)", RULES[1].read_text())
    assert len(compared) == RULES[1].read_text().count("histogram_quantile")
    for name, bound in compared:
        assert float(bound) in _METRICS[name].buckets, name


@pytest.mark.parametrize("name", ["alerts.md", "monitoring.md"])
def test_every_link_leads_to_a_heading(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", (DOCS / name).read_text()):
        assert anchor in heads(DOCS / (target or name)), f"{target}#{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_names_declared_metrics_only(path: Path) -> None:
    for text in _EXPRESSION.findall(path.read_text()):
        for name in re.findall(r"\bentrepot_[a-z_]+(?![a-z_*])", text):
            assert re.sub(r"_(bucket|count|sum)$", "", name) in _METRICS or name in _METRICS, name


@pytest.mark.needs("promtool")
def test_every_expression_of_a_page_is_promql(tmp_path: Path) -> None:
    found = sorted({text for page in PAGES for text in expressions(page)})
    assert len(found) >= 8
    file = tmp_path / "expressions.yml"
    rules = [{"record": f"of_a_page:{at}", "expr": text} for at, text in enumerate(found)]
    file.write_text(json.dumps({"groups": [{"name": "pages", "rules": rules}]}))  # JSON is YAML too
    run(["promtool", "check", "rules", file])
