"""What commands ask of the sync with other regions, and the answers: the same at the control socket and without
a mirror.

The work is `entrepot.syncing`'s; here is what it must be able to do, and which question goes where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from entrepot.config import Config
from sync.reports import ConflictReport, PassReport, PeerReport, PlannedImage, Progress, Told, VerifyReport

NO_PEER = (
    "no other region is configured: add a [[peer]] with name, url and token_file to the configuration "
    "(deploy/regions.toml shows one), and a [[grant]] over there"
)
NOT_YET = "the mirror is starting or ending, and does not sync now; ask again in a moment"


class Syncing(Protocol):
    """The sync with all peers of this region. An empty sequence of `peers` means all of them."""

    def reports(self) -> list[PeerReport]:
        """Return how each peer stands, in the order of the configuration."""
        ...

    async def once(self, peers: Sequence[str], force: bool, told: Told | None = None) -> PassReport:
        """Read what peers say now, and do all that it asks for. force: removals too that are more than may be."""
        ...

    async def plan(self) -> list[PlannedImage]:
        """Return what would be done now, as far as is known."""
        ...

    async def verify(self, peers: Sequence[str]) -> list[VerifyReport]:
        """Compare this region with each peer, and see whether all that was chosen is here."""
        ...

    async def conflicts(self) -> list[ConflictReport]:
        """Return the tags that two regions changed without knowing of each other, the newest first."""
        ...

    async def pause(self, peers: Sequence[str]) -> None:
        """Fetch and remove nothing more on their account until they are resumed, restarts included."""
        ...

    async def resume(self, peers: Sequence[str]) -> None:
        """Go on with what was paused."""
        ...


class SyncOnce(msgspec.Struct, frozen=True, tag_field="ask", tag="once", forbid_unknown_fields=True):
    """Do all that there is to do now."""

    peers: tuple[str, ...] = ()
    force: bool = False


class SyncPlan(msgspec.Struct, frozen=True, tag_field="ask", tag="plan", forbid_unknown_fields=True):
    """What would be done?"""

    peers: tuple[str, ...] = ()


class SyncStatus(msgspec.Struct, frozen=True, tag_field="ask", tag="status", forbid_unknown_fields=True):
    """How do the peers stand?"""

    peers: tuple[str, ...] = ()


class SyncVerify(msgspec.Struct, frozen=True, tag_field="ask", tag="verify", forbid_unknown_fields=True):
    """Is this region like its peers?"""

    peers: tuple[str, ...] = ()


class SyncConflicts(msgspec.Struct, frozen=True, tag_field="ask", tag="conflicts", forbid_unknown_fields=True):
    """Which records did not know of each other?"""

    peers: tuple[str, ...] = ()


class SyncPause(msgspec.Struct, frozen=True, tag_field="ask", tag="pause", forbid_unknown_fields=True):
    """Fetch nothing for now."""

    peers: tuple[str, ...] = ()


class SyncResume(msgspec.Struct, frozen=True, tag_field="ask", tag="resume", forbid_unknown_fields=True):
    """Go on."""

    peers: tuple[str, ...] = ()


class Progressed(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """How far a pass is."""

    progress: Progress


class Passed(msgspec.Struct, frozen=True, tag_field="event", tag="passed"):
    """A pass has ended."""

    report: PassReport


class Planned(msgspec.Struct, frozen=True, tag_field="event", tag="planned"):
    """What would be done, in its order."""

    images: tuple[PlannedImage, ...]


class Standing(msgspec.Struct, frozen=True, tag_field="event", tag="standing"):
    """How the peers stand; also after they were paused or resumed."""

    peers: tuple[PeerReport, ...]


class Verified(msgspec.Struct, frozen=True, tag_field="event", tag="verified"):
    """How this region compares with its peers."""

    peers: tuple[VerifyReport, ...]


class Conflicting(msgspec.Struct, frozen=True, tag_field="event", tag="conflicting"):
    """The conflicts that are known."""

    conflicts: tuple[ConflictReport, ...]


class SyncFailed(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """It could not be done. `usage`: as it was asked in a way that cannot be answered."""

    message: str
    usage: bool = False


Question = SyncOnce | SyncPlan | SyncStatus | SyncVerify | SyncConflicts | SyncPause | SyncResume
Answer = Passed | Planned | Standing | Verified | Conflicting
Outcome = Answer | SyncFailed
Line = Progressed | Outcome


def refused(config: Config, peers: Sequence[str]) -> SyncFailed | None:
    """Return why these peers cannot be meant with `config`, None where they can."""
    if not config.peers:
        return SyncFailed(NO_PEER, usage=True)
    known = [peer.name for peer in config.peers]
    unknown = [name for name in peers if name not in known]
    if unknown:
        return SyncFailed(f"no [[peer]] is named {', '.join(unknown)}; there is {', '.join(known)}", usage=True)
    return None


async def outcome(question: Question, syncing: Syncing, tell: Callable[[Progressed], None]) -> Outcome:
    """Do what is asked, and return how it ended; what a pass tells meanwhile is given to `tell`.

    Raises RegistryError, OSError.
    """
    match question:
        case SyncOnce():

            async def told(progress: Progress) -> None:
                tell(Progressed(progress))

            return Passed(await syncing.once(question.peers, question.force, told))
        case SyncPlan():
            images = await syncing.plan()
            return Planned(tuple(one for one in images if not question.peers or one.peer in question.peers))
        case SyncVerify():
            return Verified(tuple(await syncing.verify(question.peers)))
        case SyncConflicts():
            return Conflicting(tuple(await syncing.conflicts()))
        case SyncPause():
            await syncing.pause(question.peers)
        case SyncResume():
            await syncing.resume(question.peers)
        case SyncStatus():
            pass
    return Standing(
        tuple(report for report in syncing.reports() if not question.peers or report.name in question.peers)
    )
