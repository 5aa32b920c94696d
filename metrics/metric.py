"""What a declaration of a metric says: plain data, no registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]
Part = Literal["mirror", "fleet", "bucket", "regions"]
MOST = 64


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed: a counter's name ends in `_total`, `buckets` are a histogram's upper bounds.

    together: of a gauge, which number is meant where several processes have one.
    part: what it tells of. What a mirror has no part in has no series, neither has a gauge that nobody has told.
    bound: how many sets of labels it can have, so that nothing that clients or upstreams send makes it grow; what comes
    after is counted under one more, `other` for each label.
    """

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Literal["greatest", "least", "sum"] = "greatest"
    part: Part = "mirror"
    bound: int = MOST

    @property
    def most(self) -> int:
        """How many sets of labels it has at most, `other` among them."""
        return self.bound + 1 if self.labels else 1

    @property
    def most_series(self) -> int:
        """How many series it has at most: of a histogram each bucket, its sum and its count are one."""
        return self.most * (len(self.buckets) + 3 if self.type == "histogram" else 1)

    @property
    def from_start(self) -> bool:
        """It is shown before anything was told: what has been counted so far is nothing."""
        return not self.labels and self.type != "gauge" and self.part == "mirror"
