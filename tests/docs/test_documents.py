"""What the documents say is so: commands parse, links lead somewhere, examples are accepted, keys are all told."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from entrepot.cli import main
from entrepot.config import ConfigError, load
from entrepot.config.keys import LISTS, LOG, SECTIONS, TOP, UPSTREAM

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_OURS = (
    "README.md",
    "configuration.md",
    "clients.md",
    "architecture.md",
    "air-gap.md",
    "bundle-format.md",
    "dashboard.md",
    "fleet.md",
    "logs.md",
    "object-storage.md",
    "regions.md",
)
OURS = [path for path in DOCUMENTS if path.name in _OURS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    for match in BLOCK.finditer(path.read_text()):
        yield match[1], match[2]


def commands() -> list[tuple[str, str]]:
    """Return every `entrepot …` line of the shell blocks, with the document that shows it."""
    found = []
    for path in DOCUMENTS:
        for language, text in blocks(path):
            if language in ("sh", "bash", "console"):
                joined = text.replace("\\\n", " ")
                lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
                found += [(path.name, line) for line in lines if line.startswith("entrepot ")]
    return found


def parsed(arguments: list[str]) -> click.Context:
    """Parse `arguments` down to the last command, running none. Raises click.UsageError."""
    command: click.Command = main
    context = click.Context(main, info_name="entrepot")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
        context = click.Context(found, info_name=name, parent=context)
    return command.make_context(context.info_name, arguments, parent=context.parent)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize(("document", "line"), commands())
def test_every_command_shown_is_one(document: str, line: str) -> None:
    parsed(shlex.split(line, comments=True)[1:])


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(click.UsageError):
        parsed(["serve", "--lisen", "127.0.0.1:1"])
    with pytest.raises(click.UsageError):
        parsed(["client", "dockr"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_document_is_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#\s]+)\)", (ROOT / "README.md").read_text()))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_every_example_of_a_format_is_in_it(path: Path) -> None:
    for language, text in blocks(path):
        if language == "toml":
            tomllib.loads(text)
        elif language == "json":
            json.loads(text)


def test_the_configuration_shown_is_accepted_and_has_every_key(tmp_path: Path) -> None:
    (shown,) = (text for language, text in blocks(ROOT / "docs/configuration.md") if language == "toml")
    file = tmp_path / "entrepot.toml"
    file.write_text(shown)
    load(file, {}, {})
    document = tomllib.loads(shown)
    assert set(document) == {*TOP, *SECTIONS, "upstream", *LISTS} - {"admin_token", "fleet_secret", "from"}
    assert set(document["log"]) == set(LOG)
    assert set(document["upstream"][0]) == set(UPSTREAM) - {"docker_config"}
    for name, keys in LISTS.items():
        assert set(document[name][0]) == set(keys)


def test_every_key_is_explained_in_a_table() -> None:
    tables = "\n".join(
        line for line in (ROOT / "docs/configuration.md").read_text().splitlines() if line.startswith("| `")
    )
    for key in (*TOP, *(f"{section}.{name}" for section, keys in SECTIONS.items() for name in keys), *UPSTREAM):
        assert f"`{key}`" in tables, key
    for name, keys in LISTS.items():
        _, _, section = (ROOT / "docs/configuration.md").read_text().partition(f"### `[[{name}]]`")
        rows = [line for line in section.partition("\n### ")[0].splitlines() if line.startswith("| `")]
        assert {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])} == set(keys), name


def test_the_environment_shown_is_accepted(tmp_path: Path) -> None:
    shown = [text for language, text in blocks(ROOT / "docs/configuration.md") if "ENTREPOT_LISTEN=" in text]
    environment = dict(word.split("=", 1) for word in shlex.split(shown[0]))
    config = load(None, environment, {})
    assert config.upstreams[0].username == "someone"
    assert [upstream.name for upstream in config.upstreams] == ["docker.io", "private"]


def test_the_example_that_is_deployed_is_accepted_also_with_its_comments_taken_up(tmp_path: Path) -> None:
    example = ROOT / "deploy/entrepot.toml"
    assert load(example, {}, {}).default_upstream == "docker.io"
    file = tmp_path / "entrepot.toml"
    file.write_text(re.sub(r"^# (?=\[\[|\w+ = )", "", example.read_text(), flags=re.MULTILINE))
    assert [upstream.name for upstream in load(file, {}, {}).upstreams][-1] == "private"


def test_the_node_of_a_fleet_that_is_deployed_needs_its_url_alone(tmp_path: Path) -> None:
    example = ROOT / "deploy/fleet.toml"
    file = tmp_path / "entrepot.toml"
    file.write_text(re.sub(r"^# (?=\[\[|\w+ = )", "", example.read_text(), flags=re.MULTILINE))
    own = {"ENTREPOT_ADVERTISE": "http://10.0.0.1:5000"}
    for config in (load(example, own, {}), load(file, own, {})):
        assert (config.fleet_address, config.neighbours) == ("http://10.0.0.1:5000", ("10.0.0.0/24",))
    assert load(file, own, {}).store == "s3://bucket/prefix"
    with pytest.raises(ConfigError, match="advertise"):
        load(example, {}, {})


def test_the_site_without_a_network_that_is_deployed_is_accepted_and_is_that_of_the_page() -> None:
    config = load(ROOT / "deploy/air-gap.toml", {}, {})
    assert (config.offline, config.bundles.require_signature) == (True, None)
    (shown,) = (text for language, text in blocks(ROOT / "docs/air-gap.md") if language == "toml")
    site = tomllib.loads((ROOT / "deploy/air-gap.toml").read_text())
    assert tomllib.loads(shown).items() <= site.items()


def test_the_regions_that_are_deployed_are_accepted_from_either_side(tmp_path: Path) -> None:
    ours = re.sub(r"^# (?=\[\[|\w+ = )", "", (ROOT / "deploy/regions.toml").read_text(), flags=re.MULTILINE)
    theirs = ours.replace("us-east", "\0").replace("eu-west", "us-east").replace("\0", "eu-west")
    file = tmp_path / "entrepot.toml"
    for text, own, other in (
        ((ROOT / "deploy/regions.toml").read_text(), "eu-west", "us-east"),
        (ours, "eu-west", "us-east"),
        (theirs, "us-east", "eu-west"),
    ):
        file.write_text(text)
        config = load(file, {}, {})
        assert (config.region, [peer.name for peer in config.peers]) == (own, [other])
        assert [grant.name for grant in config.grants] == [other]
        assert config.peers[0].repositories == config.grants[0].repositories
        assert config.peers[0].token_file != config.grants[0].token_file
    file.write_text(ours)
    peer = load(file, {}, {}).peers[0]
    assert (peer.newest, peer.bandwidth, len(peer.window)) == (10, 50 << 20, 1)


def test_the_fleet_and_the_bucket_shown_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "entrepot.toml"
    for name in ("fleet.md", "object-storage.md"):
        (shown,) = (text for language, text in blocks(ROOT / "docs" / name) if language == "toml")
        file.write_text(shown)
        load(file, {"ENTREPOT_ADVERTISE": "http://10.0.0.1:5000"}, {})


def test_every_metric_that_a_document_names_exists() -> None:
    known = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for name in re.findall(r"\bentrepot_[a-z_]+\b(?!\*)", path.read_text()):
            assert {name, name.removesuffix("_bucket")} & known, f"{path.name} names {name}"


@pytest.mark.parametrize("target", ["run", "test", "test-slow", "bench", "lint", "types", "imports", "check"])
def test_the_makefile_has_the_targets_that_are_promised(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
