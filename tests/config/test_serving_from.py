"""`from`: what has nothing to do in a mirror that serves bundles from where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrepot.config import ConfigError, check_files, load

PEER = '[[peer]]\nname = "us-east"\nurl = "https://us.example"\ntoken_file = "t"'
GRANT = '[[grant]]\nname = "us-east"\ntoken_file = "t"\nrepositories = ["*"]'


def test_what_has_nothing_to_do_beside_bundles_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'from = "site.tar"\nworkers = 4\nregion = "eu-west"\nstore = "s3://bucket/prefix"\n'
        'redis = "redis://redis.example"\nadvertise = "http://10.0.0.5:5000"\nfleet_secret = "0123456789abcdef"\n'
        f'[access]\nmode = "upstream"\n{PEER}\n{GRANT}\n[[warm]]\nreferences = ["docker.io/library/alpine:3"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    found = {problem.key: problem for problem in caught.value.problems}
    assert set(found) == {"workers", "store", "redis", "access.mode", "peer", "grant", "warm"}
    assert found["workers"].where == f"{file}, line 2"
    assert all("`from`" in problem.message and problem.accepted for problem in found.values())


def test_who_may_pull_and_one_worker_stand_beside_bundles(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('from = "site.tar"\nworkers = 1\noffline = false\n[access]\nmode = "token"\ntoken_file = "t"\n')
    config = load(file, {}, {})
    assert (config.serve_from, config.access.mode) == (tmp_path / "site.tar", "token")


def test_bundle_that_is_not_there_is_found_by_the_check(tmp_path: Path) -> None:
    config = load(None, {}, {"from": str(tmp_path / "site.tar")})
    (problem,) = check_files(config)
    assert (problem.key, problem.where) == ("from", str(tmp_path / "site.tar"))
    (tmp_path / "site.tar").touch()
    assert check_files(config) == []


def test_without_bundles_the_same_keys_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'workers = 4\nregion = "eu-west"\n{PEER}\n{GRANT}\n')
    assert load(file, {}, {}).workers == 4
