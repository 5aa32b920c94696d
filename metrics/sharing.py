"""The metrics of a fleet and its bucket: declared, and counted into, as `metrics.declarations` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from metrics.events import (
    BucketCollected,
    BucketHealth,
    BucketRequest,
    BucketTransferred,
    Event,
    FeedFailed,
    FeedStanding,
    NeighbourAnswered,
    NeighbourRequest,
    RecordsMerged,
    RedisCall,
    RedisHealth,
    RedisRefused,
    UploadsQueued,
)
from metrics.families import Families
from metrics.metric import Metric

NEAR_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
CALL_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

NEIGHBOUR_REQUESTS = Metric(
    "entrepot_neighbour_requests_total",
    "counter",
    "Requests to other nodes of the fleet: ok, missing, refused, failed or abandoned.",
    ("kind", "outcome"),
    part="fleet",
)
NEIGHBOUR_DURATION_SECONDS = Metric(
    "entrepot_neighbour_request_duration_seconds",
    "histogram",
    "From a request to another node to the headers of its answer.",
    ("kind",),
    NEAR_SECONDS,
    part="fleet",
)
NEIGHBOUR_ANSWERS = Metric(
    "entrepot_neighbour_answers_total",
    "counter",
    "Answered requests of other nodes of the fleet.",
    ("kind", "status"),
    part="fleet",
)
NEIGHBOUR_SENT_BYTES = Metric(
    "entrepot_neighbour_sent_bytes_total",
    "counter",
    "Bytes of bodies sent to other nodes of the fleet.",
    ("kind",),
    part="fleet",
)
BUCKET_REQUESTS = Metric(
    "entrepot_bucket_requests_total",
    "counter",
    "Questions to the bucket that nodes share, by what came of them: ok, missing, timeout, network, denied, error, "
    "aborted or cancelled.",
    ("operation", "outcome"),
    part="bucket",
)
BUCKET_DURATION_SECONDS = Metric(
    "entrepot_bucket_request_duration_seconds",
    "histogram",
    "From a question to the bucket to its answer, of a put to its end.",
    ("operation",),
    NEAR_SECONDS,
    part="bucket",
)
BUCKET_BYTES = Metric(
    "entrepot_bucket_bytes_total",
    "counter",
    "Bytes that went up into the bucket, or came down.",
    ("direction",),
    part="bucket",
)
BUCKET_FAILING = Metric(
    "entrepot_bucket_failing", "gauge", "Whether the bucket fails and is only probed.", part="bucket"
)
BUCKET_UPLOADS_WAITING = Metric(
    "entrepot_bucket_uploads_waiting",
    "gauge",
    "Blobs and manifests that the bucket is still to be given.",
    together="sum",
    part="bucket",
)
BUCKET_UPLOADS_OLDEST = Metric(
    "entrepot_bucket_uploads_oldest_seconds",
    "gauge",
    "How long the oldest of those has waited, in seconds.",
    part="bucket",
)
BUCKET_COLLECTIONS = Metric(
    "entrepot_bucket_collections_total",
    "counter",
    "Collections of garbage in the bucket: done or failed.",
    ("outcome",),
    part="bucket",
)
BUCKET_COLLECTED = Metric(
    "entrepot_bucket_collected_total", "counter", "Objects that were deleted as garbage.", part="bucket"
)
BUCKET_COLLECTED_BYTES = Metric(
    "entrepot_bucket_collected_bytes_total", "counter", "Bytes of those objects.", part="bucket"
)
BUCKET_UNKNOWN = Metric(
    "entrepot_bucket_unknown_objects",
    "gauge",
    "Objects in the bucket that no record speaks of, as the last collection found; they are kept.",
    part="bucket",
)
REDIS_UP = Metric(
    "entrepot_redis_up",
    "gauge",
    "1 while the Redis that nodes share is used; 0 while this node works on alone.",
    together="least",
    part="fleet",
)
REDIS_CALL_SECONDS = Metric(
    "entrepot_redis_call_duration_seconds",
    "histogram",
    "How long calls to Redis took, by what came of them: ok, timeout or down.",
    ("script", "outcome"),
    CALL_SECONDS,
    part="fleet",
    bound=48,
)
REDIS_REFUSED = Metric(
    "entrepot_redis_calls_refused_total",
    "counter",
    "Calls that were not made, as Redis is down, or too many waited already.",
    ("script",),
    part="fleet",
)
RECORDS_MERGED = Metric(
    "entrepot_exchange_records_total",
    "counter",
    "Records of other nodes that changed something here (tag, membership, pin), and those of a clock too far ahead "
    "(refused).",
    ("kind",),
    part="fleet",
)
EXCHANGE_FAILURES = Metric(
    "entrepot_exchange_failures_total",
    "counter",
    "Other nodes' records that could not be taken over: unreachable, unreadable, same-catalog, store, other.",
    ("reason",),
    part="fleet",
)
EXCHANGE_NODES = Metric("entrepot_exchange_nodes", "gauge", "Other nodes whose records are taken over.", part="fleet")
EXCHANGE_NODES_CURRENT = Metric(
    "entrepot_exchange_nodes_current", "gauge", "Those of them whose records all are here.", part="fleet"
)

METRICS: tuple[Metric, ...] = (
    NEIGHBOUR_REQUESTS,
    NEIGHBOUR_DURATION_SECONDS,
    NEIGHBOUR_ANSWERS,
    NEIGHBOUR_SENT_BYTES,
    BUCKET_REQUESTS,
    BUCKET_DURATION_SECONDS,
    BUCKET_BYTES,
    BUCKET_FAILING,
    BUCKET_UPLOADS_WAITING,
    BUCKET_UPLOADS_OLDEST,
    BUCKET_COLLECTIONS,
    BUCKET_COLLECTED,
    BUCKET_COLLECTED_BYTES,
    BUCKET_UNKNOWN,
    REDIS_UP,
    REDIS_CALL_SECONDS,
    REDIS_REFUSED,
    RECORDS_MERGED,
    EXCHANGE_FAILURES,
    EXCHANGE_NODES,
    EXCHANGE_NODES_CURRENT,
)


class SharingCounting:
    """Counts what a fleet and its bucket tell into the cells of `families`."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self.observers = cast(
            "dict[type[Event], Callable[[Event], None]]",
            {
                NeighbourRequest: self._neighbour_request,
                NeighbourAnswered: self._neighbour_answered,
                RecordsMerged: self._records_merged,
                FeedFailed: self._feed_failed,
                FeedStanding: self._feed_standing,
                RedisHealth: self._redis_health,
                RedisCall: self._redis_call,
                RedisRefused: self._redis_refused,
                BucketRequest: self._bucket_request,
                BucketTransferred: self._bucket_transferred,
                BucketHealth: self._bucket_health,
                BucketCollected: self._bucket_collected,
                UploadsQueued: self._uploads_queued,
            },
        )

    def _neighbour_request(self, event: NeighbourRequest) -> None:
        self._families.value(NEIGHBOUR_REQUESTS, event.kind, event.outcome).number += 1
        self._families.distribution(NEIGHBOUR_DURATION_SECONDS, event.kind).observe(event.seconds)

    def _neighbour_answered(self, event: NeighbourAnswered) -> None:
        self._families.value(NEIGHBOUR_ANSWERS, event.kind, str(event.status)).number += 1
        self._families.value(NEIGHBOUR_SENT_BYTES, event.kind).number += event.sent

    def _bucket_request(self, event: BucketRequest) -> None:
        self._families.value(BUCKET_REQUESTS, event.operation, event.outcome).number += 1
        self._families.distribution(BUCKET_DURATION_SECONDS, event.operation).observe(event.seconds)
        self._families.value(BUCKET_FAILING)  # shown from now on: whether it fails is told when that changes

    def _bucket_transferred(self, event: BucketTransferred) -> None:
        self._families.value(BUCKET_BYTES, event.direction).number += event.bytes

    def _bucket_health(self, event: BucketHealth) -> None:
        self._families.value(BUCKET_FAILING).number = float(event.failing)

    def _bucket_collected(self, event: BucketCollected) -> None:
        self._families.value(BUCKET_COLLECTIONS, event.outcome).number += 1
        self._families.value(BUCKET_COLLECTED).number += event.deleted
        self._families.value(BUCKET_COLLECTED_BYTES).number += event.bytes
        if event.outcome == "done":
            self._families.value(BUCKET_UNKNOWN).number = event.unknown

    def _uploads_queued(self, event: UploadsQueued) -> None:
        self._families.value(BUCKET_UPLOADS_WAITING).number = event.waiting
        self._families.value(BUCKET_UPLOADS_OLDEST).number = event.oldest

    def _records_merged(self, event: RecordsMerged) -> None:
        for kind, count in (
            ("tag", event.tags),
            ("membership", event.memberships),
            ("pin", event.pins),
            ("refused", event.refused),
        ):
            if count:
                self._families.value(RECORDS_MERGED, kind).number += count

    def _feed_failed(self, event: FeedFailed) -> None:
        self._families.value(EXCHANGE_FAILURES, event.reason).number += 1

    def _feed_standing(self, event: FeedStanding) -> None:
        self._families.value(EXCHANGE_NODES).number = float(event.nodes)
        self._families.value(EXCHANGE_NODES_CURRENT).number = float(event.current)

    def _redis_health(self, event: RedisHealth) -> None:
        self._families.value(REDIS_UP).number = float(event.up)

    def _redis_call(self, event: RedisCall) -> None:
        self._families.distribution(REDIS_CALL_SECONDS, event.script, event.outcome).observe(event.seconds)

    def _redis_refused(self, event: RedisRefused) -> None:
        self._families.value(REDIS_REFUSED, event.script).number += 1
