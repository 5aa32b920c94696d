"""No statement of the serving path may scan a table, with a million blobs in mind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.store import changes, conflicting, keeping, merging, queries, roots, tagrows, uploading, wanted
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


@pytest.mark.parametrize(
    "statement",
    [
        *changes.STATEMENTS,
        *keeping.STATEMENTS,
        *merging.STATEMENTS,
        *roots.STATEMENTS,
        *tagrows.STATEMENTS,
        *conflicting.STATEMENTS,
    ],
)
def test_what_a_write_looks_at_first_is_found_by_index_and_not_sorted(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    named = re.findall(r":(\w+)", statement)
    values: object = dict.fromkeys(named, 1) if named else [1] * statement.count("?")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]  # type: ignore[arg-type]
    connection.close()
    # By the index on when they were found as many conflicts are read as are wanted, or kept at most.
    bounded = r"SCAN (above|CONSTANT ROW|conflict USING (COVERING )?INDEX conflict_found)\b"
    assert [step for step in plan if re.match(r"SCAN|USE TEMP", step) and not re.match(bounded, step)] == []


@pytest.mark.parametrize("table", ["blob", "membership", "tag", "pin"])
def test_the_change_feed_reads_by_seq(tmp_path: Path, table: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE seq > ? ORDER BY seq", (1,)).fetchall()
    connection.close()
    assert [row[3] for row in plan] == [f"SEARCH {table} USING INDEX {table}_seq (seq>?)"]
