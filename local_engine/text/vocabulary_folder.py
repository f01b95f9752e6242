"""A tokenizer from a Hugging Face folder: `tokenizer.json`, and what stands beside it about special tokens.

`tokenizer.json` is run by the `tokenizers` library as it stands, but for one change: tokens that are special are taken
out of it, so that text cannot produce them, and `Vocabulary.encode_prompt` puts them where a prompt has them.

Source: the format of https://github.com/huggingface/tokenizers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from local_engine.errors import ModelFileError
from local_engine.text.pre_tokenizers import pattern_fault
from local_engine.text.tokens import (
    ABSENT,
    BYTE,
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Entries,
    Token,
    byte_level_bytes,
    byte_table,
    piece_bytes,
)

MAX_FILE = 1 << 26  # bytes of one JSON file; the largest tokenizers have half of it

Json = dict[str, Any]


def read_json(path: Path, limit: int = MAX_FILE) -> Json | None:
    """An object out of a file; None when there is no such file. Raises `ModelFileError`."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"cannot read `{path}`: {error.strerror}") from error
    if len(data) > limit:
        raise ModelFileError(f"`{path.name}` is longer than {limit} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"`{path.name}` is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"`{path.name}` does not hold an object")
    return value


def read_folder(folder: Path, vocab_size: int) -> Entries:
    """`vocab_size` is the model's number of embedding rows. Raises `ModelFileError`."""
    data = read_json(folder / "tokenizer.json")
    if data is None:
        raise ModelFileError(f"`{folder.name}` has no `tokenizer.json`\nhint: save the model with its fast tokenizer")
    try:
        return _Folder(folder, data, vocab_size).entries()
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"`tokenizer.json` has an unexpected form: {type(error).__name__}: {error}") from error


