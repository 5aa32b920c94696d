"""Run a client against a server, and count what it cost the server: `drain` for blobs, wrk for manifests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass

from bench.content import MANIFEST_TYPE
from bench.drain import Plan, Report, Transfer
from bench.processes import ROOT, Watched, environment
from bench.servers import Server

SAMPLING = 0.05
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class ClientFailed(Exception):
    """A client did not get what it asked for; the numbers of this run would mean nothing."""


@dataclass(frozen=True)
class Cost:
    """What a server spent meanwhile: processor seconds, and bytes resident beyond what it held before."""

    cpu: float
    growth: int


def _watch(name: str, command: list[str], running: Watched, timeout: float) -> tuple[str, Cost]:
    """Run a client to its end, sampling the server's memory."""
    cpu, idle = running.cpu_seconds(), running.resident()
    peak = idle
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for _ in range(int(timeout / SAMPLING)):
            peak = max(peak, running.resident())
            try:
                output, _ = process.communicate(timeout=SAMPLING)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            process.kill()
            raise ClientFailed(f"{name}: the client was not done after {timeout:.0f} s")
    text = output.decode(errors="replace")
    if process.returncode:
        raise ClientFailed(f"{name}: {text[-800:]}")
    return text, Cost(running.cpu_seconds() - cpu, max(peak, running.resident()) - idle)


def drain(server: Server, plan: Plan) -> tuple[Report, Cost]:
    """Raises ClientFailed."""
    text, cost = _watch(
        server.name, [sys.executable, "-m", "bench.drain", json.dumps(asdict(plan))], server.running, plan.timeout + 30
    )
    answer = json.loads(text)
    transfers = [Transfer(**transfer) for transfer in answer.pop("transfers")]
    return Report(transfers=transfers, **answer), cost


@dataclass(frozen=True)
class Hits:
    """What wrk saw: requests in all, per second, and latencies in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


def hammer(server: Server, path: str, seconds: int, connections: int = 16) -> tuple[Hits, Cost]:
    """GET one manifest as fast as it goes. Raises ClientFailed, also when any answer was not a 2xx."""
    url = f"http://127.0.0.1:{server.port}{path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Accept: {MANIFEST_TYPE}", url]
    text, cost = _watch(server.name, command, server.running, seconds + 30)
    if "Non-2xx" in text or "Socket errors" in text:
        raise ClientFailed(f"{server.name}: {path}: {text}")
    return read_wrk(text), cost


def read_wrk(text: str) -> Hits:
    """Read wrk's report. Raises ClientFailed where it is none."""
    requests = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    quantiles = {
        int(share): float(value) * UNITS[unit]
        for share, value, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)\b", text)
    }
    if requests is None or rate is None or not {50, 99} <= quantiles.keys():
        raise ClientFailed(f"wrk said: {text}")
    return Hits(int(requests[1]), float(rate[1]), quantiles[50], quantiles[99])
