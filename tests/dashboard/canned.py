"""Documents of mirrors that do not run: fresh, busy, in trouble, told hostile names. Made of the real structs."""

from __future__ import annotations

import math
import random
import time

import msgspec

from entrepot.live import Live, Totals
from entrepot.views import (
    BucketView,
    FillView,
    FleetView,
    GrantView,
    HostView,
    NodeView,
    RegionsView,
    UpstreamView,
    WorkerView,
)
from metrics.history import HistoryView, Point
from metrics.prometheus import Quota
from metrics.pulls.model import Bar, PullDetail, PullSummary, PullsView, Quantiles, RepositoryCount, State
from proxy.store.records import StoreStats
from proxy.store.sweep import SpaceReport
from sync.reports import PeerReport

MIB = 2**20
GIB = 2**30
NOW = time.time()
_IMAGES = (
    "docker.io/library/python:3.12-slim",
    "docker.io/library/nginx:1.27",
    "ghcr.io/astral-sh/uv:0.8",
    "quay.io/prometheus/node-exporter:v1.9.1",
    "registry.k8s.io/pause:3.10",
    "docker.io/library/postgres:17",
    "docker.io/grafana/grafana:12.1.0",
    "mcr.microsoft.com/dotnet/runtime:9.0",
    "docker.io/library/redis@sha256:" + "4be1a9f3" * 8,
    "docker.io/library/debian:bookworm",
)
_AGENTS = ("containerd", "docker", "podman", "buildkit", "cri-o")
HOSTILE = (
    "docker.io/<script>document.title='taken'</script>/x:<img src=x onerror=alert(1)>",
    "docker.io/library/\u202egnp.exe\u202c:latest",
    "docker.io/" + "very-long-name-of-a-team/" * 9 + "image-with-a-name-without-any-end:" + "9" * 120,
)


def digest(seed: object) -> str:
    """Return a digest of nothing."""
    return f"sha256:{random.Random(str(seed)).getrandbits(256):064x}"


def summary(number: int, image: str, seconds: float, outcome: str = "hit", state: State = "done") -> PullSummary:
    """Return a pull that began some time ago."""
    layers = 3 + number % 7
    had = layers if state == "unchanged" else number % 4 if outcome != "miss" else 0
    total = (17 + number * 37 % 400) * MIB
    here = total * had // layers
    return PullSummary(
        id=f"p{number}",
        image=image,
        digest=digest(image),
        platform="linux/amd64",
        agent=_AGENTS[number % len(_AGENTS)],
        state=state,
        outcome=outcome,
        started_at=NOW - 11.0 * number - seconds,
        seconds=seconds,
        sent=0 if state == "unchanged" else total - here,
        layers=layers,
        had=had,
        layer_bytes=total,
        had_bytes=here,
    )


def detail(pull: PullSummary) -> PullDetail:
    """Return the pull with its requests: two manifests, a config, layers three at once."""
    chance = random.Random(pull.id)
    slow = pull.outcome in ("miss", "joined")
    bars = [
        Bar("manifest", "latest", digest(pull.image), 1860, "stale", 200, 0.0, 0.002, 0.04 * slow, 0.001, 1860),
        Bar("manifest", digest("child"), digest("child"), 2290, pull.outcome, 200, 0.05, 0.001, 0.0, 0.001, 2290),
        Bar(
            "config", digest("config"), digest("config"), 7821, pull.outcome, 200, 0.06, 0.001, 0.05 * slow, 0.002, 7821
        ),
    ]
    lanes = [0.07, 0.07, 0.07]
    for layer in range(pull.layers - pull.had):
        start = min(lanes)
        size = chance.randint(1, 120) * MIB
        took = max(0.01, pull.seconds * 0.9 * 3 / max(1, pull.layers) * chance.uniform(0.4, 1))
        upstream = took * chance.uniform(0.1, 0.3) * slow
        lanes[lanes.index(start)] = start + took + 0.004
        outcome = "joined" if slow and layer == 1 else pull.outcome
        bars.append(
            Bar(
                "layer", digest(layer), digest(layer), size, outcome, 200, start, 0.003, upstream, took - upstream, size
            )
        )
    return PullDetail(pull, tuple(bars), 3 if pull.layers > 8 else 0)


