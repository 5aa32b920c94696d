"""Imports that wait for volumes: a line about each lies in its state's folder, so that whoever asks reads no plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sync.bundle.opened import Bundle

_WAITING = "waiting.json"


class Waiting(msgspec.Struct, frozen=True):
    """An import that was begun and is not at its end. since: when it was begun, in seconds since the epoch.

    missing: the numbers of the volumes that are still to be given, as far as its last run has come.
    """

    plan: str
    series: str
    region: str
    volumes: int
    missing: tuple[int, ...]
    since: float


def note_waiting(folder: Path, bundle: Bundle, missing: Sequence[int] | None, now: float) -> None:
    """Note in the state's `folder` which volumes an import waits for; None: it has only begun. Blocking."""
    before = _read(folder / _WAITING)
    if before is not None and missing is None:
        return
    plan = bundle.plan
    numbers = tuple(range(1, len(plan.volumes) + 1)) if missing is None else tuple(missing)
    since = before.since if before is not None else now
    line = Waiting(str(bundle.name), plan.series, plan.region, len(plan.volumes), numbers, since)
    new = folder / f"{_WAITING}.new"
    new.write_bytes(msgspec.json.encode(line))
    new.replace(folder / _WAITING)


def waiting_imports(imports: Path) -> tuple[Waiting, ...]:
    """Return the imports that have begun and not ended, the oldest first. Blocking."""
    found = [_read(path) for path in imports.glob(f"*/{_WAITING}")]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: (one.since, one.plan)))


def _read(path: Path) -> Waiting | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Waiting)
    except (OSError, msgspec.MsgspecError):
        return None  # it was ended this moment, or never came to be after a power loss
