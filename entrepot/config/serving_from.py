"""What cannot stand beside `from`: a mirror of bundles has no store, no fleet, no other regions and no upstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entrepot.config.keys import TOP, Section
from entrepot.config.layers import ItemLayer
from entrepot.config.problems import Problem

_NOT_BESIDE = {
    "redis": "bundles are served by each machine alone",
    "store": "what is served stays where it lies",
    "workers": "bundles are served by one process",
}
_LISTS = {
    "peer": "nothing is taken over from other regions: import the bundle to give and take",
    "grant": "nothing is given to other regions: import the bundle to give and take",
    "warm": "no upstream is asked, so that nothing can be pulled ahead",
}
_REMEDY = "leave it out, or leave out `from`"


def check_there(place: Path | None) -> list[Problem]:
    """Return a problem where there is nothing at the place to serve from."""
    if place is None or place.exists():
        return []
    return [Problem(str(place), "from", "there is no such file or folder", TOP["from"].accepted)]


def check_from(
    top: Mapping[str, Any],
    settings: Section,
    lists: Mapping[str, Sequence[ItemLayer]],
    access: Mapping[str, Any],
    access_settings: Section,
    problems: list[Problem],
) -> None:
    """Add a problem for each key that would have nothing to do beside `from`."""
    if "from" not in top:
        return
    for key, why in _NOT_BESIDE.items():
        if key in top and (key != "workers" or top[key] > 1):
            accepted = 'workers = 1, or leave out "from"' if key == "workers" else _REMEDY
            problems.append(Problem(settings[key].where, key, f"with `from`, {why}", accepted))
    for name, why in _LISTS.items():
        problems.extend(Problem(item.where, name, f"with `from`, {why}", _REMEDY) for item in lists.get(name, ()))
    if access.get("mode") == "upstream":
        message = "with `from`, no upstream is asked who may pull"
        accepted = 'mode = "open", "htpasswd" or "token"'
        problems.append(Problem(access_settings["mode"].where, "access.mode", message, accepted))
