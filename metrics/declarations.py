"""Every metric, declared once, as data: name, type, help, labels, buckets.

`metrics.prometheus` counts into these and exposes them, `metrics.document` writes docs/metrics.md from
them; what a fleet, its bucket, regions and pulls count is in
`metrics.sharing`, `metrics.regional` and `metrics.pulls.counting`. Units are seconds and bytes. No label ever holds a
repository, a reference, a digest or a client: those belong in the log, a label's values stay few.
"""

from __future__ import annotations

from metrics import regional, sharing
from metrics.metric import Metric as Metric
from metrics.pulls import counting

REQUEST_SECONDS = (0.0005, 0.002, 0.01, 0.05, 0.25, 2.0, 20.0)
UPSTREAM_SECONDS = (0.05, 0.2, 1.0, 5.0, 30.0)
FILL_SECONDS = (0.25, 1.0, 5.0, 30.0, 300.0)
LAG_SECONDS = (0.001, 0.005, 0.025, 0.1, 1.0)
STALE_SECONDS = (60.0, 900.0, 7200.0, 86400.0, 604800.0)


BUILD_INFO = Metric("entrepot_build_info", "gauge", "Always 1; the labels tell what is running.", ("version", "python"))

REQUESTS = Metric(
    "entrepot_requests_total", "counter", "Answered client requests.", ("kind", "method", "status"), bound=128
)
REQUESTS_IN_PROGRESS = Metric(
    "entrepot_requests_in_progress", "gauge", "Client requests that are being answered now.", together="sum"
)
LOOKUPS = Metric(
    "entrepot_lookups_total",
    "counter",
    "Client requests that looked for content, by what came of it: hit, joined, miss (from an upstream; "
    "a manifest from wherever), neighbour, bucket, region, stale, relayed, redirected (to the bucket) or error.",
    ("kind", "upstream", "outcome"),
    bound=256,
)
SENT_BYTES = Metric(
    "entrepot_sent_bytes_total",
    "counter",
    "Bytes of bodies sent to clients, by the same outcomes.",
    ("kind", "upstream", "outcome"),
    bound=256,
)
FIRST_BYTE_SECONDS = Metric(
    "entrepot_time_to_first_byte_seconds",
    "histogram",
    "From a client's request for a manifest or a blob to the first byte of its answer, errors left out.",
    ("kind", "outcome"),
    REQUEST_SECONDS,
    bound=20,
)
REQUEST_DURATION_SECONDS = Metric(
    "entrepot_request_duration_seconds",
    "histogram",
    "From a client's request for a manifest or a blob to the last byte of its answer.",
    ("outcome",),
    REQUEST_SECONDS,
    bound=12,
)
STALE_AGE_SECONDS = Metric(
    "entrepot_stale_age_seconds",
    "histogram",
    "Of manifests that were served stale, the time since an upstream had confirmed their tag.",
    (),
    STALE_SECONDS,
)

UPSTREAM_REQUESTS = Metric(
    "entrepot_upstream_requests_total",
    "counter",
    "Requests to upstream hosts; status is the number, timeout or network.",
    ("upstream", "kind", "method", "status"),
    bound=320,
)
UPSTREAM_DURATION_SECONDS = Metric(
    "entrepot_upstream_request_duration_seconds",
    "histogram",
    "From a request for a manifest or a blob to an upstream host to the headers of its answer.",
    ("upstream", "kind"),
    UPSTREAM_SECONDS,
    bound=60,
)
UPSTREAM_RETRIES = Metric(
    "entrepot_upstream_retries_total",
    "counter",
    "Requests asked again of an upstream, by why.",
    ("upstream", "reason"),
    bound=128,
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
    "1 while the upstream host cannot be reached or fails most requests, so that it is asked rarely; 0 from its first "
    "answer on.",
    ("upstream",),
)
UPSTREAM_CREDENTIAL_REFUSED = Metric(
    "entrepot_upstream_credential_refused",
    "gauge",
    "1 while the upstream host refuses the credential that is configured for it.",
    ("upstream",),
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
    bound=128,
)
FILLS_FINISHED = Metric(
    "entrepot_fills_finished_total",
    "counter",
    "Downloads ended: committed, corrupt, failed or abandoned.",
    ("upstream", "outcome"),
    bound=128,
)
FILLS_FAILED = Metric(
    "entrepot_fills_failed_total",
    "counter",
    "Downloads ended and not committed: timeout, network, status (an answer that is none, such as 429 or 503), denied, "
    "missing, short (the body broke off), corrupt, store (the disk or the quota), abandoned or other.",
    ("upstream", "reason"),
    bound=160,
)
FILL_DURATION_SECONDS = Metric(
    "entrepot_fill_duration_seconds",
    "histogram",
    "How long a download took, of those that were committed.",
    ("outcome",),
    FILL_SECONDS,
    bound=4,
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
    part="fleet",
    bound=192,
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
    bound=128,
)
TAG_REVALIDATIONS = Metric(
    "entrepot_tag_revalidations_total",
    "counter",
    "Tags checked upstream: unchanged, moved, new, held by the cooldown, gone, or failed when nobody could tell.",
    ("upstream", "outcome"),
    bound=160,
)

WARM_RUNS = Metric(
    "entrepot_warm_runs_total",
    "counter",
    "Runs of [[warm]] sections, numbered from 1: done, partial when something could not be had, or failed.",
    ("section", "outcome"),
    bound=192,
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
WORKER_MEMORY = Metric(
    "entrepot_worker_resident_memory_bytes", "gauge", "Resident memory of a worker process.", ("worker",)
)
WORKER_CPU = Metric(
    "entrepot_worker_cpu_seconds_total", "counter", "Processor time that a worker process has taken.", ("worker",)
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
DISK_SIZE = Metric("entrepot_disk_size_bytes", "gauge", "Bytes of that volume, free or not.")


LOOP_LAG_SECONDS = Metric(
    "entrepot_event_loop_lag_seconds", "histogram", "How late the event loop woke a sleeper.", (), LAG_SECONDS
)
LOG_LINES_DROPPED = Metric(
    "entrepot_log_lines_dropped_total", "counter", "Log lines dropped because more came than could be written."
)

METRICS: tuple[Metric, ...] = (
    BUILD_INFO,
    REQUESTS,
    REQUESTS_IN_PROGRESS,
    LOOKUPS,
    SENT_BYTES,
    FIRST_BYTE_SECONDS,
    REQUEST_DURATION_SECONDS,
    STALE_AGE_SECONDS,
    UPSTREAM_REQUESTS,
    UPSTREAM_DURATION_SECONDS,
    UPSTREAM_RETRIES,
    UPSTREAM_QUOTA_LIMIT,
    UPSTREAM_QUOTA_REMAINING,
    UPSTREAM_QUOTA_WINDOW_SECONDS,
    UPSTREAM_FAILING,
    UPSTREAM_CREDENTIAL_REFUSED,
    FILLS_RUNNING,
    FILLS_STARTED,
    FILLS_JOINED,
    FILLS_RESUMED,
    FILLS_FINISHED,
    FILLS_FAILED,
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
    WORKER_MEMORY,
    WORKER_CPU,
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
    DISK_SIZE,
    *sharing.METRICS,
    *regional.METRICS,
    *counting.METRICS,
    LOOP_LAG_SECONDS,
    LOG_LINES_DROPPED,
)
