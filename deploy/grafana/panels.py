"""Panels as all dashboards have them: one number, lines over time, bars, a heatmap. No query is written here.

A panel says by its description what its number means and when to worry. Units are Grafana's names of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import (
    common as common_model,
    dashboard as model,
    heatmap as heatmap_model,
    prometheus as prometheus_model,
)

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
SECONDS, BYTES, BYTES_PER_SECOND = "s", "bytes", "Bps"
PER_SECOND, RATIO, COUNT = "reqps", "percentunit", "short"
GREEN, YELLOW, RED = "green", "orange", "red"

Panel = Builder[model.Panel]
Steps = Sequence[tuple[float, str]]
"""From which value on which colour is meant; below the first it is green."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its lines are called: {{label}} stands for a label's value."""

    expr: str
    legend: str


def number(title: str, description: str, expr: str, *, unit: str, steps: Steps = (), first: str = GREEN) -> Panel:
    """Return a panel of one number over the dashboard's whole range; `first` is the colour below the first step."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(prometheus.Dataquery().expr(expr).instant().ref_id("A"))
        .unit(unit)
        .thresholds(_thresholds(steps, first))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(common_model.BigValueColorMode.VALUE)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .height(4)
        .span(4)
    )
    return panel.decimals(1) if unit == RATIO else panel


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    steps: Steps = (),
    stacked: bool = False,
    most: float | None = None,
    width: int = 8,
) -> Panel:
    """Return a panel of lines over time. Steps are drawn as dashed lines; `most` is the axis' upper end."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(
            [
                prometheus.Dataquery().expr(query.expr).range().legend_format(query.legend).ref_id(chr(ord("A") + at))
                for at, query in enumerate(queries)
            ]
        )
        .unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
        .height(8)
        .span(width)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if most is not None:
        panel = panel.max(most)
    if steps:
        dashed = common.GraphThresholdsStyleConfig().mode(common_model.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(steps, GREEN)).thresholds_style(dashed)
    return panel


def bars(title: str, description: str, query: Query, *, unit: str, steps: Steps, first: str = GREEN) -> Panel:
    """Return a panel with a bar for each series' last value, from 0 to 1 where they are ratios."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(prometheus.Dataquery().expr(query.expr).instant().legend_format(query.legend).ref_id("A"))
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(steps, first))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .height(8)
        .span(8)
    )
    return panel.max(1) if unit == RATIO else panel


def heat(title: str, description: str, expr: str, *, unit: str, width: int = 16) -> Panel:
    """Return a heatmap of a histogram's buckets; `expr` is summed by `le`."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(
            prometheus.Dataquery()
            .expr(expr)
            .range()
            .format(prometheus_model.PromQueryFormat.HEATMAP)
            .legend_format("{{le}}")
            .ref_id("A")
        )
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common_model.AxisPlacement.LEFT))
        .color(heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .height(8)
        .span(width)
    )


def quantile(part: float, histogram: str, selector: str, *by: str, over: str = "$__rate_interval") -> str:
    """Return the expression of a quantile (0.99 for p99) of `histogram`, kept apart by the labels `by`."""
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile({part}, sum by ({labels}) (rate({histogram}_bucket{{{selector}}}[{over}])))"


def rate(counter: str, selector: str, *by: str) -> str:
    """Return the expression of the rate of `counter`, added up by the labels `by`."""
    kept = f" by ({', '.join(by)}) " if by else ""
    return f"sum{kept}(rate({counter}{{{selector}}}[$__rate_interval]))"


def total(counter: str, selector: str) -> str:
    """Return the expression of how much `counter` grew over the dashboard's range."""
    return f"sum(increase({counter}{{{selector}}}[$__range]))"


def happened(counter: str, selector: str) -> str:
    """Return how often something rare came about in the dashboard's range.

    Its counter begins with the first time, at 1: what `increase` says of that is 0.
    """
    grown, begun = f"increase({counter}{{{selector}}}[$__range])", f"{counter}{{{selector}}}"
    return f"sum(({grown} and {begun} offset $__range) or {begun} or {grown})"


def or_zero(expr: str) -> str:
    """Return `expr`, and 0 where nothing of the kind has ever happened."""
    return f"{expr} or on () vector(0)"


def share(part: str, whole: str) -> str:
    """Return `part`, which may never have happened, as a part of `whole`; neither has labels."""
    return f"({or_zero(part)}) / {whole}"


def _thresholds(steps: Steps, first: str) -> Builder[model.ThresholdsConfig]:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=None, color=first), *(model.Threshold(value, color) for value, color in steps)])
    )
