"""`entrepot import`: from the paths of volumes to images that are served, by what the configuration trusts and allows.

What is judged, taken in and shown is in `sync.bundle`; here it is put together, beside a running mirror or without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from entrepot.access import rules_of
from entrepot.beside import opened_store, until
from entrepot.config import Config
from entrepot.descriptors import raise_limit
from entrepot.lean import keep_few_pages
from entrepot.trusting import trust_of
from metrics.events import ignore
from proxy.cache.readthrough import open_cache
from proxy.oci.errors import NameUnknown
from proxy.oci.names import Repository
from proxy.store.disk import Disk
from proxy.store.records import Proof
from proxy.store.rescan import rescanning
from proxy.store.store import Store
from proxy.store.sweep import sweeping
from sync.bundle.errors import Refused
from sync.bundle.gathering import gather
from sync.bundle.importing import AT_ONCE, Intake, Medium
from sync.bundle.keys import Verdict
from sync.bundle.opened import Bundle, open_bundles
from sync.bundle.plan import reference_of
from sync.bundle.preflight import Allowed, Change, Examined, examine
from sync.bundle.publishing import hold, publish, release
from sync.bundle.receipts import is_receipt_of, spoken, write_receipt
from sync.bundle.staging import State, discard, old_states
from sync.bundle.waiting import note_waiting

PATIENCE_SECONDS = 1.0
"""How long a fill waits for a drive that does not answer."""


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: volumes or folders of them. receipt: where it goes, None for beside the bundle."""

    paths: tuple[Path, ...]
    verify_keys: tuple[Path, ...] = ()
    require_signature: bool = False
    dry_run: bool = False
    force: bool = False
    receipt: Path | None = None


class Note(msgspec.Struct, frozen=True, tag_field="event", tag="note"):
    """Something that the person should know."""

    text: str


class Reading(msgspec.Struct, frozen=True, tag_field="event", tag="reading"):
    """How far the volumes at hand are read, in bytes."""

    series: str
    done: int
    total: int


ImportEvent = Note | Reading


