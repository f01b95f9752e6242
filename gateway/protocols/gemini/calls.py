"""Function calls, whole or in pieces.

Vertex AI can stream arguments: `partialArgs` gives pieces of values, each with the JSON path of its place. They are
put together here and handed on when the call is whole, for pieces of a text are no pieces of the JSON text around it.
Calls of older models have no ids. Theirs are made of the answer's id and the call's place in it, so that they are the
same each time the answer is read, and no other answer of the conversation has them.
"""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec

from gateway.canonical import Event, Seal, ToolCallDelta, ToolCallStarted
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.gemini.shapes import FunctionCall, PartialArg

MAX_CALLS = 1024
_MAX_DEPTH = 64
_MAX_ITEMS = 65_536
_ID_BYTES = 12
_MADE_ID = re.compile(r"call_[0-9a-f]{24}")
_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,9})\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")
_ESCAPED = re.compile(r"\\(.)")

_Path = tuple[str | int, ...]


def make_id(answer: str, choice: int, index: int) -> str:
    digest = blake2b(f"{answer}\n{choice}\n{index}".encode(), digest_size=_ID_BYTES)
    return f"call_{digest.hexdigest()}"


def is_made(call_id: str) -> bool:
    """Whether the id is one of ours, which Google has never seen."""
    return _MADE_ID.fullmatch(call_id) is not None


class Calls:
    """The calls of one choice."""

    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._ids: set[str] = set()
        self._open: _OpenCall | None = None
        self.count = 0

    def read(self, call: FunctionCall, seal: Seal | None, answer: str) -> list[Event]:
        """`answer`: an id of the answer. A part without a name goes on with the call before it."""
        events: list[Event] = []
        current = self._open
        if current is None or (call.name and not (call.id and call.id == current.id)):
            if not call.name:
                return []  # the end of a call that has ended
            events += self.close()
            current = self._start(call, answer)
            events.append(ToolCallStarted(current.index, current.id, call.name, seal, self._choice))
        current.add(call)
        if not call.will_continue:
            events += self.close()
        return events

    def close(self) -> list[Event]:
        """The call under way is whole."""
        current, self._open = self._open, None
        return [ToolCallDelta(current.index, current.arguments(), self._choice)] if current is not None else []

    def _start(self, call: FunctionCall, answer: str) -> _OpenCall:
        if self.count >= MAX_CALLS:
            raise UpstreamProtocolError(f"more than {MAX_CALLS} calls in one answer")
        call_id = call.id if call.id and call.id not in self._ids else make_id(answer, self._choice, self.count)
        self._ids.add(call_id)
        self._open = _OpenCall(self.count, call_id)
        self.count += 1
        return self._open


class _OpenCall:
    def __init__(self, index: int, call_id: str) -> None:
        self.index = index
        self.id = call_id
        self._whole = "{}"
        self._pieces: dict[_Path, list[str]] = {}  # of texts
        self._values: dict[_Path, object] = {}  # all other values; the order of places is that of their coming
        self._unfinished: set[_Path] = set()
        self._size = 0

    def add(self, call: FunctionCall) -> None:
        if call.args and bytes(call.args) != b"null":
            self._whole = _object_text(call.args)
        for piece in call.partial_args or ():
            self._add(piece)

    def _add(self, piece: PartialArg) -> None:
        path = _path(piece.json_path)
        text = piece.string_value
        self._size += len(piece.json_path) + len(text or "")
        if self._size > MAX_EVENT_BYTES:
            raise UpstreamProtocolError("the arguments of a call are too long")
        if text is None:
            self._values[path] = _value(piece)
        elif path in self._unfinished:
            self._pieces[path].append(text)
        else:
            self._pieces[path] = [text]
            self._values[path] = None  # keeps the place
        if piece.will_continue:
            self._unfinished.add(path)
        else:
            self._unfinished.discard(path)

    def arguments(self) -> str:
        if not self._values:
            return self._whole
        try:
            root = msgspec.json.decode(self._whole, type=dict[str, object])
        except NOT_JSON:
            raise UpstreamProtocolError("the arguments of a call are not valid JSON") from None
        for path, value in self._values.items():
            _place(root, path, "".join(self._pieces[path]) if path in self._pieces else value)
        return msgspec.json.encode(root).decode()


def _object_text(args: msgspec.Raw) -> str:
    """The arguments without the spaces between them; numbers and the order of fields stay."""
    text = bytes(args)
    if not text.startswith(b"{"):
        raise UpstreamProtocolError("the arguments of a call are no object")
    try:
        text = msgspec.json.format(text, indent=-1)
    except NOT_JSON:
        pass  # half a surrogate pair, which clients may read as they like
    return text.decode("utf-8", "replace")


def _value(piece: PartialArg) -> object:
    if piece.bool_value is not None:
        return piece.bool_value
    if piece.number_value is None and piece.null_value is msgspec.UNSET:
        raise UpstreamProtocolError("a piece of an argument has no value")
    number = piece.number_value
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number


def _path(text: str) -> _Path:
    """A normalised JSON path (RFC 9535), `$.places[0]['the name']`, as its steps."""
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or len(steps) >= _MAX_DEPTH:
            break
        name, index, *quoted = found.groups()
        key = next((item for item in quoted if item is not None), None)
        steps.append(name or (int(index) if index is not None else _ESCAPED.sub(r"\1", key or "")))
        at = found.end()
    if at != len(text) or not steps or not text.startswith("$") or isinstance(steps[0], int):
        raise UpstreamProtocolError("the path of a piece of an argument cannot be read")
    return tuple(steps)


def _place(root: dict[str, object], path: _Path, value: object) -> None:
    """Puts the value at its place; what stands on the way is made."""
    node: object = root
    for step, following in zip(path, (*path[1:], None), strict=True):
        if following is None:
            item = value
        else:
            item = _at(node, step)
            if not isinstance(item, dict if isinstance(following, str) else list):
                item = {} if isinstance(following, str) else []
        _put(node, step, item)
        node = item


def _at(node: object, step: str | int) -> object:
    if isinstance(node, dict):
        return node.get(step)
    assert isinstance(node, list) and isinstance(step, int), "made for this step"
    return node[step] if step < len(node) else None


def _put(node: object, step: str | int, item: object) -> None:
    if isinstance(node, dict):
        node[step] = item
        return
    assert isinstance(node, list) and isinstance(step, int), "made for this step"
    if step >= _MAX_ITEMS:
        raise UpstreamProtocolError("an argument is too long a list")
    node.extend([None] * (step + 1 - len(node)))
    node[step] = item
