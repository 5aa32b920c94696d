"""The numbers behind the declarations: cells that cost one addition, families that bound their labels.

prometheus_client's own metric objects take a lock and walk their buckets on every observation; these
are written by the event loop alone and read by a scrape, so that an event costs dictionary look-ups
and additions. What a scrape sees of a cell that is being written may be one observation behind.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from itertools import accumulate

import msgspec
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric as Exposed,
)
from prometheus_client.utils import floatToGoString

from metrics.metric import Metric

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


class Snapshot(msgspec.Struct, frozen=True):
    """What one process has counted: numbers, and (counts, total) of distributions, by metric and labels."""

    values: dict[str, list[tuple[tuple[str, ...], float]]]
    distributions: dict[str, list[tuple[tuple[str, ...], list[int], float]]]


def _room(labels: tuple[str, ...], known: Container[tuple[str, ...]], count: int, metric: Metric) -> tuple[str, ...]:
    """Return under which labels to count: beyond the metric's bound, what is new counts as `other`."""
    if labels in known or count < metric.bound:
        return labels
    return (OTHER,) * len(labels)


class ValueFamily:
    """A counter or gauge with its cells by label set."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._cells: dict[tuple[str, ...], Value] = {}
        if metric.from_start:
            self.cell()

    def cell(self, *labels: str) -> Value:
        """Return the cell of `labels`, in the order declared. Keep it: finding it again costs more than writing it."""
        cell = self._cells.get(labels)
        if cell is None:
            bounded = _room(labels, self._cells, len(self._cells), self.metric)
            cell = self._cells.setdefault(bounded, Value())
        return cell

    def items(self) -> list[tuple[tuple[str, ...], float]]:
        """Return (labels, number) of every cell: a copy, safe beside writers."""
        return [(labels, cell.number) for labels, cell in list(self._cells.items())]

    def exposed(self, others: Sequence[Snapshot] = ()) -> Exposed:
        family: CounterMetricFamily | GaugeMetricFamily
        if self.metric.type == "counter":
            family = CounterMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        else:
            family = GaugeMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for labels, number in self.merged(others).items():
            family.add_metric(labels, number)
        return family

    def merged(self, others: Sequence[Snapshot]) -> dict[tuple[str, ...], float]:
        """Return the numbers with those of other processes: counters added up, gauges as they are declared."""
        merged = dict(self.items())
        combine = operator.add if self.metric.type == "counter" else _TOGETHER[self.metric.together]
        for snapshot in others:
            for labels, number in snapshot.values.get(self.metric.name, ()):
                shown = _room(labels, merged, len(merged), self.metric)
                merged[shown] = combine(merged[shown], number) if shown in merged else number
        return merged


class HistogramFamily:
    """A histogram with its cells by label set."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._cells: dict[tuple[str, ...], Distribution] = {}
        self._names = (*map(floatToGoString, metric.buckets), "+Inf")
        if metric.from_start:
            self.cell()

    def cell(self, *labels: str) -> Distribution:
        """Return the cell of `labels`, in the order declared. Keep it: finding it again costs more than writing it."""
        cell = self._cells.get(labels)
        if cell is None:
            bounded = _room(labels, self._cells, len(self._cells), self.metric)
            cell = self._cells.setdefault(bounded, Distribution(self.metric.buckets))
        return cell

    def items(self) -> list[tuple[tuple[str, ...], list[int], float]]:
        """Return (labels, counts, total) of every cell: a copy, safe beside writers."""
        return [(labels, list(cell.counts), cell.total) for labels, cell in list(self._cells.items())]

    def exposed(self, others: Sequence[Snapshot] = ()) -> Exposed:
        family = HistogramMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for labels, (counts, total) in self.merged(others).items():
            family.add_metric(labels, list(zip(self._names, accumulate(counts), strict=True)), total)
        return family

    def merged(self, others: Sequence[Snapshot]) -> dict[tuple[str, ...], tuple[list[int], float]]:
        """Return (counts, total) with those of other processes added up."""
        merged: dict[tuple[str, ...], tuple[list[int], float]] = {}
        for items in (self.items(), *(snapshot.distributions.get(self.metric.name, ()) for snapshot in others)):
            for labels, counts, total in items:
                shown = _room(labels, merged, len(merged), self.metric)
                if shown in merged:
                    known, known_total = merged[shown]
                    merged[shown] = [*map(operator.add, known, counts)], known_total + total
                else:
                    merged[shown] = counts, total
        return merged


class Families:
    """One family for each declared metric; a collector for a prometheus registry.

    `others` are what other processes counted: it is exposed as if it had been counted here.
    """

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._values = {metric.name: ValueFamily(metric) for metric in metrics if metric.type != "histogram"}
        self._histograms = {metric.name: HistogramFamily(metric) for metric in metrics if metric.type == "histogram"}
        self._order = [metric.name for metric in metrics]
        self.others: Callable[[], Sequence[Snapshot]] = tuple

    def value(self, metric: Metric, *labels: str) -> Value:
        return self._values[metric.name].cell(*labels)

    def distribution(self, metric: Metric, *labels: str) -> Distribution:
        return self._histograms[metric.name].cell(*labels)

    def items(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """Return (labels, number) of every cell of a counter or gauge."""
        return list(self._values[metric.name].merged(self.others()).items())

    def distributions(self, metric: Metric) -> list[tuple[tuple[str, ...], list[int]]]:
        """Return (labels, counts by bucket) of every cell of a histogram."""
        merged = self._histograms[metric.name].merged(self.others())
        return [(labels, counts) for labels, (counts, _) in merged.items()]

    def snapshot(self) -> Snapshot:
        """Return all that was counted here, for another process to expose."""
        return Snapshot(
            {name: family.items() for name, family in self._values.items()},
            {name: family.items() for name, family in self._histograms.items()},
        )

    def absorb(self, snapshot: Snapshot) -> None:
        """Count here what a process has counted that is gone now. Its gauges are gone with it."""
        for name, values in snapshot.values.items():
            family = self._values.get(name)
            if family is not None and family.metric.type == "counter":
                for labels, number in values:
                    family.cell(*labels).number += number
        for name, distributions in snapshot.distributions.items():
            for labels, counts, total in distributions:
                cell = self._histograms[name].cell(*labels)
                cell.counts = [*map(operator.add, cell.counts, counts)]
                cell.total += total

    def collect(self) -> Iterator[Exposed]:
        others = self.others()
        for name in self._order:
            family = self._values.get(name) or self._histograms[name]
            yield family.exposed(others)


def _greatest(one: float, other: float) -> float:
    return max(one, other)


def _least(one: float, other: float) -> float:
    return min(one, other)


_TOGETHER: dict[str, Callable[[float, float], float]] = {"greatest": _greatest, "least": _least, "sum": operator.add}
