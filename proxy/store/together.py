"""Small blobs that are stored many at once: each step of a commit is done for all of them before the next.

A sync costs the same for one new file as for a hundred whose pages are on their way already, and so does a transaction
of the catalog. The order is that of a single commit (see `attempts`): intents, spools with their bytes, notes, names,
the catalog's rows. So `recovery` finds nothing that it does not know. Blocks: for threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import msgspec

from proxy.store.files import CommitNote, Files
from proxy.store.record import StateRecord
from proxy.store.records import Proof, Verified

MOST = 64
"""So many at once: each keeps its record open."""


class Together:
    """One attempt at each of `blobs`, under its generation. State: the records, held until `close`."""

    def __init__(self, files: Files, blobs: Sequence[Verified], generations: Sequence[int]) -> None:
        self._files = files
        self._blobs = blobs
        self._names = [(blob.digest, generation) for blob, generation in zip(blobs, generations, strict=True)]
        self._records: list[StateRecord] = []

    def seal(self, proof: Proof, *, public: bool) -> None:
        """Write the spools, then the notes, all of it durably. Removes everything where that fails. Raises OSError."""
        try:
            self._write()
            self._note(proof, public=public)
            self._files.disk.fsync_folder(self._files.layout.ingest)
        except BaseException:
            self.remove()
            raise

    def install(self) -> None:
        """Give the spools their final names, durably. Raises OSError: whoever resumes or starts next carries it on."""
        self._files.install(*self._names)

    def remove(self) -> None:
        """Remove what is left of the attempts."""
        for digest, generation in self._names:
            self._files.remove_spool(digest, generation)

    def close(self) -> None:
        """Let others have what is left."""
        for record in self._records:
            record.close()
        self._records.clear()

    def _write(self) -> None:
        disk = self._files.disk
        with contextlib.ExitStack() as spools:
            opened = []
            for blob, (digest, generation) in zip(self._blobs, self._names, strict=True):
                self._records.append(self._files.create_record(digest, generation))
                fd = disk.create(self._files.layout.spool(digest, generation))
                spools.callback(os.close, fd)
                disk.pwrite(fd, blob.body, 0)
                disk.begin_write(fd)
                opened.append(fd)
            for fd in opened:
                disk.fdatasync(fd)

    def _note(self, proof: Proof, *, public: bool) -> None:
        """Write that the bytes are there, which they must be by now."""
        for blob, record in zip(self._blobs, self._records, strict=True):
            media_type = blob.parsed.media_type if blob.parsed else None
            repository = (blob.repository.upstream, blob.repository.path)
            note = CommitNote(len(blob.body), repository, proof, public, media_type)
            record.write_note(msgspec.json.encode(note))
            record.begin_sync()
        for record in self._records:
            record.sync()
