"""`entrepot export`: what was asked becomes a plan and volumes, in a process of its own beside a mirror or without one.

Choosing, planning and writing are `sync.bundle`'s; here they are put together, and told to whoever asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from entrepot.beside import owner_watched, until
from entrepot.config import Config
from entrepot.exportasking import (
    ALL,
    ExportReport,
    ExportRequest,
    Note,
    Progress,
    Report,
    VolumeReport,
    read_references,
    report_of,
)
from entrepot.images import Pattern
from entrepot.lean import keep_few_pages
from entrepot.mirror import Mirror, mirror
from proxy.oci.names import Reference, Repository
from proxy.oci.platforms import Platform
from proxy.store.inventory import ImageRecord, Inventory
from sync.bundle.archive import Archive
from sync.bundle.bases import BaseSet, open_bases
from sync.bundle.choosing import Chosen, Hold, Lacking, Wish, choose, newest_config
from sync.bundle.errors import BundleError, NotABundle
from sync.bundle.exporting import Exporting
from sync.bundle.finished import refuse_others
from sync.bundle.held import held
from sync.bundle.journal import Journal
from sync.bundle.keys import PrivateKey
from sync.bundle.layout import cut
from sync.bundle.making import Choice, Draft, make
from sync.bundle.plan import Sealed
from sync.bundle.target import Target, release_lock, take_lock
from sync.bundle.volume import Volume
from sync.bundle.writing import STEP

EXPORTS = Path("bundles/exports")
_SIGNATURE = 200
"""About what a signature takes, where volumes are only counted."""


async def export(config: Config, request: ExportRequest, report: Report, *, step: int = STEP) -> ExportReport:
    """Carry out a request; `step`: after so many bytes it is noted how far a volume is.

    Raises:
        WrongRequest: what was asked is malformed.
        BundleError: it cannot be done; what was written is kept for the next time.
        RegistryError, StoreError, OSError.
    """
    wanted = read_references(config, request)
    target = Target(request.output.absolute(), request.split is not None)
    await asyncio.to_thread(target.check, 1 if request.recut else request.split)
    key = None if request.key is None else await asyncio.to_thread(PrivateKey.load, request.key)
    archive = Archive(config.data / EXPORTS)
    async with _locked(target, request), _running(config) as (made, ended):
        work = _Export(made, request, wanted, target, key, archive, report, step)
        return await until(ended, work.recut() if request.recut else work.run())


class _Export:
    """One request under way. No state of its own."""

    def __init__(
        self,
        made: Mirror,
        request: ExportRequest,
        wanted: list[tuple[Repository, Reference]],
        target: Target,
        key: PrivateKey | None,
        archive: Archive,
        report: Report,
        step: int,
    ) -> None:
        self._config = made.config
        self._store = made.store
        self._cache = made.cache
        self._request = request
        self._wanted = wanted
        self._target = target
        self._key = key
        self._archive = archive
        self._report = report
        self._exporting = Exporting(made.store, made.cache, made.config.data, self._told, step)

    def _told(self, what: str, done: int, total: int, volume: int) -> None:
        self._report(Progress(what, done, total, volume))

    async def run(self) -> ExportReport:
        """Export what is asked for, going on with what is there of it."""
        bases = await asyncio.to_thread(open_bases, self._request.bases, self._archive)
        with bases:
            if self._request.dry_run:
                return await self._tried(bases)
            identity = self._identity(bases)
            async with held(self._store.catalog, f"export:{identity}") as kept:
                journal = await self._resumed(identity)
                if journal is None:
                    journal = await self._begun(identity, bases, kept.add)
                else:
                    await kept.add([blob.digest for blob in journal.sealed.plan.blobs])
                return await self._written(journal)

    async def recut(self) -> ExportReport:
        """Write some volumes of a bundle anew, by its plan."""
        sealed, signature = await asyncio.to_thread(self._known_plan)
        split = self._target.split or len(sealed.plan.volumes) > 1
        target = Target(self._target.path, split or await asyncio.to_thread(_was_split, self._target))
        lines = []
        holder = hashlib.sha256(f"{sealed.name} {target.path}".encode()).hexdigest()
        async with held(self._store.catalog, f"export:{holder}") as kept:
            await kept.add([blob.digest for blob in sealed.plan.blobs])
            for number in sorted(set(self._request.recut)):
                path, size, hash = await self._exporting.rewrite(sealed, signature, target, number)
                lines.append(VolumeReport(str(path), size, hash))
        return report_of(sealed, signature, tuple(lines), ())

    async def _resumed(self, identity: str) -> Journal | None:
        """Return the journal of an export of the same request that ended early; what is of another one goes."""
        journal = await asyncio.to_thread(Journal.read, self._target.journal)
        if journal is not None and journal.request == identity:
            self._report(Note("going on with an export that ended early"))
            return journal
        begun = journal is not None or await asyncio.to_thread(self._target.journal.exists)
        for path in (*await asyncio.to_thread(self._target.partials), self._target.journal):
            await asyncio.to_thread(path.unlink, missing_ok=True)
        if begun:
            self._report(Note("beginning anew: what is there was begun with another request, or hardly at all"))
        return None

    async def _begun(self, identity: str, bases: BaseSet, hold: Hold) -> Journal:
        chosen, draft = await self._drafted(bases, hold)
        notes = [(one.what, one.error) for one in chosen.lacking]
        del chosen  # of many blobs it is large, and the plan has all that is needed from here on
        await self._exporting.see_all_here(draft.plan)
        sealed, signature = await self._exporting.seal(draft, self._request.split, self._key)
        await asyncio.to_thread(refuse_others, self._target, sealed)
        return await asyncio.to_thread(Journal.begin, self._target.journal, identity, sealed, signature, notes)

    async def _written(self, journal: Journal) -> ExportReport:
        sealed, signature = journal.sealed, journal.signature
        await self._exporting.see_all_here(sealed.plan)
        bodies = await self._exporting.documents(sealed.plan)
        written = await self._exporting.write(journal, self._target, bodies)
        await asyncio.to_thread(self._archive.keep, sealed, signature)
        await asyncio.to_thread(journal.end)
        volumes = tuple(VolumeReport(str(path), size, hash) for path, size, hash in written)
        return report_of(sealed, signature, volumes, tuple(Lacking(*note) for note in journal.notes))

    async def _tried(self, bases: BaseSet) -> ExportReport:
        """Say what an export would be."""

        async def hold(digests: Sequence[str]) -> None:
            return None

        chosen, draft = await self._drafted(bases, hold)
        plan = await asyncio.to_thread(cut, draft.plan, self._request.split, _SIGNATURE if self._key else 0)
        return ExportReport(
            series=plan.series,
            images=len(plan.images),
            blobs=len(plan.blobs),
            bytes=plan.size,
            requires=len(plan.requires),
            number_of_volumes=len(plan.volumes),
            missing=len(chosen.missing),
            missing_bytes=sum(chosen.missing.values()),
            lacking=tuple(chosen.lacking),
            dry_run=True,
        )

    async def _drafted(self, bases: BaseSet, hold: Hold) -> tuple[Chosen, Draft]:
        request, config = self._request, self._config
        wish = Wish(
            references=self._wanted,
            known=await self._known(),
            platforms=tuple(Platform.parse(text) for text in request.platforms if text != ALL),
            referrers=request.referrers,
            offline=config.offline,
            pulling=not request.dry_run,
        )
        chosen = await choose(
            self._store, self._cache, wish, hold, lambda done, total, what: self._told(what, done, total, 0)
        )
        if not chosen.tops:
            reasons = "".join(f"\n  {one.what}: {one.error}" for one in chosen.lacking)
            raise BundleError(f"there is nothing to export{':' if reasons else ': no image here is meant'}{reasons}")
        created = request.epoch
        if created is None:
            created = await newest_config(self._store, chosen)
        choice = Choice(
            series=request.series or config.region,
            region=config.region,
            created=created,
            tops=chosen.tops,
            manifests=chosen.manifests,
            platforms=tuple(map(str, wish.platforms)),
            bases=bases.bases,
            base=bases,
        )
        return chosen, await asyncio.to_thread(make, choice)

    async def _known(self) -> list[ImageRecord]:
        """Return the images of the catalog that the globs mean."""
        names = frozenset(upstream.name for upstream in self._config.upstreams)
        found: dict[tuple[str, str], ImageRecord] = {}
        for text in self._request.repositories:
            pattern = Pattern.parse(text, names, self._config.default_upstream)
            async for page in Inventory(self._store.catalog).images(pattern.wants, pattern.shows):
                found |= {(str(image.repository), image.tag or image.digest): image for image in page}
        return list(found.values())

    def _identity(self, bases: BaseSet) -> str:
        """Return what tells this request from others, and from the same one after something it names has changed."""
        request = self._request
        asked = {
            "references": sorted(f"{repository} {reference}" for repository, reference in self._wanted),
            "repositories": sorted(request.repositories),
            "platforms": sorted(request.platforms),
            "referrers": request.referrers,
            "bases": [msgspec.to_builtins(base) for base in bases.bases],
            "series": request.series or self._config.region,
            "region": self._config.region,
            "split": request.split,
            "key": None if self._key is None else self._key.public.id,
            "epoch": request.epoch,
            "output": str(self._target.path),
        }
        return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()

    def _known_plan(self) -> tuple[Sealed, bytes | None]:
        """Return the plan that volumes are made of anew: of another volume beside, of the journal, or kept here."""
        for path in self._target.volumes():
            try:
                volume = Volume.open(path)
            except BundleError:
                continue
            volume.close()
            return volume.sealed, volume.signature
        journal = Journal.read(self._target.journal)
        if journal is not None:
            return journal.sealed, journal.signature
        for kept in self._archive.plans():
            sealed, signature = self._archive.read(kept.hex)
            if self._request.series in (None, sealed.plan.series):
                self._report(Note(f"taking the plan of {sealed.plan.series} that was exported last, {sealed.name}"))
                return sealed, signature
        raise NotABundle(
            f"there is no plan to make volumes of anew: no volume lies beside {self._target.path}, and none was "
            f"exported from here; put one of its other volumes there"
        )


@asynccontextmanager
async def _locked(target: Target, request: ExportRequest) -> AsyncIterator[None]:
    """Be the only one who writes this bundle. Raises Refused, OSError."""
    if request.dry_run:
        yield
        return
    lock = await asyncio.to_thread(take_lock, target)
    try:
        yield
    finally:
        release_lock(target, lock)


@asynccontextmanager
async def _running(config: Config) -> AsyncIterator[tuple[Mirror, asyncio.Event | None]]:
    """Give the parts of a mirror, beside the one that serves where there is one, and what is set when that ends."""
    async with (
        owner_watched(config.data) as ended,
        mirror(config, role="command", beside=ended is not None) as made,
    ):
        await keep_few_pages(made.store.catalog)
        yield made, ended


def _was_split(target: Target) -> bool:
    return any(path != target.path for path in (*target.volumes(), *target.partials()))
