"""The requests of a pull as they are shown, and what the metrics are told of a pull that ended."""

from __future__ import annotations

from typing import Literal

from metrics.events import BlobStarted, PullEnded, RequestFinished
from metrics.pulls.model import Bar, Part, PullSummary

BarRole = Literal["manifest", "config", "layer", "other"]


def role_of(part: Part | None) -> BarRole:
    """Return what a blob is, by what names it."""
    return "other" if part is None else part.role


def bar_of(step: RequestFinished, part: Part | None, began: float) -> Bar:
    """Return a request that ended, of a pull that began then; `part` is what a manifest says of it."""
    first_byte = min(step.first_byte, step.duration)
    upstream = min(step.upstream_wait, first_byte)
    return Bar(
        role="manifest" if step.kind == "manifest" else role_of(part),
        reference=str(step.reference),
        digest=str(step.digest),
        size=(part.size if part is not None else 0) or step.sent,
        outcome=step.outcome,
        status=step.status,
        start=step.started - began,
        wait=first_byte - upstream,
        upstream=upstream,
        transfer=step.duration - first_byte,
        sent=step.sent,
    )


def bar_under_way(step: BlobStarted, part: Part | None, began: float, now: float) -> Bar:
    """Return a request for a blob that has not ended."""
    return Bar(
        role=role_of(part),
        reference=str(step.digest),
        digest=str(step.digest),
        size=part.size if part is not None else 0,
        outcome="running",
        status=0,
        start=step.started - began,
        wait=0.0,
        upstream=0.0,
        transfer=max(0.0, now - step.started),
        sent=0,
    )


def cut_off(step: BlobStarted, now: float) -> RequestFinished:
    """Return what is known of a request whose process is gone: what it had sent is not."""
    return RequestFinished(
        kind="blob",
        method="GET",
        status=500,
        outcome="error",
        upstream=step.upstream,
        repository=step.repository,
        reference=step.digest,
        sent=0,
        first_byte=0.0,
        duration=max(0.0, now - step.started),
        client=step.client,
        request_id=step.request_id,
        digest=step.digest,
        agent=step.agent,
        started=step.started,
    )


def ended_of(upstream: str, pull: PullSummary) -> PullEnded:
    """Return what the metrics are told of a pull that ended."""
    return PullEnded(
        upstream,
        pull.outcome,
        pull.seconds,
        pull.sent,
        pull.layers,
        pull.had,
        pull.layer_bytes,
        pull.had_bytes,
    )
