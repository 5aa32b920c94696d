"""Which keys are trusted to bring bundles, by the configuration and by what a command was given. Reads key files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entrepot.config import Config
from proxy.regions.scope import Scope
from sync.bundle.keys import PublicKey, Trust, TrustedKey


def trust_of(config: Config, verify_keys: Sequence[Path] = (), *, require: bool = False) -> Trust:
    """Return the trust of a site: each [[trusted_key]] for its repositories, and `verify_keys` for all.

    A signature is required with `require`, or as `bundles.require_signature` says; where that says nothing, as soon as
    there is a key. Blocking. Raises BundleError for a file that is no public key.
    """
    keys = [TrustedKey(one.name, PublicKey.load(one.file), Scope.of(one.repositories)) for one in config.trusted_keys]
    keys += [TrustedKey(path.name, PublicKey.load(path), Scope.of(["*"])) for path in verify_keys]
    wanted = config.bundles.require_signature
    return Trust(tuple(keys), require or (bool(keys) if wanted is None else wanted))
