"""The scenario of two regions: what a pass costs that finds nothing, or one image in a hundred changed, beside skopeo.

Both copy the same images from the same registry's storage: `skopeo sync` from it to a second registry, Entrepot from
a mirror that has them to an empty region, each as a command that begins, does one pass and ends.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.clients import ClientFailed
from bench.content import MANIFEST_TYPE
from bench.figures import Column, Floor, Sample, Table
from bench.processes import ROOT, environment, free_port, started
from bench.relay import Traffic, relay
from bench.servers import ENTREPOT, Bed, entrepot
from bench.stock import Name, Stock, names
from bench.turns import Scale, Tell, sample

SKOPEO = "skopeo sync"
CHANGED = 0.01
PULLERS = 8
PASS_TIMEOUT = 1800.0
_TOKEN = "what-region-b-shows-to-region-a"
_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", secret: bench}}
"""


@dataclass(frozen=True)
class Tool:
    """What is measured: a command that does one pass, and what goes over the wires meanwhile."""

    name: str
    command: Sequence[str]
    wires: tuple[Traffic, ...]

    def run(self) -> Sample:
        """Do a pass. Raises ClientFailed."""
        before = [wire.now() for wire in self.wires]
        spent = _children_seconds()
        began = time.monotonic()
        done = subprocess.run(
            self.command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PASS_TIMEOUT, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise ClientFailed(f"{self.name} ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
        passed = [wire.since(earlier) for wire, earlier in zip(self.wires, before, strict=True)]
        return {
            "seconds": seconds,
            "requests": sum(one.requests for one in passed),
            "kib": sum(one.up + one.down for one in passed) / 1024,
            "cpu": _children_seconds() - spent,
        }


def region_sync(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """Passes over many images, in turn: nothing is new, then a hundredth of the tags has moved."""
    moved = max(1, int(scale.images * CHANGED))
    columns = (
        Column("seconds", "seconds", 2),
        Column("requests", "requests"),
        Column("kib", "KiB on the wire", 1),
        Column("cpu", "its CPU s", 2),
    )
    nothing = Table(
        "region-nothing",
        f"A pass over {scale.images:,} images of which nothing is new",
        columns,
        "seconds",
        SKOPEO,
        (
            Floor("a pass that finds nothing asks ≤ 4 times", ENTREPOT, "requests", 4),
            Floor("a pass that finds nothing costs ≤ 4 KiB", ENTREPOT, "kib", 4),
            Floor("a pass that finds nothing ≤ 0.1 × skopeo's time", ENTREPOT, "seconds", 0.1, against=SKOPEO),
        ),
    )
    some = Table(
        "region-changed",
        f"A pass over {scale.images:,} images of which {moved:,} have moved",
        columns,
        "seconds",
        SKOPEO,
        (
            Floor("a pass of few changes ≤ 0.1 × skopeo's time", ENTREPOT, "seconds", 0.1, against=SKOPEO),
            Floor("a pass of few changes ≤ 0.1 × skopeo's requests", ENTREPOT, "requests", 0.1, against=SKOPEO),
        ),
    )
    with ExitStack() as stack:
        storage = stack.enter_context(bed.room("stock"))
        stock, tags = Stock(storage), names(scale.images)
        tell(f"region-sync: writing {len(tags):,} images")
        for name in tags:
            stock.put(name, 0)
        source = stack.enter_context(_registry(bed, storage, "source"))
        mirror = stack.enter_context(_mirror(bed, source))
        tell("region-sync: pulling them, and the first pass of both")
        _pull(mirror, tags)
        tools = [stack.enter_context(_region(bed, mirror)), stack.enter_context(_skopeo(bed, source, tags))]
        for tool in tools:
            tool.run()
        for number in range(scale.rounds):
            turns = tools if number % 2 else tools[::-1]
            for tool in turns:
                sample(nothing, tool.name, tell, tool.run)
            changed = tags[number * moved :: len(tags) // moved][:moved]
            for name in changed:
                stock.put(name, number + 1)
            _pull(mirror, changed)
            for tool in turns:
                sample(some, tool.name, tell, tool.run)
    return [nothing, some]


@contextmanager
def _registry(bed: Bed, storage: Path, name: str) -> Iterator[int]:
    """Start a docker-registry over a folder; give its port. Raises DidNotStart."""
    port = free_port()
    with bed.room(name) as folder:
        file = folder / "config.yml"
        file.write_text(_REGISTRY.format(folder=storage, port=port))
        with started(name, ["docker-registry", "serve", str(file)], folder) as running:
            running.wait_for_port(port)
            yield port


@contextmanager
def _mirror(bed: Bed, source: int) -> Iterator[int]:
    """Start region a, whose upstream is the source; give its port. Raises DidNotStart."""
    port = free_port()
    with bed.room("region-a") as folder:
        token = _token(folder)
        grant = {"name": "b", "token_file": str(token), "repositories": ["*"]}
        (folder / "entrepot.toml").write_text('region = "a"\n' + _table("grant", grant))
        command = [*entrepot(folder, port, source), "--config", str(folder / "entrepot.toml")]
        with started("region a", command, folder) as running:
            running.wait_for_port(port)
            yield port


@contextmanager
def _region(bed: Bed, mirror: int) -> Iterator[Tool]:
    """Give the pass of region b, which knows region a and reaches no upstream."""
    with bed.room("region-b") as folder, relay(mirror) as (port, wire):
        peer = {"name": "a", "url": f"http://127.0.0.1:{port}", "token_file": str(_token(folder))}
        upstream = {"name": "docker.io", "url": f"http://127.0.0.1:{free_port()}"}
        file = folder / "entrepot.toml"
        file.write_text('region = "b"\n' + _table("upstream", upstream) + _table("peer", peer))
        words = ["sync", "once", "--config", str(file), "--data", str(folder / "data")]
        yield Tool(ENTREPOT, [sys.executable, "-m", "entrepot", *words], (wire,))


@contextmanager
def _skopeo(bed: Bed, source: int, tags: Sequence[Name]) -> Iterator[Tool]:
    """Give the pass of skopeo from the source to an empty registry. Raises DidNotStart."""
    with (
        bed.room("copy") as storage,
        _registry(bed, storage, "target") as target,
        relay(source) as (source_port, source_wire),
        relay(target) as (target_port, target_wire),
    ):
        file = storage / "sync.yml"
        images: dict[str, list[str]] = {repository: [] for repository in sorted({name.repository for name in tags})}
        file.write_text(json.dumps({f"127.0.0.1:{source_port}": {"tls-verify": False, "images": images}}))
        words = ["skopeo", "--insecure-policy", "sync", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"]
        yield Tool(SKOPEO, [*words, str(file), f"127.0.0.1:{target_port}/copy"], (source_wire, target_wire))


def _token(folder: Path) -> Path:
    file = folder / "token"
    file.touch(mode=0o600)
    file.write_text(f"{_TOKEN}\n")
    return file


def _table(name: str, settings: Mapping[str, object]) -> str:
    return "\n".join([f"[[{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), ""])


def _pull(port: int, tags: Sequence[Name]) -> None:
    """Pull images through a mirror, as it looks anew where each tag points. Raises ClientFailed."""
    with ThreadPoolExecutor(PULLERS) as pullers:
        list(pullers.map(partial(_pull_some, port), (tags[first::PULLERS] for first in range(PULLERS))))


def _pull_some(port: int, tags: Sequence[Name]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for name in tags:
        manifest = json.loads(_get(connection, f"/v2/{name.repository}/manifests/{name.tag}"))
        for part in (manifest["config"], *manifest["layers"]):
            _get(connection, f"/v2/{name.repository}/blobs/{part['digest']}")
    connection.close()


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Accept": MANIFEST_TYPE, "Cache-Control": "no-cache"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise ClientFailed(f"{path} was answered {answer.status}: {body[:300]!r}")
    return body


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


SCENARIOS: dict[str, Callable[[Bed, Scale, Tell], list[Table]]] = {"region-sync": region_sync}
