"""What `[[peer]]` and `[[grant]]` say, and what they must say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrepot.config import Config, check_files
from entrepot.config.keys import GRANT, PEER
from entrepot.config.model import Window
from tests.config.test_load import of, problems

REGION = 'region = "eu-west"\n'
PEER_US = '[[peer]]\nname = "us-east"\nurl = "https://us.example"\ntoken_file = "us.token"\n'
GRANT_AP = '[[grant]]\nname = "ap-south"\ntoken_file = "ap.token"\nrepositories = ["*"]\n'
TLS = '[tls]\ncert = "a"\nkey = "b"\nclient_ca = "c"\n'


def test_every_key_of_a_peer_arrives(tmp_path: Path) -> None:
    written = """
        ca_file = "ca.pem"
        cert = "me.pem"
        key = "me.key"
        repositories = ["docker.io/library/*"]
        tags = [">=3.18", "latest"]
        newest = 10
        platforms = ["linux/amd64"]
        referrers = false
        bandwidth = "50MiB/s"
        window = ["22:00-06:00", "12:00-13:00 Europe/Berlin"]
        removal_grace = "1h"
        removal_share = "5%"
    """
    (peer,) = of(tmp_path, REGION + PEER_US + written).peers
    assert {field for field in PEER if getattr(peer, field) is not None} == set(PEER)
    assert (peer.name, peer.url, peer.token_file) == ("us-east", "https://us.example", tmp_path / "us.token")
    assert (peer.ca_file, peer.cert, peer.key) == tuple(tmp_path / name for name in ("ca.pem", "me.pem", "me.key"))
    assert (peer.repositories, peer.tags, peer.newest) == (("docker.io/library/*",), (">=3.18", "latest"), 10)
    assert (peer.platforms, peer.referrers, peer.bandwidth) == (("linux/amd64",), False, 50 << 20)
    assert peer.window == (Window(22 * 60, 6 * 60), Window(12 * 60, 13 * 60, "Europe/Berlin"))
    assert (peer.removal_grace, peer.removal_share) == (3600, 0.05)


def test_what_a_peer_does_not_say_is_all_of_it_without_a_limit(tmp_path: Path) -> None:
    (peer,) = of(tmp_path, REGION + PEER_US).peers
    assert (peer.repositories, peer.tags, peer.newest, peer.platforms) == (("*",), (), None, ())
    assert (peer.referrers, peer.bandwidth, peer.window) == (True, None, ())
    assert (peer.removal_grace, peer.removal_share) == (600, 0.25)


def test_every_key_of_a_grant_arrives(tmp_path: Path) -> None:
    config = of(tmp_path, REGION + TLS + GRANT_AP + 'certificate = "ap.example"\n')
    (grant,) = config.grants
    assert {field for field in GRANT if getattr(grant, field) is not None} == set(GRANT)
    assert (grant.name, grant.repositories, grant.certificate) == ("ap-south", ("*",), "ap.example")


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("name", '"US"', "as its own configuration has it"),
        ("url", '"us.example"', "http:// or https://"),
        ("url", '"https://me:hunter2@us.example"', "http:// or https://"),
        ("url", '"https://us.example/v2"', "http:// or https://"),
        ("token_file", "5", "a file that holds the token"),
        ("ca_file", "5", "PEM"),
        ("cert", "5", "PEM"),
        ("key", "5", "private key"),
        ("repositories", '["a//b"]', "array of globs"),
        ("repositories", "[]", "array of globs"),
        ("tags", '[">=x y"]', "globs and versions"),
        ("newest", "0", "a number of tags"),
        ("platforms", '["linux"]', "array of platforms"),
        ("referrers", '"maybe"', "true or false"),
        ("bandwidth", '"50MiB"', "50MiB/s"),
        ("bandwidth", '"0/s"', "50MiB/s"),
        ("window", '"25:00-06:00"', "22:00-06:00"),
        ("window", '"06:00-06:00"', "22:00-06:00"),
        ("window", '"22:00-06:00 Mars/Base"', "22:00-06:00"),
        ("removal_grace", "5", "30s"),
        ("removal_share", '"101%"', "25%"),
        ("removal_share", "0.25", "25%"),
    ],
)
def test_each_fault_of_a_peer_names_its_key_and_the_accepted_form(
    tmp_path: Path, key: str, value: str, accepted: str
) -> None:
    lines = [line for line in PEER_US.splitlines() if not line.startswith(f"{key} =")]
    found = problems(tmp_path, REGION + "\n".join([*lines, f"{key} = {value}"]))
    assert any(problem.key.endswith(f".{key}") and accepted in problem.accepted for problem in found), found
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("toml", "key", "message"),
    [
        (PEER_US, "region", "needs a name"),
        (GRANT_AP, "region", "needs a name"),
        (REGION + PEER_US + PEER_US, "peer us-east.name", "also in"),
        (REGION + GRANT_AP + GRANT_AP, "grant ap-south.name", "also in"),
        (REGION + PEER_US.replace("us-east", "eu-west"), "peer eu-west.name", "own"),
        (REGION + PEER_US.replace('url = "https://us.example"', ""), "peer us-east.url", "missing"),
        (REGION + PEER_US.replace('token_file = "us.token"', ""), "peer us-east.token_file", "nothing proves"),
        (REGION + PEER_US + 'cert = "x"', "peer us-east.cert", "other of its kind"),
        (REGION + PEER_US + "tokn_file = 'x'", "peer us-east.tokn_file", "did you mean 'token_file'"),
        (REGION + GRANT_AP.replace('token_file = "ap.token"', ""), "grant ap-south.token_file", "nobody could prove"),
        (REGION + GRANT_AP.replace('repositories = ["*"]', ""), "grant ap-south.repositories", "missing"),
        (REGION + GRANT_AP.replace('["*"]', "[]"), "grant ap-south.repositories", "empty"),
        (REGION + GRANT_AP + 'certificate = "x"', "grant ap-south.certificate", "nobody vouches"),
        (
            REGION + TLS + f'{GRANT_AP}certificate = "x"\n{GRANT_AP.replace("ap-south", "us-east")}certificate = "x"',
            "grant us-east.certificate",
            "grant ap-south has it too",
        ),
        ("peer = 5", "peer", "not a list of sections"),
    ],
)
def test_what_sections_must_say_together_is_checked(tmp_path: Path, toml: str, key: str, message: str) -> None:
    (problem,) = problems(tmp_path, toml)
    assert (problem.key, message in problem.message) == (key, True), problem


def two_grants(folder: Path, ap: str, us: str) -> Config:
    (folder / "ap.token").write_text(ap)
    (folder / "us.token").write_text(us)
    return of(folder, REGION + GRANT_AP + GRANT_AP.replace("ap", "us"))


def test_a_token_of_two_grants_is_told_with_both_and_without_itself(tmp_path: Path) -> None:
    assert check_files(two_grants(tmp_path, "# old\none\ntwo\n", "three\n")) == []
    (problem,) = check_files(two_grants(tmp_path, "hunter2\n", "other\nhunter2\n"))
    assert (problem.where, problem.key) == (str(tmp_path / "us.token"), "grant us-south.token_file")
    assert "ap.token of grant ap-south" in problem.message
    assert "hunter2" not in str(problem)


def test_a_file_of_tokens_without_any_is_found_before_it_is_needed(tmp_path: Path) -> None:
    (problem,) = check_files(two_grants(tmp_path, "# none\n", "three\n"))
    assert (problem.key, "holds no token" in problem.message) == ("grant ap-south.token_file", True)
    (tmp_path / "us.token").unlink()
    config = of(tmp_path, REGION + PEER_US)
    (missing,) = check_files(config)
    assert missing.key == "peer us-east.token_file"
