"""The first dashboard: is it well, what does it save, will it run out of disk or quota."""

from __future__ import annotations

from deploy.grafana.panels import (
    BYTES,
    BYTES_PER_SECOND,
    COUNT,
    GREEN,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    YELLOW,
    Panel,
    Query,
    happened,
    lines,
    number,
    or_zero,
    quantile,
    rate,
    share,
    total,
)

DESCRIPTION = "How the mirrors are: traffic, what they save, room, quota, processes."
NODE = 'instance=~"$node"'
HITS = 'outcome=~"hit|stale|joined"'
# Other programs may have the same instance: of what every process tells, that of mirrors.
_OURS = "and on (instance, job) entrepot_build_info"


def rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows with their panels."""
    return [("At a glance", _glance()), ("Traffic", _traffic()), ("Store", _store()), ("Processes", _processes())]


def _glance() -> list[Panel]:
    return [
        number(
            "Mirrors",
            "Nodes that answer Prometheus.",
            f"count(entrepot_build_info{{{NODE}}})",
            unit=COUNT,
            first=RED,
            steps=[(1, GREEN)],
        ),
        number(
            "Pull time, p90",
            "Nine in ten pulls of the shown time ended within it, from their first request to their last byte.",
            quantile(0.90, "entrepot_pull_duration_seconds", NODE, over="$__range"),
            unit=SECONDS,
            steps=[(30, YELLOW), (120, RED)],
        ),
        number(
            "Hit ratio",
            "Of look-ups, those for which nobody outside was asked: stored, joined to a running download, or stale.",
            share(total("entrepot_lookups_total", f"{NODE}, {HITS}"), total("entrepot_lookups_total", NODE)),
            unit=RATIO,
            first=YELLOW,
            steps=[(0.5, GREEN)],
        ),
        number(
            "Bytes saved",
            "Bytes sent to clients that no upstream had to give, in the shown time.",
            f"clamp_min({total('entrepot_sent_bytes_total', NODE)}"
            f" - ({or_zero(total('entrepot_received_bytes_total', NODE))}), 0)",
            unit=BYTES,
        ),
        number(
            "Room used",
            "Stored and reserved, of what may be, on the fullest node. Near 1 is usual where more is pulled than fits.",
            f"max(entrepot_space_used_bytes{{{NODE}}} / (entrepot_space_high_bytes{{{NODE}}} > 0))",
            unit=RATIO,
            steps=[(0.95, YELLOW), (1.0, RED)],
        ),
        number(
            "Lowest quota",
            "The least that is left of an upstream's pull quota, of those that tell one; 100 % where none does.",
            f"min(entrepot_upstream_quota_remaining{{{NODE}}} / (entrepot_upstream_quota_limit{{{NODE}}} > 0))"
            " or on () vector(1)",
            unit=RATIO,
            first=RED,
            steps=[(0.1, YELLOW), (0.25, GREEN)],
        ),
        number(
            "Upstreams failing",
            "Upstream hosts that cannot be reached from a node or more, or fail most requests.",
            or_zero(f"sum(max by (upstream) (entrepot_upstream_failing{{{NODE}}}))"),
            unit=COUNT,
            steps=[(1, RED)],
        ),
        number(
            "Regions behind",
            "For how long something that another region has has been missing here; 0 where there is none.",
            or_zero(f"max(entrepot_peer_behind_seconds{{{NODE}}})"),
            unit=SECONDS,
            steps=[(300, YELLOW), (900, RED)],
        ),
        number(
            "Errors",
            "Of the answers to clients, those that are errors of the mirror (5xx).",
            share(total("entrepot_requests_total", f'{NODE}, status=~"5.."'), total("entrepot_requests_total", NODE)),
            unit=RATIO,
            steps=[(0.01, YELLOW), (0.05, RED)],
        ),
        number(
            "Wrong bytes",
            "Downloads of the shown time whose bytes did not match their digest. Nobody got them; see the log.",
            or_zero(happened("entrepot_verification_failures_total", NODE)),
            unit=COUNT,
            steps=[(1, RED)],
        ),
        number(
            "Disk free",
            "The least that is free of the volume of a node's data folder. Eviction keeps a twentieth of it free.",
            f"min(entrepot_disk_free_bytes{{{NODE}}} / (entrepot_disk_size_bytes{{{NODE}}} > 0))",
            unit=RATIO,
            first=RED,
            steps=[(0.04, YELLOW), (0.06, GREEN)],
        ),
        number(
            "Evicted",
            "Bytes of the shown time that made room for others.",
            or_zero(total("entrepot_evicted_bytes_total", f'{NODE}, reason="quota"')),
            unit=BYTES,
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        lines(
            "Requests",
            "Answered requests of clients by kind.",
            Query(rate("entrepot_requests_total", NODE, "kind"), "{{kind}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Where content came from",
            "Look-ups by what came of them: hit and stale are stored here, joined shared a running download.",
            Query(rate("entrepot_lookups_total", NODE, "outcome"), "{{outcome}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Errors by status",
            "Answers to clients that are errors. 404 is usual: signatures that do not exist are asked for.",
            Query(or_zero(rate("entrepot_requests_total", f'{NODE}, status=~"4..|5.."', "status")), "{{status}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Bytes",
            "What clients got, what upstreams gave for it, and what came from other nodes, the bucket or regions.",
            Query(rate("entrepot_sent_bytes_total", NODE), "to clients"),
            Query(or_zero(rate("entrepot_received_bytes_total", NODE)), "from upstreams"),
            Query(or_zero(rate("entrepot_near_bytes_total", NODE)), "from near by"),
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Hit ratio",
            "Of look-ups, those for which nobody outside was asked; of bytes, those that no upstream had to give.",
            Query(
                share(rate("entrepot_lookups_total", f"{NODE}, {HITS}"), rate("entrepot_lookups_total", NODE)),
                "look-ups",
            ),
            Query(
                f"clamp_min(1 - ({or_zero(rate('entrepot_received_bytes_total', NODE))})"
                f" / {rate('entrepot_sent_bytes_total', NODE)}, 0)",
                "bytes",
            ),
            unit=RATIO,
            most=1,
        ),
        lines(
            "Under way",
            "Requests being answered, downloads and pulls that run now.",
            Query(f"sum(entrepot_requests_in_progress{{{NODE}}})", "requests"),
            Query(or_zero(f"sum(entrepot_fills_running{{{NODE}}})"), "downloads"),
            Query(or_zero(f"sum(entrepot_pulls_running{{{NODE}}})"), "pulls"),
            unit=COUNT,
        ),
    ]


def _store() -> list[Panel]:
    return [
        lines(
            "Room",
            "Stored and reserved bytes, what may be, and what an eviction goes down to.",
            Query(f"entrepot_space_used_bytes{{{NODE}}}", "{{instance}} used"),
            Query(f"entrepot_space_high_bytes{{{NODE}}}", "{{instance}} may be"),
            Query(f"entrepot_space_low_bytes{{{NODE}}}", "{{instance}} evicts down to"),
            unit=BYTES,
        ),
        lines(
            "Evicted",
            "Bytes given back, by why: quota for room, orphan and gc for what nothing names, rm on command.",
            Query(or_zero(rate("entrepot_evicted_bytes_total", NODE, "reason")), "{{reason}}"),
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Stored",
            "What the catalog knows and what is on disk.",
            Query(f"sum(entrepot_store_blobs{{{NODE}}})", "blobs"),
            Query(f"sum(entrepot_store_manifests{{{NODE}}})", "manifests"),
            Query(f"sum(entrepot_store_repositories{{{NODE}}})", "repositories"),
            Query(f"sum(entrepot_store_tags{{{NODE}}})", "tags"),
            unit=COUNT,
        ),
    ]


def _processes() -> list[Panel]:
    return [
        lines(
            "Processor",
            "Cores that the process that answers Prometheus takes, and each worker process.",
            Query(f"rate(process_cpu_seconds_total{{{NODE}}}[$__rate_interval]) {_OURS}", "{{instance}}"),
            Query(
                rate("entrepot_worker_cpu_seconds_total", NODE, "instance", "worker"),
                "{{instance}} worker {{worker}}",
            ),
            unit=COUNT,
        ),
        lines(
            "Memory",
            "Resident memory of the process that answers Prometheus, and of worker processes.",
            Query(f"process_resident_memory_bytes{{{NODE}}} {_OURS}", "{{instance}}"),
            Query(
                f"sum by (instance, worker) (entrepot_worker_resident_memory_bytes{{{NODE}}})",
                "{{instance}} worker {{worker}}",
            ),
            unit=BYTES,
        ),
        lines(
            "Event loop",
            "How late the event loop woke in one of a hundred cases: every request waits for as long.",
            Query(quantile(0.99, "entrepot_event_loop_lag_seconds", NODE, "instance"), "{{instance}}"),
            unit=SECONDS,
            steps=[(0.1, RED)],
        ),
        lines(
            "Workers",
            "Worker processes that answer, where there are any, and how often one was started again, as it had died.",
            Query(or_zero(f"sum(entrepot_worker_up{{{NODE}}})"), "answer"),
            Query(or_zero(f"sum(increase(entrepot_worker_restarts_total{{{NODE}}}[$__rate_interval]))"), "restarts"),
            unit=COUNT,
        ),
        lines(
            "Open files",
            "File descriptors of the process that answers Prometheus, and how many it may have.",
            Query(f"process_open_fds{{{NODE}}} {_OURS}", "{{instance}} open"),
            Query(f"process_max_fds{{{NODE}}} {_OURS}", "{{instance}} may be"),
            unit=COUNT,
        ),
        lines(
            "Log lines dropped",
            "Lines that came faster than whoever reads the log took them.",
            Query(rate("entrepot_log_lines_dropped_total", NODE, "instance"), "{{instance}}"),
            unit=PER_SECOND,
        ),
    ]
