"""Carrying out an export: slices hashed, the plan sealed, volumes written one after the other, what is wrong mended.

What is exported is `choosing`'s, the plan `making`'s, the writing of one volume `writing`'s; the names of files are
`target`'s and what was done already the `journal`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import MAX_MANIFEST
from proxy.store.layout import Layout
from proxy.store.store import Store
from sync.bundle import layout
from sync.bundle.choosing import read_manifest
from sync.bundle.errors import BundleError, Refused
from sync.bundle.finished import give_name, sizes_of, take_over
from sync.bundle.journal import Journal, Mark
from sync.bundle.keys import PrivateKey, sign
from sync.bundle.making import Draft, documents
from sync.bundle.outflow import BUFFER
from sync.bundle.plan import Plan, Sealed, repository_of
from sync.bundle.target import Target, read_sums, require_room, write_sums
from sync.bundle.writing import STEP, Work, WrongBlob, hash_slices, write_volume
from sync.fetching import Filler, words_of

_BATCH = 2000
_MENDED = 3

T = TypeVar("T")
Told = Callable[[str, int, int, int], None]
"""Hears what is done, how many bytes of how many, and for which volume (0: none)."""


class Exporting:
    """One export on a store. State: what was mended how often."""

    def __init__(self, store: Store, cache: Filler, data: Path, told: Told, step: int = STEP) -> None:
        self._store = store
        self._cache = cache
        self._blob_path = Layout(data).blob
        self._told = told
        self._step = step
        self._mended: dict[str, int] = {}

    async def seal(self, draft: Draft, split: int | None, key: PrivateKey | None) -> tuple[Sealed, bytes | None]:
        """Return the plan, cut and with all hashes, and its signature. Raises BundleError, OSError."""
        unsigned = Sealed.of(draft.plan, b"")
        size = 0 if key is None else len(sign(unsigned, key))
        plan = await asyncio.to_thread(layout.cut, draft.plan, split, size)
        if plan.slices:
            total = sum(one.size for one in plan.slices)
            while True:
                work = self._work(unsigned, None, (), "slices", total, 0)
                try:
                    plan = await self._threaded(work, partial(hash_slices, work, plan))
                    break
                except WrongBlob as wrong:
                    await self._mend(plan, wrong)
        sealed = await asyncio.to_thread(layout.seal, plan)
        return sealed, None if key is None else sign(sealed, key)

    async def see_all_here(self, plan: Plan) -> None:
        """Bring what has gone meanwhile. Raises BundleError."""
        for start in range(0, len(plan.blobs), _BATCH):
            for place in await asyncio.to_thread(self._gone, plan, start):
                await self._mend(plan, WrongBlob(layout.digest_at(plan, place), None, 0))

    async def documents(self, plan: Plan) -> tuple[bytes, ...]:
        """Return the bodies of a plan's documents, from the manifests that it brings. Raises BundleError."""
        manifests = {}
        for place, blob in enumerate(plan.blobs):
            if blob.media_type is not None:
                body = await self._manifest(plan, place)
                manifests[blob.digest] = await asyncio.to_thread(read_manifest, (body, blob.media_type), ())
        bodies = documents(plan, manifests)
        found = tuple(bodies.get(document.name, b"") for document in plan.documents)
        if [hashlib.sha256(body).hexdigest() for body in found] != [document.sha256 for document in plan.documents]:
            raise BundleError(
                "the plan was made by another version of entrepot, which wrote the index of images differently: "
                "make the volumes with that version, or export anew under another name"
            )
        return found

    async def write(self, journal: Journal, target: Target, bodies: tuple[bytes, ...]) -> list[tuple[Path, int, str]]:
        """Write all volumes that are not whole yet, then their hashes; return file, bytes and hash of each.

        Raises BundleError, Interrupted, OSError.
        """
        plan = journal.sealed.plan
        sizes = await asyncio.to_thread(sizes_of, journal)
        await asyncio.to_thread(take_over, journal, target, sizes)
        begun = {number: mark.offset for number in sizes if (mark := journal.last(number)) is not None}
        needed = sum(size - begun.get(number, 0) for number, size in sizes.items() if number not in journal.done)
        try:
            await asyncio.to_thread(require_room, target.folder, needed)
        except Refused:
            if not begun and not journal.done:
                await asyncio.to_thread(journal.end)
            raise
        for number, size in sizes.items():
            if number not in journal.done:
                mark = journal.last(number)
                make = partial(self._work, journal.sealed, journal.signature, bodies, "volume", size, number)
                hash = await self._volume(make, target.partial(number), mark, journal)
                await asyncio.to_thread(journal.reached, Mark(number, size, hash, whole=True))
                await asyncio.to_thread(give_name, target, number)
        hashes = {target.volume(number).name: journal.done[number] for number in range(1, len(plan.volumes) + 1)}
        await asyncio.to_thread(write_sums, target.sums, hashes)
        return [(target.volume(number), size, journal.done[number]) for number, size in sizes.items()]

    async def rewrite(
        self, sealed: Sealed, signature: bytes | None, target: Target, number: int
    ) -> tuple[Path, int, str]:
        """Write one volume of a plan anew; return file, bytes and hash. Raises BundleError, Interrupted, OSError."""
        if number > len(sealed.plan.volumes):
            raise Refused(f"there is no volume {number}: the bundle has {len(sealed.plan.volumes)}")
        bodies = await self.documents(sealed.plan)
        size = await asyncio.to_thread(layout.volume_size, sealed, len(signature or b""), number)
        path, partly = target.volume(number), target.partial(number)
        await asyncio.to_thread(require_room, target.folder, size)
        make = partial(self._work, sealed, signature, bodies, "volume", size, number)
        try:
            hash = await self._volume(make, partly, None, None)
            known = (await asyncio.to_thread(read_sums, target.sums)).get(path.name)
            if known is not None and known != hash:
                raise BundleError(
                    f"volume {number} would have the hash {hash}, and {target.sums} says {known}: that file is of "
                    "another bundle; name the one that the volume belongs to with -o, or remove it"
                )
        except BaseException:
            partly.unlink(missing_ok=True)
            raise
        await asyncio.to_thread(give_name, target, number)
        return path, size, hash

    async def _volume(self, make: Callable[[], Work], path: Path, mark: Mark | None, journal: Journal | None) -> str:
        reached = _unnoted if journal is None else journal.reached
        while True:
            work = make()
            try:
                return await self._threaded(work, partial(write_volume, work, path, mark, reached))
            except WrongBlob as wrong:
                if journal is not None:
                    nothing = Mark(work.volume, 0, hashlib.sha256().hexdigest())
                    mark = journal.last(work.volume, before=wrong.start) or nothing
                    await asyncio.to_thread(reached, mark)
                await self._mend(work.sealed.plan, wrong)

    def _work(
        self, sealed: Sealed, signature: bytes | None, bodies: tuple[bytes, ...], what: str, total: int, volume: int
    ) -> Work:
        loop = asyncio.get_running_loop()
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            self._told(what, done, total, volume)

        def told(count: int) -> None:
            loop.call_soon_threadsafe(add, count)

        return Work(sealed, signature, bodies, volume, self._blob_path, told, step=self._step)

    async def _threaded(self, work: Work, function: Callable[[], T]) -> T:
        """Run what reads and writes in a thread; whoever cancels it waits until it has stopped."""
        running = asyncio.ensure_future(asyncio.to_thread(function))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            work.stop.set()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def _gone(self, plan: Plan, start: int) -> list[int]:
        """Return the places of those of a batch of blobs whose files are not there, or not as long as they must be."""
        found = []
        for place in range(start, min(start + _BATCH, len(plan.blobs))):
            try:
                here = os.stat(self._blob_path(layout.digest_at(plan, place))).st_size == plan.blobs[place].size
            except FileNotFoundError:
                here = False
            if not here:
                found.append(place)
        return found

    async def _manifest(self, plan: Plan, place: int) -> bytes:
        digest = layout.digest_at(plan, place)
        while True:
            body = await self._store.read_blob(digest, MAX_MANIFEST)
            if body is not None and Digest.of(body, digest.algorithm) == digest:
                return body
            inode = None if body is None else await asyncio.to_thread(_inode, self._blob_path(digest))
            await self._mend(plan, WrongBlob(digest, inode, 0))

    async def _mend(self, plan: Plan, wrong: WrongBlob) -> None:
        """Set a wrong blob aside and fetch it again. Raises BundleError where that cannot be."""
        digest = wrong.digest
        blob = next(blob for blob in plan.blobs if blob.digest == digest)
        repository = repository_of(plan.repositories[blob.repository])
        if wrong.inode is None:
            state = "is not in the store any more"
        else:
            state = "was damaged in the store and has been set aside"
            if await asyncio.to_thread(_is_wrong, self._blob_path(digest), digest):
                await self._store.set_aside(digest, wrong.inode)
        self._mended[digest] = self._mended.get(digest, 0) + 1
        try:
            if self._mended[digest] > _MENDED:
                raise BundleError(f"it was wrong {_MENDED} times: look at the disk of the data folder")
            if (opened := await self._store.open_blob(digest)) is not None:
                opened.close()
            elif blob.media_type is not None:
                await self._cache.ensure_manifest(repository, digest)
            else:
                await self._cache.ensure_blob(repository, digest)
        except (RegistryError, OSError, BundleError) as error:
            reason = str(error) if isinstance(error, BundleError) else words_of(error)
            raise BundleError(
                f"blob {digest} of {repository} {state}, and cannot be had again: {reason}; once it can, "
                "the same command goes on"
            ) from None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _is_wrong(path: Path, digest: Digest) -> bool:
    """Tell whether a stored file is there and does not hold what it is named by."""
    hasher = digest.hasher()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(BUFFER):
                hasher.update(piece)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return not digest.matches(hasher)


def _unnoted(mark: Mark) -> None:
    return None
