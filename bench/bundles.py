"""The scenario of bundles: writing one and taking it in, beside skopeo's archives and a plain copy of the same bytes.

`cp` followed by fsync is the limit of what a disk allows. skopeo writes to and reads from `oci-archive:`; what it reads
goes into a folder (`dir:`), so that it pays for no server. It does not wait for the disk, as the others do. Nothing
drops the page cache: all read what was just written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree

from bench.clients import ClientFailed
from bench.content import MIB, Blob
from bench.figures import Column, Floor, Sample, Table
from bench.processes import ROOT, environment, free_port, started
from bench.servers import ENTREPOT, Bed, entrepot
from bench.stock import OCI, Name, Stock
from bench.turns import Scale, Tell, sample

SKOPEO = "skopeo"
COPY = "cp and fsync"
LAYERS = 8
SMALL_LAYERS = 40
SMALL_SIZE = 32 * 1024
MEMORY = 150.0
LOOK = 0.005
_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}", secret: bench}}
"""
_COLUMNS = (
    Column("mib_s", "MiB/s"),
    Column("seconds", "seconds", 2),
    Column("cpu", "its CPU s", 2),
    Column("rss", "most MiB resident"),
)


@dataclass(frozen=True)
class Tool:
    """What is measured: a command, and what it makes, which is removed afterwards."""

    name: str
    command: Sequence[str | Path]
    makes: Path

    def run(self, size: int) -> Sample:
        """Run it over images of so many bytes, with nothing left to be written by others. Raises ClientFailed."""
        os.sync()
        done = _run(self.name, self.command, self.makes.parent)
        _remove(self.makes)
        return {"mib_s": size / MIB / done["seconds"], **done}


@dataclass(frozen=True)
class Place:
    """A data folder, the port of its mirror where one runs, and that of its upstream."""

    port: int
    upstream: int
    data: Path

    def command(self, *words: str | Path) -> list[str | Path]:
        upstream = f"docker.io=http://127.0.0.1:{self.upstream}"
        return [sys.executable, "-m", "entrepot", *words, "--data", self.data, "--upstream", upstream]


def bundles(bed: Bed, scale: Scale, tell: Tell) -> list[Table]:
    """Export an image of large layers and some small ones from a running mirror; import it into an empty store."""
    size = scale.bundle_size + SMALL_LAYERS * SMALL_SIZE
    exported = Table(
        "bundle-export",
        f"Writing an image of {size // MIB:,} MiB to a file",
        _COLUMNS,
        "mib_s",
        COPY,
        (
            Floor("export ≥ 0.6 × cp and fsync", ENTREPOT, "mib_s", 0.6, True, COPY),
            Floor("export stays below 150 MiB of memory", ENTREPOT, "rss", MEMORY),
        ),
    )
    imported = Table(
        "bundle-import",
        f"Taking in an image of {size // MIB:,} MiB from a file",
        _COLUMNS,
        "mib_s",
        COPY,
        (
            Floor("import ≥ 0.5 × cp and fsync", ENTREPOT, "mib_s", 0.5, True, COPY),
            Floor("import stays below 150 MiB of memory", ENTREPOT, "rss", MEMORY),
        ),
    )
    name = Name("library/bundled", "1")
    with ExitStack() as stack:
        room, storage = stack.enter_context(bed.room("bundles")), stack.enter_context(bed.room("stock"))
        tell(f"bundles: writing {size // MIB:,} MiB of layers")
        large = [Blob(5000 + number, scale.bundle_size // LAYERS) for number in range(LAYERS)]
        Stock(storage).image(name, [*large, *(Blob(6000 + n, SMALL_SIZE) for n in range(SMALL_LAYERS))], OCI)
        mirror = stack.enter_context(_mirror(bed, storage))
        tell("bundles: pulling them, and the files that are read")
        writers, readers = _writers(room, mirror, name), _readers(room, name)
        for command in (mirror.command("pull", _reference(name)), writers[0].command, writers[1].command):
            _run("preparing", command, room)
        for made, kept in ((room / "out.tar", room / "site.tar"), (room / "out.oci", room / "site.oci")):
            made.rename(kept)
        for number in range(scale.rounds):
            for table, tools in ((exported, writers), (imported, readers)):
                for tool in tools if number % 2 else tools[::-1]:
                    sample(table, tool.name, tell, partial(tool.run, size))
    return [exported, imported]


def _writers(room: Path, mirror: Place, name: Name) -> list[Tool]:
    """Return what writes a file of the image: two from the mirror, and a copy of the first one's file."""
    bundle, archive = room / "out.tar", room / "out.oci"
    source = f"docker://127.0.0.1:{mirror.port}/{name.repository}:{name.tag}"
    words = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"]
    return [
        Tool(ENTREPOT, mirror.command("export", "-o", bundle, _reference(name)), bundle),
        Tool(SKOPEO, ["skopeo", *words, source, f"oci-archive:{archive}:{_reference(name)}"], archive),
        _copy(room),
    ]


def _readers(room: Path, name: Name) -> list[Tool]:
    """Return what takes the files in again."""
    site, copied = Place(free_port(), free_port(), room / "data"), room / "copied"
    words = ["--insecure-policy", "copy", "--quiet", "--preserve-digests"]
    return [
        Tool(ENTREPOT, site.command("import", room / "site.tar"), site.data),
        Tool(
            SKOPEO, ["skopeo", *words, f"oci-archive:{room / 'site.oci'}:{_reference(name)}", f"dir:{copied}"], copied
        ),
        _copy(room),
    ]


def _copy(room: Path) -> Tool:
    copy = room / "copy.tar"
    return Tool(COPY, ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", room / "site.tar", copy], copy)


def _reference(name: Name) -> str:
    return f"docker.io/{name.repository}:{name.tag}"


@contextmanager
def _mirror(bed: Bed, storage: Path) -> Iterator[Place]:
    """Start a mirror of a docker-registry over `storage`. Raises DidNotStart."""
    source, port = free_port(), free_port()
    with bed.room("registry") as folder, bed.room("mirror") as own:
        file = folder / "config.yml"
        file.write_text(_REGISTRY.format(folder=storage, port=source))
        with started("docker-registry", ["docker-registry", "serve", str(file)], folder) as registry:
            registry.wait_for_port(source)
            with started(ENTREPOT, entrepot(own, port, source), own) as mirror:
                mirror.wait_for_port(port)
                yield Place(port, source, own / "data")


def _run(name: str, command: Sequence[str | Path], room: Path) -> Sample:
    """Run a command to its end; return its time, and what it and its children used. Raises ClientFailed."""
    log = room / "log"
    # What is installed has its bytecode; ours is compiled once, by what prepares.
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(room / "bytecode")}
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment() | {"TMPDIR": str(room)} | kept,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        pid = resident = 0
        while not pid:
            resident = max(resident, _most_resident(process.pid))
            time.sleep(LOOK)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ClientFailed(f"{name} ended with {process.returncode}: {log.read_text(errors='replace')[-800:]}")
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "rss": resident / 1024}


def _most_resident(pid: int) -> int:
    """Return the KiB that were resident at most since a process began its program; wait4 also counts what forked it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _remove(made: Path) -> None:
    if made.is_dir():
        rmtree(made)
        return
    for path in (made, made.with_suffix(".sha256")):
        path.unlink(missing_ok=True)


SCENARIOS: dict[str, Callable[[Bed, Scale, Tell], list[Table]]] = {"bundles": bundles}
