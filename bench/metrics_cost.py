"""What metrics and pulls cost: processor time per manifest hit, beside the same mirror whose events only reach the log.

It writes no request log (its level is warning), and makes the event of a request in either case: that belongs to the
log, which may be turned on at run time. It counts and does not by turns, in one process (`bench.uncounted`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from bench.clients import hammer
from bench.content import image
from bench.figures import Column, Floor, Sample, Table
from bench.processes import Running, free_port, started
from bench.servers import ENTREPOT, Bed, Server, entrepot, manifest_path
from bench.turns import Scale, Tell, sample

UNCOUNTED = "uncounted"
TURN_SECONDS = 1
TURNS = 8  # in each round: many short turns even out what else the machine does
_SIGNALS = {ENTREPOT: signal.SIGUSR2, UNCOUNTED: signal.SIGUSR1}


def metrics_cost(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """GET one cached manifest over 16 connections, counted and not."""
    table = Table(
        "metrics-cost",
        f"Manifest hits with metrics and pulls, and without, {TURN_SECONDS} s each",
        (Column("cpu_us", "CPU µs/request", 2), Column("rate", "requests/s")),
        "cpu_us",
        UNCOUNTED,
        (Floor("metrics cost ≤ 3 % of CPU-seconds per manifest hit", ENTREPOT, "cpu_us", 1.03, against=UNCOUNTED),),
    )
    port = free_port()
    with bed.room(UNCOUNTED) as folder:
        config = folder / "entrepot.toml"
        config.write_text('[log]\nlevel = "warning"\n')
        command = entrepot(folder, port, bed.upstream.port)
        command[command.index("entrepot")] = "bench.uncounted"
        with started(UNCOUNTED, [*command, "--config", str(config)], folder) as running:
            running.wait_for_port(port)
            server = Server(ENTREPOT, port, running, folder)
            for kind in _SIGNALS:
                _hits(server, running, kind)
            for number in range(scale.rounds * TURNS):
                for kind in list(_SIGNALS)[:: 1 if number % 2 else -1]:
                    sample(table, kind, tell, partial(_hits, server, running, kind))
    return [table]


def _hits(server: Server, running: Running, kind: str) -> Sample:
    running.signal(_SIGNALS[kind])
    hits, cost = hammer(server, manifest_path(image().digest), TURN_SECONDS)
    return {"cpu_us": cost.cpu * 1e6 / hits.requests, "rate": hits.rate}


SCENARIOS: dict[str, Callable[[Bed, Scale, Tell], list[Table]]] = {"metrics-cost": metrics_cost}
