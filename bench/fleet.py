"""The scenarios of a fleet: nodes that share a Redis, beside one mirror alone and beside the direct download.

The nodes are processes of this machine, so that three of them share its cores with their clients and the upstream.
"""

from __future__ import annotations

import os
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from bench.clients import ClientFailed, drain, hammer
from bench.content import MIB, image
from bench.drain import Plan
from bench.figures import Column, Floor, Sample, Table
from bench.processes import DidNotStart, Running, free_port, started
from bench.scenarios import HERD_RATE, rush
from bench.servers import DIRECT, ENTREPOT, Bed, Server, blob_path, entrepot, manifest_path
from bench.turns import Scale, Tell, sample
from proxy.store.schema import connect

NODES = 3
FLEET = f"fleet of {NODES}"
WITH_REDIS = "with Redis"
JOINING = "joining node"
HITS_SIZE = 64 * 1024
HITS_TURNS = 6  # of a second each, in each round: what is compared is a twentieth
JOIN_TIMEOUT = 600.0
REPOSITORIES = 1000
TOGETHER = 10  # records of one repository in a row, as a pull makes them
LOOK = 0.1
_SECRET = "what the nodes of this run share"


class Pack:
    """Several programs, watched as one."""

    def __init__(self, programs: Sequence[Running]) -> None:
        self._programs = programs

    def cpu_seconds(self) -> float:
        return sum(one.cpu_seconds() for one in self._programs)

    def resident(self) -> int:
        return sum(one.resident() for one in self._programs)


