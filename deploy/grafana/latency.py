"""Pull latency: how long a pull takes for people, and what of it is whose."""

from __future__ import annotations

from deploy.grafana.overview import NODE
from deploy.grafana.panels import (
    BYTES,
    COUNT,
    GREEN,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    YELLOW,
    Panel,
    Query,
    heat,
    lines,
    number,
    quantile,
    rate,
    share,
    total,
)

DESCRIPTION = "How long pulls take, from a client's first request for an image to its last byte, and why."
_DURATION = "entrepot_pull_duration_seconds"
_FIRST_BYTE = "entrepot_time_to_first_byte_seconds"
_QUANTILES = ((0.50, "p50"), (0.90, "p90"), (0.99, "p99"))
_BOUNDS = ((30.0, YELLOW), (120.0, RED))


def rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows with their panels."""
    return [("Pulls", _pulls()), ("What pulls are made of", _made_of()), ("Requests", _requests())]


def _pulls() -> list[Panel]:
    ended = total("entrepot_pulls_total", NODE)
    return [
        *(
            number(
                f"Pull time, {name}",
                f"{part:.0%} of the pulls of the shown time that transferred something ended within it.",
                quantile(part, _DURATION, NODE, over="$__range"),
                unit=SECONDS,
                steps=_BOUNDS,
            )
            for part, name in _QUANTILES
        ),
        number("Pulls", "Pulls that ended in the shown time.", ended, unit=COUNT),
        number(
            "Broken pulls",
            "Of those, the ones in which something failed, or was left unread.",
            share(total("entrepot_pulls_total", f'{NODE}, outcome="broken"'), ended),
            unit=RATIO,
            steps=[(0.01, YELLOW), (0.05, RED)],
        ),
        number(
            "Layers that clients had",
            "Of the layers of pulled images, those that clients did not ask for.",
            share(total("entrepot_pull_layers_total", f'{NODE}, had="yes"'), total("entrepot_pull_layers_total", NODE)),
            unit=RATIO,
            first=GREEN,
        ),
        lines(
            "Pull time",
            "Half, nine in ten and all but one in a hundred pulls ended within it.",
            *(Query(quantile(part, _DURATION, NODE), name) for part, name in _QUANTILES),
            unit=SECONDS,
            steps=_BOUNDS,
            width=12,
        ),
        lines(
            "Pull time by outcome, p90",
            "A hit needed nothing from outside, a joined pull shared a download, near is another node or region.",
            Query(quantile(0.90, _DURATION, NODE, "outcome"), "{{outcome}}"),
            unit=SECONDS,
            width=12,
        ),
        heat("Pulls by their time", "How many pulls took how long.", rate(f"{_DURATION}_bucket", NODE, "le"), unit="s"),
        lines(
            "Pull time by upstream, p90",
            "Which upstream's images are slow.",
            Query(quantile(0.90, _DURATION, NODE, "upstream"), "{{upstream}}"),
            unit=SECONDS,
        ),
    ]


def _made_of() -> list[Panel]:
    return [
        lines(
            "Pulls by outcome",
            "unchanged: the client had all of it; broken: something failed, or was left unread.",
            Query(rate("entrepot_pulls_total", NODE, "outcome"), "{{outcome}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
        lines(
            "Pull size",
            "Bytes that a pull sent to its client.",
            *(Query(quantile(part, "entrepot_pull_size_bytes", NODE), name) for part, name in _QUANTILES[:2]),
            unit=BYTES,
        ),
        lines(
            "Layers that clients had",
            "Of the layers of pulled images, and of their bytes, those that clients did not ask for.",
            *(
                Query(share(rate(counter, f'{NODE}, had="yes"'), rate(counter, NODE)), name)
                for counter, name in (
                    ("entrepot_pull_layers_total", "layers"),
                    ("entrepot_pull_layer_bytes_total", "bytes"),
                )
            ),
            unit=RATIO,
            most=1,
        ),
        lines(
            "Pulls running",
            "Pulls that go on now, by node.",
            Query(f"sum by (instance) (entrepot_pulls_running{{{NODE}}})", "{{instance}}"),
            unit=COUNT,
        ),
        lines(
            "Requests left out of pulls",
            "Requests that came faster than pulls could be told from them: pulls may then look shorter than they were.",
            Query(rate("entrepot_steps_dropped_total", NODE, "instance"), "{{instance}}"),
            unit=PER_SECOND,
        ),
    ]


def _requests() -> list[Panel]:
    return [
        lines(
            "Time to first byte by outcome, p99",
            "From a client's request to the first byte of its answer. Misses wait for the upstream.",
            Query(quantile(0.99, _FIRST_BYTE, NODE, "outcome"), "{{outcome}}"),
            unit=SECONDS,
        ),
        lines(
            "Time to first byte by kind",
            "Manifests and blobs, one half and all but one in a hundred.",
            Query(quantile(0.50, _FIRST_BYTE, NODE, "kind"), "{{kind}} p50"),
            Query(quantile(0.99, _FIRST_BYTE, NODE, "kind"), "{{kind}} p99"),
            unit=SECONDS,
        ),
        lines(
            "Request time by outcome, p99",
            "From a client's request to the last byte of its answer; a slow client makes it long.",
            Query(quantile(0.99, "entrepot_request_duration_seconds", NODE, "outcome"), "{{outcome}}"),
            unit=SECONDS,
        ),
    ]
