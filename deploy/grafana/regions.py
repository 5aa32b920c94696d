"""Regions: how far each is behind, what comes over the links, what goes wrong there."""

from __future__ import annotations

from deploy.grafana.overview import NODE
from deploy.grafana.panels import (
    BYTES,
    BYTES_PER_SECOND,
    COUNT,
    PER_SECOND,
    RED,
    SECONDS,
    YELLOW,
    Panel,
    Query,
    lines,
    number,
    or_zero,
    quantile,
    rate,
    total,
)

DESCRIPTION = "How far regions are behind each other, and what travels between them."
_HERE = f'{NODE}, peer=~"$peer"'
_IMAGE = "entrepot_peer_image_duration_seconds"
_ARROW = "{{instance}} ← {{peer}}"


def rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows with their panels."""
    return [("Behind", _behind()), ("What comes", _comes()), ("Links", _links())]


def _behind() -> list[Panel]:
    return [
        number(
            "Furthest behind",
            "For how long something that another region has has been missing here.",
            f"max(entrepot_peer_behind_seconds{{{_HERE}}})",
            unit=SECONDS,
            steps=[(300, YELLOW), (900, RED)],
        ),
        number(
            "Images to come",
            "Images and tags that are still to come, each by itself.",
            f"sum(entrepot_peer_behind_images{{{_HERE}}})",
            unit=COUNT,
        ),
        number(
            "Bytes to come",
            "Bytes of those images, as far as they are known.",
            f"sum(entrepot_peer_behind_bytes{{{_HERE}}})",
            unit=BYTES,
        ),
        number(
            "Removals waiting",
            "What was removed elsewhere and is still here: for its grace, pinned, or as it is too much.",
            f"sum(entrepot_peer_removals_waiting{{{_HERE}}})",
            unit=COUNT,
            steps=[(1, YELLOW)],
        ),
        number(
            "Brought",
            "Images that came from other regions in the shown time.",
            or_zero(total("entrepot_peer_images_total", _HERE)),
            unit=COUNT,
        ),
        number(
            "Failures",
            "Questions and images of the shown time that failed and are tried again.",
            f"({or_zero(total('entrepot_peer_failures_total', _HERE))})"
            f" + ({or_zero(total('entrepot_peer_image_failures_total', _HERE))})",
            unit=COUNT,
            steps=[(1, YELLOW)],
        ),
        lines(
            "Behind",
            "For how long something that the region has has been missing; it grows until the window of the link opens.",
            Query(f"max by (instance, peer) (entrepot_peer_behind_seconds{{{_HERE}}})", _ARROW),
            unit=SECONDS,
            steps=[(900, RED)],
        ),
        lines(
            "Images to come",
            "Images and tags of the region that are still to come.",
            Query(f"max by (instance, peer) (entrepot_peer_behind_images{{{_HERE}}})", _ARROW),
            unit=COUNT,
        ),
        lines(
            "Bytes to come",
            "Their bytes, as far as they are known.",
            Query(f"max by (instance, peer) (entrepot_peer_behind_bytes{{{_HERE}}})", _ARROW),
            unit=BYTES,
        ),
    ]


def _comes() -> list[Panel]:
    return [
        lines(
            "Content over the link",
            "Bytes of manifests and blobs that came from the region.",
            Query(rate("entrepot_peer_content_bytes_total", _HERE, "instance", "peer"), _ARROW),
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Images brought",
            "Images that are shown here since then.",
            Query(or_zero(rate("entrepot_peer_images_total", _HERE, "instance", "peer")), _ARROW),
            unit=PER_SECOND,
        ),
        lines(
            "Time of an image",
            "From the start of an image to the moment when its tags were shown.",
            Query(quantile(0.50, _IMAGE, _HERE, "peer"), "{{peer}} p50"),
            Query(quantile(0.90, _IMAGE, _HERE, "peer"), "{{peer}} p90"),
            unit=SECONDS,
        ),
        lines(
            "Given to other regions",
            "Bytes of bodies that this region sent: size the network for it.",
            Query(rate("entrepot_region_sent_bytes_total", NODE, "instance", "kind"), "{{instance}} {{kind}}"),
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Answers to other regions",
            "Requests of other regions by status; 401 and 403 are tokens that do not fit.",
            Query(rate("entrepot_region_answers_total", NODE, "kind", "status"), "{{kind}} {{status}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Removals waiting",
            "What was removed in the region and is still here.",
            Query(f"max by (instance, peer) (entrepot_peer_removals_waiting{{{_HERE}}})", _ARROW),
            unit=COUNT,
        ),
    ]


def _links() -> list[Panel]:
    return [
        lines(
            "Records",
            "Records of the region that were read.",
            Query(rate("entrepot_peer_poll_records_total", _HERE, "instance", "peer"), _ARROW),
            unit=PER_SECOND,
        ),
        lines(
            "Bytes of records",
            "What knowing each other costs: answers with records, and comparisons of everything.",
            Query(rate("entrepot_peer_poll_bytes_total", _HERE, "peer"), "{{peer}} records"),
            Query(or_zero(rate("entrepot_peer_reconcile_bytes_total", _HERE)), "comparisons"),
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Failures",
            "Questions and images that failed, by why.",
            Query(or_zero(rate("entrepot_peer_failures_total", _HERE, "peer", "reason")), "{{peer}} {{reason}}"),
            Query(
                or_zero(rate("entrepot_peer_image_failures_total", _HERE, "peer", "reason")),
                "{{peer}} {{reason}} (images)",
            ),
            unit=PER_SECOND,
        ),
    ]
