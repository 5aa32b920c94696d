"""Steps of made-up pulls, for the tests of what tells pulls from requests. Seconds are the tests' own."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from metrics.events import BlobStarted, RequestFinished
from metrics.pulls.closures import Closure
from metrics.pulls.model import Part, Step
from metrics.pulls.pull import Pull
from metrics.pulls.tracking import MOST_KEPT, Tracker

PODMAN = "containers/5.23.1 (github.com/containers/image)"
SKOPEO = "skopeo/1.9.3"
INDEX, IMAGE, OTHER_IMAGE, PROOF = "sha256:index", "sha256:image", "sha256:other", "sha256:proof"
CONFIG, BASE, TOP = "sha256:config", "sha256:base", "sha256:top"
OF_IMAGE = (Part(CONFIG, 100, "config"), Part(BASE, 1000, "layer"), Part(TOP, 500, "layer"))
OF_OTHER = (Part("sha256:config2", 100, "config"), Part(BASE, 1000, "layer"))
OF_PROOF = (Part("sha256:config3", 100, "config"), Part("sha256:statement", 10, "layer"))
OF_INDEX = (
    Part(IMAGE, 400, "manifest", "linux/amd64"),
    Part(OTHER_IMAGE, 400, "manifest", "linux/arm64"),
    Part(PROOF, 400, "manifest", "unknown/unknown"),
)
SIZES = {part.digest: part.size for part in (*OF_IMAGE, *OF_OTHER, *OF_PROOF)}
_numbers = count()


def manifest(
    reference: str,
    digest: str,
    at: float,
    *,
    method: str = "GET",
    status: int = 200,
    outcome: str = "hit",
    client: str = "10.0.0.1",
    agent: str = PODMAN,
    repository: str = "library/one",
) -> RequestFinished:
    """Return a request for a manifest that took 0.1 s."""
    return RequestFinished(
        "manifest", method, status, outcome, "docker.io", repository, reference, 400 if method == "GET" else 0,
        0.1, 0.1, client, f"m{next(_numbers)}", digest, agent, at, 0.05,
    )  # fmt: skip


def blob(
    digest: str,
    at: float,
    seconds: float = 1.0,
    *,
    status: int = 200,
    outcome: str = "hit",
    sent: int | None = None,
    client: str = "10.0.0.1",
    agent: str = PODMAN,
    repository: str = "library/one",
) -> tuple[BlobStarted, RequestFinished]:
    """Return the begin and the end of a request for a blob."""
    name = f"b{next(_numbers)}"
    size = SIZES[digest] if sent is None else sent
    return (
        BlobStarted(client, name, "docker.io", repository, digest, agent, at),
        RequestFinished(
            "blob", "GET", status, outcome, "docker.io", repository, digest, size,
            0.1, seconds, client, name, digest, agent, at, 0.05,
        ),
    )  # fmt: skip


def told_at(step: Step) -> float:
    """Return when a process can tell of a step."""
    return step.started if isinstance(step, BlobStarted) else step.started + step.duration


@dataclass
class Watched:
    """A tracker that knows the images above, and what came of it."""

    settle: float = 0.0
    most_kept: int = MOST_KEPT
    ended: list[Pull] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = count(1)
        self.tracker = Tracker(lambda: str(next(names)), settle=self.settle, most_kept=self.most_kept)
        for digest, parts in ((INDEX, OF_INDEX), (IMAGE, OF_IMAGE), (OTHER_IMAGE, OF_OTHER), (PROOF, OF_PROOF)):
            self.tracker.learn(digest, Closure(parts), 0)

    def take(self, *steps: Step, late: float = 0.0, teller: int = 0) -> None:
        """Take steps in the order in which they are given, each `late` seconds after it happened."""
        for step in steps:
            now = told_at(step) + late
            self.tracker.take(step, now, teller)
            self.ended += self.tracker.tick(now)

    def wait(self, until: float) -> None:
        """Let time go by."""
        self.ended += self.tracker.tick(until)

    def states(self) -> list[str]:
        return [pull.state(running=False) for pull in self.ended]
