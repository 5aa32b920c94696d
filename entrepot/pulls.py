"""The pulls of a mirror: steps come in from its processes, pulls are shown and counted.

What is a pull is `metrics.pulls.tracking`'s to say. Here are the clock, the catalog that knows what manifests name, and
the task that looks at what has come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from metrics.events import Emit, RequestFinished
from metrics.prometheus import Metrics
from metrics.pulls.bars import ended_of
from metrics.pulls.closures import Closure
from metrics.pulls.counting import RUNNING
from metrics.pulls.gathering import Gathering
from metrics.pulls.model import Part, PullDetail, PullsView, Step
from metrics.pulls.pull import Pull
from metrics.pulls.summing import SHOWN_RUNNING, Sums
from metrics.pulls.tracking import Repeats, Tracker
from proxy.cache.once import Background
from proxy.oci.digest import Digest
from proxy.oci.manifests import Child
from proxy.requestids import RequestIds

PACE_SECONDS = 0.25
SETTLE_SECONDS = 1.5
LOOK_UP_SECONDS = 1.0
MOST_LOOK_UPS = 256
LOOK_UPS = 4
MOST_HEARD = 65_536
AT_ONCE_SECONDS = 0.002
SMALL = 500
_log = logging.getLogger(__name__)

Children = Callable[[Digest], Awaitable[Sequence[Child]]]
"""Says what a manifest names, nothing of one that is not stored."""


class Pulls:
    """State: the tracker, the sums, steps of workers that nobody has looked at, and how often each manifest was looked
    up in vain, whether the catalog fails.

    `changed` is called when pulls have begun or ended.
    """

    def __init__(self, gathering: Gathering, children: Children, emit: Emit, *, settle: float = 0.0) -> None:
        self._gathering = gathering
        self._children = children
        self._emit = emit
        self._names, self._settle = RequestIds().next, settle
        self._tracker = Tracker(self._names, settle=settle)
        self._sums = Sums()
        self._heard: list[tuple[int, Step]] = []
        self._lost: list[int] = []
        self._tried: dict[str, int] = {}
        self._blind = False
        self._woken = asyncio.Event()
        self._epoch = time.time() - time.monotonic()
        self.changed: Callable[[], object] = lambda: None

    def __len__(self) -> int:
        """How many run."""
        return len(self._tracker)

    def hear(self, pid: int, steps: Sequence[Step]) -> None:
        """Take what a worker has gathered."""
        room = max(0, MOST_HEARD - len(self._heard))
        self._heard += [(pid, step) for step in steps[:room]]
        self._gathering.dropped += len(steps) - min(room, len(steps))
        self._woken.set()

    def lose(self, pid: int) -> None:
        """A worker is gone: it tells no more of what it had begun."""
        self._lost.append(pid)
        self._woken.set()

    def view(self) -> PullsView:
        """Return what is shown."""
        now = time.monotonic()
        running = self._tracker.running()
        newest = running[: -SHOWN_RUNNING - 1 : -1]
        view = self._sums.view([pull.summary(self._epoch, now) for pull in newest], now)
        return msgspec.structs.replace(view, more_running=len(running) - len(newest))

    def detail(self, name: str) -> PullDetail | None:
        """Return a pull by its id, None where it is not known any more."""
        pull = self._tracker.get(name)
        return self._sums.detail(name) if pull is None else pull.detail(self._epoch, time.monotonic())

    def ended_within(self, seconds: float) -> Sequence[float]:
        """Return the seconds that each pull took which transferred something and ended so lately."""
        return self._sums.ended_within(seconds, time.monotonic())

    async def run(self) -> None:
        """Look at what comes, until cancelled. What nobody foresaw costs the pulls that run, and none later."""
        self._gathering.wake = self._woken.set
        self._woken.set()  # for what was gathered before
        failed = False
        while True:
            await self._wait()
            self._woken.clear()
            try:
                await self._work()
                failed = False
            except Exception:
                if not failed:
                    _log.exception("pulls could not be told from requests, and those that run are forgotten; told once")
                failed = True
                self._tracker, self._tried = Tracker(self._names, settle=self._settle), {}
                self.changed()
            await asyncio.sleep(PACE_SECONDS)

    async def _wait(self) -> None:
        """Wait for a step, or for a pull to be over."""
        due = self._tracker.deadline()
        wait = None if due is None else max(0.0, due - time.monotonic())
        if self._tried:
            wait = PACE_SECONDS if wait is None else min(wait, PACE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._woken.wait()

    async def _work(self) -> None:
        told, self._heard = [(0, step) for step in self._gathering.take()] + self._heard, []
        lost, self._lost = self._lost, []
        running = len(self._tracker)
        steps, asked = await _sift(told)
        await self._look_up(asked)
        turn = _Turn()
        for pid, step in steps:
            self._tracker.take(step, await turn.go_on(), pid)
        for pid in lost:
            self._tracker.lost(pid, time.monotonic())
        changed = len(self._tracker) != running
        while ended := self._tracker.tick(time.monotonic()):
            changed = True
            for pull in ended:
                await turn.go_on()
                self._count(pull)
        if changed:
            self.changed()

    def _count(self, pull: Pull) -> None:
        detail = pull.detail(self._epoch)
        self._emit(ended_of(pull.upstream, detail.pull))
        self._sums.add(f"{pull.upstream}/{pull.repository}", detail, time.monotonic())

    async def _look_up(self, asked: Collection[str]) -> None:
        """Find out what manifests name; those that the catalog does not have as yet are looked up again."""
        wanted = sorted(self._tracker.unknown(asked))[:MOST_LOOK_UPS]
        self._tried = {digest: self._tried.get(digest, 0) + 1 for digest in wanted}
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                for digest in wanted:
                    if (closure := await _closure(await self._children(Digest(digest)))).parts:
                        self._learn(digest, closure)
            self._blind = False
        except Exception as error:
            if not self._blind:
                _log.warning("the catalog tells nothing of images; look at its disk", extra={"error": repr(error)})
            self._blind = True
        for digest in [digest for digest, times in self._tried.items() if times >= LOOK_UPS]:
            self._learn(digest, Closure())

    def _learn(self, digest: str, closure: Closure) -> None:
        self._tracker.learn(digest, closure, time.monotonic())
        del self._tried[digest]


class _Turn:
    """Lets others go on every few milliseconds of a long piece of work."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def go_on(self) -> float:
        """Return what time it is now."""
        now = time.monotonic()
        if now - self._began > AT_ONCE_SECONDS:
            await asyncio.sleep(0)
            now = self._began = time.monotonic()
        return now


