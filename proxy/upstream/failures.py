"""The failures of an upstream, as far as they differ in what is done about them."""

from __future__ import annotations

from proxy.oci.errors import Unavailable


class Passing(Unavailable):
    """A failure that may be gone in a moment. `reason`: network | timeout | the status, for metrics.

    `unreached`: no HTTP answer came at all, so that the host may count as down.
    """

    def __init__(self, message: str, *, reason: str, unreached: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason
        self.unreached = unreached


class BrokeOff(Unavailable):
    """A body ended before it was whole. `reason`: short, or timeout where it stood still, for metrics."""

    def __init__(self, message: str, *, reason: str = "short", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class Resting(Unavailable):
    """The host failed so recently that it was not asked."""


class Unreached(Unavailable):
    """Nobody was reached, and asking again at once is pointless: TLS fails, or the proxy refuses us."""
