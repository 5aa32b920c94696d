"""The committed dashboards are what the code makes, can be found from each other, and ask for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.grafana.dashboards import FOLDER, documents
from metrics.declarations import METRICS
from tests.grafana.queries import DASHBOARDS, ROOT, RULES, asked, document, panels
from tests.support.processes import run

_DECLARED = {metric.name: metric for metric in METRICS}
_OF_PROMETHEUS = {"instance", "job", "le"}
_CLIENTS = {"client", "address", "agent", "user", "repository", "image", "reference", "digest"}


def declared(name: str) -> set[str]:
    """Return the labels of a series. Raises KeyError where nothing of this name is declared."""
    family = name if name in _DECLARED else re.sub(r"_(bucket|count|sum)$", "", name)
    if family != name:
        assert _DECLARED[family].type == "histogram", name
    return {*_DECLARED[family].labels, *_OF_PROMETHEUS}


def series(text: str) -> list[tuple[str, set[str]]]:
    """Return the series that a text of PromQL names, each with the labels that it is chosen by."""
    named = re.findall(r"(?<![\w:])(entrepot_\w+)(?![\w:])(?:\{([^}]*)\})?", text)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen))) for name, chosen in named]


def test_the_committed_json_is_what_the_code_makes() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert documents() == committed, "python -m deploy.grafana writes them"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_asks_for_declared_metrics_and_labels(path: Path) -> None:
    for query in asked(path):
        found = series(query.expression)
        assert found, query
        for name, chosen in found:
            assert chosen <= declared(name), query
        known = set().union(*(declared(name) for name, _ in found))
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= known, query


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_rule_asks_for_declared_metrics_and_labels(path: Path) -> None:
    found = series(path.read_text())
    assert len(found) > 20
    for name, chosen in found:
        assert chosen <= declared(name), name


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_in_a_unit_and_no_client_is_told_apart(path: Path) -> None:
    board = document(path)
    assert [panel["title"] for panel in panels(board) if not panel.get("description")] == []
    units = [panel["fieldConfig"]["defaults"].get("unit") for panel in panels(board) if panel["type"] != "heatmap"]
    assert None not in units
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for query in asked(path):
        grouped = {
            label.strip() for labels in re.findall(r"by \(([^)]*)\)", query.expression) for label in labels.split(",")
        }
        assert not grouped & _CLIENTS, query


@pytest.mark.needs("promtool")
def test_the_first_time_of_something_rare_is_shown(tmp_path: Path) -> None:
    """Its counter begins at 1, which `increase` does not see; what was long before is not shown again."""
    (query,) = [one for one in asked(FOLDER / "overview.json") if one.panel == "Wrong bytes"]
    told = {
        "first": ("_x120 1x60", 1),
        "long ago": ("7x180", 0),
        "again": ("7x120 9x60", 2),
    }
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": f'entrepot_verification_failures_total{{instance="a", source="{name}"}}', "values": values}
            ],
            "promql_expr_test": [
                {
                    "expr": query.substituted.replace("60s", "1h"),
                    "eval_time": "175m",
                    "exp_samples": [{"labels": "{}", "value": value}],
                }
            ],
        }
        for name, (values, value) in told.items()
    ]
    file = tmp_path / "first.yml"
    file.write_text(json.dumps({"tests": tests}))  # JSON is YAML too
    run(["promtool", "test", "rules", file])


def test_the_dashboards_link_to_each_other_and_choose_nodes_and_source() -> None:
    boards = [document(path) for path in DASHBOARDS]
    assert sorted(board["uid"] for board in boards) == [
        "entrepot-latency",
        "entrepot-overview",
        "entrepot-regions",
        "entrepot-upstreams",
    ]
    for board in boards:
        assert [variable["name"] for variable in board["templating"]["list"]][:2] == ["datasource", "node"]
        (link,) = board["links"]
        assert link["type"] == "dashboards"
        assert set(link["tags"]) <= set(board["tags"])
        for panel in panels(board):
            assert panel["datasource"]["uid"] == "${datasource}"


def test_dashboards_bear_no_rule_of_ours() -> None:
    """They work where only the mirrors are scraped: no recorded series is asked for."""
    recorded = re.findall(r"- record: (\S+)", (ROOT / "deploy/prometheus/recording.yml").read_text())
    assert len(recorded) > 10
    for path in DASHBOARDS:
        text = path.read_text()
        assert [name for name in recorded if name in text] == []
