"""Upstreams and quota: how registries answer, how much they still allow, how downloads go."""

from __future__ import annotations

from deploy.grafana.overview import NODE
from deploy.grafana.panels import (
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
    bars,
    happened,
    lines,
    number,
    or_zero,
    quantile,
    rate,
    share,
    total,
)

DESCRIPTION = "How upstream registries answer, what is left of their quotas, and how downloads from them go."
_HERE = f'{NODE}, upstream=~"$upstream"'
# What is known of the hosts that are asked has their names in this label; an upstream may have several.
_HOST = f'{NODE}, upstream=~"$host"'
_LATENCY = "entrepot_upstream_request_duration_seconds"
_REQUESTS = "entrepot_upstream_requests_total"


def rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows with their panels."""
    return [("Quota and health", _health()), ("Requests", _requests()), ("Downloads", _downloads()), ("Tags", _tags())]


def _health() -> list[Panel]:
    return [
        bars(
            "Quota left",
            "What the upstream last said is left of its quota. It is not renewed while nobody asks.",
            Query(
                f"min by (upstream) (entrepot_upstream_quota_remaining{{{_HOST}}}"
                f" / (entrepot_upstream_quota_limit{{{_HOST}}} > 0))",
                "{{upstream}}",
            ),
            unit=RATIO,
            first=RED,
            steps=[(0.1, YELLOW), (0.25, GREEN)],
        ),
        lines(
            "Quota",
            "Requests that the upstream allows in its window, and what is left. Nodes behind one address share it.",
            Query(f"min by (upstream) (entrepot_upstream_quota_remaining{{{_HOST}}})", "{{upstream}} left"),
            Query(f"max by (upstream) (entrepot_upstream_quota_limit{{{_HOST}}})", "{{upstream}} allowed"),
            unit=COUNT,
        ),
        lines(
            "Failing",
            "1 while an upstream host cannot be reached or fails most requests, or refuses the credential.",
            Query(or_zero(f"max by (upstream) (entrepot_upstream_failing{{{_HOST}}})"), "{{upstream}} fails"),
            Query(
                or_zero(f"max by (upstream) (entrepot_upstream_credential_refused{{{_HOST}}})"),
                "{{upstream}} refuses the credential",
            ),
            unit=COUNT,
            most=1,
        ),
        number(
            "Rate limited",
            "Answers 429 of the shown time.",
            or_zero(happened(_REQUESTS, f'{_HOST}, status="429"')),
            unit=COUNT,
            steps=[(1, RED)],
        ),
        number(
            "Requests failed",
            "Of the requests to upstreams, those that timed out, broke or got a 5xx.",
            share(total(_REQUESTS, f'{_HOST}, status=~"5..|timeout|network"'), total(_REQUESTS, _HOST)),
            unit=RATIO,
            steps=[(0.01, YELLOW), (0.1, RED)],
        ),
        number(
            "Downloads failed",
            "Of the downloads that ended, those that failed or were corrupt.",
            share(
                total("entrepot_fills_finished_total", f'{_HERE}, outcome=~"failed|corrupt"'),
                total("entrepot_fills_finished_total", _HERE),
            ),
            unit=RATIO,
            steps=[(0.01, YELLOW), (0.1, RED)],
        ),
        number(
            "Wrong bytes",
            "Downloads of the shown time that did not match their digest.",
            or_zero(happened("entrepot_verification_failures_total", _HERE)),
            unit=COUNT,
            steps=[(1, RED)],
        ),
        number(
            "Served stale",
            "Answers of the shown time from the store while nobody upstream could confirm them.",
            or_zero(total("entrepot_lookups_total", f'{_HERE}, outcome="stale"')),
            unit=COUNT,
            steps=[(1, YELLOW)],
        ),
        number(
            "Received",
            "Bytes of blobs that upstreams gave in the shown time.",
            total("entrepot_received_bytes_total", _HERE),
            unit="bytes",
        ),
    ]


def _requests() -> list[Panel]:
    return [
        lines(
            "Requests by status",
            "Requests to upstream hosts by what they answered.",
            Query(rate(_REQUESTS, _HOST, "upstream", "status"), "{{upstream}} {{status}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Requests by kind",
            "GETs of manifests are what Docker Hub counts; HEADs are free.",
            Query(rate(_REQUESTS, _HOST, "kind", "method"), "{{method}} {{kind}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Asked again",
            "Requests that were tried once more, by why.",
            Query(
                or_zero(rate("entrepot_upstream_retries_total", _HOST, "upstream", "reason")), "{{upstream}} {{reason}}"
            ),
            unit=PER_SECOND,
        ),
        lines(
            "Latency",
            "From a request to the headers of its answer: one half, and all but one in a hundred.",
            Query(quantile(0.50, _LATENCY, _HOST, "upstream"), "{{upstream}} p50"),
            Query(quantile(0.99, _LATENCY, _HOST, "upstream"), "{{upstream}} p99"),
            unit=SECONDS,
            width=12,
        ),
        lines(
            "Latency by kind, p99",
            "Manifests are waited for first, so they are what a pull feels.",
            Query(quantile(0.99, _LATENCY, _HOST, "kind"), "{{kind}}"),
            unit=SECONDS,
            width=12,
        ),
    ]


def _downloads() -> list[Panel]:
    return [
        lines(
            "Downloads running",
            "Downloads into the store that run now.",
            Query(f"sum by (upstream) (entrepot_fills_running{{{_HERE}}})", "{{upstream}}"),
            unit=COUNT,
        ),
        lines(
            "Downloads begun, joined, resumed",
            "A joined download is one that several clients share; a resumed one went on after a break.",
            Query(rate("entrepot_fills_started_total", _HERE), "begun"),
            Query(or_zero(rate("entrepot_fills_joined_total", _HERE)), "joined"),
            Query(or_zero(rate("entrepot_fills_resumed_total", _HERE)), "resumed"),
            unit=PER_SECOND,
        ),
        lines(
            "Downloads ended",
            "By outcome.",
            Query(rate("entrepot_fills_finished_total", _HERE, "outcome"), "{{outcome}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Downloads not committed",
            "By reason; abandoned ones nobody wanted any more.",
            Query(or_zero(rate("entrepot_fills_failed_total", _HERE, "upstream", "reason")), "{{upstream}} {{reason}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Download time",
            "How long a committed download took.",
            Query(quantile(0.50, "entrepot_fill_duration_seconds", NODE), "p50"),
            Query(quantile(0.99, "entrepot_fill_duration_seconds", NODE), "p99"),
            unit=SECONDS,
        ),
        lines(
            "Received",
            "Bytes from upstreams, and bytes of broken downloads that did not have to be fetched again.",
            Query(rate("entrepot_received_bytes_total", _HERE, "upstream"), "{{upstream}}"),
            Query(or_zero(rate("entrepot_recovered_bytes_total", _HERE)), "recovered"),
            unit=BYTES_PER_SECOND,
        ),
    ]


def _tags() -> list[Panel]:
    return [
        lines(
            "Tags checked",
            "Tags whose time was up, by what the upstream said of them.",
            Query(rate("entrepot_tag_revalidations_total", _HERE, "outcome"), "{{outcome}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Age of what was served stale, p99",
            "For how long nobody upstream had confirmed it.",
            Query(quantile(0.99, "entrepot_stale_age_seconds", NODE), "p99"),
            unit=SECONDS,
        ),
        lines(
            "Since [[warm]] sections were brought in",
            "Seconds since a section, numbered from 1, was last brought in whole.",
            Query(
                f"time() - max by (section) (entrepot_warm_last_success_timestamp_seconds{{{NODE}}})",
                "section {{section}}",
            ),
            unit=SECONDS,
        ),
    ]
