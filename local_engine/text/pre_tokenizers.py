"""How text is split before byte-level BPE, by the names that GGUF files use; and a check of patterns from files.

The patterns are those that the model families publish in their `tokenizer.json`. Merges were learned inside such pieces
only, so another split gives other ids: a name that is not known is an error, never a guess.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

MAX_PATTERN = 1 << 12  # characters of one pattern

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, letters: str = r"\p{L}", marks: str = "") -> str:
    """The family that began with GPT-4's pattern: contractions, words, digits, punctuation, white space."""
    other = rf"[^\s\p{{L}}{marks}\p{{N}}]"
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{other}+[\r\n]*|{_SPACES}"


def _cased(ending: str, digits: str) -> str:
    """The family that began with GPT-4o's pattern: a word also ends where lower case turns into upper case."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{ending}|{before}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True, slots=True)
class Split:
    """Patterns applied one after the other, each to the pieces that the one before left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as it stands is not built from merges
    nfc: bool = False  # text is composed first


_BY_THREES = Split((_words(r"\p{N}{1,3}"),), ignore_merges=True)
_DIGITS_ALONE = Split((r"\p{N}", _GPT2))
_PLAIN = Split((_GPT2,))
_QWEN2 = _words(r"\p{N}")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)

SPLITS: dict[str, Split] = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum", "a.x-4.0"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_ALONE),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "midm-2.0"), _BY_THREES),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Split(_BY_THREES.patterns)),
    "glm4": _BY_THREES,
    "qwen2": Split((_QWEN2,), nfc=True),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "hunyuan", "kormo", "grok-2"), Split((_QWEN2,))),
    "qwen35": Split((_words(r"\p{N}", r"[\p{L}\p{M}]", r"\p{M}"),)),
    "tekken": Split((_cased("", r"\p{N}"),), ignore_merges=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split((_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),))),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Split(_DEEPSEEK3)),
}


def byte_level(split: Split) -> pre_tokenizers.PreTokenizer:
    """The split, then each piece in the byte-level alphabet."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def pattern_fault(pattern: str) -> str | None:
    """Why a pattern out of a file is not to be run; None where nothing speaks against it.

    A repetition without bound around another one, as in `(a+)+`, can take exponential time to find no match.
    """
    if len(pattern) > MAX_PATTERN:
        return f"it has {len(pattern)} characters, at most {MAX_PATTERN} are allowed"
    inside = [False]  # for each open group, the whole pattern first: does it repeat something without bound?
    closed: bool | None = None  # the same of the group that has just ended
    for atom in _atoms(pattern):
        if atom == "(":
            inside.append(False)
        elif atom == ")":
            closed = inside.pop() if len(inside) > 1 else False
            inside[-1] |= closed
            continue
        elif atom in ("*", "+") or (atom.startswith("{") and atom.endswith(",}")):
            if closed:
                return "it repeats a repetition without bound"
            inside[-1] = True
        closed = None
    return None


def _atoms(pattern: str) -> Iterator[str]:
    """`(`, `)`, repetitions, and everything else as single items; classes and escapes hide what they hold."""
    at = 0
    while at < len(pattern):
        start = at
        at += 1
        if pattern[start] == "\\":
            at += 1
        elif pattern[start] == "[":
            at = _class_end(pattern, at)
        elif pattern[start] == "{" and (end := pattern.find("}", at)) > 0:
            at = end + 1
        yield pattern[start:at]


def _class_end(pattern: str, at: int) -> int:
    """Behind the bracket that closes the class whose inside begins at `at`; classes nest."""
    depth = 1
    while at < len(pattern) and depth:
        if pattern[at] == "\\":
            at += 1
        else:
            depth += (pattern[at] == "[") - (pattern[at] == "]")
        at += 1
    return at
