"""Showing what was taken in: memberships are proven, then all tags change in one transaction.

Before the first of it every image's closure is walked in the catalog, so that what is shown can be served. Whatever is
cut short is done again by the next import, and finds what was done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence, Set
from functools import partial
from itertools import islice

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store import changes, holding, uploading
from proxy.store.catalog import Catalog
from proxy.store.closure import is_present
from proxy.store.errors import Pinned
from proxy.store.exchanged import TagChange
from proxy.store.records import Proof
from proxy.store.writer import Transaction
from sync.bundle.errors import Refused
from sync.bundle.gathering import read_contents, read_here, read_members
from sync.bundle.plan import Plan, Sealed, reference_of
from sync.bundle.preflight import Standing, closure, digests_of, unproven_words, why_not_whole

AT_ONCE = 500
HELD_AT_ONCE = 2000
HELD_SECONDS = 30 * 86400.0

_NEWER = "SELECT 1 FROM imported WHERE series = ? AND plan != ? AND created > ? LIMIT 1"
_IMPORTED = (
    "INSERT INTO imported (plan, series, created, at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at"
)


async def hold(catalog: Catalog, sealed: Sealed, now: float) -> None:
    """Keep all that the plan is about, stored or not yet, from eviction while it is imported."""
    rest = iter(digests_of(sealed.plan))
    while batch := list(islice(rest, HELD_AT_ONCE)):
        await catalog.write(partial(holding.hold, holder=holder_of(sealed), digests=batch, until=now + HELD_SECONDS))


async def release(catalog: Catalog, plan_hex: str) -> int:
    """Let go of what an import held that was given up; return how many digests that was."""
    return await catalog.write(lambda transaction: holding.release(transaction, f"import:{plan_hex}"))


def holder_of(sealed: Sealed) -> str:
    """Return in whose name an import of the plan holds blobs."""
    return f"import:{sealed.name.hex}"


async def publish(catalog: Catalog, sealed: Sealed, tags: Sequence[Standing], now: float, *, vouched: bool) -> None:
    """Show all images of the plan. vouched: a trusted key has signed it.

    Raises Refused, and nothing is shown, where one is not whole, or stands on what it may not; CatalogError.
    """
    plan = sealed.plan
    members = await catalog.read(lambda connection: _members(connection, plan, vouched=vouched))
    rest = iter(members)
    while batch := list(islice(rest, AT_ONCE)):
        await catalog.write(partial(_prove, catalog=catalog, members=batch, now=now))
    told: dict[Repository, list[TagChange]] = {}
    seen = []
    for one in tags:
        repository = plan.names[one.image.repository]
        if one.told is not None:
            told.setdefault(repository, []).append(one.told)
        if one.seen and one.image.tag is not None:
            image = one.image
            descriptor = Descriptor(image.media_type, Digest(image.digest), image.size)
            seen.append((repository, Tag(one.image.tag.name), descriptor))
    try:
        await catalog.apply_all(list(told.items()), seen, partial(_conclude, sealed=sealed, now=now))
    except Pinned as error:
        raise Refused(str(error)) from None


def _conclude(transaction: Transaction, sealed: Sealed, now: float) -> None:
    """Note that it was imported; what it brought is the base of its series, unless a newer one is."""
    plan, connection = sealed.plan, transaction.connection
    connection.execute(_IMPORTED, (sealed.name, plan.series, plan.created, now))
    holder = holder_of(sealed)
    if connection.execute(_NEWER, (plan.series, sealed.name, plan.created)).fetchone() is None:
        holding.turn(transaction, holder, f"base:{plan.series}")
    else:
        holding.release(transaction, holder)


def _members(connection: sqlite3.Connection, plan: Plan, *, vouched: bool) -> list[tuple[Repository, str]]:
    """Return what every repository is to be proven to contain besides what is proven. Raises Refused."""
    here, public = read_here(connection, digests_of(plan))
    contents = read_contents(connection, here)
    brought = {blob.digest for blob in plan.blobs}
    wanted: dict[int, set[str]] = {}
    for image in plan.images:
        found = closure(image.digest, contents, here)
        if not found.whole:
            raise Refused(why_not_whole(reference_of(plan, image), found))
        wanted.setdefault(image.repository, set()).update(found.digests)
    unproven: list[str] = []
    members: list[tuple[Repository, str]] = []
    for at, digests in sorted(wanted.items()):
        repository = plan.names[at]
        fresh = sorted(digests - read_members(connection, repository, digests))
        unproven += [f"{digest} of {repository}" for digest in _unproven(fresh, brought, public, vouched=vouched)]
        members += [(repository, digest) for digest in fresh]
    if unproven:
        raise Refused(unproven_words(unproven, plan))
    return members


def _unproven(digests: Sequence[str], brought: Set[str], public: Set[str], *, vouched: bool) -> list[str]:
    return [] if vouched else [one for one in digests if one not in brought and one not in public]


def _prove(transaction: Transaction, catalog: Catalog, members: Sequence[tuple[Repository, str]], now: float) -> None:
    for repository, digest in ((repository, Digest(digest)) for repository, digest in members):
        # As Catalog.prove: what was removed is wanted again, and a collector may not have heard of it.
        renew = uploading.is_buried(transaction, digest) and is_present(transaction, digest)
        changes.prove(transaction, repository, digest, Proof.IMPORTED, now)
        if renew and uploading.recorded(transaction, digest, now, wanted=True, held=False):
            transaction.on_commit(catalog.queued.set)
