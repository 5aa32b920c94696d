"""From what was seen of other regions to findings. Pure, as `judging`."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from entrepot.cli.output import counted
from entrepot.config import PeerConfig
from entrepot.doctor.findings import Finding, ok, problem, warning
from entrepot.doctor.regions import PeerSeen, TokenFileSeen, names_by_token
from proxy.store.exchanged import AHEAD_SECONDS

_READ_BY_OTHERS = 0o004
_REMEDIES = {
    "files": "mend the file that the configuration names: one token a line, certificates in PEM",
    "refused": "give this region a [[grant]] over there, with the token that it shows; for TLS see `ca_file`, `cert`",
    "silent": "see `url`, the firewall between the two, and whether a mirror runs there; one with `tls.client_ca` "
    "wants `cert` and `key`",
    "unreadable": "see that `url` is that of a mirror, and bring the older of the two up to date",
}


def judge_peer(seen: PeerSeen, peer: PeerConfig, region: str) -> list[Finding]:
    """Judge a peer as this region, `region`, sees it."""
    check = f"peer {seen.name}"
    findings = _judge_url(check, peer)
    if seen.region == region:
        words = f"{seen.url} answers as region {region}, which is this one's own name"
        return [*findings, problem(check, words, "give each region a `region` of its own, and see where `url` leads")]
    if seen.failed:
        return [*findings, problem(check, seen.failure, _REMEDIES[seen.failed])]
    if seen.region and seen.region != seen.name:
        words = f"{seen.url} calls itself {seen.region}"
        advice = "name the [[peer]] as its `region` is: tags that it watches are not asked there until then"
        findings.append(warning(check, words, advice))
    if seen.skew is not None and abs(seen.skew) > AHEAD_SECONDS:
        side = "ahead of" if seen.skew > 0 else "behind"
        words = f"its clock is {abs(seen.skew) / 60:.0f} minutes {side} this one"
        advice = "set both, and keep them set: what is tagged by a clock ahead is not taken over until its time comes"
        findings.append(problem(check, words, advice))
    if seen.records == 0:
        words = f"{seen.url} tells of nothing in {', '.join(peer.repositories)}"
        advice = "where it has some of it: see which `repositories` its [[grant]] for this region covers"
        findings.append(warning(check, words, advice))
    if any(finding.level != "ok" for finding in findings):
        return findings
    records = "" if seen.records is None else f", with {counted(seen.records, 'record')} for this one"
    return [*findings, ok(check, f"{seen.url} answers as region {seen.region or seen.name}{records}")]


def _judge_url(check: str, peer: PeerConfig) -> list[Finding]:
    parts = urlsplit(peer.url)
    if parts.scheme != "http" or peer.token_file is None or _is_loopback(parts.hostname or ""):
        return []
    words = f"the token, and all that is fetched, goes to {peer.url} in the clear"
    return [warning(check, words, "give that region `tls`, and an https `url` here")]


def judge_tokens(files: Sequence[TokenFileSeen]) -> list[Finding]:
    """Judge the files with tokens: who can read them, what they hold, and whether each grant has its own."""
    findings = []
    for file in files:
        if file.failure:
            findings.append(problem(file.of, f"{file.path}: {file.failure}", "write one token a line, at most two"))
        if file.mode & _READ_BY_OTHERS:
            words = f"every user of this machine can read {file.path} (mode {file.mode:04o})"
            findings.append(warning(file.of, words, f"chmod o= {file.path}"))
    for grants in names_by_token(list(files)).values():
        if len(grants) > 1:
            words = f"a token is that of {' and '.join(grants)}: it opens none of them"
            findings.append(problem("grants", words, "give each region tokens of its own"))
    granted = [file for file in files if file.of.startswith("grant ")]
    if granted and not findings:
        findings.append(ok("grants", f"{counted(len(granted), 'token file')} can be read, each token is of one grant"))
    return findings


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
