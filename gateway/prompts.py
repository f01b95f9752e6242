"""What was asked and answered, where a policy keeps it: read as data, blacked out, bounded, handed to the spool.

Off unless a policy says otherwise. Nothing here changes or delays what the client gets: a request is read beside the
wait for its upstream, a stream as it passes by, and the record is written just before the answer's last byte leaves, as
the ledger's row is. What cannot be read or written is counted, and the request goes on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gateway.adapters.wires import WIRES
from gateway.canonical import Answer, Reasoning, Refusal
from gateway.config.model import Policy, Prompts
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.folding import Folding, tool_calls, visible_text
from gateway.ledger.spool import SpoolError
from gateway.protocols.base import StreamDecoder
from gateway.protocols.inbound import Inbound
from gateway.redaction import redact
from gateway.telemetry import Metrics

MAX_KEPT = 64 * 1024
"""Characters of a request, and of an answer, that are kept."""
MAX_READ = 4 * 1024 * 1024
"""Bytes of a request, and of an answer, that are read at all."""
MAX_RECORD = 200 * 1024
"""Bytes of a record: what the spool takes."""
MAX_DEPTH = 64
CUT = "[cut]"

_AHEAD = 512
"""Characters behind the end of what is kept that are looked at, so that nothing is cut before it is recognised."""
_LEAST_NUMBER = 10**6
"""Whole numbers from here on may be a phone's or a card's."""
_READ_LAST = ("tools", "functions", "response_format", "toolConfig", "tool_config")
"""Of a request: declarations are the first to go where there is too much."""
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.+=-]{1,100}){0,4},")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=-]{1024}")
_OVERHEAD = 8
"""What a value costs beside its characters."""

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Record(msgspec.Struct, frozen=True):
    """A row of `prompts`; its JSON is what the spool carries."""

    request_id: str
    at: datetime
    expires_at: datetime
    team: str
    policy: str
    body: dict[str, Any]


class PromptKeeper:
    """One for each worker. `close` it before its spool."""

    def __init__(self, write: Callable[[bytes], None], metrics: Metrics) -> None:
        """`write`: hands a record to the spool; raises SpoolError."""
        self._write = write
        self._metrics = metrics
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    def begin(self, inbound: Inbound, policy: Policy, *, team: str, request_id: str) -> Keeping | None:
        """Of a request that is about to be served; None where its policy keeps nothing."""
        if policy.prompts is None:
            return None
        return Keeping(self, inbound, policy.id, policy.prompts, team, request_id)

    def read(self, inbound: Inbound, prompts: Prompts) -> Future[Clean]:
        """Reads a request beside the loop."""
        return self._reader.submit(clean_request, inbound.body, prompts)

    def write(self, record: Record) -> None:
        """Never raises for what is a record's or the spool's fault."""
        try:
            line = encode(record)
            self._write(line)
        except (SpoolError, ValueError) as error:
            _log.error("what was asked in `%s` is not kept: %s", record.request_id, error)
            self.fail(record.policy)
            return
        self._metrics.prompt(record.policy, "kept")

    def fail(self, policy: str) -> None:
        self._metrics.prompt(policy, "failed")

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)


class Keeping:
    """What one request leaves. `see` every byte that the client is shown, and `keep` at the end, whatever the end is;
    a second `keep` does nothing."""

    def __init__(
        self, keeper: PromptKeeper, inbound: Inbound, policy: str, prompts: Prompts, team: str, request_id: str
    ) -> None:
        self._keeper = keeper
        self._inbound = inbound
        self._policy = policy
        self._prompts = prompts
        self._team = team
        self._request_id = request_id
        self._at = datetime.now(UTC)
        self._request = keeper.read(inbound, prompts)
        self._shown = Shown(inbound) if prompts.what == "both" else None
        self._is_kept = False
        self.record: Record | None = None
        """What was handed to the spool."""

    def see(self, shown: bytes) -> None:
        """The next bytes of the answer, in the client's protocol."""
        if self._shown is not None and not self._is_kept:
            self._shown.add(shown)

    def keep(self, last: bytes = b"", error: str | None = None) -> None:
        """`last`: bytes not yet seen, which complete the answer. `error`: the ledger's `error_type`, where there is no
        whole answer. Never raises."""
        if self._is_kept:
            return
        self._is_kept = True
        try:
            record = self.record = self._record(last, error)
        except Exception:  # noqa: BLE001 - nothing that is kept may cost an answer
            _log.exception("what was asked in `%s` is not kept", self._request_id)
            self._keeper.fail(self._policy)
            return
        self._keeper.write(record)

    def _record(self, last: bytes, error: str | None) -> Record:
        request = self._request.result()
        body: dict[str, Any] = {
            "surface": self._inbound.protocol.surface,
            "request": request.value,
            "error": error,
        }
        counts, cut = dict(request.counts), ["request"] if request.is_cut else []
        if self._shown is not None:
            self._shown.add(last)
            answer = clean(self._shown.answer(), self._prompts)
            body["answer"] = answer.value
            for kind, count in answer.counts.items():
                counts[kind] = counts.get(kind, 0) + count
            if answer.is_cut or self._shown.is_cut:
                cut.append("answer")
        body |= {"redacted": counts, "cut": cut}
        return Record(
            self._request_id,
            self._at,
            self._at + timedelta(seconds=self._prompts.keep),
            self._team,
            self._policy,
            body,
        )


