"""Where settings come from, which of them counts, and that every fault is told in full, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from entrepot.config import Address, Config, ConfigError, Problem, check_files, load
from entrepot.config.layers import line_numbers


def of(tmp_path: Path, toml: str = "", environment: Mapping[str, str] | None = None, **flags: object) -> Config:
    file = tmp_path / "entrepot.toml"
    file.write_text(toml)
    return load(file, environment or {}, flags)


def problems(
    tmp_path: Path, toml: str = "", environment: Mapping[str, str] | None = None, **flags: object
) -> list[Problem]:
    with pytest.raises(ConfigError) as refused:
        of(tmp_path, toml, environment, **flags)
    for problem in refused.value.problems:
        assert problem.where
        assert problem.key
        assert problem.message
        assert problem.accepted
    return list(refused.value.problems)


def test_nothing_gives_the_built_in_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    config = load(None, {"XDG_DATA_HOME": "/home/someone/data"}, {})
    assert config.listen == Address("127.0.0.1", 5000)
    assert config.admin == Address("127.0.0.1", 5001)
    assert config.data == Path("/home/someone/data/entrepot")
    assert config.default_upstream == "docker.io"
    assert config.upstreams[0].url == "https://registry-1.docker.io"  # P31
    assert {upstream.name for upstream in config.upstreams[1:]} == {
        *("ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "mcr.microsoft.com", "public.ecr.aws")
    }
    assert not config.offline


def test_root_keeps_its_data_under_var_lib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load(None, {"XDG_DATA_HOME": "/x"}, {}).data == Path("/var/lib/entrepot")


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    toml = 'region = "file"\nlisten = "127.0.0.1:1"\ndrain_timeout = "5s"'
    environment = {"ENTREPOT_REGION": "env", "ENTREPOT_LISTEN": "127.0.0.1:2"}
    config = of(tmp_path, toml, environment, region="flag", listen=None)
    assert config.region == "flag"
    assert config.listen.port == 2
    assert config.drain_timeout == 5
    assert config.admin.port == 5001


def test_every_key_of_the_file_arrives(tmp_path: Path) -> None:
    config = of(
        tmp_path,
        """
        offline = true
        data = "data"
        [log]
        level = "debug"
        format = "json"
        [[upstream]]
        name = "docker.io"
        alternates = ["https://a.example", "http://b.example:80"]
        username = "someone"
        password_file = "secret"
        tag_ttl = "1h"
        stale_while_revalidate = "0s"
        stale_if_error = "2d"
        proxy = "http://proxy.example:3128"
        ca_file = "/etc/ca.pem"
        redirect_hosts = ["blobs.example"]
        """,
    )
    upstream = config.upstreams[0]
    assert len(config.upstreams) == 1
    assert config.offline
    assert config.data == tmp_path / "data"
    assert (config.log.level, config.log.format) == ("debug", "json")
    assert upstream.url == "https://registry-1.docker.io"
    assert upstream.alternates == ("https://a.example", "http://b.example:80")
    assert (upstream.username, upstream.password_file) == ("someone", tmp_path / "secret")
    assert (upstream.tag_ttl, upstream.stale_while_revalidate, upstream.stale_if_error) == (3600, 0, 172800)
    assert (upstream.proxy, upstream.ca_file) == ("http://proxy.example:3128", Path("/etc/ca.pem"))
    assert upstream.redirect_hosts == ("blobs.example",)


def test_upstream_flags_replace_the_list_and_keep_what_the_file_says_of_the_same_name(tmp_path: Path) -> None:
    toml = '[[upstream]]\nname = "docker.io"\ntag_ttl = "1h"\n[[upstream]]\nname = "quay.io"'
    config = of(tmp_path, toml, upstream=("private=http://127.0.0.1:9", "docker.io=http://127.0.0.1:8"))
    assert [upstream.name for upstream in config.upstreams] == ["private", "docker.io"]
    assert config.default_upstream == "private"
    assert config.upstreams[1].url == "http://127.0.0.1:8"
    assert config.upstreams[1].tag_ttl == 3600
    assert config.upstreams[0].tag_ttl == 900


def test_environment_lists_upstreams_and_adds_to_them(tmp_path: Path) -> None:
    environment = {
        "ENTREPOT_UPSTREAM": "docker.io=http://a, private=http://b",
        "ENTREPOT_UPSTREAM__DOCKER_IO__USERNAME": "someone",
        "ENTREPOT_UPSTREAM__DOCKER_IO__PASSWORD_FILE": "/run/secret",
        "ENTREPOT_UPSTREAM__PRIVATE__REDIRECT_HOSTS": "x.example,y.example",
        "ENTREPOT_LOG__LEVEL": "error",
    }
    config = of(tmp_path, "", environment)
    assert [upstream.url for upstream in config.upstreams] == ["http://a", "http://b"]
    assert config.upstreams[0].password_file == Path("/run/secret")
    assert config.upstreams[1].redirect_hosts == ("x.example", "y.example")
    assert config.log.level == "error"


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        'listne = "x"\n'
        "\n"
        "[log]\n"
        'level = "loud"\n'
        "[[upstream]]\n"
        'name = "docker.io"\n'
        "[[upstream]]\n"
        'name = "quay.io"\n'
        "tag_ttl = 30\n",
        {"ENTREPOT_ADMIN": "5001"},
        region="EU",
    )
    file = str(tmp_path / "entrepot.toml")
    assert {(problem.where, problem.key) for problem in found} == {
        (f"{file}, line 1", "listne"),
        (f"{file}, line 4", "log.level"),
        (f"{file}, line 9", "upstream quay.io.tag_ttl"),
        ("environment variable ENTREPOT_ADMIN", "admin"),
        ("--region", "region"),
    }


def test_a_misspelt_key_gets_the_nearest_one_and_the_list(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, '[[upstream]]\nname = "docker.io"\ntag_tll = "1m"')
    assert "did you mean 'tag_ttl'?" in problem.message
    assert "redirect_hosts" in problem.accepted
    (problem,) = problems(tmp_path, "", {"ENTREPOT_LSITEN": "x"})
    assert problem.where == "environment variable ENTREPOT_LSITEN"
    assert "did you mean 'listen'?" in problem.message


def test_a_bundle_to_serve_from_may_stand_anywhere(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('from = "site.tar"')
    assert load(tmp_path / "c.toml", {}, {}).serve_from == tmp_path / "site.tar"
    assert load(None, {"ENTREPOT_FROM": "/media/disk"}, {}).serve_from == Path("/media/disk")
    assert load(None, {}, {"from": "/media/disk"}).serve_from == Path("/media/disk")


def test_trusted_keys_have_a_name_of_their_own_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[trusted_key]]\nname = "hq"\nfile = "hq.pub"\nrepositories = ["library/*"]')
    (key,) = load(tmp_path / "c.toml", {}, {}).trusted_keys
    assert (key.name, key.file, key.repositories) == ("hq", tmp_path / "hq.pub", ("library/*",))
    found = problems(tmp_path, '[[trusted_key]]\nname = "hq"\n[[trusted_key]]\nname = "hq"\nfile = "x"')
    assert [problem.key for problem in found] == ["trusted_key.file"]


def test_peers_and_grants_are_of_the_file_alone(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "", {"ENTREPOT_PEER__TOKEN": "hunter2"})
    assert (problem.key, "hunter2" in str(problem)) == ("peer.token", False)


@pytest.mark.parametrize(
    ("toml", "key", "message"),
    [
        ('[[upstream]]\nurl = "http://x"', "upstream.name", "missing"),
        ('[[upstream]]\nname = "private"', "upstream private.url", "missing"),
        ('[[upstream]]\nname = "quay.io"\n[[upstream]]\nname = "quay.io"', "upstream quay.io.name", "also in"),
        ('[[upstream]]\nname = "a:5000"\nurl = "http://a:5000"', "upstream a:5000.name", "alias"),
        ("[[upstream]]\nname = 5", "upstream.name", "not a string"),
        ('[[upstream]]\nname = "quay.io"\nusername = "x"', "upstream quay.io.username", "no password_file"),
        ('[[upstream]]\nname = "quay.io"\npassword_file = "x"', "upstream quay.io.password_file", "no username"),
        (
            '[[upstream]]\nname = "quay.io"\nusername = "x"\npassword_file = "x"\ndocker_config = "y"',
            "upstream quay.io.docker_config",
            "given too",
        ),
        ("upstream = []", "upstream", "not a list of sections"),
        ('upstream = "docker.io"', "upstream", "not a list of sections"),
        ('log = "debug"', "log", "not a section"),
        ('[log]\ncolour = "red"', "log.colour", "no such key"),
        ('admin = "127.0.0.1:5000"', "admin", "both 127.0.0.1:5000"),
        ("listen = 5000", "listen", "not a string"),
        ("drain_timeout = 30", "drain_timeout", "no unit"),
        ('offline = "perhaps"', "offline", "neither"),
        ("data = 1", "data", "not a string"),
    ],
)
def test_each_fault_names_its_key_and_reason(tmp_path: Path, toml: str, key: str, message: str) -> None:
    (problem,) = problems(tmp_path, toml)
    assert problem.key == key
    assert message in problem.message
    assert problem.where.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("environment", "where", "message"),
    [
        ({"ENTREPOT_UPSTREAM": "docker.io"}, "ENTREPOT_UPSTREAM", "has no '='"),
        ({"ENTREPOT_UPSTREAM__NOWHERE__URL": "http://x"}, "ENTREPOT_UPSTREAM__NOWHERE__URL", "no such key"),
        ({"ENTREPOT_UPSTREAM__QUAY_IO__PASSWORD": "hunter2"}, "PASSWORD", "did you mean 'password_file'?"),
        ({"ENTREPOT_LOG": "debug"}, "ENTREPOT_LOG", "section"),
    ],
)
def test_each_fault_of_the_environment_names_its_variable(
    tmp_path: Path, environment: Mapping[str, str], where: str, message: str
) -> None:
    found = problems(tmp_path, "", environment)
    assert where in found[0].where
    assert message in found[0].message
    assert "hunter2" not in str(found[0])


def test_an_upstream_flag_without_url_is_refused(tmp_path: Path) -> None:
    assert "has no '='" in problems(tmp_path, upstream=("docker.io",))[0].message


def test_two_ports_chosen_by_the_system_do_not_clash(tmp_path: Path) -> None:
    assert of(tmp_path, listen="127.0.0.1:0", admin="127.0.0.1:0").listen.port == 0


def test_variables_of_kubernetes_and_of_the_suite_are_left_alone(tmp_path: Path) -> None:
    environment = {
        "ENTREPOT_SERVICE_HOST": "10.0.0.1",
        "ENTREPOT_SERVICE_PORT_REGISTRY": "5000",
        "ENTREPOT_PORT": "tcp://10.0.0.1:5000",
        "ENTREPOT_PORT_5000_TCP_ADDR": "10.0.0.1",
        "ENTREPOT_ADMIN_SERVICE_HOST": "10.0.0.1",
        "ENTREPOT_CONFIG": "x",
        "ENTREPOT_REQUIRE_TOOLS": "1",
        "ENTREPOTS": "x",
    }
    assert of(tmp_path, "", environment).region == "local"


def test_a_file_that_cannot_be_read_or_is_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: --config: cannot be read: No such file"):
        load(tmp_path / "nowhere.toml", {}, {})
    (problem,) = problems(tmp_path, 'listen = "x\n')
    assert "line 1" in problem.message
    (tmp_path / "latin.toml").write_bytes(b"region = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin.toml", {}, {})


def test_files_that_cannot_be_opened_are_found_before_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    config = of(
        tmp_path,
        '[[upstream]]\nname = "quay.io"\nusername = "x"\npassword_file = "secret"\nca_file = "nowhere.pem"',
    )
    (problem,) = check_files(config)
    assert problem.key == "upstream quay.io.ca_file"
    assert problem.where == str(tmp_path / "nowhere.pem")


def test_lines_are_found_for_sections_arrays_and_dotted_keys() -> None:
    lines = line_numbers(
        'a = 1\nlog.level = "x"\n\n[[upstream]]\nname = "a"\n[[upstream]]\n  name = "b"\n[tls] # x\ncert=1'
    )
    assert lines["a",] == 1
    assert lines["log", "level"] == 2
    assert lines["upstream", 0, "name"] == 5
    assert lines["upstream", 1] == 6
    assert lines["upstream", 1, "name"] == 7
    assert lines["tls", "cert"] == 9


def test_sections_warm_and_sizes_are_read(tmp_path: Path) -> None:
    config = of(
        tmp_path,
        """
        quota = "1.5TiB"
        workers = 2
        trusted_proxies = ["10.0.0.0/8", "::1"]
        admin_token = "0123456789abcdef"
        [tls]
        cert = "tls.crt"
        key = "tls.key"
        [access]
        mode = "htpasswd"
        htpasswd = "users"
        [[warm]]
        references = ["docker.io/library/alpine:3.*"]
        platforms = ["linux/amd64", "linux/arm64/v8"]
        every = "1h"
        [[upstream]]
        name = "docker.io"
        negative_ttl = "5s"
        cooldown = "1d"
        allow = ["library/*"]
        deny = ["**/secret"]
        concurrency = 0
        requests_per_second = 2.5
        """,
        {"ENTREPOT_QUOTA": "1TiB", "ENTREPOT_TLS__KEY": str(tmp_path / "other.key")},
    )
    assert config.quota == 1 << 40
    assert (config.workers, len(config.trusted_proxies)) == (2, 2)
    assert config.tls is not None
    assert (config.tls.cert, config.tls.key) == (tmp_path / "tls.crt", tmp_path / "other.key")
    assert (config.access.mode, config.access.htpasswd) == ("htpasswd", tmp_path / "users")
    assert config.warm[0].every == 3600
    (upstream,) = config.upstreams
    assert (upstream.cooldown, upstream.negative_ttl, upstream.concurrency) == (86400, 5, 0)
    assert (upstream.allow, upstream.deny, upstream.requests_per_second) == (("library/*",), ("**/secret",), 2.5)


def test_a_secret_in_the_configuration_does_not_show_itself(tmp_path: Path) -> None:
    config = of(tmp_path, 'admin_token = "0123456789abcdef"')
    assert "0123456789abcdef" not in repr(config)
    assert config.admin_token is not None
    assert config.admin_token.reveal() == "0123456789abcdef"


@pytest.mark.parametrize(
    ("toml", "key", "message"),
    [
        ('quota = "0"', "quota", "no room"),
        ('quota = "many"', "quota", "not a size"),
        ("workers = 0", "workers", "from 1 to 64"),
        ("workers = true", "workers", "whole number"),
        ('trusted_proxies = ["10.0.0.1/8"]', "trusted_proxies", "host bits"),
        ('admin_token = "short"', "admin_token", "16 characters"),
        ('[tls]\ncert = "x"', "tls.key", "missing"),
        ('[access]\nmode = "htpasswd"', "access.htpasswd", "missing"),
        ('[access]\nmode = "token"\nhtpasswd = "x"\ntoken_file = "y"', "access.htpasswd", "nobody would be asked"),
        ("[access]\nmode = 'closed'", "access.mode", "none of them"),
        ("[[warm]]\nevery = '1h'", "warm.references", "missing"),
        ("[[warm]]\nreferences = ['alpine']\nevery = '1s'", "warm.every", "shorter than a minute"),
        ("[[warm]]\nreferences = ['alpine']\nplatforms = ['linux']", "warm.platforms", "not a platform"),
        ("access = 5", "access", "not a section"),
        ("[[upstream]]\nname = 'quay.io'\nproxy_username = 'x'", "upstream quay.io.proxy_username", "missing"),
        ("[[upstream]]\nname = 'quay.io'\nconcurrency = -1", "upstream quay.io.concurrency", "from 0"),
        ("[[upstream]]\nname = 'quay.io'\nrequests_per_second = 'x'", "upstream quay.io.requests_per_second", "number"),
    ],
)
def test_values_of_limits_and_access_are_checked(tmp_path: Path, toml: str, key: str, message: str) -> None:
    (problem,) = problems(tmp_path, toml)
    assert (problem.key, message in problem.message) == (key, True), problem


SECRET = "a secret of the fleet"


def test_a_node_of_a_fleet_is_reached_where_it_listens_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    toml = f'redis = "redis://:hunter2@r.example/0"\nfleet_secret = "{SECRET}"\nlisten = "10.0.0.5:5000"\n'
    config = of(tmp_path, toml)
    assert config.fleet_address == "http://10.0.0.5:5000"
    assert of(tmp_path, toml + 'advertise = "https://one.example"').fleet_address == "https://one.example"
    assert str(config.redis) == "redis://***@r.example/0"
    assert SECRET not in repr(config)
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ('redis = "redis://r"', "fleet_secret"),
        (f'redis = "redis://r"\nfleet_secret = "{SECRET}"\nlisten = "0.0.0.0:5000"', "advertise"),
        (f'redis = "redis://r"\nfleet_secret = "{SECRET}"\nfleet_secret_file = "x"', "fleet_secret_file"),
        ('redis = "http://r"', "redis"),
        ('redis = "redis://"', "redis"),
        ('store = "s3:/b"', "store"),
        ('store = "file:///tmp"', "store"),
        ('neighbours = ["10.0.0.1/8"]', "neighbours"),
        ('neighbours = ["http://x"]', "neighbours"),
        ('fleet_secret = "short"', "fleet_secret"),
    ],
)
def test_what_a_fleet_needs_is_asked_for_before_anything_starts(tmp_path: Path, toml: str, key: str) -> None:
    (problem,) = problems(tmp_path, toml)
    assert problem.key == key
    assert SECRET not in str(problem)


def test_neighbours_are_networks_and_globs_of_names(tmp_path: Path) -> None:
    config = of(tmp_path, 'neighbours = ["10.0.0.0/8", "10.1.1.1", "::1", "*.Mirror.example", "node-*"]')
    assert config.neighbours == ("10.0.0.0/8", "10.1.1.1/32", "::1/128", "*.mirror.example", "node-*")


@pytest.mark.parametrize(
    "text",
    [
        'store = "s3://key:{}@bucket/prefix"',
        'store = "s3://bucket/prefix?secret={}"',
        '[[upstream]]\nname = "a"\nurl = "https://h/?x={}"',
        '[[upstream]]\nname = "a"\nurl = "https://u:{}@h"',
        '[[upstream]]\nname = "a"\nurl = "https://h"\nproxy = "u:{}@h:1"',
        '[[upstream]]\nname = "a"\nurl = "https://h"\nalternates = ["h/?{}"]',
        'redis = "redis:{}@h"',
        'redis = "redis://:p/{}@h"',
        'admin_token = ["{}"]',
        'fleet_secret = "{}"',
    ],
)
def test_what_is_refused_is_not_shown_where_it_may_hold_a_credential(tmp_path: Path, text: str) -> None:
    assert "hunter2" not in "".join(map(str, problems(tmp_path, text.format("hunter2"))))
