"""How much is measured, and how scenarios take turns between their servers, since a small machine is noisy.

A server that does not start, or answers wrongly, is noted in the tables and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.clients import ClientFailed
from bench.content import MIB
from bench.figures import Column, Sample, Table
from bench.processes import DidNotStart
from bench.servers import Bed, Server


@dataclass(frozen=True)
class Scale:
    """How much is measured. Sizes in bytes, rates in bytes per second, times in seconds."""

    rounds: int
    stored_seconds: float
    hit_seconds: int
    cold_size: int
    herd_size: int
    herd_clients: int
    fleet_clients: int
    records: int
    images: int
    bundle_size: int


FULL = Scale(
    rounds=5,
    stored_seconds=0.6,
    hit_seconds=5,
    cold_size=256 * MIB,
    herd_size=64 * MIB,
    herd_clients=100,
    fleet_clients=150,
    records=1_000_000,
    images=2000,
    bundle_size=2048 * MIB,
)
QUICK = Scale(
    rounds=2,
    stored_seconds=0.4,
    hit_seconds=1,
    cold_size=64 * MIB,
    herd_size=16 * MIB,
    herd_clients=30,
    fleet_clients=45,
    records=100_000,
    images=200,
    bundle_size=256 * MIB,
)

Tell = Callable[[str], None]
CPU_PER_GIB = Column("cpu_gib", "CPU s/GiB", 2)


def take(tables: Sequence[Table], server: str, tell: Tell, measure: Callable[[], Sample]) -> Sample | None:
    """Return a sample; where there is none, note why in `tables`, and do not try again."""
    if server in tables[0].absent:
        return None
    tell(f"{tables[0].name}: {server}")
    try:
        return measure()
    except (DidNotStart, ClientFailed) as error:
        for table in tables:
            table.absent[server] = str(error)
        return None


def sample(table: Table, server: str, tell: Tell, measure: Callable[[], Sample]) -> None:
    if (found := take([table], server, tell, measure)) is not None:
        table.add(server, found)


def start(bed: Bed, stack: ExitStack, tables: Sequence[Table], kinds: Iterable[str]) -> list[Server]:
    servers = []
    for kind in kinds:
        try:
            servers.append(stack.enter_context(bed.server(kind)))
        except DidNotStart as error:
            for table in tables:
                table.absent[kind] = str(error)
    return servers
