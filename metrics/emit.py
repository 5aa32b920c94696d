"""From an event to those who listen: the numbers, the log of requests, and who tells pulls from them."""

from __future__ import annotations

from metrics.events import Emit, Event, RequestFinished, UpstreamRequest, ignore
from metrics.logs import Logs
from metrics.prometheus import Metrics
from metrics.pulls.counting import STEPS_DROPPED
from metrics.pulls.gathering import Gathering


def emitting(metrics: Metrics, logs: Logs, gathering: Gathering | None = None) -> Emit:
    """Return the Emit that core code is given in a process that serves; `gathering` is told of steps of pulls."""
    if gathering is not None:
        metrics.read_from(STEPS_DROPPED, lambda: gathering.dropped)
    known, tally_of, log = metrics.alike, metrics.tally, logs.log_request
    gather = ignore if gathering is None else gathering.finished

    def emit(event: Event) -> None:
        if type(event) is RequestFinished:
            (known.get(event.alike) or tally_of(event)).count(event)
            log(event)
            gather(event)
            return
        metrics.observe(event)
        if type(event) is UpstreamRequest:
            logs.log_upstream(event)
        if gathering is not None:
            gathering.observe(event)

    return emit
