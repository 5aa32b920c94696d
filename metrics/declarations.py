"""Every metric, declared once, as data: name, type, help, labels, buckets.

`metrics.prometheus` counts into these and exposes them, `metrics.document` writes docs/metrics.md from
them; what regions count is in `metrics.regional`. Units are seconds and bytes. No label ever holds a
repository, a reference, a digest or a client: those belong in the log, a label's values stay few.
"""

from __future__ import annotations

from metrics import regional
from metrics.metric import Metric as Metric
from metrics.pulls import counting

REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
UPSTREAM_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FILL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0)
CALL_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


BUILD_INFO = Metric("entrepot_build_info", "gauge", "Always 1; the labels tell what is running.", ("version", "python"))

REQUESTS = Metric("entrepot_requests_total", "counter", "Answered client requests.", ("kind", "method", "status"))
LOOKUPS = Metric(
    "entrepot_lookups_total",
    "counter",
    "Client requests that looked for content, by what came of it: hit, joined, miss (from an upstream; "
    "a manifest from wherever), neighbour, bucket, stale, relayed, redirected (to the bucket) or error.",
    ("kind", "upstream", "outcome"),
)
SENT_BYTES = Metric("entrepot_sent_bytes_total", "counter", "Bytes of bodies sent to clients.", ("kind", "upstream"))
FIRST_BYTE_SECONDS = Metric(
    "entrepot_time_to_first_byte_seconds",
    "histogram",
    "From a client's request to the first byte of its answer.",
    ("kind", "outcome"),
    REQUEST_SECONDS,
)
REQUEST_DURATION_SECONDS = Metric(
    "entrepot_request_duration_seconds",
    "histogram",
    "From a client's request to the last byte of its answer.",
    ("kind",),
    REQUEST_SECONDS,
)

UPSTREAM_REQUESTS = Metric(
    "entrepot_upstream_requests_total",
    "counter",
    "Requests to upstream hosts; status is the number, timeout or network.",
    ("upstream", "kind", "method", "status"),
)
UPSTREAM_DURATION_SECONDS = Metric(
    "entrepot_upstream_request_duration_seconds",
    "histogram",
    "From a request to an upstream host to the headers of its answer.",
    ("upstream", "kind", "status"),
    UPSTREAM_SECONDS,
)
UPSTREAM_RETRIES = Metric(
    "entrepot_upstream_retries_total", "counter", "Requests asked again of an upstream, by why.", ("upstream", "reason")
)
UPSTREAM_QUOTA_LIMIT = Metric(
    "entrepot_upstream_quota_limit", "gauge", "Requests that the upstream allows in its window.", ("upstream",)
)
UPSTREAM_QUOTA_REMAINING = Metric(
    "entrepot_upstream_quota_remaining",
    "gauge",
    "Requests that the upstream said are left in its window.",
    ("upstream",),
    together="least",
)
UPSTREAM_QUOTA_WINDOW_SECONDS = Metric(
    "entrepot_upstream_quota_window_seconds", "gauge", "Length of the upstream's quota window.", ("upstream",)
)
UPSTREAM_FAILING = Metric(
    "entrepot_upstream_failing",
    "gauge",
    "1 while the upstream host cannot be reached or fails most requests, so that it is asked rarely.",
    ("upstream",),
)
UPSTREAM_CREDENTIAL_REFUSED = Metric(
    "entrepot_upstream_credential_refused",
    "gauge",
    "1 while the upstream host refuses the credential that is configured for it.",
    ("upstream",),
)

NEIGHBOUR_REQUESTS = Metric(
    "entrepot_neighbour_requests_total",
    "counter",
    "Requests to other nodes of the fleet: ok, missing, refused, failed or abandoned.",
    ("kind", "outcome"),
)
NEIGHBOUR_DURATION_SECONDS = Metric(
    "entrepot_neighbour_request_duration_seconds",
    "histogram",
    "From a request to another node to the headers of its answer.",
    ("kind",),
    UPSTREAM_SECONDS,
)
NEIGHBOUR_ANSWERS = Metric(
    "entrepot_neighbour_answers_total", "counter", "Answered requests of other nodes of the fleet.", ("kind", "status")
)
NEIGHBOUR_SENT_BYTES = Metric(
    "entrepot_neighbour_sent_bytes_total", "counter", "Bytes of bodies sent to other nodes of the fleet.", ("kind",)
)

