"""The metrics of pulls: declared, and counted into, as `metrics.declarations` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from metrics.events import Event, PullEnded
from metrics.families import Families
from metrics.metric import Metric

PULL_SECONDS = (0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
PULL_BYTES = (16 << 20, 128 << 20, 1 << 30)
WITHOUT_TRANSFER = frozenset({"unchanged", "broken"})

DURATION_SECONDS = Metric(
    "entrepot_pull_duration_seconds",
    "histogram",
    "From a client's first request for an image's manifest to the last byte of the last blob that it wanted; pulls "
    "that were broken, or transferred nothing, are not among them. Outcome: hit, joined, miss or near.",
    ("upstream", "outcome"),
    PULL_SECONDS,
)
SIZE_BYTES = Metric(
    "entrepot_pull_size_bytes",
    "histogram",
    "Bytes sent for those pulls.",
    ("upstream", "outcome"),
    PULL_BYTES,
)
PULLS = Metric(
    "entrepot_pulls_total",
    "counter",
    "Pulls that ended: hit (all of it was here), joined (downloads that ran already), miss (from an upstream), near "
    "(from another node, the bucket or another region), unchanged (the client had all of it) or broken.",
    ("upstream", "outcome"),
)
RUNNING = Metric("entrepot_pulls_running", "gauge", "Pulls that run now.")
LAYERS = Metric(
    "entrepot_pull_layers_total",
    "counter",
    "Layers of pulled images, by whether the client had them (yes) or asked for them (no).",
    ("upstream", "had"),
)
LAYER_BYTES = Metric("entrepot_pull_layer_bytes_total", "counter", "Bytes of those layers.", ("upstream", "had"))
STEPS_DROPPED = Metric(
    "entrepot_steps_dropped_total",
    "counter",
    "Requests that pulls were not told of, because more came than could be looked at.",
)

METRICS: tuple[Metric, ...] = (
    DURATION_SECONDS,
    SIZE_BYTES,
    PULLS,
    RUNNING,
    LAYERS,
    LAYER_BYTES,
    STEPS_DROPPED,
)


class PullCounting:
    """Counts pulls that ended into the cells of `families`."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self.observers = cast("dict[type[Event], Callable[[Event], None]]", {PullEnded: self._ended})

    def _ended(self, event: PullEnded) -> None:
        families, upstream = self._families, event.upstream
        families.value(PULLS, upstream, event.outcome).number += 1
        if event.outcome not in WITHOUT_TRANSFER:
            families.distribution(DURATION_SECONDS, upstream, event.outcome).observe(event.seconds)
            families.distribution(SIZE_BYTES, upstream, event.outcome).observe(event.sent)
        if event.layers:
            for had, layers, size in (
                ("yes", event.had, event.had_bytes),
                ("no", event.layers - event.had, event.layer_bytes - event.had_bytes),
            ):
                families.value(LAYERS, upstream, had).number += layers
                families.value(LAYER_BYTES, upstream, had).number += size