def history(seconds: float) -> HistoryView:
    """Return points with a day's swing in them, and a gap in which the mirror was not there."""
    step = {3600.0: 5.0, 21600.0: 60.0}.get(seconds, 120.0)
    chance = random.Random(7)
    points = []
    for index in range(int(seconds / step)):
        at = NOW - seconds + (index + 1) * step
        if 0.42 < index / (seconds / step) < 0.46:
            continue
        swing = 1.2 + math.sin(index / 40) + chance.uniform(-0.15, 0.3)
        pulled = chance.random() < 0.7
        base = 0.4 + 0.3 * swing + chance.random() * 0.4
        missed = 0.02 + 0.06 * chance.random()
        points.append(
            Point(
                time=at,
                requests=swing * 42,
                errors=chance.choice((0, 0, 0, 0, 0.2)),
                hit_ratio=1 - missed,
                byte_hit_ratio=1 - missed / 2,
                sent=swing * 38 * MIB,
                received=swing * 38 * MIB * missed / 2,
                near=0.0,
                fills=int(swing),
                pulls=swing if pulled else 0.0,
                first_byte_p50=0.003,
                first_byte_p99=0.08,
                pull_p50=base if pulled else None,
                pull_p90=base * 2.4 if pulled else None,
                pull_p99=base * (5 + 3 * chance.random()) if pulled else None,
                used=400 * GIB,
            )
        )
    return HistoryView(step, tuple(points))


def host(name: str, *, reachable: bool = True, error: str | None = None, quota: Quota | None = None) -> HostView:
    """Return a host of an upstream."""
    return HostView(name, True, reachable, error, quota, "closed" if reachable else "open", False, None, {})


def _upstreams() -> tuple[UpstreamView, ...]:
    hub = host("registry-1.docker.io", quota=Quota(100, 62, 21600))
    return (
        UpstreamView("docker.io", True, (hub,)),
        UpstreamView("ghcr.io", True, (host("ghcr.io"),)),
        UpstreamView("quay.io", True, (host("quay.io"),)),
        UpstreamView("registry.k8s.io", True, (msgspec.structs.replace(host("registry.k8s.io"), answered=False),)),
    )


def fresh() -> Live:
    """A mirror that nobody has asked yet."""
    latency = Quantiles(3600.0, 0, None, None, None)
    return Live(
        now=NOW,
        version="0.1.0",
        region="",
        state="ready",
        reasons=(),
        offline=False,
        started_at=NOW - 40,
        uptime=40.0,
        totals=Totals(0, 0, 0, 0, 0, 0, 0, 0, {"hit": 0, "miss": 0, "joined": 0}),
        pulls=PullsView(latency, {}, None, (), (), (), ()),
        fills=(),
        upstreams=tuple(
            msgspec.structs.replace(one, hosts=(msgspec.structs.replace(one.hosts[0], answered=False, quota=None),))
            for one in _upstreams()
        ),
        space=SpaceReport(500 * GIB, 450 * GIB, 0, 0, 800 * GIB),
        store=StoreStats(0, 0, 0, 0, 0, 0),
        point=None,
        listen=("http://0.0.0.0:5000",),
    )


