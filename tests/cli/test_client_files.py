"""What `entrepot client … --write` and `--remove` do to files that say more than ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import tempfile
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies as st

from entrepot.cli import main
from entrepot.clients.merging import BEGIN, CannotMerge, merged, removed, without_block
from entrepot.clients.texts import BUILDKITD_TOML, DAEMON_JSON, MAKERS, REGISTRIES_CONF, REGISTRIES_YAML, Form
from entrepot.config import UpstreamConfig
from tests.support.clients import Containerd
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.processes import Program, run

MIRROR = "http://mirror.example:5000"
HUB = "docker.io=https://registry-1.docker.io"
HOSTS = "/etc/containerd/certs.d/docker.io/hosts.toml"
IMAGE = make_image([blob(100)])


def client(root: Path, *arguments: str, mirror: str = MIRROR) -> Result:
    words = ["client", *arguments, "--mirror", mirror, "--upstream", HUB]
    return CliRunner(catch_exceptions=False).invoke(main, words, env={"DESTDIR": str(root)})


def place(root: Path, path: str, text: str = "") -> Path:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if text:
        target.write_text(text)
    return target


PATHS = {
    "docker": DAEMON_JSON,
    "containerd": HOSTS,
    "podman": REGISTRIES_CONF,
    "crio": REGISTRIES_CONF,
    "buildkit": BUILDKITD_TOML,
    "k3s": REGISTRIES_YAML,
}
FOREIGN = {
    "docker": '{"data-root": "/big", "registry-mirrors": ["https://other.example"]}\n',
    "containerd": '# by hand\nserver = "https://mine.example"\n\n# first\n[host."https://other.example"]\n  ca = "x"\n',
    "podman": '[[registry]]\nlocation = "quay.io"\nblocked = true\n',
    "crio": '[[registry]]\nlocation = "quay.io"\nblocked = true\n',
    "buildkit": 'debug = true\n\n[worker.oci]\n  gc = true\n\n[registry."quay.io"]\n  mirrors = ["m"]\n',
    "k3s": 'mirrors:\n    quay.io:\n        endpoint: ["https://m"]\nconfigs:\n    m:\n        auth: {username: u}\n',
}


def test_every_client_of_the_contract_is_there() -> None:
    assert set(MAKERS) == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_file_that_is_not_there_is_made_and_goes_again(name: str, tmp_path: Path) -> None:
    written = client(tmp_path, name, "--write")
    assert written.exit_code == 0
    target = place(tmp_path, PATHS[name])
    assert "mirror.example:5000" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]
    assert client(tmp_path, name, "--remove").exit_code == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", PATHS)
def test_what_else_a_file_says_stays_and_is_all_that_is_left(name: str, tmp_path: Path) -> None:
    target = place(tmp_path, PATHS[name], FOREIGN[name])
    target.chmod(0o640)
    written = client(tmp_path, name, "--write")
    backup = target.with_name(target.name + ".before-entrepot")
    assert str(backup) in written.stdout
    assert backup.read_text() == FOREIGN[name]
    text = target.read_text()
    assert "mirror.example:5000" in text
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    client(tmp_path, name, "--remove")
    assert target.read_text() == FOREIGN[name]
    assert not backup.exists()


@pytest.mark.parametrize("name", ["containerd", "k3s"])
def test_a_last_line_without_an_end_stays_one(name: str, tmp_path: Path) -> None:
    target = place(tmp_path, PATHS[name], "# mine")
    client(tmp_path, name, "--write")
    client(tmp_path, name, "--remove")
    assert [(path, path.read_text()) for path in tmp_path.rglob("*") if path.is_file()] == [(target, "# mine")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docker", '{"a": 1e999}'),
        ("docker", '{"a": "\\ud800"}'),
        ("k3s", "configs:\n  a: b\n---\nother: 1\n"),
    ],
)
def test_what_could_not_be_written_again_as_it_was_is_left_alone(name: str, text: str, tmp_path: Path) -> None:
    target = place(tmp_path, PATHS[name], text)
    result = client(tmp_path, name, "--write")
    assert (result.exit_code, target.read_text()) == (1, text)
    assert f"{target} was left alone" in result.stderr


@pytest.mark.parametrize("name", PATHS)
def test_writing_twice_is_writing_once(name: str, tmp_path: Path) -> None:
    target = place(tmp_path, PATHS[name], FOREIGN[name])
    client(tmp_path, name, "--write")
    first, inode = target.read_text(), target.stat().st_ino
    again = client(tmp_path, name, "--write", "--format", "json")
    assert (target.read_text(), target.stat().st_ino) == (first, inode)
    document = json.loads(again.stdout)
    assert [change["action"] for change in document["changes"]] == ["unchanged"]
    assert document["restart"] is None


@pytest.mark.parametrize("name", [name for name in PATHS if name != "docker"])
def test_another_mirror_takes_the_place_of_the_first_and_a_later_edit_stays(name: str, tmp_path: Path) -> None:
    target = place(tmp_path, PATHS[name], FOREIGN[name])
    client(tmp_path, name, "--write")
    target.write_text(target.read_text() + "# added later\n")
    client(tmp_path, name, "--write", mirror="http://second.example:5000")
    assert "mirror.example" not in target.read_text()
    client(tmp_path, name, "--remove")
    assert target.read_text() == FOREIGN[name] + "# added later\n"
    assert target.with_name(target.name + ".before-entrepot").read_text() == FOREIGN[name]


def test_docker_keeps_its_other_keys_and_asks_us_first(tmp_path: Path) -> None:
    target = place(tmp_path, DAEMON_JSON, FOREIGN["docker"])
    client(tmp_path, "docker", "--write")
    assert json.loads(target.read_text()) == {
        "data-root": "/big",
        "registry-mirrors": [MIRROR, "https://other.example"],
        "insecure-registries": ["mirror.example:5000"],
    }


def test_docker_keeps_what_it_was_told_before_us_even_when_it_is_the_same(tmp_path: Path) -> None:
    told = '{"insecure-registries": ["mirror.example:5000"], "debug": true}'
    target = place(tmp_path, DAEMON_JSON, told)
    client(tmp_path, "docker", "--write")
    document = json.loads(target.read_text())
    target.write_text(json.dumps({**document, "debug": False}))
    client(tmp_path, "docker", "--remove")
    assert json.loads(target.read_text()) == {"insecure-registries": ["mirror.example:5000"], "debug": False}


def test_containerd_keeps_a_server_and_hosts_of_its_own_but_asks_us_first(tmp_path: Path) -> None:
    target = place(tmp_path, HOSTS, FOREIGN["containerd"])
    client(tmp_path, "containerd", "--write")
    document = tomllib.loads(target.read_text())
    assert document["server"] == "https://mine.example"
    assert list(document["host"]) == [MIRROR, "https://other.example"]


def test_hosts_of_upstreams_that_are_configured_no_more_are_taken_out_too(tmp_path: Path) -> None:
    words = ["client", "containerd", "--mirror", MIRROR, "--write", "--upstream", "quay.io=https://quay.io"]
    assert CliRunner().invoke(main, words, env={"DESTDIR": str(tmp_path)}).exit_code == 0
    removal = client(tmp_path, "containerd", "--remove")
    assert "certs.d/quay.io/hosts.toml" in removal.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_k3s_gets_our_registries_among_its_own(tmp_path: Path) -> None:
    target = place(tmp_path, REGISTRIES_YAML, FOREIGN["k3s"])
    client(tmp_path, "k3s", "--write")
    assert target.read_text().splitlines()[:6] == [
        "mirrors:",
        f"    {BEGIN}",
        '    "docker.io":',
        "      endpoint:",
        f'        - "{MIRROR}"',
        "    # end entrepot",
    ]
    only_configs = "configs:\n  m:\n    auth: {}\n"
    assert merged("yaml", only_configs, "mirrors:\n  x:\n").startswith(only_configs + BEGIN + "\nmirrors:\n  x:\n")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("docker", "{", "no JSON"),
        ("docker", "[]", "no JSON object"),
        ("docker", '{"registry-mirrors": "x"}', "not a list"),
        ("containerd", "server = ", "no TOML"),
        ("containerd", f'[host."{MIRROR}"]\ncapabilities = ["push"]\n', "a table for the same registry"),
        ("podman", '[[registry]]\nprefix = "docker.io"\nlocation = "x"\n', "a [[registry]] for docker.io of its own"),
        ("buildkit", '[registry."docker.io"]\nmirrors = ["x"]\n', "a table for the same registry"),
        ("buildkit", f"{BEGIN}\n", "not one pair"),
        ("k3s", "mirrors:\n  docker.io:\n    endpoint: [x]\n", "have docker.io already"),
        ("k3s", "mirrors: {quay.io: {}}\n", "not `mirrors:` alone"),
        ("k3s", "- a\n- b\n", "line 1 is not a plain `key:`"),
        ("k3s", "mirrors:\n\tquay.io:\n", "tabs"),
    ],
)
def test_a_file_that_cannot_be_merged_is_left_alone_with_the_reason(
    name: str, text: str, why: str, tmp_path: Path
) -> None:
    target = place(tmp_path, PATHS[name], text)
    result = client(tmp_path, name, "--write")
    assert result.exit_code == 1
    assert why in result.stderr
    assert str(target) in result.stderr
    assert target.read_text() == text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]


def test_removing_speaks_of_no_file_that_is_not_ours(tmp_path: Path) -> None:
    other = place(tmp_path, "/etc/containerd/certs.d/other.example/hosts.toml", "server = 'https://other.example'\n")
    client(tmp_path, "containerd", "--write")
    assert "other.example" not in client(tmp_path, "containerd", "--remove").stdout
    assert other.read_text() == "server = 'https://other.example'\n"


def test_one_file_that_cannot_be_merged_leaves_all_of_them_alone(tmp_path: Path) -> None:
    place(tmp_path, "/etc/containerd/certs.d/quay.io/hosts.toml", "server = ")
    words = ["client", "containerd", "--mirror", MIRROR, "--write"]
    result = CliRunner().invoke(main, words, env={"DESTDIR": str(tmp_path)})
    assert result.exit_code == 1
    assert not place(tmp_path, HOSTS).exists()


def test_a_file_that_is_a_link_stays_one(tmp_path: Path) -> None:
    real = place(tmp_path, "/srv/daemon.json", "{}")
    link = place(tmp_path, DAEMON_JSON)
    link.symlink_to(real)
    client(tmp_path, "docker", "--write")
    assert link.is_symlink()
    assert MIRROR in real.read_text()


def test_a_mirror_that_is_configured_with_tls_is_named_by_https(tmp_path: Path) -> None:
    file = tmp_path / "entrepot.toml"
    file.write_text('listen = "0.0.0.0:443"\n[tls]\ncert = "c.pem"\nkey = "k.pem"\n')
    result = CliRunner().invoke(main, ["client", "docker", "--config", str(file)])
    assert json.loads(result.stdout)["registry-mirrors"] == ["https://127.0.0.1:443"]


def test_write_and_remove_together_end_with_2(tmp_path: Path) -> None:
    assert client(tmp_path, "docker", "--write", "--remove").exit_code == 2


def test_nothing_to_remove_is_said(tmp_path: Path) -> None:
    result = client(tmp_path, "docker", "--remove")
    assert result.exit_code == 0
    assert "nothing to do" in result.stdout


def test_what_was_put_there_by_hand_as_printed_becomes_ours(tmp_path: Path) -> None:
    hub = UpstreamConfig(name="docker.io", url="https://registry-1.docker.io")
    printed = MAKERS["containerd"](MIRROR, [hub]).files[0].content
    assert merged("toml", printed, printed) == merged("toml", None, printed)


FORMS: tuple[Form, ...] = ("toml", "yaml")
LINES = st.lists(
    st.sampled_from(["", "# a remark", "[a]", "[[b]]", "x = 1", "k = 'v'", "mirrors:", "  q: {}", "c:", BEGIN]),
    max_size=8,
).map(lambda lines: "".join(f"{line}\n" for line in lines))


@given(st.sampled_from(FORMS), LINES)
def test_what_is_merged_comes_out_as_it_went_in_or_is_refused(form: Form, text: str) -> None:
    ours = {"toml": '[host."m"]\n  c = 1\n', "yaml": 'mirrors:\n  "docker.io":\n    endpoint:\n      - "m"\n'}[form]
    try:
        result = merged(form, text, ours)
    except CannotMerge:
        return
    assert merged(form, result, ours) == result
    assert without_block(result).strip() == text.strip()
    assert (removed(form, result, ours, None) is None) == (not text.strip())


@pytest.mark.needs("skopeo")
async def test_skopeo_reads_what_is_written_beside_what_was_there(tmp_path: Path) -> None:
    async with FakeUpstream() as mirror:
        IMAGE.publish(mirror, "docker.io/library/alpine", "3")
        conf = place(tmp_path, REGISTRIES_CONF, FOREIGN["podman"])
        client(tmp_path, "podman", "--write", mirror=mirror.url)
        inspect = ("inspect", "--raw", "docker://docker.io/library/alpine:3")
        answer = await asyncio.to_thread(run, ["skopeo", "--registries-conf", conf, *inspect])
        assert answer.stdout.encode() == IMAGE.body


@pytest.mark.needs("podman")
def test_podman_reads_what_is_written_beside_what_was_there(tmp_path: Path) -> None:
    conf = place(tmp_path, REGISTRIES_CONF, FOREIGN["podman"])
    client(tmp_path, "podman", "--write")
    environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(tmp_path)}
    with tempfile.TemporaryDirectory(prefix="p-") as short:  # podman takes 50 characters
        folders = ("--root", tmp_path / "r", "--runroot", short, "--storage-driver", "vfs")
        answer = run(["podman", *folders, "info", "--format", "{{json .Registries}}"], env=environment)
    registries = json.loads(answer.stdout)
    assert registries["docker.io"]["Mirrors"][0]["Location"] == "mirror.example:5000/docker.io"
    assert registries["quay.io"]["Blocked"] is True


@pytest.mark.needs("containerd", "ctr", "root")
async def test_containerd_reads_what_is_written_beside_what_was_there(tmp_path: Path) -> None:
    async with FakeUpstream() as mirror:
        IMAGE.publish(mirror, "library/alpine", "3")
        place(tmp_path, HOSTS, 'server = "https://mine.example"\n\n[host."http://127.0.0.1:9"]\n')
        client(tmp_path, "containerd", "--write", mirror=mirror.url)
        with await asyncio.to_thread(Containerd, tmp_path / "c"):
            hosts = ("--hosts-dir", tmp_path / "etc/containerd/certs.d")
            fetch = ("content", "fetch", *hosts, "docker.io/library/alpine:3")
            await asyncio.to_thread(run, ["ctr", "-a", tmp_path / "c" / "s", *fetch])
        assert mirror.count(method="GET", contains="/blobs/") == len(IMAGE.blobs)


@pytest.mark.slow
@pytest.mark.needs("dockerd", "docker", "root")
def test_dockerd_reads_what_is_written_beside_what_was_there(tmp_path: Path) -> None:
    config = place(tmp_path, DAEMON_JSON, '{"iptables": false, "ip6tables": false, "bridge": "none"}')
    client(tmp_path, "docker", "--write")
    host = f"unix://{tmp_path}/d.sock"
    # Its containerd listens below here, and the name of a socket ends at 107 characters.
    sockets = tempfile.mkdtemp()
    folders = ("--data-root", tmp_path / "d", "--exec-root", sockets, "--pidfile", tmp_path / "pid")
    argv: list[str | Path] = ["dockerd", "--config-file", config, "-H", host, *folders, "--storage-driver", "vfs"]
    daemon = Program(argv, tmp_path / "log", {})
    try:
        command = ["docker", "-H", host, "info", "--format", "{{json .RegistryConfig}}"]
        answer = run(["sh", "-c", 'for i in $(seq 300); do "$@" && exit; sleep 0.1; done; exit 1', "sh", *command])
        registry = json.loads(answer.stdout.strip().splitlines()[-1])
        assert registry["Mirrors"] == [f"{MIRROR}/"]
        assert "mirror.example:5000" in registry["IndexConfigs"]
    finally:
        daemon.stop()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files")]
)
def test_a_shell_learns_the_commands(shell: str, word: str) -> None:
    script = CliRunner().invoke(main, [], prog_name="entrepot", env={"_ENTREPOT_COMPLETE": f"{shell}_source"})
    assert word in script.stdout
    environment = {"_ENTREPOT_COMPLETE": "bash_complete", "COMP_WORDS": "entrepot client d", "COMP_CWORD": "2"}
    assert "docker" in CliRunner().invoke(main, [], prog_name="entrepot", env=environment).stdout
