"""The dashboards: what is on each is in its own module, here are the variables, links and rows around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from deploy.grafana import latency, overview, regions, upstreams
from deploy.grafana.panels import SOURCE, Panel

FOLDER = Path(__file__).parent / "dashboards"
Rows = Sequence[tuple[str, Sequence[Panel]]]
_TAG = "entrepot"
_EVERYTHING = model.VariableOption(selected=True, text="All", value="$__all")


def documents() -> dict[str, str]:
    """Return every dashboard as JSON, by the name of its file in FOLDER. The same code gives the same text."""
    made = {
        "overview.json": _dashboard("overview", "overview", overview.DESCRIPTION, overview.rows()),
        "latency.json": _dashboard("latency", "pull latency", latency.DESCRIPTION, latency.rows()),
        "upstreams.json": _dashboard(
            "upstreams",
            "upstreams and quota",
            upstreams.DESCRIPTION,
            upstreams.rows(),
            _values_of("upstream", "Upstream", "entrepot_lookups_total", "upstream"),
            _values_of("host", "Host", "entrepot_upstream_requests_total", "upstream"),
        ),
        "regions.json": _dashboard(
            "regions",
            "regions",
            regions.DESCRIPTION,
            regions.rows(),
            _values_of("peer", "Other region", "entrepot_peer_behind_seconds", "peer"),
        ),
    }
    return {name: json.dumps(board.build(), cls=JSONEncoder, indent=2) + "\n" for name, board in made.items()}


def _dashboard(
    name: str, title: str, description: str, rows: Rows, *variables: builder.QueryVariable
) -> builder.Dashboard:
    board = (
        builder.Dashboard(f"Entrepot: {title}")
        .uid(f"entrepot-{name}")
        .description(description)
        .tags([_TAG])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
        .link(
            builder.DashboardLink("Entrepot")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([_TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_values_of("node", "Node", "entrepot_build_info", "instance"))
    )
    for variable in variables:
        board = board.with_variable(variable)
    numbers = count(1)
    for row, panels in rows:
        board = board.with_row(builder.Row(row).id(next(numbers)))
        for panel in panels:
            board = board.with_panel(_Numbered(panel, next(numbers)))
    return board


class _Numbered(Panel):
    """A panel with an id, by which Grafana links to it."""

    def __init__(self, panel: Panel, number: int) -> None:
        self._panel = panel
        self._number = number

    def build(self) -> model.Panel:
        built = self._panel.build()
        built.id_val = self._number
        return built


def _values_of(name: str, label: str, metric: str, of: str) -> builder.QueryVariable:
    """Return a variable that is any of the values that a label of `metric` has, all at first."""
    return (
        builder.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {of})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_EVERYTHING)
    )
