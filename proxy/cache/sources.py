"""Asking the sources of an upstream in order, and what their refusals mean to a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from proxy.oci.errors import Denied, NameUnknown, NotFound, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.source import Source

T = TypeVar("T")


class Upstreams:
    """The sources per upstream name, the main one first. With `offline` none is ever asked.

    `reachable` tells whether an upstream answered when it was last asked.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Source]], *, offline: bool, reachable: Callable[[str], bool]
    ) -> None:
        self._sources = sources
        self._reachable = reachable
        self.offline = offline

    def reachable(self, upstream: str) -> bool:
        """Tell whether asking `upstream` has a chance now."""
        return not self.offline and self._reachable(upstream)

    def of(self, repository: Repository) -> Sequence[Source]:
        """Return whom to ask. Raises NameUnknown for an unknown upstream, Unavailable when offline."""
        sources = self._sources.get(repository.upstream)
        if sources is None:
            raise NameUnknown(f"no upstream {repository.upstream!r} is configured")
        if self.offline:
            raise Unavailable(f"{repository} is not complete in the cache, and the mirror is offline")
        return sources

    async def ask(
        self,
        repository: Repository,
        question: Callable[[Source], Awaitable[T]],
        missing: type[NotFound],
        *,
        elsewhere: tuple[type[RegistryError], ...] = (NotFound, Transient),
    ) -> T:
        """Return the first answer. An error of a kind in `elsewhere` sends the question to the next source.

        Raises what the main source said when nobody could answer; a refusal (401, 403) becomes `missing` (P34).
        """
        first: RegistryError | None = None
        for source in self.of(repository):
            try:
                return await question(source)
            except RegistryError as error:
                first = first or error
                if not isinstance(error, elsewhere):
                    break
        if isinstance(first, Denied):
            raise missing(f"{repository.upstream} refuses access to {repository.path}, or it does not exist") from first
        raise first or Unavailable(f"upstream {repository.upstream} has no source")
