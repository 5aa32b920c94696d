"""The numbers behind the declarations: cells that cost one addition, families that bound their labels.

prometheus_client's own metric objects take a lock and walk their buckets on every observation; these
are written by the event loop alone and read by a scrape, so that an event costs dictionary look-ups
and additions. What a scrape sees of a cell that is being written may be one observation behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Exposed
from prometheus_client.utils import floatToGoString

from metrics.declarations import Metric

MAX_LABEL_VALUES = 64
OTHER = "other"


class Value:
    """A counter's or gauge's number under one set of labels: write `number` directly."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0


class Distribution:
    """A histogram's counts under one set of labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose upper bound it does not exceed."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Labels:
    """Label sets as given, made finite: past MAX_LABEL_VALUES distinct values of a label, a new one is `other`."""

    __slots__ = ("_seen",)

    def __init__(self, metric: Metric) -> None:
        self._seen: tuple[set[str], ...] = tuple(set() for _ in metric.labels)

    def bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple([self._bound(seen, label) for seen, label in zip(self._seen, labels, strict=True)])

    @staticmethod
    def _bound(seen: set[str], label: str) -> str:
        if label in seen:
            return label
        if len(seen) >= MAX_LABEL_VALUES:
            return OTHER
        seen.add(label)
        return label


class ValueFamily:
    """A counter or gauge with its cells by label set."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._labels = _Labels(metric)
        self._cells: dict[tuple[str, ...], Value] = {}
        if not metric.labels:
            self.cell()

    def cell(self, *labels: str) -> Value:
        """Return the cell of `labels`, in the order declared. Keep it: finding it again costs more than writing it."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells.setdefault(self._labels.bounded(labels), Value())
        return cell

    def items(self) -> list[tuple[tuple[str, ...], float]]:
        """Return (labels, number) of every cell: a copy, safe beside writers."""
        return [(labels, cell.number) for labels, cell in list(self._cells.items())]

    def exposed(self) -> Exposed:
        family: CounterMetricFamily | GaugeMetricFamily
        if self.metric.type == "counter":
            family = CounterMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        else:
            family = GaugeMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for labels, number in self.items():
            family.add_metric(labels, number)
        return family


class HistogramFamily:
    """A histogram with its cells by label set."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._labels = _Labels(metric)
        self._cells: dict[tuple[str, ...], Distribution] = {}
        self._names = (*map(floatToGoString, metric.buckets), "+Inf")
        if not metric.labels:
            self.cell()

    def cell(self, *labels: str) -> Distribution:
        """Return the cell of `labels`, in the order declared. Keep it: finding it again costs more than writing it."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells.setdefault(self._labels.bounded(labels), Distribution(self.metric.buckets))
        return cell

    def exposed(self) -> Exposed:
        family = HistogramMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for labels, cell in list(self._cells.items()):
            buckets = list(zip(self._names, accumulate(cell.counts), strict=True))
            family.add_metric(labels, buckets, cell.total)
        return family


class Families:
    """One family for each declared metric; a collector for a prometheus registry."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._values = {metric.name: ValueFamily(metric) for metric in metrics if metric.type != "histogram"}
        self._histograms = {metric.name: HistogramFamily(metric) for metric in metrics if metric.type == "histogram"}
        self._order = [metric.name for metric in metrics]

    def value(self, metric: Metric, *labels: str) -> Value:
        return self._values[metric.name].cell(*labels)

    def distribution(self, metric: Metric, *labels: str) -> Distribution:
        return self._histograms[metric.name].cell(*labels)

    def items(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """Return (labels, number) of every cell of a counter or gauge."""
        return self._values[metric.name].items()

    def collect(self) -> Iterator[Exposed]:
        for name in self._order:
            family = self._values.get(name) or self._histograms[name]
            yield family.exposed()
