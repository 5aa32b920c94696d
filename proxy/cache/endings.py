"""How a download that was not committed ended, in one word for the metrics. Pure."""

from __future__ import annotations

import asyncio

from proxy.oci.errors import BadContent, Denied, NotFound, TooManyRequests
from proxy.upstream.failures import BrokeOff, Passing, Resting, Unreached

_PASSING = frozenset({"network", "timeout"})


def outcome_of(error: BaseException) -> str:
    """Return corrupt, abandoned or failed."""
    reason = reason_of(error)
    return reason if reason in ("corrupt", "abandoned") else "failed"


def reason_of(error: BaseException) -> str:
    """Return timeout, network, status, denied, missing, short, corrupt, store, abandoned or other (FillFinished)."""
    if isinstance(error, Passing):
        return error.reason if error.reason in _PASSING else "status"
    if isinstance(error, BrokeOff):
        return error.reason
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), "other")


_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((asyncio.CancelledError,), "abandoned"),
    ((BadContent,), "corrupt"),
    ((NotFound,), "missing"),
    ((Denied,), "denied"),
    ((TooManyRequests,), "status"),
    ((Resting, Unreached), "network"),
    ((TimeoutError,), "timeout"),
    ((OSError,), "store"),
)
