"""The command line as people type it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from entrepot import __version__
from entrepot.cli import main
from entrepot.cli.output import format_size
from entrepot.cli.status import people
from entrepot.live import Totals
from entrepot.status import Status
from entrepot.views import WorkerView
from metrics.pulls.model import PullsBrief, Quantiles
from proxy.store.records import StoreStats

COMMANDS = (
    *("serve", "pull", "refresh", "status", "ls", "inspect", "why", "pin", "unpin", "rm", "verify", "backup", "sync"),
    *("gc", "client", "doctor", "config", "demo", "version"),
)


def entrepot(*arguments: str | Path, environment: dict[str, str] | None = None) -> Result:
    return CliRunner(catch_exceptions=False).invoke(main, [str(item) for item in arguments], env=environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_each_command_and_each_explains_itself(command: str) -> None:
    assert f"  {command} " in entrepot("--help").output
    result = entrepot(command, "--help")
    assert result.exit_code == 0
    assert f"entrepot {command}" in result.output


def test_no_line_of_the_list_of_commands_is_cut_off() -> None:
    for group in ([], ["client"], ["config"], ["sync"]):
        listed = entrepot(*group, "--help").output.partition("Commands:")[2]
        assert listed
        assert "..." not in listed


def test_what_the_system_refused_is_told_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = entrepot("pull", "alpine:3", "--data", tmp_path / "file" / "data")
    assert result.exit_code == 1
    assert result.stderr == f"entrepot: {tmp_path}/file: File exists\n"


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["pull"],
        ["refresh"],
        ["status"],
        ["ls"],
        ["inspect"],
        ["why"],
        ["pin"],
        ["unpin"],
        ["rm"],
        ["backup"],
        ["verify"],
        ["version"],
        ["config", "check"],
        ["client", "docker"],
        ["client", "containerd"],
        ["client", "podman"],
        ["client", "buildkit"],
        ["client", "crio"],
        ["client", "k3s"],
        ["doctor"],
        ["sync", "run"],
        ["sync", "once"],
        ["sync", "plan"],
        ["sync", "conflicts"],
        ["inventory"],
        ["bundle", "list"],
        ["bundle", "verify"],
        ["bundle", "diff"],
        ["bundle", "release"],
        ["key", "new"],
    ],
)
def test_every_command_takes_a_configuration_and_a_format(command: list[str]) -> None:
    output = entrepot(*command, "--help").output
    assert "--config FILE" in output
    assert "--format [text|json]" in output


def test_commands_start_without_the_libraries_of_the_server() -> None:
    code = (
        "import sys; from entrepot.cli import main; from click.testing import CliRunner; "
        "CliRunner().invoke(main, ['--help']); CliRunner().invoke(main, ['status', '--data', '/nowhere']); "
        "print([name for name in ('aiohttp', 'prometheus_client', 'rich', 'uvloop') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == "[]"


def test_status_tells_how_each_worker_is_and_what_was_saved() -> None:
    workers = (WorkerView(1, 41, True, 0), WorkerView(2, 42, False, 3))
    store = StoreStats(repositories=1, tags=2, manifests=1, blobs=1, bytes=1024, spools=0)
    document = Status(
        "1", 40, "ready", (), "local", False, "", 1.0, ("http://127.0.0.1:5000",), (), store, None, (), {}, (), workers
    )
    text = people(msgspec.to_builtins(document))
    assert "worker 1, pid 41: good" in text
    assert "worker 2, pid 42: does not answer, started again 3 times" in text
    assert "stored: 1 blob, 1.0 KiB, 1 manifest, 2 tags in 1 repository" in text
    brief = PullsBrief(Quantiles(3600.0, 12, 1.25, 8.0, 9.0), {}, 0.4)
    text = people(msgspec.to_builtins(msgspec.structs.replace(document, pulls=brief)))
    assert (
        "pulls of the last hour: 12, half of them within 1.2 s, nine of ten within 8.0 s, clients had 40% of the layers"
        in text
    )
    traffic = Totals(3, 4096, 1024, 0, 3072, 0, 0, 0, {})
    text = people(msgspec.to_builtins(msgspec.structs.replace(document, traffic=traffic)))
    assert "bytes: 4.0 KiB to clients, 1.0 KiB from upstreams, 3.0 KiB saved" in text


def test_module_runs_as_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "entrepot", "version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert run.stdout.startswith(f"entrepot {__version__}")


def test_version_is_a_document_for_machines() -> None:
    assert json.loads(entrepot("version", "--format", "json").stdout)["entrepot"] == __version__


def test_a_flag_that_is_wrong_ends_with_2_and_the_accepted_form() -> None:
    result = entrepot("serve", "--listen", "5000")
    assert result.exit_code == 2
    assert "--listen: listen: '5000' has no port; accepted: HOST:PORT" in result.stderr
    assert result.stdout == ""


def test_a_flag_that_is_unknown_ends_with_2() -> None:
    assert entrepot("serve", "--lisen", "127.0.0.1:1").exit_code == 2


def test_a_wrong_configuration_is_a_document_for_machines(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("listne = 1\nregion = 'A'")
    result = entrepot("status", "--config", file, "--format", "json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert [problem["key"] for problem in document["problems"]] == ["listne", "region"]
    assert document["problems"][0]["where"] == f"{file}, line 1"


def test_config_check_shows_what_holds_and_never_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    file = tmp_path / "x.toml"
    top = 'quota = "500GiB"\nworkers = 3\naccess.mode = "upstream"\n'
    upstream = '[[upstream]]\nname = "quay.io"\nusername = "someone"\npassword_file = "secret"\ntag_ttl = "90m"'
    file.write_text(top + upstream)
    text = entrepot("config", "check", file)
    assert text.exit_code == 0
    assert "quay.io = https://quay.io  as someone  (default)" in text.stdout
    assert "quota     500GiB\n  workers   3\n  access    upstream\n" in text.stdout
    machine = entrepot("config", "check", "--config", file, "--format", "json")
    document = json.loads(machine.stdout)
    assert document["ok"] is True
    assert document["config"]["upstream"][0]["tag_ttl"] == "1h30m"
    assert document["config"]["upstream"][0]["stale_if_error"] == "forever"
    assert "hunter2" not in text.stdout + machine.stdout


def test_config_check_shows_the_regions_that_are_asked_and_may_ask(tmp_path: Path) -> None:
    for name in ("us.token", "ap.token"):
        (tmp_path / name).write_text(f"0123456789abcdef-{name}")
    file = tmp_path / "entrepot.toml"
    file.write_text(
        'region = "eu"\n[[peer]]\nname = "us"\nurl = "https://us.example"\ntoken_file = "us.token"\n'
        'repositories = ["docker.io/library/*"]\nwindow = ["22:00-6:00 UTC", "12:30-13:00"]\nremoval_grace = "10m"\n'
        '[[grant]]\nname = "ap"\ntoken_file = "ap.token"\nrepositories = ["*"]\n'
    )
    shown = entrepot("config", "check", file).stdout
    assert "peer      us = https://us.example, of which docker.io/library/* is kept here" in shown
    assert "grant     ap may read *" in shown
    (peer,) = json.loads(entrepot("config", "check", file, "--format", "json").stdout)["config"]["peer"]
    assert (peer["window"], peer["removal_grace"]) == (["22:00-06:00 UTC", "12:30-13:00"], "10m")


def test_config_check_finds_faults_and_files_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("a = 1\nb = 2")
    result = entrepot("config", "check", file)
    assert result.exit_code == 3
    assert f"{file}, line 2: b: no such key" in result.stdout
    assert "2 problems found" in result.stdout
    file.write_text('[[upstream]]\nname = "quay.io"\nca_file = "nowhere.pem"')
    result = entrepot("config", "check", file, "--format", "json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["problems"][0]["key"] == "upstream quay.io.ca_file"


def test_configuration_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('region = "eu-west"')
    result = entrepot("config", "check", environment={"ENTREPOT_CONFIG": str(file)})
    assert "eu-west" in result.stdout


def test_status_without_a_mirror_fails_and_says_how_to_start_one(tmp_path: Path) -> None:
    result = entrepot("status", "--data", tmp_path)
    assert result.exit_code == 1
    assert f"no mirror is running on {tmp_path}" in result.stderr
    assert "entrepot serve" in result.stderr


def test_verify_makes_no_store_where_none_is(tmp_path: Path) -> None:
    result = entrepot("verify", "--data", tmp_path / "none")
    assert result.exit_code == 1
    assert "--data" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Alpine",), "lowercase"),
        (("alpine:3", "--platform", "linux"), "os/architecture"),
        (("nowhere.example/a/b",), "not configured"),
    ],
)
def test_a_pull_that_cannot_be_meant_ends_with_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = entrepot("pull", *arguments, "--data", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1048575, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes_are_short_and_never_reach_1024_of_a_unit(count: int, text: str) -> None:
    assert format_size(count) == text
