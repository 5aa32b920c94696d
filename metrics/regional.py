"""The metrics of the sync with other regions: declared, and counted into, as `metrics.declarations` says.

`peer` is the name of a configured region, so that its values stay few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from metrics.events import (
    Event,
    ImageFailed,
    ImageSynced,
    PeerFailed,
    PeerPolled,
    PeerReconciled,
    PeerStanding,
    PeerTransferred,
    RegionAnswered,
)
from metrics.families import Families
from metrics.metric import Metric

IMAGE_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0, 14400.0)

SECONDS_BEHIND = Metric(
    "entrepot_peer_behind_seconds",
    "gauge",
    "For how long something that the region has, and this one should have, has not been here; 0: all is.",
    ("peer",),
    part="regions",
)
IMAGES_BEHIND = Metric(
    "entrepot_peer_behind_images",
    "gauge",
    "Images and tags of the region that are still to come here, each by itself.",
    ("peer",),
    part="regions",
)
BYTES_BEHIND = Metric(
    "entrepot_peer_behind_bytes", "gauge", "Bytes of those images, as far as they are known.", ("peer",), part="regions"
)
REMOVALS_WAITING = Metric(
    "entrepot_peer_removals_waiting",
    "gauge",
    "Images and tags that were removed in the region and are still here: for their grace, or as they are too many.",
    ("peer",),
    part="regions",
)
CONTENT_BYTES = Metric(
    "entrepot_peer_content_bytes_total",
    "counter",
    "Bytes of manifests and blobs that came from the region.",
    ("peer",),
    part="regions",
)
POLLS = Metric(
    "entrepot_peer_polls_total",
    "counter",
    "Answers with records of the region that were read.",
    ("peer",),
    part="regions",
)
POLL_BYTES = Metric("entrepot_peer_poll_bytes_total", "counter", "Bytes of those answers.", ("peer",), part="regions")
POLL_RECORDS = Metric(
    "entrepot_peer_poll_records_total", "counter", "Records in those answers.", ("peer",), part="regions"
)
RECONCILIATIONS = Metric(
    "entrepot_peer_reconciliations_total",
    "counter",
    "How often all that is known of the region was compared with what it says.",
    ("peer",),
    part="regions",
)
RECONCILE_ROUNDS = Metric(
    "entrepot_peer_reconcile_rounds_total",
    "counter",
    "Questions that those comparisons took.",
    ("peer",),
    part="regions",
)
RECONCILE_BYTES = Metric(
    "entrepot_peer_reconcile_bytes_total", "counter", "Bytes that they took.", ("peer",), part="regions"
)
LINK_FAILURES = Metric(
    "entrepot_peer_failures_total",
    "counter",
    "Questions for records that failed: unreachable, refused, unreadable, same-catalog, store, other.",
    ("peer", "reason"),
    part="regions",
)
IMAGES_SYNCED = Metric(
    "entrepot_peer_images_total", "counter", "Images brought here from the region.", ("peer",), part="regions"
)
IMAGE_BYTES = Metric(
    "entrepot_peer_image_bytes_total", "counter", "Bytes of those images, whoever gave them.", ("peer",), part="regions"
)
IMAGE_DURATION_SECONDS = Metric(
    "entrepot_peer_image_duration_seconds",
    "histogram",
    "From the start of an image to the moment when its tags were shown.",
    ("peer",),
    IMAGE_SECONDS,
    part="regions",
    bound=32,
)
IMAGE_FAILURES = Metric(
    "entrepot_peer_image_failures_total",
    "counter",
    "Images that could not be had and are tried again: missing, corrupt, unreachable, refused, store, other.",
    ("peer", "reason"),
    part="regions",
)
REGION_ANSWERS = Metric(
    "entrepot_region_answers_total",
    "counter",
    "Answered requests of other regions.",
    ("kind", "status"),
    part="regions",
)
REGION_SENT_BYTES = Metric(
    "entrepot_region_sent_bytes_total", "counter", "Bytes of bodies sent to other regions.", ("kind",), part="regions"
)

METRICS: tuple[Metric, ...] = (
    SECONDS_BEHIND,
    IMAGES_BEHIND,
    BYTES_BEHIND,
    REMOVALS_WAITING,
    CONTENT_BYTES,
    POLLS,
    POLL_BYTES,
    POLL_RECORDS,
    RECONCILIATIONS,
    RECONCILE_ROUNDS,
    RECONCILE_BYTES,
    LINK_FAILURES,
    IMAGES_SYNCED,
    IMAGE_BYTES,
    IMAGE_DURATION_SECONDS,
    IMAGE_FAILURES,
    REGION_ANSWERS,
    REGION_SENT_BYTES,
)


class RegionalCounting:
    """Counts what regions tell into the cells of `families`."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self.observers = cast(
            "dict[type[Event], Callable[[Event], None]]",
            {
                PeerStanding: self._standing,
                PeerFailed: self._failed,
                PeerPolled: self._polled,
                PeerReconciled: self._reconciled,
                PeerTransferred: self._transferred,
                ImageSynced: self._synced,
                ImageFailed: self._image_failed,
                RegionAnswered: self._answered,
            },
        )

    def _standing(self, event: PeerStanding) -> None:
        self._families.value(SECONDS_BEHIND, event.peer).number = event.seconds
        self._families.value(IMAGES_BEHIND, event.peer).number = event.images
        self._families.value(BYTES_BEHIND, event.peer).number = event.bytes
        self._families.value(REMOVALS_WAITING, event.peer).number = event.removals

    def _failed(self, event: PeerFailed) -> None:
        self._families.value(LINK_FAILURES, event.peer, event.reason).number += 1

    def _polled(self, event: PeerPolled) -> None:
        self._families.value(POLLS, event.peer).number += 1
        self._families.value(POLL_BYTES, event.peer).number += event.bytes
        self._families.value(POLL_RECORDS, event.peer).number += event.records

    def _reconciled(self, event: PeerReconciled) -> None:
        self._families.value(RECONCILIATIONS, event.peer).number += 1
        self._families.value(RECONCILE_ROUNDS, event.peer).number += event.rounds
        self._families.value(RECONCILE_BYTES, event.peer).number += event.bytes

    def _transferred(self, event: PeerTransferred) -> None:
        self._families.value(CONTENT_BYTES, event.peer).number += event.bytes

    def _synced(self, event: ImageSynced) -> None:
        self._families.value(IMAGES_SYNCED, event.peer).number += 1
        self._families.value(IMAGE_BYTES, event.peer).number += event.bytes
        self._families.distribution(IMAGE_DURATION_SECONDS, event.peer).observe(event.seconds)

    def _image_failed(self, event: ImageFailed) -> None:
        self._families.value(IMAGE_FAILURES, event.peer, event.reason).number += 1

    def _answered(self, event: RegionAnswered) -> None:
        self._families.value(REGION_ANSWERS, event.kind, str(event.status)).number += 1
        self._families.value(REGION_SENT_BYTES, event.kind).number += event.bytes
