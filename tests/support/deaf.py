"""Who listens to workers in tests that are not about what clients ask of them."""

from __future__ import annotations

from collections.abc import Sequence

from metrics.pulls.model import Step


class Deaf:
    """Takes steps and does nothing with them."""

    def hear(self, pid: int, steps: Sequence[Step]) -> None:
        pass

    def lose(self, pid: int) -> None:
        pass
