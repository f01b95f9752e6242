"""Providers' secrets at rest: encrypted in PostgreSQL and in what is published, decrypted only in memory.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits; the secret's name is authenticated with it, so that one
cannot be put in another's place. A ciphertext is a version byte, the nonce, and what AES-GCM gives.

The keys come from `HATCHWAY_SECRET_KEY`, or from `HATCHWAY_HOME/secret.key`, which is made when the first secret is
set. Both hold base64 of 32 bytes each; there may be several, separated by blanks or commas: the first one encrypts, all
of them decrypt. That is how a key is replaced without a moment in which a secret cannot be read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.private_file import replace_file, replace_if_changed, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
KEY_FILE = "secret.key"
KEY_VARIABLE = "HATCHWAY_SECRET_KEY"
MAX_VALUE = 64 * 1024
"""Bytes of one secret: a service account's JSON has 2,400."""
MAX_KEYS = 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_CONTEXT = b"hatchway secret "
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")


class SecretError(ValueError):
    """Names what is wrong and the remedy; never holds a secret or a key."""


class Sealed(msgspec.Struct, frozen=True):
    """An encrypted secret. `key_hint`: which key encrypted it."""

    name: str
    ciphertext: bytes
    key_hint: str


_decode_sealed = msgspec.json.Decoder(list[Sealed]).decode


class Cipher:
    """Encrypts with the first of its keys and decrypts with any."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Raises SecretError without keys, or for one that has not 32 bytes."""
        if not keys:
            raise SecretError(
                "there is no key for secrets\n"
                f"hint: `hatchway secrets set NAME` makes one; or set `{KEY_VARIABLE}` as the other gateways have it"
            )
        if any(len(key) != KEY_BYTES for key in keys):
            raise SecretError(f"a key for secrets has {KEY_BYTES} bytes\nhint: `openssl rand -base64 32` makes one")
        self._keys = {_hint_of(key): key for key in keys}
        self.hint = _hint_of(keys[0])
        """Of the key that encrypts."""

    def __repr__(self) -> str:
        return f"Cipher({self.hint})"

    def seal(self, name: str, value: str) -> Sealed:
        """Raises SecretError for a name or a value that cannot be one."""
        check_name(name)
        check_value(value)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _aes(self._keys[self.hint]).encrypt(nonce, value.encode(), _CONTEXT + name.encode())
        return Sealed(name, _VERSION + nonce + sealed, self.hint)

    def open(self, sealed: Sealed) -> str:
        """Raises SecretError when its key is not here, or when it was changed."""
        from cryptography.exceptions import InvalidTag

        key = self._keys.get(sealed.key_hint)
        if key is None:
            raise SecretError(
                f"it is encrypted with the key `{sealed.key_hint[:16]}`, which is not here\n"
                f"hint: set `{KEY_VARIABLE}` as the gateway has it that stored the secret, or set the secret again"
            )
        body = sealed.ciphertext
        if body[:1] != _VERSION or len(body) < 1 + _NONCE_BYTES + _TAG_BYTES:
            raise SecretError("its ciphertext is of no known form\nhint: set the secret again")
        nonce = body[1 : 1 + _NONCE_BYTES]
        try:
            return _aes(key).decrypt(nonce, body[1 + _NONCE_BYTES :], _CONTEXT + sealed.name.encode()).decode()
        except (InvalidTag, UnicodeDecodeError):
            raise SecretError("its ciphertext was changed\nhint: set the secret again") from None

    def is_current(self, sealed: Sealed) -> bool:
        """Whether the key that encrypts has encrypted it."""
        return sealed.key_hint == self.hint


