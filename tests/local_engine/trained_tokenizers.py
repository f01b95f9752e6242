"""Small tokenizers trained on the spot, and the two forms in which a model carries one: GGUF metadata, a folder.

The split patterns are written out as the families publish them: the engine builds its own from parts.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS: dict[str, list[str]] = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-4o": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}
IGNORES_MERGES = {"llama-bpe", "tekken"}
CONTROL = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<tool_call>", "</tool_call>"]  # added, but not special, as in Qwen's vocabularies

CORPUS = [
    "The theory that the others gathered there: 'tis what they've said, isn't it? I'M SURE WE'LL SEE. camelCaseWords",
    "    indented = [1, 22, 333, 4444, 55555]\n\n\n\tif x >= 10 ** 3:\r\n\t\treturn {'a': 3.14159}  # comment //",
    "naïve café Straße Ærøskøbing e\u0301combining 漢字とひらがな、한국어 עברית العربية हिन्दी ภาษาไทย",
    "👩‍👩‍👧‍👦 family 🇩🇪 flag 🏳️‍🌈 100% $5,000.00 ... !!! <<>> |||| ____ ——— don't can't won't DON'T CAN'T",
    "1234567890 v2.0.1 2026-11-22T10:00:00Z 0xDEADBEEF ½ ² Ⅷ ٣٤٥",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  leading and trailing  \n\n\ttabs\r\n",
    "a  b   c    d\n \n  \n\n\n x",
    "Hello, world! HELLO'S world'S I'm you're he'll THEY'VE I'd",
    "\x00\x01\x7f controls \u2581 and \u00a0 blanks\u3000wide",
    "e\u0301 is two characters, é is one",
    "it costs 12345678 or 3.5e10; ①②③",
]


@dataclass(frozen=True)
class Trained:
    """A tokenizer as its makers would run it, and what files say about it."""

    reference: Tokenizer
    tokens: list[str]
    types: list[int]
    kind: str  # of the GGUF
    pre: str | None = None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def ids(self, text: str) -> list[int]:
        return list(self.reference.encode(text, add_special_tokens=False).ids)


def train_byte_level(pre: str, size: int = 500) -> Trained:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    before = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = Tokenizer(models.BPE())
    trainer.pre_tokenizer = before
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    model = json.loads(trainer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(merge) for merge in model["merges"]]
    # a whole piece that no merge leads to: found where merges are ignored, and nowhere else
    vocabulary["Ġsaid,"[:5] + "!"] = len(vocabulary)
    vocabulary["Hello"] = len(vocabulary)
    reference = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in IGNORES_MERGES))
    if pre == "qwen2":
        reference.normalizer = normalizers.NFC()
    reference.pre_tokenizer = before
    reference.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in CONTROL])
    reference.add_tokens([AddedToken(text, normalized=False, special=False) for text in ADDED])
    tokens = [*sorted(vocabulary, key=lambda text: vocabulary[text]), *CONTROL, *ADDED]
    types = [1] * len(vocabulary) + [3] * len(CONTROL) + [4] * len(ADDED)
    return Trained(reference, tokens, types, "gpt2", pre, [" ".join(merge) for merge in merges])


def train_sentencepiece(size: int = 600) -> Trained:
    """As Llama 2's: `<unk>`, `<s>`, `</s>`, 256 bytes, then pieces, each with a score below the one before."""
    trainer = Tokenizer(models.BPE())
    trainer.pre_tokenizer = pre_tokenizers.Metaspace()
    common = [text for text in CORPUS for _ in range(3)]
    trainer.train_from_iterator(common, trainers.BpeTrainer(vocab_size=size - 259, limit_alphabet=60))
    vocabulary: dict[str, int] = json.loads(trainer.to_str())["model"]["vocab"]
    letters = [text for text in vocabulary if len(text) == 1]
    pieces = [text for text in sorted(vocabulary, key=lambda text: vocabulary[text]) if len(text) > 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) + len(letters))]
    ids = {text: n for n, text in enumerate(tokens)}
    known = {text: scores[ids[text]] for text in (*pieces, *letters)}
    cuts = [(text[:n], text[n:]) for text in known for n in range(1, len(text))]
    merges = [cut for cut in cuts if cut[0] in known and cut[1] in known]
    merges.sort(key=lambda cut: (known[cut[0] + cut[1]], len(cut[0])), reverse=True)
    reference = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    reference.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    reference.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<s>", "</s>")])
    return Trained(reference, tokens, types, "llama", scores=scores)


def write_gguf(path: Path, trained: Trained, **more: Any) -> Path:
    """A file of metadata only; `more` are further keys below `tokenizer.ggml`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(trained.kind)
    if trained.pre is not None:
        writer.add_tokenizer_pre(trained.pre)
    writer.add_token_list(trained.tokens)
    writer.add_token_types(trained.types)
    if trained.merges:
        writer.add_token_merges(trained.merges)
    if trained.scores:
        writer.add_token_scores(trained.scores)
    for key, value in more.items():
        name = f"tokenizer.ggml.{key}"
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder: Path, trained: Trained, **files: dict[str, Any]) -> Path:
    """`tokenizer.json`, and one JSON file for each keyword."""
    folder.mkdir(exist_ok=True)
    trained.reference.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
