"""Carrying out the removals that a peer told of, once they have waited and where they are not too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby

from proxy.oci.names import Repository
from proxy.store import remote
from proxy.store.catalog import Catalog
from proxy.store.errors import Pinned
from proxy.store.remote import Waiting
from proxy.store.writer import Transaction
from sync.passing import Outcome
from sync.plan import reference_of
from sync.removals import refusal_of, ripe
from sync.standing import PeerRules, Standing

_log = logging.getLogger(__name__)

MOST = 100_000
AT_ONCE = 64
LOOK_AGAIN = 3600.0
"""What is refused or pinned is looked at again after so long, and whenever there is news of the peer."""


async def carry_out(
    name: str,
    rules: PeerRules,
    catalog: Catalog,
    standing: Standing,
    done: Outcome,
    now: float,
    *,
    force: bool,
) -> None:
    """Remove what is due, all of it or, where that is too much, nothing. Raises OSError, as the catalog does.

    force: all that waits is meant, however much it is and however short it has waited.
    """
    waiting = await catalog.read(lambda connection: remote.read_removals(connection, name, MOST))
    standing.refused = None
    later = [row for row in waiting if row.since + rules.removal_grace > now and row.next_at <= now]
    if later and not force:
        await catalog.write(lambda transaction: _wait(transaction, later, rules.removal_grace))
    due = waiting if force else ripe(waiting, rules.removal_grace, now)
    if not due:
        return
    reason = (
        None
        if force
        else await catalog.read(lambda connection: refusal_of(connection, name, waiting, rules.removal_share))
    )
    if reason is not None:
        standing.refused = reason
        _log.warning(
            "removals of another region are not carried out: there are too many; see: entrepot sync plan",
            extra={"peer": name, "why": reason},
        )
        done.refused.append(f"{name}: {reason}")
        await catalog.write(lambda transaction: _put_off(transaction, due, reason, now + LOOK_AGAIN))
        return
    for repository, group in groupby(sorted(due, key=_repository), key=_repository):
        rows = list(group)
        for start in range(0, len(rows), AT_ONCE):
            await _remove(catalog, repository, rows[start : start + AT_ONCE], done, now)
    if done.removed:
        _log.info("what was removed in another region is removed here", extra={"peer": name, "removed": done.removed})


async def _remove(catalog: Catalog, repository: Repository, rows: Sequence[Waiting], done: Outcome, now: float) -> None:
    """Remove the rows together; where one of them is pinned, each by itself."""
    try:
        await catalog.apply(
            repository, [row.record for row in rows], lambda transaction: remote.settle(transaction, rows)
        )
    except Pinned:
        if len(rows) == 1:
            await _keep(catalog, rows[0], done, now)
            return
        for row in rows:
            await _remove(catalog, repository, [row], done, now)
        return
    done.removed += len(rows)


async def _keep(catalog: Catalog, row: Waiting, done: Outcome, now: float) -> None:
    reason = "removed there, and pinned here: `entrepot unpin` it, and it is removed here too"
    done.refused.append(f"{reference_of(row)}: {reason}")
    await catalog.write(lambda transaction: _put_off(transaction, [row], reason, now + LOOK_AGAIN))


def _put_off(transaction: Transaction, rows: Sequence[Waiting], reason: str, next_at: float) -> None:
    for row in rows:
        remote.put_off(transaction, row, reason, next_at)


def _wait(transaction: Transaction, rows: Sequence[Waiting], grace: float) -> None:
    for row in rows:
        remote.put_off(transaction, row, None, row.since + grace)


def _repository(row: Waiting) -> Repository:
    return row.repository
