"""One pass over what waits of one peer: images are fetched and published, all else applied, what failed put off.

Rows are worked off in windows, so that memory does not grow with their number. An image is published in one
transaction: its tags are applied and its rows settled when all that is wanted of it is stored, and not otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from metrics.events import Emit, ImageFailed, ImageSynced
from proxy.oci.digest import Digest
from proxy.oci.errors import ManifestUnknown, RegistryError
from proxy.oci.names import Repository
from proxy.store import closure, remote
from proxy.store.catalog import Catalog
from proxy.store.exchanged import AHEAD_SECONDS
from proxy.store.merging import newest_version
from proxy.store.remote import Kind, Waiting
from proxy.store.writer import Transaction
from sync.facts import Judge
from sync.fetching import Fetcher, reason_of, words_of
from sync.plan import Image, Plan, in_order, levels, make_plan, retry_after, subject_of
from sync.standing import PeerRules, Standing, Tally, Times
from sync.walking import Body, Parts, together, walk

WINDOW = 256
APPLIED_AT_ONCE = 64
"""So many rows are applied in one transaction, a few milliseconds: others have their turn between them."""
LINK_FAILURES = 4
"""So many images that fail in a row, while the peer is left alone, are the link's failure and not theirs."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What a pass did, as `PassReport` tells it. link: why the peer was given up; held: why nothing was done."""

    images: int = 0
    bytes: int = 0
    tags: int = 0
    removed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    link: str | None = None
    held: str | None = None


