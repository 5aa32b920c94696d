"""How a command that works on one thing with many threads stays small: few heaps, and few pages of the catalog.

For processes that only do that: a mirror keeps what makes it quick.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

from proxy.store.catalog import Catalog
from proxy.store.writer import Transaction

CATALOG_KIB = 8 * 1024
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT = 16 << 20


def share_one_heap() -> None:
    """Have all threads of this process share a heap, and give back what is free of it from 16 MiB on.

    With a heap for each, as glibc has it, what short-lived buffers leave behind in them is a third of all memory. Call
    it before there are threads. Other C libraries do as they do.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _KEPT)):
            mallopt(option, value)


async def keep_few_pages(catalog: Catalog) -> None:
    """Let the writer of this process keep fewer pages of the catalog in memory than a mirror's does."""

    def shrink(transaction: Transaction) -> None:
        transaction.connection.execute(f"PRAGMA cache_size = -{CATALOG_KIB}")

    await catalog.write(shrink)