FILLS_RUNNING = Metric(
    "entrepot_fills_running", "gauge", "Downloads into the store that run now.", ("upstream",), together="sum"
)
FILLS_STARTED = Metric("entrepot_fills_started_total", "counter", "Downloads begun.", ("upstream",))
FILLS_JOINED = Metric(
    "entrepot_fills_joined_total", "counter", "Requests served by a download that already ran.", ("upstream",)
)
FILLS_RESUMED = Metric(
    "entrepot_fills_resumed_total",
    "counter",
    "Downloads that went on after a break, by the source that continued them.",
    ("upstream", "source"),
)
FILLS_FINISHED = Metric(
    "entrepot_fills_finished_total",
    "counter",
    "Downloads ended: committed, corrupt, failed or abandoned.",
    ("upstream", "outcome"),
)
FILL_DURATION_SECONDS = Metric(
    "entrepot_fill_duration_seconds", "histogram", "How long a download took.", ("outcome",), FILL_SECONDS
)
RECEIVED_BYTES = Metric(
    "entrepot_received_bytes_total",
    "counter",
    "Bytes of blobs received from upstreams, counted when a download ends.",
    ("upstream",),
)
NEAR_BYTES = Metric(
    "entrepot_near_bytes_total",
    "counter",
    "Bytes of blobs received from other nodes of the fleet, or from its bucket, counted when a download ends.",
    ("upstream", "source"),
)
RECOVERED_BYTES = Metric(
    "entrepot_recovered_bytes_total",
    "counter",
    "Bytes of interrupted downloads found good on disk and not fetched again.",
    ("upstream",),
)
VERIFICATION_FAILURES = Metric(
    "entrepot_verification_failures_total",
    "counter",
    "Downloads whose bytes did not match their digest; source is empty where nobody can be blamed.",
    ("upstream", "source"),
)
TAG_REVALIDATIONS = Metric(
    "entrepot_tag_revalidations_total",
    "counter",
    "Tags checked upstream: unchanged, moved, new, held by the cooldown, gone, or failed when nobody could tell.",
    ("upstream", "outcome"),
)

WARM_RUNS = Metric(
    "entrepot_warm_runs_total",
    "counter",
    "Runs of [[warm]] sections, numbered from 1: done, partial when something could not be had, or failed.",
    ("section", "outcome"),
)
WARM_LAST_SUCCESS = Metric(
    "entrepot_warm_last_success_timestamp_seconds",
    "gauge",
    "When a [[warm]] section, numbered from 1, was last brought in whole, in unix time.",
    ("section",),
)

WORKER_UP = Metric("entrepot_worker_up", "gauge", "Whether a worker process, numbered from 1, answers.", ("worker",))
WORKER_RESTARTS = Metric(
    "entrepot_worker_restarts_total", "counter", "Workers started again because they died.", ("worker",)
)

STORE_BYTES = Metric("entrepot_store_bytes", "gauge", "Bytes of the stored blobs, manifests included.")
STORE_BLOBS = Metric("entrepot_store_blobs", "gauge", "Stored blobs, manifests included.")
STORE_MANIFESTS = Metric("entrepot_store_manifests", "gauge", "Stored manifests.")
STORE_REPOSITORIES = Metric("entrepot_store_repositories", "gauge", "Repositories that the catalog knows.")
STORE_TAGS = Metric("entrepot_store_tags", "gauge", "Tags that the catalog knows.")
STORE_SPOOLS = Metric("entrepot_store_spools", "gauge", "Unfinished downloads on disk, running ones included.")
EVICTED_CLOSURES = Metric(
    "entrepot_evicted_closures_total",
    "counter",
    "Images, and what was left of images, that were evicted: quota, orphan, gc or rm.",
    ("reason",),
)
EVICTED_BYTES = Metric("entrepot_evicted_bytes_total", "counter", "Bytes that eviction gave back.", ("reason",))
SPACE_HIGH = Metric("entrepot_space_high_bytes", "gauge", "Bytes that may be stored and reserved now.")
SPACE_LOW = Metric("entrepot_space_low_bytes", "gauge", "Bytes that an eviction goes down to.")
SPACE_USED = Metric("entrepot_space_used_bytes", "gauge", "Bytes stored, and reserved for downloads under way.")
DISK_FREE = Metric("entrepot_disk_free_bytes", "gauge", "Bytes that are free on the volume of the data folder.")