class Shown:
    """An answer as the client is shown it, read while it passes by. `is_cut`: not all of it was read."""

    def __init__(self, inbound: Inbound) -> None:
        self.is_cut = False
        self._wire = WIRES.get(inbound.protocol.wire)
        self._decoder: StreamDecoder | None = None
        if self._wire is not None and inbound.wants_stream:
            self._decoder = self._wire.open_decoder(PLAIN)
        self._streams = inbound.wants_stream
        self._folding = Folding()
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, shown: bytes) -> None:
        if self._wire is None or self.is_cut or not shown:
            return
        self._size += len(shown)
        if self._size > MAX_READ:
            self.is_cut = True
            self._pieces.clear()
        elif self._decoder is None:
            self._pieces.append(shown)
        else:
            try:
                for event in self._decoder.feed(shown):
                    self._folding.add(event)
            except UpstreamError:  # an error event, or no stream of its protocol: what came before it is kept
                self.is_cut = True

    def answer(self) -> Any:
        """Choices with what the model wrote, JSON-ready; None: nothing that is text."""
        if self._wire is None:
            return None
        if self._streams:
            return describe(self._folding.answer())
        try:
            return describe(self._wire.read_answer(b"".join(self._pieces), PLAIN)) if self._pieces else None
        except UpstreamError:
            self.is_cut = True
            return None


def describe(answer: Answer) -> list[dict[str, Any]]:
    choices = []
    for choice in answer.choices:
        found: dict[str, Any] = {
            "text": visible_text(choice.parts),
            "reasoning": "".join(part.text for part in choice.parts if isinstance(part, Reasoning)),
            "refusal": "".join(part.text for part in choice.parts if isinstance(part, Refusal)),
            "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in tool_calls(choice.parts)],
        }
        choices.append({**{key: value for key, value in found.items() if value}, "finish": choice.finish})
    return choices


class Clean(msgspec.Struct, frozen=True):
    """Data without what was to go. `counts`: how many of each kind went; `is_cut`: there was more than is kept."""

    value: Any
    counts: dict[str, int]
    is_cut: bool


def clean_request(body: bytes, prompts: Prompts) -> Clean:
    """Of a request's JSON, whatever its protocol; media is left out. Pure."""
    if len(body) > MAX_READ:
        return Clean(None, {}, is_cut=True)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Clean(None, {}, is_cut=True)
    return clean(value, prompts)


def clean(value: Any, prompts: Prompts, limit: int = MAX_KEPT) -> Clean:
    """JSON-ready data of about `limit` characters. Where there is more, the newest turns are kept. Pure."""
    walk = _Walk(prompts.redact, limit)
    return Clean(walk.clean(value, 0), walk.counts, walk.is_cut)


def encode(record: Record) -> bytes:
    """The record's JSON, never longer than MAX_RECORD: where its characters need many bytes, texts go. Raises
    ValueError."""
    body = dict(record.body)
    for name in ("", "answer", "request"):
        if name:
            body[name] = CUT
            body["cut"] = sorted({*body["cut"], name})
        line = _encode(msgspec.structs.replace(record, body=body))
        if len(line) <= MAX_RECORD:
            return line
    raise ValueError("the record is too long")


class _Walk:
    """Through a value, with what may still be kept."""

    def __init__(self, kinds: tuple[str, ...], limit: int) -> None:
        self.counts: dict[str, int] = {}
        self.is_cut = False
        self._kinds = kinds
        self._left = limit

    def clean(self, value: Any, depth: int) -> Any:
        if self._left <= 0 or depth > MAX_DEPTH:
            self.is_cut = True
            return CUT
        self._left -= _OVERHEAD
        match value:
            case str():
                return self._text(value)
            case bool() | None:
                return value
            case int():
                return self._number(value)
            case dict():
                return self._mapping(value, depth)
            case list():
                return self._list(value, depth)
        return value

    def _mapping(self, value: dict[str, Any], depth: int) -> dict[str, Any]:
        order = sorted(value, key=lambda name: name in _READ_LAST) if depth == 0 else list(value)
        found: dict[str, Any] = {}
        for name in order:
            if self._left <= 0:
                self.is_cut = True
                break
            shown = self._text(name)
            found[shown] = self.clean(value[name], depth + 1)
        return found

    def _list(self, value: list[Any], depth: int) -> list[Any]:
        """From its end, because the newest turn is the last."""
        found: list[Any] = []
        for item in reversed(value):
            if self._left <= 0:
                self.is_cut = True
                found.append(CUT)
                break
            found.append(self.clean(item, depth + 1))
        return found[::-1]

    def _text(self, text: str) -> str:
        if _is_media(text):
            return f"[media, {len(text)} characters]"
        room = max(0, self._left)
        shown = redact(text[: room + _AHEAD], self._kinds, self.counts)
        if len(text) > room + _AHEAD or len(shown) > room:
            self.is_cut = True
            shown = shown[:room] + CUT
        self._left -= len(shown)
        return _storable(shown)

    def _number(self, value: int) -> int | str:
        if -_LEAST_NUMBER < value < _LEAST_NUMBER:
            return value
        written = str(value)
        shown = redact(written, self._kinds, self.counts)
        self._left -= len(written)
        return value if shown == written else shown


def _is_media(text: str) -> bool:
    return len(text) >= 1024 and (_BASE64.match(text) is not None or _DATA_URL.match(text) is not None)


def _storable(text: str) -> str:
    """PostgreSQL has no NUL in JSON, and UTF-8 no lone surrogates."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
