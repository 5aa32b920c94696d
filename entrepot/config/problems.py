"""What can be wrong with a configuration: one `Problem` each, all of them in one `ConfigError`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend.

    `where` is a file with its line, an environment variable or a flag; `key` the key as the file spells it;
    `accepted` the form that would have been right.
    """

    where: str
    key: str
    message: str
    accepted: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}; accepted: {self.accepted}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds every fault that was found, never only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
