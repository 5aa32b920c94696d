"""Which repositories a region is granted, or asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from proxy.oci.globs import Glob, first_match
from proxy.oci.names import Repository


@dataclass(frozen=True, slots=True)
class Scope:
    """Repositories that match one of the globs of each of `all_of`: `docker.io/library/*`, or `*` for all."""

    all_of: tuple[tuple[Glob, ...], ...]

    @classmethod
    def of(cls, globs: Sequence[str]) -> Self:
        """Return the scope of the globs. Raises ValueError."""
        return cls((tuple(Glob.parse(glob) for glob in globs),))

    def within(self, other: Scope) -> Scope:
        """Return what is in both."""
        return Scope(tuple(dict.fromkeys((*self.all_of, *other.all_of))))

    @property
    def everything(self) -> bool:
        """No repository is left out."""
        return all(any(glob.text == "*" for glob in globs) for globs in self.all_of)

    def admits(self, repository: Repository) -> bool:
        """Tell whether a repository is in it."""
        name = str(repository)
        return all(first_match(globs, name) is not None for globs in self.all_of)
