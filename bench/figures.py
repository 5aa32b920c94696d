"""What a measurement is: samples per server and round, columns, floors, and how they are judged. Pure.

Who measures is in `scenarios`, who prints in `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

Sample = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """A median between the least and the greatest of the rounds."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Column:
    """A figure of each sample: its key, its title with the unit, and how many decimals are worth printing."""

    key: str
    title: str
    decimals: int = 0


@dataclass(frozen=True)
class Floor:
    """A promise about `server`: its `key`, divided by that of `against` where one is named.

    A ratio is one of medians; a figure without `against` must hold in every round.
    """

    promise: str
    server: str
    key: str
    limit: float
    at_least: bool = False
    against: str = ""


@dataclass(frozen=True)
class Verdict:
    promise: str
    value: float | None
    met: bool | None


@dataclass
class Table:
    """The samples of one scenario: `samples[server][round]`. `main` is the key that ratios to `baseline` are made of.

    `absent` names the servers that could not be measured, and why.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    main: str
    baseline: str
    floors: tuple[Floor, ...] = ()
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, server: str, sample: Sample) -> None:
        self.samples.setdefault(server, []).append(sample)

    def figures(self, server: str, key: str) -> list[float]:
        return [sample[key] for sample in self.samples.get(server, [])]

    def ratio(self, server: str, key: str, against: str) -> Spread | None:
        """Divide medians; the spread is that of the rounds' own ratios. None where either was not measured."""
        ours, theirs = self.figures(server, key), self.figures(against, key)
        if not ours or not theirs:
            return None
        ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
        return Spread(median(ours) / median(theirs), min(ratios), max(ratios))

    def judge(self, floor: Floor) -> Verdict:
        """Return whether a floor is met, None where it was not measured."""
        if floor.against:
            ratio = self.ratio(floor.server, floor.key, floor.against)
            value = ratio.median if ratio else None
        else:
            figures = self.figures(floor.server, floor.key)
            value = (min if floor.at_least else max)(figures) if figures else None
        if value is None:
            return Verdict(floor.promise, None, None)
        return Verdict(floor.promise, value, value >= floor.limit if floor.at_least else value <= floor.limit)

    def verdicts(self) -> list[Verdict]:
        return [self.judge(floor) for floor in self.floors]


def spread(figures: Sequence[float]) -> Spread:
    return Spread(median(figures), min(figures), max(figures))
