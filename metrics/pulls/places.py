"""The pulls that run, by whose they are and of what: what `tracking` looks for them by."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from metrics.pulls.model import Step
from metrics.pulls.pull import Pull

Place = tuple[str, str, str, str]
"""Whose pulls, and of which repository: address, User-Agent, upstream, repository."""


def place_of(step: Step) -> Place:
    """Return the place of a step's pull."""
    return step.client, step.agent, step.upstream, step.repository


@dataclass(slots=True)
class _Here:
    """State: the pulls of a place by their ids, all of them and those of each reference, oldest first."""

    pulls: dict[str, Pull] = field(default_factory=dict)
    tags: dict[str, dict[str, Pull]] = field(default_factory=dict)
    by_digest: dict[str, Pull] = field(default_factory=dict)


class Places:
    """State: the pulls of each place that has any, and the place of each pull."""

    def __init__(self) -> None:
        self._places: dict[Place, _Here] = {}
        self._place_of: dict[str, Place] = {}

    def of(self, pull: Pull) -> Place:
        """Return where a pull is."""
        return self._place_of[pull.id]

    def at(self, place: Place) -> Collection[Pull]:
        """Return the pulls of a place, oldest first."""
        here = self._places.get(place)
        return () if here is None else here.pulls.values()

    def of_tag(self, place: Place, tag: str) -> Iterator[Pull]:
        """Give the pulls of a place that may be of a tag: those of it, then those that were begun by a digest."""
        here = self._places.get(place)
        if here is not None:
            yield from here.tags.get(tag, {}).values()
            yield from here.by_digest.values()

    def add(self, place: Place, pull: Pull) -> None:
        """A pull began."""
        here = self._places.setdefault(place, _Here())
        self._place_of[pull.id] = place
        here.pulls[pull.id] = pull
        self._index(here, pull)

    def rename(self, pull: Pull, tag: str) -> None:
        """A pull is of this tag."""
        here = self._places[self._place_of[pull.id]]
        self._drop(here, pull)
        pull.reference = tag
        self._index(here, pull)

    def remove(self, pull: Pull) -> None:
        """A pull is over."""
        place = self._place_of.pop(pull.id)
        here = self._places[place]
        del here.pulls[pull.id]
        self._drop(here, pull)
        if not here.pulls:
            del self._places[place]

    def _index(self, here: _Here, pull: Pull) -> None:
        if pull.by_digest:
            here.by_digest[pull.id] = pull
        else:
            here.tags.setdefault(pull.reference, {})[pull.id] = pull

    def _drop(self, here: _Here, pull: Pull) -> None:
        if pull.by_digest:
            del here.by_digest[pull.id]
            return
        del here.tags[pull.reference][pull.id]
        if not here.tags[pull.reference]:
            del here.tags[pull.reference]
