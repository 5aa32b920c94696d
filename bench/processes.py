"""Child processes: started, watched through /proc, ended by their own id. What they are is in `servers`."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT = 20.0
STOP_TIMEOUT = 15.0


class DidNotStart(Exception):
    """A server that cannot be measured; the text says why and shows the end of its log."""


def environment() -> dict[str, str]:
    """Return ours without what the servers would take for configuration, and with the folder where nginx lies."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("REGISTRY_", "ENTREPOT_"))}
    return kept | {"PATH": f"{kept.get('PATH', os.defpath)}:/usr/sbin"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def busy_seconds() -> tuple[float, float]:
    """Return the processor seconds spent so far by the whole machine, and by us and the children we have waited for."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) / TICKS, sum(os.times()[:4])


class Watched(Protocol):
    """What can be asked what it costs."""

    def cpu_seconds(self) -> float:
        """Return user and system time so far."""
        ...

    def resident(self) -> int:
        """Return the bytes resident now."""
        ...


class Running:
    """A started program and its descendants."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    def _tree(self) -> Iterator[int]:
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except OSError:
                continue

    def cpu_seconds(self) -> float:
        """Return user and system time of the whole tree so far, in steps of a clock tick."""
        total = 0
        for pid in self._tree():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident(self) -> int:
        """Return the bytes resident in the whole tree; shared pages count once per process."""
        total = 0
        for pid in self._tree():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
        return total

    def wait_for_port(self, port: int) -> None:
        """Raises DidNotStart when the program ends, or does not listen in time."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise DidNotStart(f"{self.name} ended with code {self._process.returncode}: {self._tail()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise DidNotStart(f"{self.name} did not listen on port {port} within {START_TIMEOUT:.0f} s: {self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace").strip()[-600:] or "it said nothing"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(name: str, command: Sequence[str], folder: Path) -> Iterator[Running]:
    """Run `command` until the block is left, its output in `folder`/log. Raises DidNotStart."""
    log = folder / "log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=environment()
            )
        except FileNotFoundError as error:
            raise DidNotStart(f"{command[0]} is not installed; on Debian: apt-get install {name.split()[0]}") from error
    running = Running(name, process, log)
    try:
        yield running
    finally:
        running.stop()
