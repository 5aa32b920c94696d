"""No statement of the serving path may scan a table, with a million blobs in mind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.store import queries, uploading, wanted
from proxy.store.schema import connect


@pytest.mark.parametrize("statement", [*queries.SERVING, *uploading.STATEMENTS, *wanted.STATEMENTS])
def test_the_serving_path_searches_by_index(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    named = ":digest" in statement
    values: object = {"digest": "x"} if named else ["x"] * statement.count("?")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]  # type: ignore[arg-type]
    connection.close()
    assert any(step.startswith("SEARCH") for step in plan)
    tables = r"SCAN (blob|edge|membership|tag|repository|referrer|intent|pin|upload)\b"
    assert [step for step in plan if re.match(tables, step)] == []


@pytest.mark.parametrize("table", ["blob", "membership", "tag", "pin"])
def test_the_change_feed_reads_by_seq(tmp_path: Path, table: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE seq > ? ORDER BY seq", (1,)).fetchall()
    connection.close()
    assert [row[3] for row in plan] == [f"SEARCH {table} USING INDEX {table}_seq (seq>?)"]
