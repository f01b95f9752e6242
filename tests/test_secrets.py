"""Secrets at rest: what is kept can be read with its key, by its name, and by nobody else."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.secrets import (
    MAX_VALUE,
    Cipher,
    Sealed,
    SecretError,
    Vault,
    ensure_keys,
    new_key,
    publish,
    published_stamp,
    read_keys,
    read_published,
    write_keys,
)

VALUE = "sk-live-51c0ffee00112233"


def encoded(*keys: bytes) -> str:
    return ",".join(base64.b64encode(key).decode() for key in keys)


def refusal(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(SecretError) as caught:
        call(*arguments)
    assert VALUE not in str(caught.value) and "hint:" in str(caught.value)
    return str(caught.value)


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200))
def test_what_was_sealed_opens(value: str) -> None:
    cipher = Cipher([new_key()])
    sealed = cipher.seal("openai", value)
    assert cipher.open(sealed) == value
    assert value.encode() not in sealed.ciphertext or len(value) < 4
    assert cipher.seal("openai", value).ciphertext != sealed.ciphertext


def test_only_its_key_and_its_name_open_it() -> None:
    cipher = Cipher([new_key()])
    sealed = cipher.seal("openai", VALUE)
    assert "is encrypted with the key" in refusal(Cipher([new_key()]).open, sealed)
    assert "was changed" in refusal(cipher.open, msgspec.structs.replace(sealed, name="other"))
    for at in (1, 15, len(sealed.ciphertext) - 1):
        changed = bytearray(sealed.ciphertext)
        changed[at] ^= 1
        assert "was changed" in refusal(cipher.open, msgspec.structs.replace(sealed, ciphertext=bytes(changed)))
    for wrong in (b"", sealed.ciphertext[:28], b"\x02" + sealed.ciphertext[1:]):
        assert "of no known form" in refusal(cipher.open, msgspec.structs.replace(sealed, ciphertext=wrong))
    other = Cipher([new_key()])
    forged = msgspec.structs.replace(sealed, key_hint=other.hint)
    assert "was changed" in refusal(other.open, forged)


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    old, new = new_key(), new_key()
    sealed = Cipher([old]).seal("openai", VALUE)
    both = Cipher([new, old])
    assert both.open(sealed) == VALUE
    assert not both.is_current(sealed) and both.is_current(both.seal("openai", VALUE))
    assert both.hint == Cipher([new]).hint != Cipher([old]).hint


def test_what_cannot_be_a_secret() -> None:
    cipher = Cipher([new_key()])
    for name in ("", "a b", "-a", "a/b", "x" * 65):
        assert "cannot be the name" in refusal(cipher.seal, name, VALUE)
    for value in ("", "x" * (MAX_VALUE + 1)):
        assert "has 1 to" in refusal(cipher.seal, "a", value)
    for value in ("two\nlines", "ümlaut", "nul\0", '["json"]\n', '{"broken\n'):
        assert "has a line break, or" in refusal(cipher.seal, "a", value)
    account = '{\n  "private_key": "-----BEGIN\\n"\n}'
    assert cipher.open(cipher.seal("a", account)) == account


def test_keys_of_the_wrong_form() -> None:
    assert "there is no key" in refusal(Cipher, [])
    assert "32 bytes" in refusal(Cipher, [b"short"])
    for text in ("no base64!", encoded(b"short"), ",".join([encoded(new_key())] * 11)):
        refusal(read_keys, Path("/nonexistent"), text)


def test_a_key_is_made_once(tmp_path: Path) -> None:
    assert read_keys(tmp_path, None) == []
    (key,) = ensure_keys(tmp_path, None)
    assert ensure_keys(tmp_path, None) == read_keys(tmp_path, None) == [key]
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret.key"]


def test_the_variable_s_keys_come_first(tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    assert ensure_keys(tmp_path, encoded(first)) == [first]
    assert not (tmp_path / "secret.key").exists()
    write_keys(tmp_path, [second])
    assert read_keys(tmp_path, f" {encoded(first)} \n") == [first, second]
    urlsafe = base64.urlsafe_b64encode(b"\xff" * 32).decode()
    assert read_keys(tmp_path, urlsafe) == [b"\xff" * 32, second]


def test_a_key_file_that_others_may_read_is_not_taken(tmp_path: Path) -> None:
    ensure_keys(tmp_path, None)
    (tmp_path / "secret.key").chmod(0o640)
    assert "others may read" in refusal(read_keys, tmp_path, None)
    (tmp_path / "secret.key").unlink()
    (tmp_path / "elsewhere").write_text(encoded(new_key()))
    (tmp_path / "secret.key").symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in refusal(read_keys, tmp_path, None)


def test_the_vault_opens_what_was_published(tmp_path: Path) -> None:
    assert published_stamp(tmp_path) == 0 and dict(Vault(tmp_path, None)) == {}
    cipher = Cipher(ensure_keys(tmp_path, None))
    sealed = [cipher.seal("b", VALUE), cipher.seal("a", "other")]
    assert publish(tmp_path, sealed)
    assert not publish(tmp_path, sealed[::-1])
    assert published_stamp(tmp_path) > 0
    assert (tmp_path / "published" / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert list(read_published(tmp_path)) == ["a", "b"]
    vault = Vault(tmp_path, None)
    assert dict(vault) == {"a": "other", "b": VALUE} and len(vault) == 2
    for shown in (repr(vault), repr(cipher), repr(sealed), (tmp_path / "published" / "secrets.json").read_text()):
        assert VALUE not in shown
    (tmp_path / "published" / "secrets.json").write_text('[{"name": 1}]')
    assert "cannot be read" in refusal(read_published, tmp_path)


def test_a_new_key_takes_over_without_a_gap(tmp_path: Path) -> None:
    """As `hatchway secrets rekey` goes about it: at each step what is published can be read."""
    old = ensure_keys(tmp_path, None)
    publish(tmp_path, [Cipher(old).seal("a", VALUE)])
    write_keys(tmp_path, [new_key(), *old])
    assert Vault(tmp_path, None)["a"] == VALUE
    both = Cipher(read_keys(tmp_path, None))
    publish(tmp_path, [both.seal("a", both.open(read_published(tmp_path)["a"]))])
    assert Vault(tmp_path, None)["a"] == VALUE
    write_keys(tmp_path, read_keys(tmp_path, None)[:1])
    assert Vault(tmp_path, None)["a"] == VALUE
    sealed: Sealed = read_published(tmp_path)["a"]
    refusal(Cipher(old).open, sealed)