BUCKET_REQUESTS = Metric(
    "entrepot_bucket_requests_total",
    "counter",
    "Questions to the bucket that nodes share, by what came of them: ok, missing, timeout, network, denied, error, "
    "aborted or cancelled.",
    ("operation", "outcome"),
)
BUCKET_DURATION_SECONDS = Metric(
    "entrepot_bucket_request_duration_seconds",
    "histogram",
    "From a question to the bucket to its answer, of a put to its end.",
    ("operation",),
    UPSTREAM_SECONDS,
)
BUCKET_BYTES = Metric(
    "entrepot_bucket_bytes_total", "counter", "Bytes that went up into the bucket, or came down.", ("direction",)
)
BUCKET_FAILING = Metric("entrepot_bucket_failing", "gauge", "Whether the bucket fails and is only probed.")
BUCKET_UPLOADS_WAITING = Metric(
    "entrepot_bucket_uploads_waiting",
    "gauge",
    "Blobs and manifests that the bucket is still to be given.",
    (),
    (),
    "sum",
)
BUCKET_UPLOADS_OLDEST = Metric(
    "entrepot_bucket_uploads_oldest_seconds", "gauge", "How long the oldest of those has waited, in seconds."
)
BUCKET_COLLECTIONS = Metric(
    "entrepot_bucket_collections_total",
    "counter",
    "Collections of garbage in the bucket: done or failed.",
    ("outcome",),
)
BUCKET_COLLECTED = Metric("entrepot_bucket_collected_total", "counter", "Objects that were deleted as garbage.")
BUCKET_COLLECTED_BYTES = Metric("entrepot_bucket_collected_bytes_total", "counter", "Bytes of those objects.")
BUCKET_UNKNOWN = Metric(
    "entrepot_bucket_unknown_objects",
    "gauge",
    "Objects in the bucket that no record speaks of, as the last collection found; they are kept.",
)

REDIS_UP = Metric(
    "entrepot_redis_up",
    "gauge",
    "1 while the Redis that nodes share is used; 0 while this node works on alone.",
    together="least",
)
REDIS_CALL_SECONDS = Metric(
    "entrepot_redis_call_duration_seconds",
    "histogram",
    "How long calls to Redis took, by what came of them: ok, timeout or down.",
    ("script", "outcome"),
    CALL_SECONDS,
)
REDIS_REFUSED = Metric(
    "entrepot_redis_calls_refused_total",
    "counter",
    "Calls that were not made, as Redis is down, or too many waited already.",
    ("script",),
)

RECORDS_MERGED = Metric(
    "entrepot_exchange_records_total",
    "counter",
    "Records of other nodes that changed something here (tag, membership, pin), and those of a clock too far ahead "
    "(refused).",
    ("kind",),
)
EXCHANGE_FAILURES = Metric(
    "entrepot_exchange_failures_total",
    "counter",
    "Other nodes' records that could not be taken over: unreachable, unreadable, same-catalog, store, other.",
    ("reason",),
)
EXCHANGE_NODES = Metric("entrepot_exchange_nodes", "gauge", "Other nodes whose records are taken over.")
EXCHANGE_NODES_CURRENT = Metric("entrepot_exchange_nodes_current", "gauge", "Those of them whose records all are here.")

LOOP_LAG_SECONDS = Metric(
    "entrepot_event_loop_lag_seconds", "histogram", "How late the event loop woke a sleeper.", (), LAG_SECONDS
)
LOG_LINES_DROPPED = Metric(
    "entrepot_log_lines_dropped_total", "counter", "Log lines dropped because more came than could be written."
)

METRICS: tuple[Metric, ...] = (
    BUILD_INFO,
    REQUESTS,
    LOOKUPS,
    SENT_BYTES,
    FIRST_BYTE_SECONDS,
    REQUEST_DURATION_SECONDS,
    UPSTREAM_REQUESTS,
    UPSTREAM_DURATION_SECONDS,
    UPSTREAM_RETRIES,
    UPSTREAM_QUOTA_LIMIT,
    UPSTREAM_QUOTA_REMAINING,
    UPSTREAM_QUOTA_WINDOW_SECONDS,
    UPSTREAM_FAILING,
    UPSTREAM_CREDENTIAL_REFUSED,
    NEIGHBOUR_REQUESTS,
    NEIGHBOUR_DURATION_SECONDS,
    NEIGHBOUR_ANSWERS,
    NEIGHBOUR_SENT_BYTES,
    FILLS_RUNNING,
    FILLS_STARTED,
    FILLS_JOINED,
    FILLS_RESUMED,
    FILLS_FINISHED,
    FILL_DURATION_SECONDS,
    RECEIVED_BYTES,
    NEAR_BYTES,
    RECOVERED_BYTES,
    VERIFICATION_FAILURES,
    TAG_REVALIDATIONS,
    WARM_RUNS,
    WARM_LAST_SUCCESS,
    WORKER_UP,
    WORKER_RESTARTS,
    STORE_BYTES,
    STORE_BLOBS,
    STORE_MANIFESTS,
    STORE_REPOSITORIES,
    STORE_TAGS,
    STORE_SPOOLS,
    EVICTED_CLOSURES,
    EVICTED_BYTES,
    SPACE_HIGH,
    SPACE_LOW,
    SPACE_USED,
    DISK_FREE,
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
    *regional.METRICS,
    *counting.METRICS,
    LOOP_LAG_SECONDS,
    LOG_LINES_DROPPED,
)
