"""What the sync says, for people, and the exit code that it comes to. Pure, but for the printing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from entrepot.cli.exits import DONE, IN_PART
from entrepot.cli.output import Output, counted, format_size
from entrepot.config.values import format_duration
from entrepot.syncasking import Answer, Conflicting, Passed, Planned, Standing, Verified
from sync.reports import ConflictReport, PassReport, PeerReport, PlannedImage, VerifyReport

SHOWN = 20
_ACTIONS = {"fetch": "fetch", "tag": "tag", "remove": "remove", "refuse": "refused", "wait": "wait for"}

_STATES = {"stopped": "not synced with now, as no mirror runs here"}


def tell(output: Output, answer: Answer) -> int:
    """Print an answer, and return how the command ends."""
    match answer:
        case Passed():
            output.result(answer.report, "\n".join(of_pass(answer.report)))
            return IN_PART if answer.report.failed or answer.report.refused or answer.report.unreachable else DONE
        case Planned():
            output.result({"images": answer.images}, "\n".join(of_plan(answer.images)))
        case Standing():
            output.result({"peers": answer.peers}, "\n".join(line for peer in answer.peers for line in of_peer(peer)))
        case Conflicting():
            output.result({"conflicts": answer.conflicts}, "\n".join(of_conflicts(answer.conflicts)))
        case Verified():
            output.result({"peers": answer.peers}, "\n".join(line for peer in answer.peers for line in of_verify(peer)))
            return IN_PART if any(peer.error or peer.differing or peer.missing for peer in answer.peers) else DONE
    return DONE


def of_pass(report: PassReport) -> list[str]:
    """Return what a pass did."""
    done = [
        f"{counted(report.images, 'image')}, {format_size(report.bytes)} fetched, {counted(report.tags, 'tag')} set"
    ]
    if report.removed:
        done.append(f"{report.removed} removed")
    lines = ["; ".join(done)]
    lines += [f"failed, and tried again later: {reference}: {reason}" for reference, reason in report.failed]
    lines += [f"refused: {words}" for words in report.refused]
    lines += [f"not asked: {peer}: {reason}" for peer, reason in report.unreachable]
    return lines + [f"held: {peer}: {reason}" for peer, reason in report.held]


def of_plan(images: Sequence[PlannedImage]) -> list[str]:
    """Return what a pass would do."""
    lines = [_planned(image) for image in images]
    fetched = [image for image in images if image.action == "fetch"]
    size = sum(image.size or 0 for image in fetched)
    unknown = sum(image.size is None for image in fetched)
    more = f", and {unknown} of a size not known yet" if unknown else ""
    return [
        *lines,
        f"{counted(len(fetched), 'image')} to fetch, {format_size(size)}{more}; {counted(len(images), 'step')} in all",
    ]


def _planned(image: PlannedImage) -> str:
    size = "" if image.size is None else f", {format_size(image.size)}"
    digest = f" {image.digest}" if image.digest and image.digest not in image.reference else ""
    reason = f": {image.reason}" if image.reason else ""
    return f"{_ACTIONS[image.action]} {image.reference}{digest} ({image.peer}){size}{reason}"


def of_peer(peer: PeerReport) -> list[str]:
    """Return how a peer stands."""
    words = [_STATES.get(peer.state, peer.state) if peer.held is None else f"held, {peer.held}"]
    if peer.images_behind or peer.bytes_behind:
        number = counted(peer.images_behind, "image or tag", "images and tags")
        words.append(f"{number}, {format_size(peer.bytes_behind)} behind")
    if peer.seconds_behind:
        words.append(f"not all has been here for {format_duration(round(peer.seconds_behind))}")
    if peer.rate:
        words.append(f"{format_size(round(peer.rate))}/s")
    lines = [f"peer {peer.name} at {peer.url}: {', '.join(words)}"]
    if peer.error is not None:
        lines.append(f"  {peer.error}")
    if peer.failures:
        again = "; what is missing is tried again, see: entrepot sync plan" if peer.images_behind else ""
        lines.append(f"  {counted(peer.failures, 'failure')} of images since the start{again}")
    if peer.removals_refused is not None:
        lines.append(f"  removals are refused: {peer.removals_refused}")
    elif peer.removals:
        lines.append(
            f"  {counted(peer.removals, 'removal')} to come, for what it waits see: entrepot sync plan {peer.name}"
        )
    if peer.refused_clock:
        records = counted(peer.refused_clock, "record")
        lines.append(f"  {records} from a clock ahead of ours: to be taken over when its time has come")
    if peer.records or peer.fetched_bytes:
        lines.append(
            f"  {counted(peer.records, 'record')}, {format_size(peer.sync_bytes)} for them since the start, "
            f"{format_size(peer.fetched_bytes)} of content"
        )
    return lines


def of_conflicts(conflicts: Sequence[ConflictReport]) -> list[str]:
    """Return the conflicts, and what became of both sides."""
    lines = [
        f"{one.reference}: {one.winner} of {one.winner_region} counts; {one.loser} of {one.loser_region} is kept "
        f"under its digest (found {datetime.fromtimestamp(one.found_at, UTC):%Y-%m-%d %H:%M:%SZ})"
        for one in conflicts
    ]
    return lines or ["no conflict is known"]


def of_verify(peer: VerifyReport) -> list[str]:
    """Return how this region compares with a peer."""
    if peer.error is not None:
        return [f"peer {peer.peer} could not be asked: {peer.error}"]
    alike = "all alike here" if not peer.differing else f"{peer.differing} of them differ here"
    whole = "all that was chosen is here" if not peer.missing else f"{counted(len(peer.missing), 'image')} not here:"
    lines = [f"peer {peer.peer}: {counted(peer.records, 'record')}, {alike}; {whole}"]
    lines += [f"  {reference}" for reference in peer.missing[:SHOWN]]
    return [*lines, f"  and {len(peer.missing) - SHOWN} more"] if len(peer.missing) > SHOWN else lines
