"""Parts of what a mirror says of itself, as plain values that a worker can tell its supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from entrepot.config.model import Config, GrantConfig
from metrics.prometheus import Quota
from sync.reports import PeerReport


class HostView(msgspec.Struct, frozen=True):
    """A host of an upstream: whether it ever answered and does now, its last error, what it said of its quota (P35).

    `breaker`: closed, open or half-open. `credential_refused`: it does not take what is configured; `credential_error`
    why that cannot be read again. `held`: seconds for which it asked (Retry-After) not to be asked, by kind.
    """

    host: str
    answered: bool
    reachable: bool
    error: str | None
    quota: Quota | None
    breaker: str
    credential_refused: bool
    credential_error: str | None
    held: dict[str, float]


def refusals(host: HostView) -> list[str]:
    """Return in words what a host that answers keeps from us: our credential is no good, or it asks us to wait."""
    words = []
    if host.credential_refused:
        why = f" ({host.credential_error})" if host.credential_error else ""
        words.append(f"{host.host} refuses our credential{why}: renew it")
    elif host.credential_error:
        words.append(f"the credential for {host.host} cannot be read: {host.credential_error}")
    words += [f"{host.host} asks us to wait {left:.0f} s with {kind} requests" for kind, left in host.held.items()]
    return words


class UpstreamView(msgspec.Struct, frozen=True):
    """An upstream is reachable as long as one of its hosts is."""

    name: str
    reachable: bool
    hosts: tuple[HostView, ...]


class BaseView(msgspec.Struct, frozen=True):
    """How much of the last bundle of a series is kept for the next one to stand on."""

    series: str
    digests: int


class FillView(msgspec.Struct, frozen=True):
    """A download that runs: `received` of `size` bytes (None while unknown), and how many read along."""

    digest: str
    repository: str
    size: int | None
    received: int
    readers: int
    source: str


class WorkerView(msgspec.Struct, frozen=True):
    """A worker, numbered from 1: whether it answers its supervisor, and how often it was started again."""

    number: int
    pid: int
    answers: bool
    restarts: int


def merged(ours: Sequence[UpstreamView], theirs: Iterable[Sequence[UpstreamView]]) -> tuple[UpstreamView, ...]:
    """Return what several processes know of the same upstreams: of each host what is worst, then what is known best."""
    known: dict[tuple[str, str], list[HostView]] = {}
    for views in (ours, *theirs):
        for upstream in views:
            for host in upstream.hosts:
                known.setdefault((upstream.name, host.host), []).append(host)

    def worst(upstream: str, host: HostView) -> HostView:
        told = known[upstream, host.host]
        chosen = min(told, key=lambda one: (one.reachable, not one.answered))
        quotas = [one.quota for one in told if one.quota is not None]
        least = min(quotas, key=lambda quota: quota.remaining) if quotas else None
        held: dict[str, float] = {}
        for one in told:
            held |= {kind: max(seconds, held.get(kind, 0.0)) for kind, seconds in one.held.items()}
        refused = max(told, key=lambda one: (one.credential_refused, one.credential_error is not None))
        return msgspec.structs.replace(
            chosen,
            quota=least,
            answered=any(one.answered for one in told),
            held=held,
            credential_refused=refused.credential_refused,
            credential_error=refused.credential_error,
        )

    result = []
    for upstream in ours:
        hosts = tuple(worst(upstream.name, host) for host in upstream.hosts)
        result.append(UpstreamView(upstream.name, any(host.reachable for host in hosts), hosts))
    return tuple(result)


class NodeView(msgspec.Struct, frozen=True):
    """Another node of the fleet. behind: seconds for which not all its records have been here; None: not known yet."""

    url: str
    version: str
    state: str
    behind: float | None


class FleetView(msgspec.Struct, frozen=True):
    """This node's fleet. problem: why Redis is not used now, None while it is. incompatible: nodes by URL."""

    url: str
    problem: str | None
    nodes: tuple[NodeView, ...]
    incompatible: tuple[str, ...]


class BucketView(msgspec.Struct, frozen=True):
    """The bucket. problem: why it is not asked now. waiting: blobs to be uploaded, the oldest for `age` seconds."""

    url: str
    problem: str | None
    waiting: int
    age: float


class GrantView(msgspec.Struct, frozen=True):
    """A region that may read `repositories` (globs) from this one. proof: token | certificate | either."""

    name: str
    repositories: tuple[str, ...]
    proof: str


class RegionsView(msgspec.Struct, frozen=True):
    """The regions that this one reads from, and those that may read from it."""

    peers: tuple[PeerReport, ...] = ()
    grants: tuple[GrantView, ...] = ()


def regions_of(config: Config, reports: Sequence[PeerReport]) -> RegionsView | None:
    """Return what is shown of other regions, None where none is configured."""
    if not config.peers and not config.grants:
        return None
    return RegionsView(tuple(reports), tuple(map(_grant, config.grants)))


def _grant(grant: GrantConfig) -> GrantView:
    proof = "certificate" if grant.token_file is None else "token" if grant.certificate is None else "either"
    return GrantView(grant.name, grant.repositories, proof)
