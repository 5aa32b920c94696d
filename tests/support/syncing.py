"""A `Syncing` that answers what a test put into it, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sync.reports import ConflictReport, PassReport, PeerReport, PlannedImage, Progress, Told, VerifyReport

PEER = PeerReport(name="us-east", url="https://us.mirror.example", state="current", records=1000, sync_bytes=250)


@dataclass
class FakeSyncing:
    """`fault` is raised by a pass."""

    passed: PassReport = field(default_factory=PassReport)
    planned: list[PlannedImage] = field(default_factory=list)
    verified: list[VerifyReport] = field(default_factory=list)
    conflicting: list[ConflictReport] = field(default_factory=list)
    peers: list[PeerReport] = field(default_factory=lambda: [PEER])
    progress: list[Progress] = field(default_factory=list)
    fault: Exception | None = None
    asked: list[tuple[object, ...]] = field(default_factory=list)

    def reports(self) -> list[PeerReport]:
        return self.peers

    async def once(self, peers: Sequence[str], force: bool, told: Told | None = None) -> PassReport:
        self.asked.append(("once", tuple(peers), force))
        for progress in self.progress:
            if told is not None:
                await told(progress)
        if self.fault is not None:
            raise self.fault
        return self.passed

    async def plan(self) -> list[PlannedImage]:
        return self.planned

    async def verify(self, peers: Sequence[str]) -> list[VerifyReport]:
        self.asked.append(("verify", tuple(peers)))
        return self.verified

    async def conflicts(self) -> list[ConflictReport]:
        return self.conflicting

    async def pause(self, peers: Sequence[str]) -> None:
        self.asked.append(("pause", tuple(peers)))

    async def resume(self, peers: Sequence[str]) -> None:
        self.asked.append(("resume", tuple(peers)))
