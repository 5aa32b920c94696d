"""How many removals may go at once, and that what looks for them goes by indexes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from proxy.store.schema import connect
from sync import checking, facts
from sync.removals import refusal


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_one_image_may_always_go_and_more_only_within_the_share(removing: int, live: int, share: float) -> None:
    refused = refusal(removing, live, share, "east")
    assert (refused is None) == (removing <= 1 or removing <= share * live)
    assert refused is None or f"would remove {removing} of {live} images" in refused


def test_a_refusal_says_how_many_and_what_to_do() -> None:
    assert refusal(4, 10, 0.25, "east") == (
        "would remove 4 of 10 images (40 %), more than 25 %: run `entrepot sync once east --force` if that is meant"
    )
    assert refusal(2, 0, 0.25, "east")


@pytest.mark.parametrize("statement", [*facts.STATEMENTS, checking.TAGS, checking.MEMBERSHIPS, checking.SAID])
def test_what_the_engine_asks_is_found_by_index(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    named = ":" in statement.replace("'t:'", "")
    values: object = {"digest": "", "row": 1, "limit": 1} if named else (1,) * statement.count("?")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]  # type: ignore[arg-type]
    connection.close()
    assert not [line for line in plan if line.startswith("SCAN") and "above" not in line and "CONSTANT" not in line]
