"""The records of the joining scenario are ones that a mirror takes for its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from bench.fleet import is_whole, know, node, redis
from bench.servers import bed


@pytest.mark.slow
@pytest.mark.needs("redis-server")
def test_written_records_are_counted_and_the_node_starts_with_them() -> None:
    with bed() as place, redis(place) as port, place.room("node") as folder:
        catalog = folder / "data" / "catalog.sqlite"
        assert not is_whole(catalog, 1)
        with node(place, port, folder, "first"):
            pass
        know(catalog, 2000)
        assert (is_whole(catalog, 2000), is_whole(catalog, 2001)) == (True, False)
        with node(place, port, folder, "again"):
            assert is_whole(catalog, 2000)
        with closing(sqlite3.connect(catalog)) as connection:
            (seq,) = connection.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()
            assert connection.execute("SELECT max(seq) <= ? FROM membership", (seq,)).fetchone() == (1,)
