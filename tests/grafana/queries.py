"""What the committed dashboards and rules ask: their queries, read from the files that people import."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = (ROOT / "deploy/prometheus/recording.yml", ROOT / "deploy/prometheus/alerts.yml")

_VARIABLES = {"$node": ".*", "$upstream": ".*", "$host": ".*", "$peer": ".*"}
_MADE_BY_GRAFANA = {"$__rate_interval": "4s", "$__range": "60s"}


@dataclass(frozen=True)
class Asked:
    """One query of a panel."""

    dashboard: str
    panel: str
    expression: str
    legend: str

    @property
    def substituted(self) -> str:
        """The expression as Grafana sends it where all values of every variable are chosen."""
        text = self.expression
        for name, value in (_VARIABLES | _MADE_BY_GRAFANA).items():
            text = text.replace(name, value)
        assert "$" not in text, f"an unknown variable: {text}"
        return text

    @property
    def bare(self) -> str:
        """The same without the 0 that stands for what has never happened."""
        return self.substituted.replace(" or on () vector(0)", "")

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel}: {self.expression}"


def document(path: Path) -> dict[str, Any]:
    """Return a dashboard."""
    return dict(json.loads(path.read_text()))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a dashboard's panels, rows left out."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def asked(path: Path) -> list[Asked]:
    """Return every query of a dashboard."""
    return [
        Asked(path.stem, panel["title"], target["expr"], target.get("legendFormat", ""))
        for panel in panels(document(path))
        for target in panel["targets"]
    ]


def alerts() -> list[str]:
    """Return the names of the alerts, in their order."""
    return re.findall(r"^      - alert: (\w+)$", RULES[1].read_text(), re.MULTILINE)
