"""The key that signs months: where it comes from, and who may read it."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.config.settings import Settings, load_settings
from gateway.signing import SigningKeyError, is_signed, load_signing_key, public_bytes, public_pem, read_public_pem

SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
OTHER_CURVE = generate_private_key(SECP256R1())


def settings(home: Path, **variables: str) -> Settings:
    return load_settings({"HATCHWAY_HOME": str(home), **variables})


def test_a_key_is_made_once_and_kept_for_us_alone(tmp_path: Path) -> None:
    made = public_bytes(load_signing_key(settings(tmp_path)))
    (file,) = tmp_path.iterdir()
    assert file.name == "signing.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert public_bytes(load_signing_key(settings(tmp_path))) == made
    file.unlink()
    assert public_bytes(load_signing_key(settings(tmp_path))) != made


def test_a_key_that_another_process_made_first_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_text(PEM)
        target.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert public_bytes(load_signing_key(settings(tmp_path))) == public_bytes(KEY)
    assert [file.name for file in tmp_path.iterdir()] == ["signing.key"]


@pytest.mark.parametrize("text", [PEM, base64.b64encode(SEED).decode(), f"{base64.b64encode(SEED).decode()}\n"])
def test_the_environment_wins(tmp_path: Path, text: str) -> None:
    given = settings(tmp_path, HATCHWAY_SIGNING_KEY=text)
    assert public_bytes(load_signing_key(given)) == public_bytes(KEY)
    assert list(tmp_path.iterdir()) == []
    assert text.strip() not in repr(given)


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        base64.b64encode(SEED[:31]).decode(),
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        OTHER_CURVE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        public_pem(public_bytes(KEY)),
    ],
)
def test_what_is_no_key_is_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(SigningKeyError, match=r"`HATCHWAY_SIGNING_KEY` is no Ed25519 key\nhint: ") as caught:
        load_signing_key(settings(tmp_path, HATCHWAY_SIGNING_KEY=text))
    assert text[-40:].strip() not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    load_signing_key(settings(tmp_path))
    (tmp_path / "signing.key").chmod(mode)
    with pytest.raises(SigningKeyError, match=r"can be read by others\nhint: `chmod 600"):
        load_signing_key(settings(tmp_path))


def test_public_keys_come_back_from_pem() -> None:
    assert read_public_pem(public_pem(public_bytes(KEY)).encode()) == public_bytes(KEY)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"hunter2",
        PEM.encode(),
        OTHER_CURVE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_what_is_no_public_key(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"no public Ed25519 key\nhint: "):
        read_public_pem(pem)


def test_signatures() -> None:
    signature = KEY.sign(b"message")
    assert is_signed(b"message", signature, public_bytes(KEY))
    assert not is_signed(b"messagf", signature, public_bytes(KEY))
    assert not is_signed(b"message", signature[:-1], public_bytes(KEY))
    assert not is_signed(b"message", signature, public_bytes(Ed25519PrivateKey.generate()))
    assert not is_signed(b"message", signature, b"")
