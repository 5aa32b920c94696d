"""What is shown of the pulls that ended: the latest, the slowest, how long they took, what was pulled most.

Bounded, whatever is pulled. Times are monotonic seconds unless they are told otherwise.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil

from metrics.pulls.counting import WITHOUT_TRANSFER
from metrics.pulls.model import PullDetail, PullSummary, PullsView, Quantiles, RepositoryCount

WINDOW_SECONDS = 3600.0
SLICE_SECONDS = 300.0
MOST_RECENT = 100
MOST_UNCHANGED = 20
"""Of the latest: whole fleets ask again and again whether a tag has moved."""

MOST_RECENT_BARS = 10_000
MOST_SLOWEST = 10
MOST_TIMES = 8192
MOST_REPOSITORIES = 256
SHOWN_REPOSITORIES = 20
SHOWN_RUNNING = 100
OUTCOMES = ("hit", "joined", "miss", "near", "unchanged", "broken")


@dataclass(slots=True)
class _Slice:
    """What ended within `SLICE_SECONDS`: how many transferred something, of how many layers clients had how many, and
    the slowest."""

    number: int
    transferred: int = 0
    layers: int = 0
    had: int = 0
    slowest: list[PullDetail] = field(default_factory=list)


class Repositories:
    """Counts what is pulled most by space-saving counters: a newcomer takes the place, and the count, of the rarest."""

    def __init__(self, most: int = MOST_REPOSITORIES) -> None:
        self._most = most
        self._pulls: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()

    def add(self, repository: str, sent: int) -> None:
        """Count a pull."""
        if repository not in self._pulls and len(self._pulls) >= self._most:
            rarest = min(self._pulls, key=self._pulls.__getitem__)
            self._pulls[repository] = self._pulls.pop(rarest)
            self._sent[repository] = self._sent.pop(rarest)
        self._pulls[repository] += 1
        self._sent[repository] += sent

    def top(self, count: int) -> tuple[RepositoryCount, ...]:
        """Return those that were pulled most."""
        return tuple(RepositoryCount(name, pulls, self._sent[name]) for name, pulls in self._pulls.most_common(count))


class Sums:
    """State: pulls that ended, as far as they are still shown or counted."""

    def __init__(self) -> None:
        self._recent: deque[PullDetail] = deque()
        self._recent_bars = 0
        self._unchanged: deque[PullDetail] = deque(maxlen=MOST_UNCHANGED)
        self._slices: deque[_Slice] = deque()
        self._times: deque[tuple[float, float]] = deque(maxlen=MOST_TIMES)
        self._outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._repositories = Repositories()

    def add(self, repository: str, ended: PullDetail, now: float) -> None:
        """Count a pull of `repository` (with its upstream) that has just ended."""
        pull = ended.pull
        self._outcomes[pull.outcome] += 1
        self._repositories.add(repository, pull.sent)
        self._keep(ended)
        here = self._slice(now)
        here.layers += pull.layers
        here.had += pull.had
        if pull.outcome in WITHOUT_TRANSFER:
            return
        here.transferred += 1
        self._times.append((now, pull.seconds))
        here.slowest = sorted([*here.slowest, ended], key=_seconds, reverse=True)[:MOST_SLOWEST]

    def _keep(self, ended: PullDetail) -> None:
        if ended.pull.outcome == "unchanged":
            self._unchanged.append(ended)
            return
        self._recent.append(ended)
        self._recent_bars += len(ended.bars)
        while len(self._recent) > MOST_RECENT or (self._recent_bars > MOST_RECENT_BARS and len(self._recent) > 1):
            self._recent_bars -= len(self._recent.popleft().bars)

    def ended_within(self, seconds: float, now: float) -> Sequence[float]:
        """Return the seconds of each pull that transferred something and ended so lately, the latest first."""
        found = []
        for ended, took in reversed(self._times):
            if ended < now - seconds:
                break
            found.append(took)
        return found

    def detail(self, name: str) -> PullDetail | None:
        """Return a pull by its id, None where it is not kept any more."""
        kept = (*self._recent, *self._unchanged, *(one for part in self._slices for one in part.slowest))
        return next((one for one in kept if one.pull.id == name), None)

    def view(self, running: Iterable[PullSummary], now: float) -> PullsView:
        """Return all that is shown."""
        slices = self._of_window(now)
        layers = sum(part.layers for part in slices)
        recent = (*self._recent, *self._unchanged)
        slowest = sorted((one for part in slices for one in part.slowest), key=_seconds, reverse=True)
        return PullsView(
            latency=self.latency(now),
            outcomes=dict(self._outcomes),
            had_share=sum(part.had for part in slices) / layers if layers else None,
            running=tuple(islice(running, SHOWN_RUNNING)),
            recent=tuple(sorted((one.pull for one in recent), key=_end, reverse=True)),
            slowest=tuple(one.pull for one in slowest[:MOST_SLOWEST]),
            repositories=self._repositories.top(SHOWN_REPOSITORIES),
        )

    def latency(self, now: float) -> Quantiles:
        """Return how long pulls took that ended within the hour; where they are too many, the latest `MOST_TIMES`."""
        took = sorted(self.ended_within(WINDOW_SECONDS, now))
        count = len(took)
        if count == MOST_TIMES:
            count = max(count, sum(part.transferred for part in self._of_window(now)))
        return Quantiles(WINDOW_SECONDS, count, _quantile(took, 0.5), _quantile(took, 0.9), _quantile(took, 0.99))

    def _slice(self, now: float) -> _Slice:
        number = int(now // SLICE_SECONDS)
        if not self._slices or self._slices[-1].number != number:
            self._slices.append(_Slice(number))
            while self._slices[0].number <= number - WINDOW_SECONDS / SLICE_SECONDS:
                self._slices.popleft()
        return self._slices[-1]

    def _of_window(self, now: float) -> list[_Slice]:
        oldest = int(now // SLICE_SECONDS) - WINDOW_SECONDS / SLICE_SECONDS
        return [part for part in self._slices if part.number > oldest]


def _end(pull: PullSummary) -> float:
    return pull.started_at + pull.seconds


def _seconds(ended: PullDetail) -> float:
    return ended.pull.seconds


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of the sorted values do not exceed, None of no values."""
    return values[max(0, ceil(share * len(values)) - 1)] if values else None
