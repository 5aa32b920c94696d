"""Reading `[[peer]]` and `[[grant]]`: what each section says, and what they must say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entrepot.config.keys import GRANT, PEER, TOP, Key, Section, read_section
from entrepot.config.layers import ItemLayer
from entrepot.config.model import GrantConfig, PeerConfig
from entrepot.config.problems import Problem
from proxy.regions.credentials import hash_tokens


def read_peers(listed: Sequence[ItemLayer], top: Section, problems: list[Problem]) -> tuple[PeerConfig, ...]:
    """Return the peers; what is wrong with any of them is added to `problems`."""
    peers: list[PeerConfig] = []
    for item, prefix, parsed in _read("peer", listed, PEER, ("name", "url"), top, problems):
        before = len(problems)
        settings = item.settings
        if ("cert" in settings) != ("key" in settings):
            accepted = "cert and key together, or neither"
            problems.append(Problem(item.where, f"{prefix}cert", "the other of its kind is missing", accepted))
        if "token_file" not in settings and "cert" not in settings:
            accepted = "token_file, or cert with key"
            problems.append(Problem(item.where, f"{prefix}token_file", "nothing proves who asks", accepted))
        if len(problems) == before:
            peers.append(PeerConfig(**parsed))
    return tuple(peers)


def read_grants(
    listed: Sequence[ItemLayer], top: Section, client_ca: bool, problems: list[Problem]
) -> tuple[GrantConfig, ...]:
    """Return the grants; what is wrong with any of them is added to `problems`."""
    grants: list[GrantConfig] = []
    for item, prefix, parsed in _read("grant", listed, GRANT, ("name", "repositories"), top, problems):
        before = len(problems)
        certificate = parsed.get("certificate")
        other = next((one for one in grants if certificate is not None and one.certificate == certificate), None)
        if other is not None:
            where, accepted = item.settings["certificate"].where, "a certificate of its own for each"
            problems.append(Problem(where, f"{prefix}certificate", f"grant {other.name} has it too", accepted))
        if "token_file" not in item.settings and "certificate" not in item.settings:
            accepted = "token_file, or certificate"
            problems.append(Problem(item.where, f"{prefix}token_file", "nobody could prove to be it", accepted))
        if "certificate" in item.settings and not client_ca:
            where = item.settings["certificate"].where
            accepted = "[tls] with client_ca"
            problems.append(Problem(where, f"{prefix}certificate", "nobody vouches for certificates", accepted))
        if len(problems) == before:
            grants.append(GrantConfig(**parsed))
    return tuple(grants)


def check_tokens(grants: Sequence[GrantConfig]) -> list[Problem]:
    """Return a problem for every token file that holds no tokens, or one that another grant has too. Shows none."""
    problems: list[Problem] = []
    seen: dict[bytes, GrantConfig] = {}
    for grant in grants:
        if grant.token_file is None:
            continue
        key = f"grant {grant.name}.token_file"
        try:
            hashes = hash_tokens(grant.token_file.read_text())
        except OSError:
            continue  # it was told that it cannot be opened
        except ValueError as error:
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            problems.append(Problem(str(grant.token_file), key, reason, GRANT["token_file"].accepted))
            continue
        for other in dict.fromkeys(seen.setdefault(token, grant) for token in hashes):
            if other is not grant:
                message = f"a token of it is in {other.token_file} of grant {other.name} too"
                problems.append(Problem(str(grant.token_file), key, message, "tokens of its own for each region"))
    return problems


def _read(
    kind: str,
    listed: Sequence[ItemLayer],
    keys: Mapping[str, Key],
    required: Sequence[str],
    top: Section,
    problems: list[Problem],
) -> list[tuple[ItemLayer, str, dict[str, Any]]]:
    """Return the sections that are right so far, each with the prefix of its keys and what it says."""
    if listed and "region" not in top:
        accepted = TOP["region"].accepted
        problems.append(Problem(listed[0].where, "region", f"a mirror with a [[{kind}]] needs a name", accepted))
    read = []
    seen: dict[object, str] = {}
    own = top["region"].value if "region" in top else None
    for item in listed:
        before = len(problems)
        setting = item.settings.get("name")
        name = None if setting is None else setting.value
        prefix = f"{kind} {name}." if isinstance(name, str) else f"{kind}."
        parsed: dict[str, Any] = read_section(item.settings, keys, prefix, problems)
        for key in required:
            if key not in item.settings:
                problems.append(Problem(item.where, f"{prefix}{key}", "it is missing", keys[key].accepted))
        if parsed.get("repositories") == ():
            where = item.settings["repositories"].where
            problems.append(Problem(where, f"{prefix}repositories", "it is empty", keys["repositories"].accepted))
        if name is not None and name in seen:
            problems.append(Problem(item.where, f"{prefix}name", f"also in {seen[name]}", "a name of its own for each"))
        elif name is not None and name == own:
            problems.append(Problem(item.where, f"{prefix}name", "it is this region's own", "the other region's name"))
        seen.setdefault(name, item.where)
        if len(problems) == before:
            read.append((item, prefix, parsed))
    return read