def busy() -> Live:
    """A mirror on a good day, 10,000 pulls behind it."""
    outcomes = ("hit", "hit", "hit", "miss", "hit", "joined", "near", "hit")
    recent = [
        summary(number, _IMAGES[number % len(_IMAGES)], 0.18 + (number * 0.37) % 4, outcomes[number % len(outcomes)])
        for number in range(40)
    ]
    recent[3] = summary(3, _IMAGES[3], 0.021, "hit", "unchanged")
    recent[6] = summary(6, _IMAGES[6], 12.4, "miss", "broken")
    slow = [summary(100 + number, _IMAGES[-1 - number], 93.0 / (1 + number), "miss") for number in range(9)]
    running = [
        msgspec.structs.replace(
            summary(200 + number, _IMAGES[number], 2.7 * (1 + number), "miss", "running"),
            sent=9 * MIB,
            started_at=NOW - 2.7 * (1 + number),
        )
        for number in range(2)
    ]
    return msgspec.structs.replace(
        fresh(),
        region="eu-west",
        started_at=NOW - 9 * 86400,
        uptime=9 * 86400.0,
        totals=Totals(
            requests=412_345,
            sent=6_412 * GIB,
            received=181 * GIB,
            near=40 * GIB,
            saved=6_231 * GIB,
            evicted=412,
            evicted_bytes=73 * GIB,
            verification_failures=0,
            lookups={"hit": 390_000, "joined": 4_100, "miss": 12_345, "stale": 900, "error": 3, "none": 5000},
        ),
        pulls=PullsView(
            latency=Quantiles(3600.0, 1284, 0.84, 3.42, 18.6),
            outcomes={"hit": 8120, "miss": 940, "joined": 260, "near": 80, "unchanged": 583, "broken": 17},
            had_share=0.41,
            running=tuple(running),
            recent=tuple(recent),
            slowest=tuple(slow),
            repositories=tuple(
                RepositoryCount(image.partition(":")[0].partition("@")[0], 2900 // (1 + rank), 800 * GIB // (1 + rank))
                for rank, image in enumerate(_IMAGES)
            ),
        ),
        fills=fills(3),
        upstreams=_upstreams(),
        space=SpaceReport(500 * GIB, 450 * GIB, 409 * GIB, 3 * GIB, 210 * GIB),
        store=StoreStats(18_211, 409 * GIB, 5_120, 340, 1_902, 3),
        point=history(3600).points[-1],
    )


def fills(number: int) -> tuple[FillView, ...]:
    """Return downloads that run."""
    return tuple(
        FillView(
            digest=digest(one),
            repository=_IMAGES[one % len(_IMAGES)].partition(":")[0].partition("@")[0],
            size=None if one % 5 == 4 else (40 + one) * MIB,
            received=(3 + 7 * one % 40) * MIB,
            readers=one * 3 % 8,
            source="registry-1.docker.io",
        )
        for one in range(number)
    )


def troubled() -> Live:
    """A mirror with an upstream down, its quotas nearly used up, regions behind and a worker that stands still."""
    down = host("quay.io", reachable=False, error="connect: timed out after 10 s")
    scarce = msgspec.structs.replace(host("registry-1.docker.io", quota=Quota(100, 3, 21600)), held={"manifest": 34.0})
    refusing = msgspec.structs.replace(host("ghcr.io"), credential_refused=True)
    reasons = (
        "upstream quay.io fails: connect: timed out after 10 s",
        "upstream ghcr.io: ghcr.io refuses our credential: renew it",
        "upstream docker.io: registry-1.docker.io asks us to wait 34 s with manifest requests",
        "worker 3 (pid 4711) does not answer its supervisor",
    )
    peers = (
        PeerReport(name="us-east", url="https://us.mirror.example", state="current"),
        PeerReport(
            name="ap-south-the-region-with-the-longest-name-of-all-of-them-in-the-company",
            url="https://ap.mirror.example",
            state="fetching",
            seconds_behind=4210.0,
            images_behind=312,
            bytes_behind=48 * GIB,
            rate=11.5 * MIB,
        ),
        PeerReport(name="sa-east", url="https://sa", state="failing", error="sa.mirror.example: refused"),
        PeerReport(
            name="af-south", url="https://af", state="held", held="outside its window 22:00-6:00", images_behind=4
        ),
    )
    nodes = (
        NodeView("http://10.0.0.2:5000", "0.1.0", "ready", 0.0),
        NodeView("http://10.0.0.3:5000", "0.1.0", "draining", 12.0),
    )
    return msgspec.structs.replace(
        busy(),
        state="degraded",
        reasons=reasons,
        upstreams=(
            UpstreamView("docker.io", True, (scarce,)),
            UpstreamView("ghcr.io", True, (refusing,)),
            UpstreamView("quay.io", False, (down,)),
        ),
        fills=fills(40),
        space=SpaceReport(500 * GIB, 450 * GIB, 489 * GIB, 9 * GIB, 26 * GIB),
        workers=tuple(WorkerView(one, 4708 + one, one != 3, 2 if one == 2 else 0) for one in range(1, 5)),
        fleet=FleetView("http://10.0.0.1:5000", "redis: connection refused", nodes, ("http://10.0.0.9:5000",)),
        bucket=BucketView("s3://images/entrepot", "timed out after 5 s", 41, 312.0),
        regions=RegionsView(peers, (GrantView("us-east", ("*",), "token"),)),
    )


def hostile() -> Live:
    """A mirror whose clients, upstreams and neighbours chose their names to do harm."""
    pulls = busy().pulls
    told = tuple(summary(300 + number, image, 1.5) for number, image in enumerate(HOSTILE))
    return msgspec.structs.replace(
        troubled(),
        region=HOSTILE[0],
        reasons=HOSTILE,
        upstreams=tuple(UpstreamView(name, False, (host(name, reachable=False, error=name),)) for name in HOSTILE),
        fills=tuple(msgspec.structs.replace(one, repository=HOSTILE[0], source=HOSTILE[1]) for one in fills(2)),
        pulls=msgspec.structs.replace(
            pulls,
            running=tuple(msgspec.structs.replace(one, started_at=NOW - one.seconds) for one in told),
            recent=told,
            slowest=told,
            repositories=tuple(RepositoryCount(name, 3, 5) for name in HOSTILE),
        ),
    )
