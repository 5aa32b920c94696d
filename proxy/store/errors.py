"""What the store itself can fail with, beside the OSError of a full disk or a broken volume."""

from __future__ import annotations

from collections.abc import Sequence


class StoreError(OSError):
    """The store cannot do what was asked; the message says what happened and what to do next.

    An OSError, as what a disk refuses is: whoever writes to the store handles both alike.
    """


class StoreBusy(StoreError):
    """Another process owns this data folder."""


class StoreClosed(StoreError):
    """The store, or the spool, was closed before the call."""


class CatalogError(StoreError):
    """SQLite refused: the disk is full, the file was taken away, or it is damaged."""


class CatalogDamaged(CatalogError):
    """The catalog's file is not what it was. Only a start replaces it."""


class CatalogTooNew(StoreError):
    """The catalog was written by a newer version of the program."""


class NoRoom(StoreError):
    """The quota is taken: by pinned images, by attempts under way, or by what could not be removed in time."""


class TooLarge(StoreError):
    """A blob of `size` bytes will never fit into the quota."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class Pinned(StoreError):
    """What another region removed is kept here by `pins`, references of its repository."""

    def __init__(self, message: str, pins: Sequence[str]) -> None:
        super().__init__(message)
        self.pins = tuple(pins)


class CommitRefused(StoreError):
    """A spool does not hold what the caller says that it verified."""