@contextmanager
def redis(bed: Bed) -> Iterator[int]:
    """Start a Redis that writes nothing to disk; give its port. Raises DidNotStart."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with bed.room("redis") as folder, started("redis-server", [*command, "--dir", str(folder)], folder) as running:
        running.wait_for_port(port)
        yield port


@contextmanager
def node(bed: Bed, redis_port: int, folder: Path, name: str) -> Iterator[tuple[int, Running]]:
    """Start a node with what `folder` holds; give its port. Raises DidNotStart."""
    port = free_port()
    config = folder / "entrepot.toml"
    config.write_text(f'redis = "redis://127.0.0.1:{redis_port}"\nfleet_secret = "{_SECRET}"\n')
    command = [*entrepot(folder, port, bed.upstream.port), "--config", str(config)]
    with started(name, command, folder) as running:
        running.wait_for_port(port)
        yield port, running


@contextmanager
def fleet(bed: Bed, name: str, count: int) -> Iterator[Server]:
    """Start an empty fleet with a Redis of its own. Raises DidNotStart."""
    with ExitStack() as stack:
        redis_port = stack.enter_context(redis(bed))
        folders = [stack.enter_context(bed.room(name)) for _ in range(count)]
        nodes = [stack.enter_context(node(bed, redis_port, folder, name)) for folder in folders]
        (port, *others), programs = zip(*nodes, strict=True)
        yield Server(name, port, Pack(programs), folders[0], tuple(others))


def fleet_herd(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """Many clients of all nodes, begun one after another over nine tenths of a download, want one uncached blob."""
    table = Table(
        "fleet-herd",
        f"{scale.fleet_clients} clients of {NODES} nodes, one uncached blob of {scale.herd_size // MIB} MiB, "
        f"upstream at {HERD_RATE // MIB} MiB/s per connection",
        (
            Column("last", "last client s", 2),
            Column("first_ms", "median first byte ms", 1),
            Column("gets", "upstream GETs"),
            Column("upstream_mib", "upstream MiB"),
            Column("growth_mib", "RSS growth MiB/node"),
            Column("cpu", "CPU s", 2),
        ),
        "last",
        DIRECT,
        (
            Floor("a fleet's last client ≤ 1.1 × one direct download", FLEET, "last", 1.1, against=DIRECT),
            Floor("one upstream GET for a fleet", FLEET, "gets", 1),
            Floor("a fleet's memory: growth ≤ 64 MiB/node", FLEET, "growth_mib", 64),
        ),
    )
    for _ in range(scale.rounds):
        sample(table, DIRECT, tell, partial(_direct, bed, scale.herd_size))
        sample(table, FLEET, tell, partial(_rush, bed, scale.herd_size, scale.fleet_clients))
    return [table]


def _direct(bed: Bed, size: int) -> Sample:
    _, digest = bed.fresh(size, HERD_RATE)
    return rush(bed, bed.upstream, size, digest, 1)


def _rush(bed: Bed, size: int, clients: int) -> Sample:
    _, digest = bed.fresh(size, HERD_RATE)
    with fleet(bed, FLEET, NODES) as nodes:
        _, small = bed.fresh(64 * 1024)
        drain(nodes, Plan(nodes.port, blob_path(small), NODES, others=nodes.others))
        return rush(bed, nodes, size, digest, clients)


def fleet_hits(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """GET what is cached, of a mirror alone and of a node with Redis, in turn."""
    picture = image()
    _, digest = bed.fresh(HITS_SIZE)
    paths = {
        "manifest by digest": manifest_path(picture.digest),
        "manifest by tag": manifest_path("latest"),
        f"blob of {HITS_SIZE // 1024} KiB": blob_path(digest),
    }
    tables = {
        path: Table(
            f"fleet-hits-{title.split()[0]}{'-tag' * title.endswith('tag')}",
            f"Cached {title}, 16 connections, with and without Redis",
            (Column("cpu_ms", "CPU ms/request", 4), Column("rate", "requests/s"), Column("p99", "p99 ms", 2)),
            "cpu_ms",
            ENTREPOT,
            (Floor(f"{title} with Redis ≤ 1.05 × without", WITH_REDIS, "cpu_ms", 1.05, against=ENTREPOT),),
        )
        for title, path in paths.items()
    }
    with ExitStack() as stack:
        try:
            servers = [stack.enter_context(bed.server(ENTREPOT)), stack.enter_context(fleet(bed, WITH_REDIS, 1))]
        except DidNotStart as error:
            for table in tables.values():
                table.absent[WITH_REDIS] = str(error)
            return list(tables.values())
        for server in servers:
            for path in paths.values():
                hammer(server, path, 1)
        for number in range(scale.rounds * HITS_TURNS):
            for path, table in tables.items():
                for server in servers if number % 2 else reversed(servers):
                    sample(table, server.name, tell, partial(_hits, server, path, 1))
    return list(tables.values())


def _hits(server: Server, path: str, seconds: int) -> Sample:
    hits, cost = hammer(server, path, seconds)
    return {"cpu_ms": cost.cpu * 1000 / hits.requests, "rate": hits.rate, "p99": hits.p99}


def fleet_join(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """Start an empty node beside one that knows many records, until it knows them all."""
    table = Table(
        "fleet-join",
        f"A node joins a fleet of {scale.records:,} records",
        (
            Column("seconds", "whole after s", 1),
            Column("peak_mib", "its RSS MiB"),
            Column("giver_mib", "RSS growth of the other MiB"),
            Column("cpu", "its CPU s", 1),
            Column("giver_cpu", "CPU s of the other", 1),
            Column("hit_ms", "slowest hit of the other ms", 1),
        ),
        "seconds",
        JOINING,
        (
            Floor("a node is whole within 60 s of its start", JOINING, "seconds", 60),
            Floor("a joining node's memory ≤ 256 MiB", JOINING, "peak_mib", 256),
        ),
    )
    with ExitStack() as stack:
        redis_port = stack.enter_context(redis(bed))
        folder = stack.enter_context(bed.room("giver"))
        with node(bed, redis_port, folder, "giver"):
            pass
        tell(f"fleet-join: writing {scale.records:,} records")
        know(folder / "data" / "catalog.sqlite", scale.records)
        port, giver = stack.enter_context(node(bed, redis_port, folder, "giver"))
        for _ in range(scale.rounds):
            sample(table, JOINING, tell, partial(_join, bed, redis_port, port, giver, scale.records))
    return [table]


def know(catalog: Path, records: int) -> None:
    """Write `records` memberships into the catalog of a node that does not run, those of so many small images."""
    with closing(connect(catalog)) as connection, connection:
        connection.execute("BEGIN")
        (seq,) = connection.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()
        names = ((number, "docker.io", f"library/image-{number}") for number in range(1, REPOSITORIES + 1))
        connection.executemany("INSERT INTO repository (id, upstream, path) VALUES (?, ?, ?)", names)
        now = time.time()
        connection.executemany(
            "INSERT INTO membership (repository, digest, proof, proved_at, seq, version) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    1 + number // TOGETHER % REPOSITORIES,
                    f"sha256:{os.urandom(32).hex()}",
                    "fetched",
                    now,
                    seq + number,
                    number,
                )
                for number in range(1, records + 1)
            ),
        )
        connection.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (seq + records,))


def is_whole(catalog: Path, records: int) -> bool:
    """Tell whether the catalog has so many memberships; cheap until it may have."""
    try:
        with closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True, timeout=1)) as connection:
            (last,) = connection.execute("SELECT max(seq) FROM membership").fetchone()
            if (last or 0) < records:
                return False
            return bool(connection.execute("SELECT count(*) FROM membership").fetchone()[0] >= records)
    except sqlite3.OperationalError:
        return False


def _join(bed: Bed, redis_port: int, giver_port: int, giver: Running, records: int) -> Sample:
    _hit(giver_port)
    before, idle = giver.cpu_seconds(), giver.resident()
    began, slowest, peak, grown = time.monotonic(), 0.0, 0, 0
    with bed.room("joiner") as folder, node(bed, redis_port, folder, "joiner") as (_, joiner):
        while not is_whole(folder / "data" / "catalog.sqlite", records):
            if time.monotonic() - began > JOIN_TIMEOUT:
                raise ClientFailed(f"the node was not whole after {JOIN_TIMEOUT:.0f} s")
            time.sleep(LOOK)
            slowest = max(slowest, _hit(giver_port))
            peak, grown = max(peak, joiner.resident()), max(grown, giver.resident() - idle)
        elapsed = time.monotonic() - began
        return {
            "seconds": elapsed,
            "peak_mib": peak / MIB,
            "giver_mib": grown / MIB,
            "cpu": joiner.cpu_seconds(),
            "giver_cpu": giver.cpu_seconds() - before,
            "hit_ms": slowest * 1000,
        }


def _hit(port: int) -> float:
    began = time.monotonic()
    urllib.request.urlopen(f"http://127.0.0.1:{port}{manifest_path('latest')}", timeout=10).close()
    return time.monotonic() - began


SCENARIOS: dict[str, Callable[[Bed, Scale, Tell], list[Table]]] = {
    "fleet-herd": fleet_herd,
    "fleet-hits": fleet_hits,
    "fleet-join": fleet_join,
}
