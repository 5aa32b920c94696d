"""The client of the blob scenarios: GETs over raw sockets whose bodies the kernel throws away (MSG_TRUNC).

It costs next to nothing beside the server, so that the server is what is measured. It runs in a process of its
own, `python -m bench.drain PLAN`, a JSON object with the fields of `Plan`, and prints a `Report` as JSON. Bodies are
counted, not verified; a body cut short, or a status other than 200, ends the run with an error.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field

GULP = 4 << 20


@dataclass(frozen=True)
class Plan:
    """`connections` clients, `stagger` seconds apart; each one GET, or with `seconds` GET after GET until then.

    Where there are `others`, ports of further nodes, clients take turns between all of them.
    """

    port: int
    path: str
    connections: int = 1
    seconds: float = 0.0
    stagger: float = 0.0
    timeout: float = 300.0
    others: tuple[int, ...] = ()


@dataclass
class Transfer:
    """One client's part, seconds since the first client's start. `first_byte`: of its first response's headers."""

    start: float
    first_byte: float = 0.0
    end: float = 0.0
    received: int = 0


@dataclass
class Report:
    elapsed: float
    received: int
    transfers: list[Transfer] = field(default_factory=list)


class Client:
    """One connection: `missing` bytes of the body at hand, None while headers are read."""

    def __init__(self, plan: Plan, number: int, start: float) -> None:
        ports = (plan.port, *plan.others)
        self.port = ports[number % len(ports)]
        self.plan = plan
        self.transfer = Transfer(start)
        self.head = b""
        self.missing: int | None = None
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask()
        self.socket.setblocking(False)

    def ask(self) -> None:
        self.head, self.missing = b"", None
        request = f"GET {self.plan.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: */*\r\n\r\n"
        self.socket.send(request.encode())

    def ready(self, now: float, gulp: bytearray) -> bool:
        """Take what is there; return whether the body is complete. Raises RuntimeError for a bad answer."""
        if self.missing is None:
            self._headers(now)
        else:
            taken = self.socket.recv_into(gulp, min(GULP, self.missing), socket.MSG_TRUNC)
            if not taken:
                raise RuntimeError(f"{self.plan.path}: closed with {self.missing} bytes missing")
            self.missing -= taken
            self.transfer.received += taken
        return self.missing == 0

    def _headers(self, now: float) -> None:
        data = self.socket.recv(2048)
        if not data:
            raise RuntimeError(f"{self.plan.path}: closed before the headers were complete: {self.head!r}")
        if not self.transfer.first_byte:
            self.transfer.first_byte = now
        self.head += data
        head, found, body = self.head.partition(b"\r\n\r\n")
        if not found:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status.split(" ")[1] != "200" or "content-length" not in headers:
            raise RuntimeError(f"{self.plan.path}: wanted 200 with a Content-Length, got: {head!r} {body[:500]!r}")
        self.transfer.received += len(body)
        self.missing = int(headers["content-length"]) - len(body)


def drain(plan: Plan) -> Report:
    """Run the plan. Raises RuntimeError for a bad answer, TimeoutError when nothing arrives for `plan.timeout` s."""
    selector = selectors.EpollSelector()
    gulp = bytearray(GULP)
    began = time.monotonic()
    running: set[Client] = set()
    done: list[Transfer] = []
    started = 0
    while started < plan.connections or running:
        now = time.monotonic() - began
        while started < plan.connections and started * plan.stagger <= now:
            client = Client(plan, started, now)
            selector.register(client.socket, selectors.EVENT_READ, client)
            running.add(client)
            started += 1
        wait = max(0.0, started * plan.stagger - now) if started < plan.connections else plan.timeout
        ready = selector.select(wait)
        if not ready and started == plan.connections:
            raise TimeoutError(f"{plan.path}: nothing arrived for {plan.timeout} s, {len(running)} clients wait")
        now = time.monotonic() - began
        for key, _ in ready:
            one: Client = key.data
            complete = one.ready(now, gulp)
            if now < plan.seconds:
                if complete:
                    one.ask()
            elif complete or plan.seconds:
                one.transfer.end = time.monotonic() - began
                done.append(one.transfer)
                running.remove(one)
                selector.unregister(one.socket)
                one.socket.close()
    return Report(max(one.end for one in done), sum(one.received for one in done), done)


if __name__ == "__main__":
    print(json.dumps(asdict(drain(Plan(**json.loads(sys.argv[1]))))))