class TagOutcome(msgspec.Struct, frozen=True):
    """What became of a tag, or will. here: what it was before. kept: this site has a newer one, or removed it later."""

    reference: str
    change: Change
    digest: str
    here: str | None = None


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one bundle; sizes in bytes.

    published: all of it is served now. unchanged: it was before. missing: volumes that are still to come. taken: what
    had to be stored; had: what was here. receipts: the files; spoken: the same to be read aloud. signature: the name of
    the trusted key that signed it; note: what else is to be said of the signature.
    """

    plan: str
    series: str
    region: str
    created: int
    volumes: int
    images: int
    tags: tuple[TagOutcome, ...]
    taken: int
    had: int
    published: bool = False
    unchanged: bool = False
    missing: tuple[int, ...] = ()
    signature: str | None = None
    note: str | None = None
    spoken: str | None = None
    receipts: tuple[str, ...] = ()

    @property
    def in_part(self) -> bool:
        """Volumes are still to come, or tags are kept as they are."""
        return bool(self.missing) or any(tag.change == "kept" for tag in self.tags)


class ImportReport(msgspec.Struct, frozen=True):
    """What became of all bundles, in the order in which they were taken. With `dry_run` nothing was done.

    spoken: the receipt to be read aloud of the last one that is served: its series goes on from there.
    """

    dry_run: bool
    bundles: tuple[Imported, ...]
    spoken: str | None = None

    @property
    def in_part(self) -> bool:
        return any(one.in_part for one in self.bundles)


async def import_bundles(config: Config, request: ImportRequest, report: Callable[[ImportEvent], None]) -> ImportReport:
    """Take over the bundles that the paths hold, or with `dry_run` only say what that would do.

    Raises BundleError, StoreBusy, WrongUser, CatalogError, OSError.
    """
    trust = await asyncio.to_thread(trust_of, config, request.verify_keys, require=request.require_signature)
    async with AsyncExitStack() as stack:
        raise_limit()
        bundles = await asyncio.to_thread(open_bundles, request.paths)
        for bundle in bundles:
            stack.callback(bundle.close)
        verdicts = [trust.judge(bundle.sealed, bundle.signature) for bundle in bundles]
        store, ended = await stack.enter_async_context(opened_store(config))
        await keep_few_pages(store.catalog)
        await stack.enter_async_context(sweeping(store, config.quota, ignore))
        if ended is None:
            await stack.enter_async_context(rescanning(store))
        importer = _Importer(config, request, store, report)
        return await until(ended, importer.run(list(zip(bundles, verdicts, strict=True))))


class _Importer:
    def __init__(
        self, config: Config, request: ImportRequest, store: Store, report: Callable[[ImportEvent], None]
    ) -> None:
        self._config = config
        self._request = request
        self._store = store
        self._report = report
        self._folder = config.data / "bundles"
        self._allowed = _allowed(config)

    async def run(self, judged: Sequence[tuple[Bundle, Verdict]]) -> ImportReport:
        """Examine all, then take one after the other."""
        examined = []
        promised: set[str] = set()
        for bundle, verdict in judged:
            if verdict.note is not None:
                self._report(Note(verdict.note))
            examined.append(await self._examine(bundle, verdict, frozenset(promised)))
            promised.update(blob.digest for blob in bundle.plan.blobs)
        refusals = [reason for one in examined for reason in one.refusals]
        if refusals:
            raise Refused("\n".join(refusals))
        if self._request.dry_run:
            told = (_said(*both, one) for both, one in zip(judged, examined, strict=True))
            return ImportReport(True, tuple(told))
        await self._forget_old()
        done: list[Imported] = []
        for (bundle, verdict), before in zip(judged, examined, strict=True):
            # What the bundles before it brought is here by now.
            done.append(await self._import(bundle, verdict, await self._examine(bundle, verdict) if done else before))
        said = next((one.spoken for one in reversed(done) if one.spoken is not None), None)
        return ImportReport(False, tuple(done), said)

    async def _examine(self, bundle: Bundle, verdict: Verdict, promised: frozenset[str] = frozenset()) -> Examined:
        vouched = verdict.key is not None
        facts = await gather(
            self._store, bundle, time.time(), vouched=vouched, quota=self._config.quota, promised=promised
        )

        def allowed(repository: Repository) -> str | None:
            if not verdict.scope.admits(repository):
                return f"{repository} is not among the repositories that the key {verdict.key} may bring"
            return self._allowed(repository)

        return await asyncio.to_thread(examine, bundle.plan, facts, allowed, force=self._request.force)

    async def _import(self, bundle: Bundle, verdict: Verdict, before: Examined) -> Imported:
        imports = self._folder / "imports"
        before.require()
        if before.unchanged:
            await asyncio.to_thread(discard, imports, bundle.name.hex)
            receipts = await asyncio.to_thread(self._write_receipts, bundle)
            return _said(bundle, verdict, before, published=True, unchanged=True, receipts=receipts)
        state = await asyncio.to_thread(State.open, imports, bundle, Disk())
        try:
            await asyncio.to_thread(note_waiting, state.folder, bundle, None, time.time())
            await hold(self._store.catalog, bundle.sealed, time.time())
            (await self._examine(bundle, verdict)).require()
            missing = await self._take_in(bundle, state)
            await asyncio.to_thread(note_waiting, state.folder, bundle, missing, time.time())
            if missing:
                return _said(bundle, verdict, before, missing=tuple(missing))
            last = await self._examine(bundle, verdict)
            await publish(self._store.catalog, bundle.sealed, last.tags, time.time(), vouched=verdict.key is not None)
            receipts = await asyncio.to_thread(self._write_receipts, bundle)
            await asyncio.to_thread(state.remove)
        finally:
            await asyncio.to_thread(state.close)
        return _said(bundle, verdict, before, tags=last, published=True, receipts=receipts)

    async def _take_in(self, bundle: Bundle, state: State) -> list[int]:
        total = sum(volume.size for volume in bundle.volumes.values())
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            self._report(Reading(bundle.plan.series, min(done, total), total))

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="import") as executor:
            medium = Medium(bundle, executor, told)
            sources = {name.upstream: (medium,) for name in bundle.plan.names}
            async with open_cache(
                self._store, sources, emit=ignore, proof=Proof.IMPORTED, patience=PATIENCE_SECONDS
            ) as cache:
                intake = Intake(self._store, cache, medium, state, executor, told)
                await intake.run()
                return await intake.missing()

    async def _forget_old(self) -> None:
        for name in await asyncio.to_thread(lambda: list(old_states(self._folder / "imports", time.time()))):
            await release(self._store.catalog, name)
        await self._store.remove_strays()

    def _write_receipts(self, bundle: Bundle) -> tuple[str, ...]:
        """Write the receipt where it is kept, and where it travels back from; that one may be on a read-only drive."""
        kept = self._folder / "receipts" / f"{bundle.name.hex}.receipt"
        site, now = self._config.region, time.time()
        written = []
        if not is_receipt_of(kept, bundle.name, site):
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_receipt(kept, bundle.sealed, site, now)
        written.append(str(kept))
        first = min(bundle.volumes.values(), key=lambda volume: volume.number).path
        stem = first.name.removesuffix(".tar")
        if len(bundle.plan.volumes) > 1 or stem.endswith(".001"):
            stem = stem.rpartition(".")[0] or stem
        beside = self._request.receipt or first.with_name(f"{stem}.{site}.receipt")
        try:
            if not is_receipt_of(beside, bundle.name, site):
                write_receipt(beside, bundle.sealed, site, now)
            written.append(str(beside))
        except OSError as error:
            if self._request.receipt is not None:
                raise
            self._report(Note(f"no receipt beside the bundle ({error.strerror}): carry {kept}, or the digits, back"))
        return tuple(written)


def _allowed(config: Config) -> Allowed:
    names = frozenset(upstream.name for upstream in config.upstreams)
    rules = rules_of(config)

    def allowed(repository: Repository) -> str | None:
        if repository.upstream not in names:
            return (
                f"{repository} is of a registry that is not configured here: add {repository.upstream} as an "
                "[[upstream]], or with --upstream NAME=URL"
            )
        try:
            rules.check(repository)
        except NameUnknown as error:
            return error.message
        return None

    return allowed


def _said(
    bundle: Bundle,
    verdict: Verdict,
    examined: Examined,
    *,
    tags: Examined | None = None,
    published: bool = False,
    unchanged: bool = False,
    missing: tuple[int, ...] = (),
    receipts: tuple[str, ...] = (),
) -> Imported:
    plan = bundle.plan
    return Imported(
        plan=str(bundle.name),
        series=plan.series,
        region=plan.region,
        created=plan.created,
        volumes=len(plan.volumes),
        images=len(plan.images),
        tags=tuple(
            TagOutcome(reference_of(plan, one.image), one.change, one.image.digest, one.here)
            for one in (tags or examined).tags
            if one.image.tag is not None
        ),
        taken=examined.needed,
        had=examined.had,
        published=published,
        unchanged=unchanged,
        missing=missing,
        signature=verdict.key,
        note=verdict.note,
        spoken=spoken(bundle.name) if published else None,
        receipts=receipts,
    )
