"""What one process saw of pulls since it was last asked: a bounded list of steps.

It is written for every answered request, so it does next to nothing there. What a step means is `tracking`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from metrics.events import BlobStarted, Event, RequestFinished
from metrics.pulls.model import Step

MOST_STEPS = 4096
MOST_MANIFESTS = 3072
"""Of them; so that the ends of blobs, without which pulls would seem to go on, have room where manifests are many."""

MOST_AGENT = 256


def _nobody() -> None:
    pass


class Gathering:
    """State: the steps that nobody has taken, how many did not fit among them, and who is told of the first.

    A request for a manifest that says what the client's one before it said is left out, unless it has asked for a blob
    since: whoever asks thousands of times a second pulls nothing.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._last: dict[str, RequestFinished] = {}
        self.dropped = 0
        self.wake: Callable[[], object] = _nobody

    def observe(self, event: Event) -> None:
        """Keep `event` where it is a step."""
        if type(event) is RequestFinished:
            self.finished(event)
        elif type(event) is BlobStarted:
            self._last.pop(event.client, None)
            self._keep(event, MOST_STEPS)

    def take(self) -> list[Step]:
        """Return what has come since the last call, in the order in which it was told."""
        steps, self._steps, self._last = self._steps, [], {}
        return steps

    def finished(self, event: RequestFinished) -> None:
        """Keep `event` where it is a step: as `observe`, for who knows what it has."""
        if event.kind == "manifest":
            last = self._last.get(event.client)
            if last is not None:
                if (alike := event.alike) and alike == last.alike and event.agent == last.agent:
                    return
                if _alike(event, last):
                    return
            if len(self._steps) < MOST_MANIFESTS:
                self._last[event.client] = event
            self._keep(event, MOST_MANIFESTS)
        elif event.kind == "blob":
            self._keep(event, MOST_STEPS)

    def _keep(self, step: Step, most: int) -> None:
        if len(self._steps) >= most:
            self.dropped += 1
            return
        self._steps.append(step if len(step.agent) <= MOST_AGENT else replace(step, agent=step.agent[:MOST_AGENT]))
        if len(self._steps) == 1:
            self.wake()


def _alike(one: RequestFinished, other: RequestFinished) -> bool:
    """Tell whether two requests of one client say the same of pulls."""
    return (
        one.reference == other.reference
        and one.outcome == other.outcome
        and one.digest == other.digest
        and one.method == other.method
        and one.repository == other.repository
        and one.agent == other.agent
    )
