"""Why a reference is, or is not, here and served: what is known of it is gathered here; `reasons` has the words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from entrepot.config import Config
from entrepot.images import is_pinned
from entrepot.reasons import Known, RunningFill, Why, explain
from entrepot.regional_reasons import Regional
from proxy.oci.digest import Digest
from proxy.oci.errors import NameUnknown
from proxy.oci.names import Reference, Repository
from proxy.oci.references import format_full
from proxy.regions.scope import Scope
from proxy.store.inventory import DigestFacts, Inventory, TagState
from proxy.store.layout import Layout

if TYPE_CHECKING:
    from entrepot.views import UpstreamView


class Running(Protocol):
    """What a running mirror knows beside its store."""

    @property
    def fills(self) -> Sequence[RunningFill]: ...

    @property
    def upstreams(self) -> Sequence[UpstreamView]: ...


async def why(
    inventory: Inventory,
    config: Config,
    repository: Repository | None,
    reference: Reference,
    named_in: Callable[[Repository, Digest], Awaitable[bool]],
    running: Running | None,
    said: str | None,
    regions: Regional | None = None,
) -> Why:
    """Gather what is known of `reference` and explain it. `repository` None: of a digest, wherever it is."""
    tag: TagState | None = None
    digest: Digest | None = None
    if isinstance(reference, Digest):
        digest = reference
    elif repository is not None:
        tag = await inventory.tag(repository, reference)
        digest = Digest(tag.digest) if tag is not None and tag.digest is not None else None
    facts = await inventory.facts(digest) if digest is not None else DigestFacts()
    asked = {repository.upstream} if repository else {proof[0].partition("/")[0] for proof in facts.proofs}
    near = _near(config, repository)
    known = Known(
        reference=format_full(repository, reference) if repository else str(reference),
        repository=repository,
        digest=digest,
        tag=tag,
        facts=facts,
        pinned=repository is not None and await is_pinned(inventory, repository, reference, digest),
        named=repository is not None and digest is not None and await named_in(repository, digest),
        quarantined=await asyncio.to_thread(_quarantined, config.data, digest) if digest else (),
        filling=next((fill for fill in running.fills if fill.digest == digest), None) if running else None,
        sources=(*near, *_sources(config, asked)),
        errors=_errors(running.upstreams, asked) if running else (),
        offline=config.offline,
        barred=_barred(config, repository) if repository else None,
        said=said,
        failing=_failing(running.upstreams, asked) if running else False,
        near=near,
        regions=regions,
    )
    return explain(known)


def _quarantined(data: Path, digest: Digest) -> tuple[str, ...]:
    try:
        names = os.listdir(Layout(data).quarantine)
    except FileNotFoundError:
        return ()
    return tuple(sorted(name for name in names if name.startswith(digest.hex)))


def _near(config: Config, repository: Repository | None) -> tuple[str, ...]:
    nodes = () if config.redis is None else ("the other nodes of the fleet",)
    bucket = () if config.store is None else (config.store,)
    regions = tuple(
        f"region {peer.name}"
        for peer in config.peers
        if repository is None or Scope.of(peer.repositories).admits(repository)
    )
    return (*nodes, *bucket, *regions)


def _sources(config: Config, names: set[str]) -> tuple[str, ...]:
    chosen = [upstream for upstream in config.upstreams if upstream.name in names]
    return () if config.offline else tuple(url for one in chosen for url in (one.url, *one.alternates))


def _errors(upstreams: Sequence[UpstreamView], names: set[str]) -> tuple[str, ...]:
    from entrepot.views import refusals

    chosen = [host for upstream in upstreams if upstream.name in names for host in upstream.hosts]
    failures = [f"the last error of {host.host}: {host.error}" for host in chosen if host.error]
    return (*failures, *(words for host in chosen for words in refusals(host)))


def _failing(upstreams: Sequence[UpstreamView], names: set[str]) -> bool:
    chosen = [upstream for upstream in upstreams if upstream.name in names]
    return bool(chosen) and not any(upstream.reachable for upstream in chosen)


def _barred(config: Config, repository: Repository) -> str | None:
    from entrepot.access import rules_of

    try:
        rules_of(config).check(repository)
    except NameUnknown as error:
        return error.message
    return None
