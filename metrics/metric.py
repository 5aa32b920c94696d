"""What a declaration of a metric says: plain data, no registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed: a counter's name ends in `_total`, `buckets` are a histogram's upper bounds.

    together: of a gauge, which number is meant where several processes have one.
    """

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Literal["greatest", "least", "sum"] = "greatest"
