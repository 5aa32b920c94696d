"""What goes on in the demo: versions are rolled out to many machines at once, each pulls by itself, some go away.

The same course every time, as far as it does not hang on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from entrepot.demo.clients import CONTAINERD, DOCKER, PODMAN, Node, Pulled, addresses

MACHINES = (DOCKER, CONTAINERD, CONTAINERD, PODMAN, DOCKER, CONTAINERD, CONTAINERD, DOCKER) * 3
_ROLLED_OUT_TO = 8
_ROLLOUT_SECONDS = 9.0
_SPREAD = 0.6
"""Seconds in which machines hear of a rollout: the first pays for it, who comes while it downloads joins."""
_FIRST = "demo/web:1.0"
_ROLLOUTS = ("demo/web:1.1", "demo/worker:7", "demo/web:2.0", "demo/api:4.3", _FIRST)
_AT_HAND = ("demo/base:13", "demo/python:3.13", "demo/api:4.2", _FIRST)
_LEFT = "demo/model:2026.1"
_PAUSE = (3.0, 18.0)
_RENEWED = 0.3
"""How likely it is, each time, that a machine is a new one."""
_PATIENCE = (0.1, 0.3)
_LEAVING_SECONDS = (6.0, 14.0)
_RECENT = 6


@dataclass
class PerImage:
    """Pulls of one image that brought something: how many, and the seconds of the first and of the latest."""

    pulls: int = 0
    first: float = 0.0
    latest: float = 0.0


@dataclass
class Tally:
    """What the clients saw: how many pulls ended how, bytes, the pulls of each image, and the latest failures."""

    endings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("done", "unchanged", "left", "failed"), 0))
    sent: int = 0
    images: dict[str, PerImage] = field(default_factory=dict)
    problems: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def pulls(self) -> int:
        return sum(self.endings.values())

    def count(self, size: int) -> None:
        """So many bytes came to a client."""
        self.sent += size

    def add(self, pulled: Pulled) -> None:
        """A pull has ended."""
        self.endings[pulled.ending] += 1
        if pulled.ending == "failed":
            self.problems.append(f"{pulled.program} {pulled.image}: {pulled.problem}")
        elif pulled.ending == "done":
            image = self.images.setdefault(pulled.image, PerImage(first=pulled.seconds))
            image.pulls += 1
            image.latest = pulled.seconds


def machines(mirror: str, tally: Tally) -> list[Node]:
    """Return the machines that pull from the mirror at a URL."""
    places = addresses()
    return [
        Node(program, "arm64" if number % 5 == 4 else "amd64", places, mirror, tally.count)
        for number, program in enumerate(MACHINES)
    ]


async def play(nodes: Sequence[Node], tally: Tally) -> None:
    """Let the machines pull until cancelled."""
    chosen = random.Random(1)
    at_hand = list(_AT_HAND)
    await _roll_out(nodes[:_ROLLED_OUT_TO], tally, _FIRST)
    async with asyncio.TaskGroup() as group:
        for number, node in enumerate(nodes):
            group.create_task(_work(node, tally, at_hand, random.Random(100 + number)))
        group.create_task(_leave(nodes[-1], tally, random.Random(2)))
        while True:
            for image in _ROLLOUTS:
                await asyncio.sleep(_ROLLOUT_SECONDS)
                await _roll_out(chosen.sample(nodes, _ROLLED_OUT_TO), tally, image)
                if image not in at_hand:
                    at_hand.append(image)


async def _roll_out(nodes: Sequence[Node], tally: Tally, image: str) -> None:
    async with asyncio.TaskGroup() as group:
        for number, node in enumerate(nodes):
            group.create_task(_hear(node, tally, image, _SPREAD * number / len(nodes)))


async def _hear(node: Node, tally: Tally, image: str, after: float) -> None:
    await asyncio.sleep(after)
    await _pull(node, tally, image)


async def _work(node: Node, tally: Tally, at_hand: Sequence[str], chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0, _PAUSE[1]))
    while True:
        if chance.random() < _RENEWED:
            node.renew()
        await _pull(node, tally, chance.choice(at_hand))
        await asyncio.sleep(chance.uniform(*_PAUSE))


async def _leave(node: Node, tally: Tally, chance: random.Random) -> None:
    """Begin to pull something large now and then, and mostly go away before it has come."""
    while True:
        await asyncio.sleep(chance.uniform(*_LEAVING_SECONDS))
        await _pull(node, tally, _LEFT, chance.uniform(*_PATIENCE))


async def _pull(node: Node, tally: Tally, image: str, patience: float | None = None) -> None:
    tally.add(await node.pull(image, patience=patience))
