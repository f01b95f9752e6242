"""What an upstream complains of, whatever its protocol: a message, a parameter and a code of ours that stays the same.

Every provider has its own shape of an error, and many have several. Read are those of OpenAI and its many likenesses
(`error: {message, type, param, code}`), Azure (`innererror`), Anthropic, Gemini (also as a list, with `details`),
Bedrock (`message` or `Message`, the kind in `x-amzn-errortype` or `__type`), Cohere, Mistral and FastAPI (`detail`, a
list of `{loc, msg}`), Ollama and TGI (`error` is text), DashScope (`code` and `message` on top), OpenRouter
(`error.metadata.raw` holds the words of the provider behind it), RFC 9457, server-sent events, HTML and plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from typing import Any
from urllib.parse import quote

import msgspec

from gateway.protocols.complaint_codes import code_of

MAX_SHOWN = 2_000
"""Characters of a scrubbed text."""
_MAX_BODY = 256 * 1024
_MAX_DEPTH = 12
_MAX_ITEMS = 32
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_MESSAGES = (
    "message", "Message", "msg", "error_msg", "error_message", "errorMessage", "error_description", "detail",
    "description", "reason", "title",
)  # fmt: skip
_KINDS = (
    "code", "type", "status", "reason", "__type", "error_type", "errorType", "error_code", "errorCode", "Code",
    "http_status_code",
)  # fmt: skip
_NESTED = ("error", "Error", "errors", "innererror", "inner_error", "details", "cause", "output")
_GENERIC = re.compile(
    r"provider returned error|(?:an )?(?:internal )?(?:server )?error(?: occurred)?\.?|bad request", re.I
)
_DETAIL_CODE = re.compile(r"[a-z_]{1,64}")
_DATA_LINE = re.compile(rb"^data: ?(.*)$", re.MULTILINE)
_ERROR_WORD = re.compile(rb'"(?:error|message|detail)"\s*:')
_HTML = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml|error\b)", re.I)
_HTML_TITLE = re.compile(r"<(title|message|h1)\b[^>]{0,200}>([^<]{1,2000})<", re.I)


class Complaint(msgspec.Struct, frozen=True):
    """`message`: the upstream's words, NOT scrubbed; None: it gave none. `param`: the field it names."""

    message: str | None
    code: str
    param: str | None
    is_context_too_long: bool
    is_content_filter: bool
    detail_code: str | None = None  # Anthropic's `error.details.error_code`, by which its SDKs recover