def check_name(name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise SecretError(
            "this cannot be the name of a secret\n"
            "hint: letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit"
        )


def check_value(value: str) -> None:
    """A secret travels in a header, or is JSON (a service account)."""
    if not 0 < len(value.encode("utf-8", "replace")) <= MAX_VALUE:
        raise SecretError(f"a secret has 1 to {MAX_VALUE} bytes\nhint: send the secret itself")
    if _HEADER_VALUE.fullmatch(value) is None and not _is_object(value):
        raise SecretError(
            "the secret has a line break, or a character that no key has\n"
            "hint: send one line of ASCII, or the JSON of a service account"
        )


# Keys


def read_keys(home: Path, given: str | None) -> list[bytes]:
    """The keys there are: first those of `HATCHWAY_SECRET_KEY` (`given`), then those of the key file.

    Raises SecretError for a key that is none, or a file that others may read.
    """
    keys = [] if not given else _parse(given, f"`{KEY_VARIABLE}`")
    path = home / KEY_FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return keys
    except OSError as error:
        raise SecretError(f"`{path}` cannot be read: {_reason(error)}\nhint: check its permissions") from None
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretError(f"others may read `{path}`\nhint: `chmod 600 {path}`")
        text = file.read(MAX_KEYS * 100).decode("ascii", "replace")
    return keys + _parse(text, f"`{path}`")


def ensure_keys(home: Path, given: str | None) -> list[bytes]:
    """As `read_keys`; where there is none, one is made in the key file. Raises SecretError, OSError."""
    keys = read_keys(home, given)
    if keys:
        return keys
    path, new = home / KEY_FILE, home / f"{KEY_FILE}.{os.getpid()}.new"
    write_private(new, _text_of([secrets.token_bytes(KEY_BYTES)]))
    try:
        os.link(new, path)  # fails where another process was first, and then its key holds
    except FileExistsError:
        pass
    finally:
        new.unlink()
    return read_keys(home, given)


def write_keys(home: Path, keys: Sequence[bytes]) -> None:
    """Replaces the key file, atomically. Raises OSError."""
    replace_file(home / KEY_FILE, _text_of(keys))


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


# What is published to the workers of this machine


def publish(home: Path, found: Iterable[Sealed]) -> bool:
    """Puts the ciphertexts where workers find them. False: they are there already. Raises OSError."""
    content = msgspec.json.encode(sorted(found, key=lambda one: one.name))
    return replace_if_changed(_published(home), content)


def read_published(home: Path) -> dict[str, Sealed]:
    """By name. Raises SecretError when the file cannot be read."""
    try:
        found = _decode_sealed(_published(home).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        raise SecretError("the published secrets cannot be read\nhint: a start of the gateway writes them") from None
    return {one.name: one for one in found}


def published_stamp(home: Path) -> int:
    """Changes whenever secrets were published."""
    try:
        return _published(home).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Vault(Mapping[str, str]):
    """The published secrets by name, decrypted one by one when they are asked for."""

    def __init__(self, home: Path, given: str | None) -> None:
        self._home = home
        self._given = given
        self._sealed: dict[str, Sealed] | None = None
        self._cipher: Cipher | None = None

    def __repr__(self) -> str:
        return "Vault(***)"

    def __getitem__(self, name: str) -> str:
        """Raises KeyError where there is none, SecretError where it cannot be decrypted."""
        sealed = self._all()[name]
        if self._cipher is None:
            self._cipher = Cipher(read_keys(self._home, self._given))
        return self._cipher.open(sealed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Sealed]:
        if self._sealed is None:
            self._sealed = read_published(self._home)
        return self._sealed


def _published(home: Path) -> Path:
    return home / "published" / "secrets.json"


def _parse(text: str, where: str) -> list[bytes]:
    words = re.split(r"[\s,]+", text.strip())
    hint = "it holds base64 of 32 bytes; `openssl rand -base64 32` makes one"
    if len(words) > MAX_KEYS:
        raise SecretError(f"{where} holds too many keys\nhint: at most {MAX_KEYS}")
    keys = []
    for word in words:
        try:
            key = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            raise SecretError(f"{where} is no key for secrets\nhint: {hint}") from None
        if len(key) != KEY_BYTES:
            raise SecretError(f"{where} has a key of {len(key)} bytes\nhint: {hint}")
        keys.append(key)
    return keys


def _text_of(keys: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(key) + b"\n" for key in keys)


def _hint_of(key: bytes) -> str:
    return hashlib.sha256(b"hatchway key hint " + key).hexdigest()[:8]


def _aes(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only here: few gateways have such secrets

    return AESGCM(key)


def _is_object(value: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(value), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
