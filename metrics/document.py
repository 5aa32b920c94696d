"""docs/metrics.md, written from the declarations: `python -m metrics.document` prints it."""

from __future__ import annotations

import sys

from metrics.declarations import METRICS, Metric

_HEAD = """\
# Metrics

The admin listener gives these at `/metrics`, in Prometheus text or OpenMetrics, together with the
`process_*` metrics of prometheus_client (memory, CPU seconds, open files). Times are in seconds and sizes
in bytes. No label holds a repository, a reference or a client; the request log does. A label takes at
most 64 values, whatever comes after is counted under `other`.

This page is generated: `python -m metrics.document > docs/metrics.md`.

| metric | type | labels | what it tells |
|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    return _HEAD + "".join(map(_row, METRICS))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
