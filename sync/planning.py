"""What would be done now for one peer, told without doing it: nothing is fetched, nothing is written."""

from __future__ import annotations

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store import remote
from proxy.store.catalog import Catalog
from proxy.store.remote import Waiting
from proxy.store.store import Store
from sync.facts import Judge
from sync.plan import Decision, Image, Step, make_plan, reference_of
from sync.removals import refusal_of
from sync.removing import MOST
from sync.reports import Action, PlannedImage
from sync.standing import PeerRules
from sync.walking import Body, stored_manifest, walk

MOST_PLANNED = 10_000

_ACTIONS: dict[Step, Action] = {Step.APPLY: "tag", Step.HOLD: "wait", Step.REMOVE: "remove"}


async def plan_of(catalog: Catalog, store: Store, name: str, rules: PeerRules, now: float) -> list[PlannedImage]:
    """Return what is to be done about the first MOST_PLANNED rows of `name`. Raises OSError, as the catalog does."""
    judge = Judge(name, rules.rules)
    rows = await catalog.read(lambda connection: remote.read_waiting(connection, name, MOST_PLANNED))
    decided = await catalog.read(lambda connection: judge.decide(connection, rows, now))
    removals = await catalog.read(lambda connection: remote.read_removals(connection, name, MOST))
    refused = await catalog.read(lambda connection: refusal_of(connection, name, removals, rules.removal_share))
    images = make_plan([one for one in decided if one[1].step is Step.FETCH]).images
    fetched = [await _fetched(catalog, store, name, rules, image) for image in images]
    return fetched + [
        _other(name, row, decision, refused, waits=row.since + rules.removal_grace > now)
        for row, decision in decided
        if decision.step is not Step.FETCH
    ]


async def _fetched(catalog: Catalog, store: Store, name: str, rules: PeerRules, image: Image) -> PlannedImage:
    async def fetch(repository: Repository, digest: Digest) -> Body | None:
        return await stored_manifest(catalog, store, repository, digest)

    parts = await walk(catalog, image.repository, image.digest, rules.rules.platforms, fetch)
    return PlannedImage(
        peer=name,
        action="fetch",
        reference=str(image),
        digest=str(image.digest),
        size=None if parts.unknown else parts.size,
        reason=next((row.error for row in image.rows if row.error), ""),
    )


def _other(name: str, row: Waiting, decision: Decision, refused: str | None, *, waits: bool) -> PlannedImage:
    reason, action = decision.reason, _ACTIONS[decision.step]
    if decision.step is Step.REMOVE:
        kept = refused or (None if waits else row.error)
        reason = kept or ("waits until its grace is over" if waits else "")
        action = "refuse" if kept else action
    digest = row.record.digest if decision.step is Step.HOLD else decision.digest
    text = None if digest is None else str(digest)
    return PlannedImage(peer=name, action=action, reference=reference_of(row), digest=text, reason=reason)