async def _sift(told: Sequence[tuple[int, Step]]) -> tuple[list[tuple[int, Step]], set[str]]:
    """Return the steps without repeated requests for a manifest, and the manifests that were asked for."""
    repeats, turn = Repeats(), _Turn()
    steps: list[tuple[int, Step]] = []
    asked: set[str] = set()
    for one in told:
        await turn.go_on()
        if repeats.has(one[1]):
            continue
        steps.append(one)
        step = one[1]
        if isinstance(step, RequestFinished) and step.kind == "manifest" and step.digest and step.status < 400:
            asked.add(step.digest)
    return steps, asked


async def _closure(children: Sequence[Child]) -> Closure:
    """Return what is pulled of what a manifest names; a thread takes the time that thousands of them need."""
    return _gather(children) if len(children) < SMALL else await asyncio.to_thread(_gather, children)


def _gather(children: Sequence[Child]) -> Closure:
    return Closure(_part(child) for child in children if child.required)


def _part(child: Child) -> Part:
    platform = "" if child.platform is None else str(child.platform)
    return Part(str(child.descriptor.digest), child.descriptor.size, child.role, platform)


@asynccontextmanager
async def telling_pulls(
    gathering: Gathering, children: Children, metrics: Metrics, *, of_workers: bool
) -> AsyncIterator[Pulls]:
    """Tell pulls from what `gathering` and workers tell, for as long as the context lasts."""
    pulls = Pulls(gathering, children, metrics.observe, settle=SETTLE_SECONDS if of_workers else 0.0)
    metrics.read_from(RUNNING, lambda: len(pulls))
    async with Background() as background:
        background.create_task(pulls.run(), name="tell pulls from requests")
        yield pulls