def read_complaint(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Complaint:
    """Reads an answer with an error status, or an error that came with status 200. Never raises.

    `code` is one of `complaint_codes.CODES`.
    """
    found = _Found()
    for name, value in headers:
        if name.lower() == b"x-amzn-errortype":
            found.add_kind(value[:200].decode("latin-1"))
    body = body[:_MAX_BODY]
    content = _decode(body)
    if content is not None:
        found.read(content, 0)
    else:
        found.message = _words(body)
    effective = status if status >= 400 else found.status or status
    code = code_of(effective, found.kinds, found.message or "", found.text())
    return Complaint(
        message=found.message,
        code=code,
        param=found.param,
        is_context_too_long=code == "context_length_exceeded",
        is_content_filter=code == "content_filter",
        detail_code=_detail_code(content),
    )


def _detail_code(content: Any) -> str | None:
    error = content.get("error") if isinstance(content, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    code = details.get("error_code") if isinstance(details, dict) else None
    return code if isinstance(code, str) and _DETAIL_CODE.fullmatch(code) else None


class _Found:
    """What is gathered from an error's parts. The outermost message wins, unless it says nothing.

    `kinds`: the upstream's codes and types, in lower case. `status`: an HTTP status told in the body.
    """

    def __init__(self) -> None:
        self.message: str | None = None
        self.param: str | None = None
        self.status: int | None = None
        self.kinds: set[str] = set()
        self._texts: list[str] = []

    def text(self) -> str:
        return "\n".join(self._texts)

    def add_kind(self, kind: Any) -> None:
        if isinstance(kind, bool) or not isinstance(kind, str | int):
            return
        word = str(kind)[:200].strip()
        if word.isdecimal() and 400 <= int(word) < 600:
            self.status = self.status or int(word)
        # AWS: `com.amazonaws.bedrock#ValidationException:http://internal.amazon.com/...`
        self.kinds.add(word.partition(":http")[0].rpartition("#")[2].lower())

    def add_message(self, words: str, depth: int) -> None:
        """Words may be JSON once more: gateways wrap what they were told."""
        if not words.strip():
            return
        inner = _decode(words.encode(errors="replace")) if words.lstrip()[:1] in ("{", "[") else None
        if isinstance(inner, dict | list):
            self.read(inner, depth + 1)
        self._texts.append(words)
        if self.message is None or _GENERIC.fullmatch(self.message.strip()):
            self.message = words.strip()

    def read(self, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH:
            return
        if isinstance(value, str):
            self.add_message(value, depth)
        elif isinstance(value, list):
            for item in value[:_MAX_ITEMS]:
                self.read(item, depth + 1)
        elif isinstance(value, dict):
            self._read_fields(value, depth)

    def _read_fields(self, fields: Mapping[str, Any], depth: int) -> None:
        for name in _KINDS:
            self.add_kind(fields.get(name))
        self._add_param(fields)
        metadata = fields.get("metadata")
        if isinstance(metadata, dict):
            self._read_metadata(metadata, depth)
        for name in _NESTED[:3]:
            self.read(fields.get(name), depth + 1)
        for name in _MESSAGES:
            self.read(fields.get(name), depth + 1)
        for name in _NESTED[3:]:
            self.read(fields.get(name), depth + 1)

    def _read_metadata(self, metadata: Mapping[str, Any], depth: int) -> None:
        """OpenRouter's: `raw` is what the provider behind it said, `reasons` why its own moderation refused."""
        self.add_kind(metadata.get("error_type"))
        if isinstance(metadata.get("reasons"), list):
            self.kinds.add("moderation")
        self.read(metadata.get("raw"), depth + 1)

    def _add_param(self, fields: Mapping[str, Any]) -> None:
        """`param`, or FastAPI's `loc`: the place in the request, after the word `body`."""
        param, place = fields.get("param"), fields.get("loc")
        if isinstance(place, list) and param is None:
            steps = place[1:_MAX_ITEMS] if place[:1] == ["body"] else place[:_MAX_ITEMS]
            param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        if self.param is None and isinstance(param, str) and param.strip():
            self.param = param.strip()[:200]


def _decode(body: bytes) -> Any:
    """JSON, or the error among server-sent events; None: it is none, or a bare number."""
    text = body.lstrip()
    if text.startswith((b"data:", b"event:", b"id:", b":")):
        events = [_decode_json(line) for line in _DATA_LINE.findall(text) if _ERROR_WORD.search(line)]
        return next((event for event in events if isinstance(event, dict | list)), None)
    found = _decode_json(text)
    return found if isinstance(found, dict | list | str) else None


def _decode_json(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except _NOT_JSON:
        return None


def _words(body: bytes) -> str | None:
    """A body that is no JSON: plain text, or the heading of a page."""
    text = body.decode("utf-8", "replace").strip()
    if _HTML.match(text):
        heading = _HTML_TITLE.search(text[:20_000])
        text = unescape(heading[2]).strip() if heading else ""
    return None if text in ("", "null") else text


# Scrubbing

_HIDDEN = "***"
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_BLANK = re.compile(r"\s+")
_MASKED = re.compile(r"([\w-]{0,64})((?:\*{2,}|\.{3,}|…+|•{2,}|█{2,}|[xX]{6,})+)([\w-]{0,64})")
_KEY_SHAPES = re.compile(
    r"""
    \b (?: (?:sk|pk|rk|ak)-[\w*…-]{6,} (?:\.{3}[\w-]+)?        # OpenAI and those like it, whole or masked
         | (?:gsk|hf|fw|r8|ghp|gho|ghs|github_pat|glpat|csk|tgp_v1)_[\w-]{8,}
         | (?:xai|nvapi|csk|pplx|tgp|glpat|gsk|hw|sess|ABSK|bedrock-api-key)-[\w-]{8,}
         | ABSK[\w+/=-]{20,}                                   # Bedrock's API keys
         | (?:AKIA|ASIA|AROA|AIDA|AGPA)[0-9A-Z]{12,}           # AWS
         | AIza[\w-]{20,} | ya29\.[\w.-]{10,} | AQ\.[\w-]{20,} # Google
         | bce-v3/[\w/-]{8,}                                   # Baidu
         | pa-[\w-]{24,}                                       # Voyage
         | eyJ[\w-]{8,}\.[\w-]+ (?:\.[\w-]*)?                  # JSON Web Tokens
         | (?:org|proj|acct|user)[-_](?=[A-Za-z]{0,64}\d)[A-Za-z0-9]{12,}  # whose account it is
         | [0-9a-fA-F]{32,}                                    # Azure's keys, and other long hexadecimals
         | [\w+/-]{64,} ={0,2}                                 # what else is long and has no blanks
       )
    """,
    re.VERBOSE,
)
_AFTER_WORD = re.compile(
    r"""
    \b (?: (bearer) \s+ (?!(?:token|auth|authentication|authorization|credential|scheme|format|header|key)s?\b)
          | (basic) \s+ (?=[\w+/]{0,64}[\d=]) )
    [\w.~+/=*-]{6,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"""
    ((?:api[-_ ]?key|access[-_ ]?(?:key|token)|client[-_ ]?secret|secret|password|token|signature|sig)
     ["']? \s? [:=] \s? ["']?) (?=[\w.~+/*-]{0,64}[\d*]) [\w.~+/=*-]{6,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ARN = re.compile(r"(\barn:aws[\w-]{0,20}:[\w-]{0,40}:[\w-]{0,40}:)\d{12}")
_USER_IN_URL = re.compile(r"(://)[^\s/@]{1,200}@")
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_ECHOED = 8
"""Characters of a key's beginning or end that providers echo to say which key it was."""
_MAX_READ = 8_000
_MIN_SECRET = 4
"""What is shorter is a header's value that hides nothing, such as `1`."""
_MIN_ECHOED = 20
"""A secret must be this long before a part of it is looked for: parts of short ones are common words."""


def scrub(text: str, secrets: Sequence[str]) -> str:
    """The text without the given secrets, whole, masked (`sk-abc***wxyz`) or cut to their first or last 8 characters,
    and without anything that looks like a key, an account or an e-mail address. One line, at most 2,000 characters.
    """
    if len(text) > _MAX_READ:  # the last word, which may be half a secret, is left out
        text = text[:_MAX_READ].rpartition(" ")[0] or _HIDDEN
    text = _BLANK.sub(" ", _CONTROL.sub("", text)).strip()
    known = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
    for form in known:
        text = text.replace(form, _HIDDEN)
    text = _MASKED.sub(lambda match: _HIDDEN if _is_masked(match, known) else match[0], text)
    for form in {part for secret in secrets for part in _ends(secret)}:
        text = text.replace(form, _HIDDEN)
    text = _AFTER_WORD.sub(lambda match: f"{match[1] or match[2]} {_HIDDEN}", text)
    text = _ASSIGNED.sub(rf"\1{_HIDDEN}", text)
    text = _USER_IN_URL.sub(rf"\1{_HIDDEN}@", text)
    text = _KEY_SHAPES.sub(_HIDDEN, text)
    text = _ARN.sub(rf"\1{_HIDDEN}", text)
    text = _EMAIL.sub(_HIDDEN, text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: itself, in a URL, inside JSON."""
    plain = _BLANK.sub(" ", _CONTROL.sub("", secret)).strip()
    if len(plain) >= _MIN_SECRET:
        yield plain
        yield quote(plain, safe="")
        yield msgspec.json.encode(plain)[1:-1].decode()


def _ends(secret: str) -> tuple[str, ...]:
    if len(secret) < _MIN_ECHOED or any(char.isspace() for char in secret):
        return ()
    return secret[:_ECHOED], secret[-_ECHOED:]


def _is_masked(match: re.Match[str], secrets: Sequence[str]) -> bool:
    """Whether this is one of the secrets with its middle blotted out."""
    head, tail = match[1], match[3]
    if len(head) + len(tail) < 2:
        return False
    return any(secret.startswith(head) and secret.endswith(tail) for secret in secrets)
