"""The four scenarios of one mirror beside its peers; those of a fleet are in `fleet`.

A blob that must be uncached is a new one in each round.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

from bench.clients import ClientFailed, drain, hammer
from bench.content import MIB, image
from bench.drain import Plan
from bench.figures import Column, Floor, Sample, Table
from bench.servers import (
    DIRECT,
    ENTREPOT,
    NGINX_CACHE,
    NGINX_STATIC,
    REGISTRY,
    Bed,
    Server,
    blob_path,
    fill_static,
    manifest_path,
)
from bench.turns import CPU_PER_GIB, Scale, Tell, sample, start, take

STORED_SIZE = 64 * MIB
STORED_TURNS = 4  # in each round: many short turns even out what else the machine does
COLD_RATE = 100 * MIB
HERD_RATE = 8 * MIB


def stored(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """GET a blob of 64 MiB that is stored and in the page cache, again and again, over 1 and 8 connections."""
    tables = {
        connections: Table(
            f"stored-{connections}",
            f"Stored blob of {STORED_SIZE // MIB} MiB, {connections} connection{'s' * (connections > 1)}",
            (Column("mib_s", "MiB/s"), CPU_PER_GIB),
            "mib_s",
            NGINX_STATIC,
            (Floor("stored blobs ≥ 0.9 × nginx sendfile", ENTREPOT, "mib_s", 0.9, True, NGINX_STATIC),),
        )
        for connections in (1, 8)
    }
    blob, digest = bed.fresh(STORED_SIZE)
    with ExitStack() as stack:
        servers = start(bed, stack, list(tables.values()), (NGINX_STATIC, ENTREPOT, REGISTRY))
        for server in servers:
            if server.name == NGINX_STATIC:
                fill_static(server, image(), [blob])
            take(list(tables.values()), server.name, tell, partial(_throughput, server, digest, 1, 0.5))
        asked = bed.counters(digest)["gets"]
        for _ in range(scale.rounds * STORED_TURNS):
            for connections, table in tables.items():
                for server in servers:
                    measure = partial(_throughput, server, digest, connections, scale.stored_seconds)
                    sample(table, server.name, tell, measure)
        if bed.counters(digest)["gets"] != asked:
            raise ClientFailed("the blob was not stored everywhere: the upstream was asked while it was measured")
    return list(tables.values())


def _throughput(server: Server, digest: str, connections: int, seconds: float) -> Sample:
    report, cost = drain(server, Plan(server.port, blob_path(digest), connections, seconds))
    mib = report.received / MIB
    return {"mib_s": mib / report.elapsed, "cpu_gib": cost.cpu / mib * 1024}


def manifests(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """GET one cached manifest over 16 connections, by digest and by tag."""
    picture = image()
    tables = {
        reference: Table(
            f"manifest-{title}",
            f"Cached manifest of {len(picture.manifest)} bytes by {title}, 16 connections",
            (Column("rate", "requests/s"), Column("p50", "p50 ms", 2), Column("p99", "p99 ms", 2), per_request),
            "rate",
            REGISTRY,
            (Floor(f"manifest hits by {title} ≥ 20 × docker-registry", ENTREPOT, "rate", 20, True, REGISTRY),),
        )
        for per_request in (Column("cpu_ms", "CPU ms/request", 3),)
        for title, reference in (("digest", picture.digest), ("tag", "latest"))
    }
    with ExitStack() as stack:
        servers = start(bed, stack, list(tables.values()), (NGINX_STATIC, ENTREPOT, REGISTRY))
        for server in servers:
            if server.name == NGINX_STATIC:
                fill_static(server, picture, [])
            for reference, table in tables.items():
                take([table], server.name, tell, partial(_hits, server, reference, 1))
        for _ in range(scale.rounds):
            for reference, table in tables.items():
                for server in servers:
                    sample(table, server.name, tell, partial(_hits, server, reference, scale.hit_seconds))
    return list(tables.values())


def _hits(server: Server, reference: str, seconds: int) -> Sample:
    hits, cost = hammer(server, manifest_path(reference), seconds)
    return {"rate": hits.rate, "p50": hits.p50, "p99": hits.p99, "cpu_ms": cost.cpu * 1000 / hits.requests}


def cold(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """GET one uncached blob from an upstream that gives 100 MiB/s."""
    table = Table(
        "cold",
        f"One cold pull of {scale.cold_size // MIB} MiB, upstream at {COLD_RATE // MIB} MiB/s",
        (Column("seconds", "seconds", 3), Column("first_ms", "first byte ms", 1), CPU_PER_GIB),
        "seconds",
        DIRECT,
        (Floor("a single cold pull ≤ 1.05 × the direct download", ENTREPOT, "seconds", 1.05, against=DIRECT),),
    )
    for _ in range(scale.rounds):
        for kind in (DIRECT, ENTREPOT, NGINX_CACHE, REGISTRY):
            sample(table, kind, tell, partial(_cold_pull, bed, kind, scale.cold_size))
    return [table]


def _cold_pull(bed: Bed, kind: str, size: int) -> Sample:
    _, digest = bed.fresh(size, COLD_RATE)
    with bed.server(kind) as server:
        _warm(bed, server)
        report, cost = drain(server, Plan(server.port, blob_path(digest)))
    return {
        "seconds": report.elapsed,
        "first_ms": report.transfers[0].first_byte * 1000,
        "cpu_gib": cost.cpu / size * MIB * 1024,
    }


def herd(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """Many clients, begun one after another over nine tenths of a download, want one uncached blob."""
    table = Table(
        "herd",
        f"{scale.herd_clients} clients, one uncached blob of {scale.herd_size // MIB} MiB, "
        f"upstream at {HERD_RATE // MIB} MiB/s per connection",
        (
            Column("last", "last client s", 2),
            Column("first_ms", "median first byte ms", 1),
            Column("gets", "upstream GETs"),
            Column("upstream_mib", "upstream MiB"),
            Column("growth_mib", "RSS growth MiB"),
            Column("cpu", "CPU s", 2),
        ),
        "last",
        DIRECT,
        (
            Floor("a herd's last client ≤ 1.1 × one direct download", ENTREPOT, "last", 1.1, against=DIRECT),
            Floor("one upstream GET for a herd", ENTREPOT, "gets", 1),
            Floor("a herd's memory: growth ≤ 64 MiB", ENTREPOT, "growth_mib", 64),
        ),
    )
    for _ in range(scale.rounds):
        for kind in (DIRECT, ENTREPOT, NGINX_CACHE, REGISTRY):
            clients = 1 if kind == DIRECT else scale.herd_clients
            sample(table, kind, tell, partial(_rush, bed, kind, scale.herd_size, clients))
    return [table]


def _rush(bed: Bed, kind: str, size: int, clients: int) -> Sample:
    _, digest = bed.fresh(size, HERD_RATE)
    with bed.server(kind) as server:
        _warm(bed, server)
        return rush(bed, server, size, digest, clients)


def rush(bed: Bed, server: Server, size: int, digest: str, clients: int) -> Sample:
    """Measure what a herd's clients, who take turns between the nodes of `server`, get of a blob of `size` bytes."""
    stagger = 0.9 * size / HERD_RATE / clients
    report, cost = drain(server, Plan(server.port, blob_path(digest), clients, stagger=stagger, others=server.others))
    counters = bed.counters(digest)
    return {
        "last": report.elapsed,
        "first_ms": median(one.first_byte - one.start for one in report.transfers) * 1000,
        "gets": counters["gets"],
        "upstream_mib": counters["sent"] / MIB,
        "growth_mib": cost.growth / MIB / (1 + len(server.others)),
        "cpu": cost.cpu,
    }


def _warm(bed: Bed, server: Server) -> None:
    """Pull something small, so that connections and lazy imports are behind a new server."""
    _, digest = bed.fresh(64 * 1024)
    drain(server, Plan(server.port, blob_path(digest)))


SCENARIOS: dict[str, Callable[[Bed, Scale, Tell], list[Table]]] = {
    "stored": stored,
    "manifests": manifests,
    "cold": cold,
    "herd": herd,
}
