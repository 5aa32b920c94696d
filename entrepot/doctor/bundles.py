"""A look at what bundles leave here: bases that are kept, imports that wait for volumes. Blocks, changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from proxy.store import holding
from proxy.store.layout import Layout
from sync.bundle.waiting import Waiting, waiting_imports


@dataclass(frozen=True, slots=True)
class BundlesSeen:
    """What was seen. bases: the series whose last bundle is kept from eviction, and how many bytes of it are stored."""

    bases: tuple[tuple[str, int], ...] = ()
    waiting: tuple[Waiting, ...] = ()


def look_at_bundles(data: Path) -> BundlesSeen:
    """Look at the data folder. A catalog that cannot be read is for others to tell of."""
    waiting = waiting_imports(data / "bundles" / "imports")
    path = Layout(data).catalog
    if not path.exists():
        return BundlesSeen((), waiting)
    # Nobody writes to a catalog without a log; to read it in any other way would leave files of ours beside it.
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as catalog:
            bases = holding.bases(holding.holders(catalog))
    except sqlite3.Error:
        return BundlesSeen((), waiting)
    return BundlesSeen(tuple((series, one.bytes) for series, one in bases), waiting)
