"""The cache in front of the readers: bounded, and never left with what a write has outdated."""

from __future__ import annotations

from proxy.store.lru import Lru


def load(cache: Lru[str, int], key: str, value: int | None) -> None:
    cache.end(key, cache.begin(key), value)


def test_the_least_recently_used_goes_first() -> None:
    cache: Lru[str, int] = Lru(2)
    load(cache, "a", 1)
    load(cache, "b", 2)
    assert cache.get("a") == 1
    load(cache, "c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_what_was_read_before_a_write_is_not_kept_after_it() -> None:
    cache: Lru[str, int] = Lru(2)
    ticket = cache.begin("a")
    cache.forget("a")
    cache.end("a", ticket, 1)
    assert cache.get("a") is None


def test_a_later_load_is_kept_though_an_earlier_one_was_forgotten() -> None:
    cache: Lru[str, int] = Lru(2)
    early = cache.begin("a")
    cache.forget("a")
    late = cache.begin("a")
    cache.end("a", early, 1)
    cache.end("a", late, 2)
    assert cache.get("a") == 2


def test_cancelling_keeps_the_value_that_is_there() -> None:
    cache: Lru[str, int] = Lru(2)
    load(cache, "a", 1)
    ticket = cache.begin("a")
    cache.cancel("a")
    cache.end("a", ticket, 0)
    assert cache.get("a") == 1


def test_nothing_found_is_not_kept_and_leaves_nothing() -> None:
    cache: Lru[str, int] = Lru(2)
    load(cache, "a", None)
    assert cache.get("a") is None
    assert len(cache) == 0
