"""Keys, signatures and trust: what is taken, and what the person is told where it is not."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.regions.scope import Scope
from sync.bundle.errors import BundleError, Untrusted
from sync.bundle.keys import CONTEXT, SIGNATURE_SIZE, PrivateKey, PublicKey, Trust, TrustedKey, sign
from sync.bundle.layout import seal
from sync.bundle.plan import Sealed
from tests.bundle.writing import plan_of
from tests.support.contents import blob, make_image

KEY = PrivateKey.new()
OTHER = PrivateKey.new()
LIBRARY = Scope.of(["docker.io/library/*"])
TRUSTED = TrustedKey("eu", KEY.public, LIBRARY)


def sealed_plan(series: str = "default") -> Sealed:
    return seal(plan_of([("docker.io/library/alpine:3.20", make_image([blob(10)]))], series=series)[0])


def test_signature_of_a_trusted_key_gives_the_scope_of_that_key() -> None:
    sealed = sealed_plan()
    signature = sign(sealed, KEY)
    assert len(signature) == SIGNATURE_SIZE
    verdict = Trust([TrustedKey("us", OTHER.public, Scope.of(["*"])), TRUSTED], True).judge(sealed, signature)
    assert (verdict.key, verdict.id, verdict.scope, verdict.note) == ("eu", KEY.public.id, LIBRARY, None)


def test_unsigned_bundle_is_taken_with_a_note_only_where_no_signature_is_required() -> None:
    verdict = Trust([TRUSTED], False).judge(sealed_plan(), None)
    assert verdict.key is None
    assert verdict.scope.everything
    assert verdict.note is not None
    assert "not signed" in verdict.note
    with pytest.raises(Untrusted, match=rf"not signed.*trusted: eu {KEY.public.id}.*--sign.*require_signature"):
        Trust([TRUSTED], True).judge(sealed_plan(), None)


def test_unknown_key_is_named_beside_those_that_are_trusted() -> None:
    sealed = sealed_plan()
    signature = sign(sealed, OTHER)
    with pytest.raises(Untrusted, match=rf"{OTHER.public.id}.*trusted: eu {KEY.public.id}.*--verify-key"):
        Trust([TRUSTED], True).judge(sealed, signature)
    with pytest.raises(Untrusted, match="no key is trusted"):
        Trust([], True).judge(sealed, signature)
    verdict = Trust([TRUSTED], False).judge(sealed, signature)
    assert (verdict.key, verdict.id) == (None, OTHER.public.id)
    assert verdict.note is not None
    assert "not checked" in verdict.note


@pytest.mark.parametrize("required", [True, False])
def test_altered_plan_is_refused_even_where_no_signature_is_required(required: bool) -> None:
    with pytest.raises(Untrusted, match="altered: its signature is of the key eu"):
        Trust([TRUSTED], required).judge(sealed_plan("another"), sign(sealed_plan(), KEY))


def test_signature_under_the_id_of_another_key_is_refused() -> None:
    sealed = sealed_plan()
    forged = sign(sealed, OTHER).replace(OTHER.public.id.encode(), KEY.public.id.encode())
    with pytest.raises(Untrusted, match="altered"):
        Trust([TRUSTED], False).judge(sealed, forged)


def test_signature_that_is_written_otherwise_is_refused() -> None:
    sealed = sealed_plan()
    good = sign(sealed, KEY)
    fields = json.loads(good)
    # The last digit of the base64 has four bits that say nothing.
    digit = fields["signature"][85]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    loose = fields | {"signature": fields["signature"][:85] + alphabet[alphabet.index(digit) + 1] + "=="}
    assert base64.b64decode(loose["signature"]) == base64.b64decode(fields["signature"])
    malformed = (
        b"",
        b"{}",
        b"\xff",
        b"[" * 5000,
        json.dumps(fields).encode(),
        json.dumps(loose, separators=(",", ":")).encode(),
        good.replace(b"entrepot-signature/1", b"entrepot-signature/2"),
        good + b" ",
    )
    for body in malformed:
        with pytest.raises(Untrusted):
            Trust([TRUSTED], False).judge(sealed, body)


def test_keys_are_saved_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path, public = tmp_path / "site.key", tmp_path / "site.pub"
    KEY.save(path)
    KEY.public.save(public)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PublicKey.load(public).id == PrivateKey.load(path).public.id == KEY.public.id
    before = path.read_bytes()
    with pytest.raises(BundleError, match="is there already"):
        OTHER.save(path)
    assert path.read_bytes() == before
    with pytest.raises(BundleError, match="cannot be written: No such file"):
        OTHER.save(tmp_path / "nowhere" / "site.key")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["site.key", "site.pub"]


def test_mixed_up_and_foreign_keys_are_told_apart_and_private_bytes_never_shown(tmp_path: Path) -> None:
    private, public, locked, foreign = (tmp_path / name for name in ("a.key", "a.pub", "b.key", "c.key"))
    KEY.save(private)
    KEY.public.save(public)
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", locked], check=True
    )
    stranger = rsa.generate_private_key(65537, 2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    foreign.write_bytes(stranger.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    big = tmp_path / "big"
    big.write_bytes(bytes(20_000))
    secret = private.read_text().splitlines()[1]
    for load, path, told in (
        (PublicKey.load, private, "holds a private key"),
        (PrivateKey.load, public, "holds a public key"),
        (PrivateKey.load, locked, "locked with a passphrase"),
        (PrivateKey.load, foreign, "no private key of Ed25519"),
        (PublicKey.load, big, "is no key"),
        (PublicKey.load, tmp_path / "none", "cannot be read: No such file"),
    ):
        with pytest.raises(BundleError, match=told) as refused:
            load(path)
        assert secret not in str(refused.value)
    assert secret not in repr(PrivateKey.load(private))


def test_openssl_checks_our_signatures_and_we_read_its_keys(tmp_path: Path) -> None:
    private, public = tmp_path / "site.key", tmp_path / "site.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    sealed = sealed_plan()
    signature = json.loads(sign(sealed, PrivateKey.load(private)))
    (tmp_path / "signed").write_bytes(CONTEXT + sealed.body)
    (tmp_path / "sig").write_bytes(base64.b64decode(signature["signature"]))
    verify: list[str | Path] = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        public,
        "-rawin",
        "-in",
        tmp_path / "signed",
    ]
    verify += ["-sigfile", tmp_path / "sig"]
    done = subprocess.run(verify, check=True, capture_output=True, text=True)
    assert "Signature Verified Successfully" in done.stdout
    listed = subprocess.run(
        f"openssl pkey -pubin -in {public} -outform DER | sha256sum | cut -c1-16",
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.strip() == signature["key"] == PublicKey.load(public).id