class _Folder:
    def __init__(self, folder: Path, data: Json, vocab_size: int) -> None:
        self.source = folder.name
        self.data = data
        self.size = vocab_size
        self.config = read_json(folder / "tokenizer_config.json") or {}
        self.roles = _roles(read_json(folder / "special_tokens_map.json") or {}) | _roles(self.config)
        self.model_ends = [
            (read_json(folder / name) or {}).get("eos_token_id") for name in ("generation_config.json", "config.json")
        ]
        model = data["model"]
        if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise ModelFileError(f"the tokenizer model `{model.get('type')}` is not supported\nhint: BPE is")
        self.vocabulary: dict[str, int] = model["vocab"]
        if len(self.vocabulary) > MAX_TOKENS or vocab_size > MAX_TOKENS:
            raise ModelFileError(f"`tokenizer.json` has more than {MAX_TOKENS} tokens")
        for text, token in self.vocabulary.items():
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise ModelFileError(f"`tokenizer.json`: {text!r:.50} has the id {token!r:.50}, of {vocab_size}")
        for pattern in _patterns(data):
            if fault := pattern_fault(pattern):
                raise ModelFileError(f"`tokenizer.json` has a pattern that is not run: {fault}")

    def entries(self) -> Entries:
        added = self._added()
        special = {text: i for text, (i, entry) in added.items() if entry.get("special")}
        kinds = {text: CONTROL if text in special else USER_DEFINED for text in added}
        byte_level = "ByteLevel" in {*_types(self.data.get("decoder")), *_types(self.data.get("pre_tokenizer"))}
        alphabet = byte_table()
        model = self.data["model"]
        if isinstance(unknown := model.get("unk_token"), str):
            kinds.setdefault(unknown, UNKNOWN)
        falls_back = bool(model.get("byte_fallback"))
        tokens = [ABSENT] * self.size
        for text, i in self.vocabulary.items() | {text: i for text, (i, _) in added.items()}.items():
            kind = kinds.get(text, NORMAL)
            if kind == NORMAL and falls_back and len(text) == 6 and text.startswith("<0x"):
                kind = BYTE
            piece = byte_level_bytes(text, kind, alphabet) if byte_level else piece_bytes(text, kind)
            entry = added[text][1] if text in added else {}
            tokens[i] = Token(text, kind, piece, bool(entry.get("lstrip")), bool(entry.get("rstrip")))
        ids = self.vocabulary | {text: i for text, (i, _) in added.items()}
        roles = {role: ids[text] for role, text in self.roles.items() if text in ids}
        ends = {end for ids in self.model_ends for end in (ids if isinstance(ids, list) else [ids])}
        bpe, inside = self._build({text: i for text, (i, _) in added.items() if text not in special}, special)
        return Entries(
            source=self.source,
            tokens=tokens,
            bpe=bpe,
            bpe_inside=inside,
            special=roles,
            ends=frozenset(end for end in ends if type(end) is int),
            add_bos=self._adds_bos(self.roles.get("bos_token")),
        )

    def _added(self) -> dict[str, tuple[int, Json]]:
        """Added tokens that the model has a row for: text -> id and what the files say about it."""
        found: dict[str, tuple[int, Json]] = {}
        beside = [{**entry, "id": int(i)} for i, entry in (self.config.get("added_tokens_decoder") or {}).items()]
        for entry in [*(self.data.get("added_tokens") or []), *beside]:
            text, token = entry["content"], entry["id"]
            if isinstance(text, str) and text and isinstance(token, int) and 0 <= token < self.size:
                found.setdefault(text, (token, dict(entry)))
        named = {*self.roles.values(), *_more_special(self.config)}
        for text in named:
            if text in self.vocabulary:
                found.setdefault(text, (self.vocabulary[text], {"content": text}))
            if text in found:
                found[text][1]["special"] = True
        return found

    def _build(self, plain: dict[str, int], special: dict[str, int]) -> tuple[Tokenizer, Tokenizer]:
        """The tokenizer without special tokens, and the one for text that does not begin a prompt."""
        model = self.data["model"]
        unknown = model.get("unk_token")
        removed = {text for text in special if text in self.vocabulary and text != unknown}
        # the library numbers added tokens anew unless the model itself knows them
        vocabulary = {text: i for text, i in self.vocabulary.items() if text not in removed} | plain
        merges = model.get("merges") or []
        if removed:
            merges = [merge for merge in merges if not _touches(merge, removed)]
        entries = [entry for entry in self.data.get("added_tokens") or [] if entry["content"] in plain]
        known = {entry["content"] for entry in entries}
        entries += [_plain_entry(text, i) for text, i in plain.items() if text not in known]
        changed = self.data | {
            "model": model | {"vocab": vocabulary, "merges": merges, "dropout": None},
            "added_tokens": [entry | {"special": False} for entry in entries],
            "post_processor": None,
            "decoder": None,
            "truncation": None,
            "padding": None,
        }
        first = _load(changed)
        if inside := _without_first_blank(changed.get("pre_tokenizer")):
            return first, _load(changed | {"pre_tokenizer": inside})
        return first, first

    def _adds_bos(self, bos: str | None) -> bool:
        if isinstance(flag := self.config.get("add_bos_token"), bool):
            return flag
        for part in _parts(self.data.get("post_processor")):
            if part.get("type") == "TemplateProcessing":
                first = (part.get("single") or [{}])[0]
                return "SpecialToken" in first and first["SpecialToken"].get("id") == bos
        return False


def _load(data: Json) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # what the binding raises for any fault of the file
        raise ModelFileError(f"`tokenizer.json` cannot be used: {error}") from error


def _roles(config: Json) -> dict[str, str]:
    """`bos_token` and its like, which are written as text or as an object."""
    found: dict[str, str] = {}
    for role, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if role.endswith("_token") and isinstance(text, str) and text:
            found[role] = text
    return found


def _more_special(config: Json) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        for item in value.values() if isinstance(value, dict) else value:
            text = item.get("content") if isinstance(item, dict) else item
            if isinstance(text, str) and text:
                yield text


def _plain_entry(text: str, token: int) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token, "content": text} | flags


def _touches(merge: Any, removed: set[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in removed or right in removed or left + right in removed


def _parts(component: Any) -> Iterator[Json]:
    """A component of the tokenizer and those inside it."""
    if isinstance(component, dict):
        yield component
        for key in ("pretokenizers", "normalizers", "processors", "decoders"):
            for part in component.get(key) or []:
                yield from _parts(part)


def _types(component: Any) -> Iterator[str]:
    return (str(part.get("type")) for part in _parts(component))


def _patterns(data: Json) -> Iterator[str]:
    for key in ("normalizer", "pre_tokenizer"):
        for part in _parts(data.get(key)):
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                yield pattern["Regex"]


def _without_first_blank(component: Any) -> Json | None:
    """The pre-tokenizer without the blank that it would put before a text's first piece; None if it puts none."""
    if not any(part.get("prepend_scheme") == "first" for part in _parts(component)):
        return None
    copy: Json = json.loads(json.dumps(component))
    for part in _parts(copy):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return copy
