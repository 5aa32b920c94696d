"""From what bundles leave here to findings. Pure, as `judging`."""

from __future__ import annotations

from entrepot.cli.output import format_size
from entrepot.config import Config
from entrepot.doctor.bundles import BundlesSeen
from entrepot.doctor.findings import Finding, warning
from entrepot.wording import format_time, volumes_of

MUCH = 0.5


def judge_bundles(seen: BundlesSeen, config: Config, quota: int | None) -> list[Finding]:
    """Judge what is required of bundles, kept of them, and waited for. quota: bytes that may be stored, if known."""
    check = "bundles"
    findings = []
    if config.bundles.require_signature and not config.trusted_keys:
        words = "bundles.require_signature is set, and there is no [[trusted_key]]: no bundle will be taken"
        advice = "name the key of those who make them (entrepot key new) as a [[trusted_key]]"
        findings.append(warning(check, words, advice))
    kept = sum(size for _, size in seen.bases)
    if quota is not None and kept > MUCH * quota:
        names = ", ".join(f"{series} ({format_size(size)})" for series, size in seen.bases)
        words = f"of the quota of {format_size(quota)} {format_size(kept)} are kept as bases of bundles: {names}"
        advice = "raise `quota`, or let go of a series that ends here: entrepot bundle release SERIES"
        findings.append(warning(check, words, advice))
    for one in seen.waiting:
        words = f"the import of {one.series} from {one.region}, begun {format_time(one.since)}, "
        words += f"waits for {volumes_of(one.missing)} of {one.volumes}" if one.missing else "was cut short"
        advice = (
            f"give the next one: entrepot import PATH; or give it up: entrepot bundle release {one.series} --unfinished"
        )
        findings.append(warning(check, words, advice))
    return findings
