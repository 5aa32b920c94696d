"""docs/metrics.md, written from the declarations: `python -m metrics.document` prints it."""

from __future__ import annotations

import sys

from metrics.declarations import METRICS, Metric
from metrics.metric import Part

_HEAD = """\
# Metrics

The admin listener gives these at `/metrics`, in Prometheus text or OpenMetrics, together with the
`process_*` metrics of prometheus_client (memory, CPU seconds, open files). Times are in seconds and sizes
in bytes.

Scrape each node once, at its admin listener: with `--workers` the supervisor answers for all of its workers, and
tells memory and CPU seconds of each by itself. Every 15 seconds is plenty; an answer is made outside the processes
that serve and takes none of their time but that of a report. A listener on another address than the machine's own
gives `/metrics` to whoever reaches it, without a token: it holds no names of repositories.

    scrape_configs:
      - job_name: entrepot
        scrape_interval: 15s
        static_configs:
          - targets: ["127.0.0.1:5001"]

No label holds a repository, a reference or a client; the request log does. Each metric has at most as many sets of
labels as the last column says, whatever clients and upstreams send: what comes after is counted under one more, all
of whose labels are `other`. A mirror with three upstreams in use, where everything happens that can, has some 600
series. What a mirror has no part in has none: the metrics of a fleet, a bucket and of other regions begin with their
first use, a gauge when its number is known.

`upstream` is the name that the configuration has; in `entrepot_upstream_*` it is the host that was asked, as an
upstream may have several.

This page is generated: `python -m metrics.document > docs/metrics.md`.
"""
_TITLES: dict[Part, str] = {
    "mirror": "Every mirror",
    "fleet": "Nodes of a fleet",
    "bucket": "A bucket that nodes share",
    "regions": "Other regions",
}
_COLUMNS = """
| metric | type | labels | what it tells | label sets |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    return _HEAD + "".join(map(_section, _TITLES))


def _section(part: Part) -> str:
    return f"\n## {_TITLES[part]}\n{_COLUMNS}" + "".join(_row(metric) for metric in METRICS if metric.part == part)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    most = metric.bound if metric.labels else 1
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} | {most} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
