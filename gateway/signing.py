"""The key that signs closed months: Ed25519, in the environment or in a file that this user alone can read."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from gateway.config.settings import Settings
from gateway.private_file import write_private

_SEED_BYTES = 32
_MAX_FILE = 64 * 1024


class SigningKeyError(Exception):
    """The key cannot be read, or others could read it; the message has a `hint:` line and nothing of the key."""


def load_signing_key(settings: Settings) -> Ed25519PrivateKey:
    """`HATCHWAY_SIGNING_KEY`, else the file `signing.key` of the home folder, which is made at first use.

    Raises SigningKeyError, OSError.
    """
    if settings.signing_key is not None:
        return _parse(settings.signing_key.reveal().encode(), "`HATCHWAY_SIGNING_KEY`")
    path = settings.signing_key_file
    if not path.exists():
        _make(path)
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
        raise SigningKeyError(f"`{path}` can be read by others\nhint: `chmod 600 {path}`, or make another key")
    return _parse(path.read_bytes()[:_MAX_FILE], f"`{path}`")


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Raw: 32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def public_pem(raw: bytes) -> str:
    """As OpenSSL reads it. Raises ValueError when it is no public key."""
    key = Ed25519PublicKey.from_public_bytes(raw)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public_pem(pem: bytes) -> bytes:
    """The raw key of a PEM file. Raises ValueError when it holds no public Ed25519 key."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("this is no public Ed25519 key\nhint: `hatchway month key` prints this gateway's")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether `signature` is that of `message` by the raw public key; no key at all has signed nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _make(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    write_private(unfinished, pem)
    try:
        # A link fails where another process was first; a rename would put its key away.
        os.link(unfinished, path)
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()


def _parse(text: bytes, where: str) -> Ed25519PrivateKey:
    try:
        if text.lstrip().startswith(b"-----"):
            key = load_pem_private_key(text, None)
            if isinstance(key, Ed25519PrivateKey):
                return key
        else:
            seed = base64.b64decode(text.strip(), validate=True)
            if len(seed) == _SEED_BYTES:
                return Ed25519PrivateKey.from_private_bytes(seed)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        pass  # whatever is wrong with it: the library's words might show some of it
    raise SigningKeyError(
        f"{where} is no Ed25519 key\nhint: a PEM file (PKCS 8) without a password, or 32 bytes in base64"
    )
