"""Ratios and floors are what they say."""

from __future__ import annotations

import pytest

from bench.clients import ClientFailed, read_wrk
from bench.figures import Column, Floor, Spread, Table

AT_LEAST = Floor("fast enough", "ours", "rate", 0.9, at_least=True, against="theirs")
IN_EVERY_ROUND = Floor("one GET", "ours", "gets", 1)


def table(*ours: float, theirs: tuple[float, ...] = ()) -> Table:
    made = Table("name", "title", (Column("rate", "1/s"),), "rate", "theirs", (AT_LEAST,))
    for figure in ours:
        made.add("ours", {"rate": figure, "gets": figure})
    for figure in theirs:
        made.add("theirs", {"rate": figure})
    return made


def test_ratio_divides_medians_and_its_spread_is_that_of_the_rounds() -> None:
    measured = table(10, 90, 20, theirs=(10, 30, 20))
    assert measured.ratio("ours", "rate", "theirs") == Spread(1.0, 1.0, 3.0)


@pytest.mark.parametrize(("ours", "met"), [(89, False), (90, True), (200, True)])
def test_floor_on_a_ratio_is_met_from_its_limit_on(ours: float, met: bool) -> None:
    assert table(ours, theirs=(100,)).judge(AT_LEAST).met is met


def test_floor_without_a_peer_must_hold_in_every_round() -> None:
    assert table(1, 1, 1).judge(IN_EVERY_ROUND).met is True
    assert table(1, 2, 1).judge(IN_EVERY_ROUND).met is False


def test_floor_that_was_not_measured_is_neither_met_nor_missed() -> None:
    assert table(1).judge(AT_LEAST).met is None
    assert table().judge(IN_EVERY_ROUND).met is None


def test_wrk_report_is_read_in_milliseconds() -> None:
    text = """
  Latency Distribution
     50%  190.00us
     75%    0.26ms
     90%  380.00us
     99%    1.20s
  159703 requests in 2.00s, 350.00MB read
Requests/sec:  79712.12
"""
    hits = read_wrk(text)
    assert (hits.requests, hits.rate, hits.p99) == (159703, 79712.12, 1200.0)
    assert hits.p50 == pytest.approx(0.19)


def test_wrk_report_that_is_none_is_an_error() -> None:
    with pytest.raises(ClientFailed, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:1 Connection refused")