class Pass:
    """trouble: why the peer is left alone now. State: what was done, and how the link did in the present window."""

    def __init__(
        self,
        name: str,
        rules: PeerRules,
        catalog: Catalog,
        fetcher: Fetcher,
        trouble: Callable[[], str | None],
        standing: Standing,
        tally: Tally,
        emit: Emit,
        times: Times,
    ) -> None:
        self.done = Outcome()
        self._name = name
        self._rules = rules
        self._catalog = catalog
        self._fetcher = fetcher
        self._trouble = trouble
        self._standing = standing
        self._tally = tally
        self._emit = emit
        self._times = times
        self._judge = Judge(name, rules.rules)
        self._answers = 0
        self._silent: list[tuple[Image, str]] = []

    async def run(self) -> Outcome:
        """Work off all that is due now. Raises OSError where the catalog cannot be used."""
        began = self._times.now()
        while self.done.link is None:
            rows = await self._catalog.read(
                lambda connection: remote.read_waiting(connection, self._name, WINDOW, due=began)
            )
            if not rows:
                break
            # What refers to an image is judged when the images of its window are here.
            for referring in (False, True):
                part = [row for row in rows if (subject_of(row) is not None) == referring]
                if part and self.done.link is None:
                    await self._window(part)
            await self._standing.measure()
        return self.done

    async def _window(self, rows: Sequence[Waiting]) -> None:
        now = self._times.now()
        decided = await self._catalog.read(lambda connection: self._judge.decide(connection, rows, now))
        plan = make_plan(decided)
        await self._hold(plan, now)
        await self._apply_at_once([row for row, _ in plan.at_once])
        await self._images(plan.images)

    async def _hold(self, plan: Plan, now: float) -> None:
        """Put off what may not be done yet; what turns out to be a removal waits for the grace from now on."""
        grace = self._rules.removal_grace

        def operation(transaction: Transaction) -> None:
            for row, reason in plan.held:
                ahead = (newest_version(row.record) >> 16) / 1000 - AHEAD_SECONDS
                later = ahead if ahead > now else now + retry_after(row.tries, self._times.chance())
                remote.postpone(transaction, row, reason, later)
            for row in plan.removals:
                if row.kind is not Kind.REMOVAL:
                    remote.turn(transaction, row, Kind.REMOVAL, now, now + grace)
                else:
                    remote.put_off(transaction, row, row.error, max(now + 1.0, row.since + grace))
            for row in turned:
                remote.turn(transaction, row, Kind.IMAGE, row.since, row.next_at)

        turned = [row for image in plan.images for row in image.rows if row.kind is not Kind.IMAGE]
        if plan.held or plan.removals or turned:
            await self._catalog.write(operation)

    async def _apply_at_once(self, rows: Sequence[Waiting]) -> None:
        for repository, group in groupby(sorted(rows, key=_repository), key=_repository):
            same = list(group)
            for start in range(0, len(same), APPLIED_AT_ONCE):
                await self._apply(repository, same[start : start + APPLIED_AT_ONCE])

    async def _apply(self, repository: Repository, rows: Sequence[Waiting]) -> None:
        def settle(transaction: Transaction) -> None:
            remote.settle(transaction, rows)

        await self._catalog.apply(repository, [row.record for row in rows], settle)
        self._tally.did(len(rows))

    async def _images(self, images: Sequence[Image]) -> None:
        self._answers, self._silent = 0, []
        parts: dict[Repository, dict[Digest, Parts]] = {}
        failed: set[tuple[Repository, Digest]] = set()

        async def look(image: Image) -> None:
            async with self._fetcher.images:
                found = await self._attempt(image, self._look(image))
            if found is None:
                failed.add((image.repository, image.digest))
            else:
                parts.setdefault(image.repository, {})[image.digest] = found

        async def fetch(image: Image) -> None:
            async with self._fetcher.images:
                if image.subject is not None and (image.repository, image.subject) in failed:
                    if not self._silent:
                        await self._put_off(image, "the image that it refers to is not here yet", "missing")
                elif await self._attempt(image, self._get(image, parts[image.repository][image.digest])) is None:
                    failed.add((image.repository, image.digest))

        await together(look(image) for image in images)
        sized = in_order([image for image in images if (image.repository, image.digest) not in failed])
        for level in levels(sized):
            await together(fetch(image) for image in level)
        self._standing.forget()
        await self._judge_link()

    async def _attempt(self, image: Image, work: Coroutine[object, object, T]) -> T | None:
        """Return what `work` gives; None where it failed, which harms no other image, or where the link is down."""
        if self._is_down():
            work.close()
            return None
        try:
            return await work
        except (RegistryError, OSError) as error:
            await self._failed(image, error, silent=reason_of(error) == "unreachable")
        except Exception as error:
            _log.exception("image %s of region %s could not be taken over", image, self._name)
            await self._failed(image, error, silent=False)
        return None

    async def _look(self, image: Image) -> Parts:
        async def fetch(repository: Repository, digest: Digest) -> Body:
            body, size = await self._fetcher.manifest(repository, digest)
            self._came(size)
            return body

        found = await walk(self._catalog, image.repository, image.digest, self._rules.rules.platforms, fetch)
        image.size = found.size
        self._tally.wants(self._standing.wants(found.missing))
        return found

    async def _get(self, image: Image, parts: Parts) -> bool:
        began = self._times.now()

        async def blob(digest: Digest) -> None:
            self._came(await self._fetcher.blob(image.repository, digest))
            self._tally.got(self._standing.got(digest))

        await together(blob(digest) for digest in parts.missing)
        await self._publish(image, parts)
        if parts.unmatched:
            offered = "no such platform: its index has none that is asked for; its bytes are left to whoever asks"
            self.done.failed.append((str(image), offered))
        self.done.images += 1
        self.done.tags += len(image.tags)
        self._tally.did(len(image.rows))
        seconds = max(0.0, self._times.now() - began)
        self._emit(ImageSynced(self._name, parts.size, seconds))
        _log.info(
            "an image of another region is here",
            extra={"peer": self._name, "image": str(image), "bytes": parts.size, "seconds": round(seconds, 3)},
        )
        return True

    async def _publish(self, image: Image, parts: Parts) -> None:
        """Let the tags point to the image and forget its rows, unless a part of it has been evicted meanwhile."""

        def settle(transaction: Transaction) -> None:
            for digest in parts.digests:
                if not closure.is_present(transaction, digest):
                    raise ManifestUnknown(f"{digest} was evicted again before all of the image was here")
            remote.settle(transaction, image.rows)

        if image.tags:
            await self._catalog.apply(image.repository, image.tags, settle)
        else:
            await self._catalog.write(settle)

    def _came(self, size: int) -> None:
        self.done.bytes += size
        self._standing.fetched(size)
        if size:
            self._answers += 1

    async def _failed(self, image: Image, error: Exception, *, silent: bool) -> None:
        """Put an image off for its own failure; where nobody gave it, only if the peer is heard all the same."""
        if silent:
            self._silent.append((image, words_of(error)))
            return
        self._answers += 1
        await self._put_off(image, words_of(error), reason_of(error))

    async def _put_off(self, image: Image, words: str, reason: str) -> None:
        now = self._times.now()

        def operation(transaction: Transaction) -> None:
            for row in image.rows:
                later = now + retry_after(row.tries, self._times.chance())
                remote.postpone(transaction, row, words, later)

        await self._catalog.write(operation)
        if not any(row.tries for row in image.rows):
            _log.warning(
                "an image of another region cannot be had at the moment, and is tried again",
                extra={"peer": self._name, "image": str(image), "why": words},
            )
        self._standing.failures += 1
        self.done.failed.append((str(image), words))
        self._emit(ImageFailed(self._name, reason))

    def _is_down(self) -> bool:
        return not self._answers and len(self._silent) >= LINK_FAILURES and self._trouble() is not None

    async def _judge_link(self) -> None:
        trouble = self._trouble()
        if self._silent and (self._answers or trouble is None):
            for image, words in self._silent:
                await self._put_off(image, words, "unreachable")
        elif self._silent:
            self.done.link = trouble
            later = self._times.now() + self._standing.link_failed()
            rows = [(row, words) for image, words in self._silent for row in image.rows]

            def operation(transaction: Transaction) -> None:
                for row, words in rows:
                    remote.put_off(transaction, row, words, later)

            await self._catalog.write(operation)
        elif self._answers:
            self._standing.link_answered()


def _repository(row: Waiting) -> Repository:
    return row.repository
