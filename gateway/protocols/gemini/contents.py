"""The turns of a conversation as Gemini's `contents` and `systemInstruction`.

Results of tools stand in one content for each step of the model, in the order of its calls, with the functions' names;
other words of the user follow in a content of their own. A text is wrapped, as results must be objects. Media that a
tool returned travel in the result from Gemini 3 on (ai.google.dev/gemini-api/docs/function-calling, "Multimodal
function responses": pictures and PDF, inline), otherwise in a content behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gateway.canonical import Media, Part, Refusal, Text, ToolResult, Turn
from gateway.errors import InvalidRequest
from gateway.protocols.gemini.media import fits_in_result, write_media
from gateway.protocols.gemini.step import SentCall, Step

_LAST = 1 << 30  # the order of a result whose call is not in the conversation


class Contents(NamedTuple):
    """`system`: parts of the system instruction. `dropped`: canonical names of what has no place here."""

    system: list[object]
    contents: list[object]
    dropped: frozenset[str]


def write_contents(turns: Sequence[Turn], *, is_new: bool) -> Contents:
    """`is_new`: the model is of Gemini 3 or later. Raises InvalidRequest for what cannot be said."""
    writer = _ContentsWriter(is_new)
    for turn in turns:
        writer.write(turn)
    if not writer.contents and writer.system:  # a prompt of nothing else is taken as the question
        return Contents([], [_content("user", writer.system)], _dropped(turns))
    return Contents(writer.system, writer.contents, _dropped(turns))


class _ContentsWriter:
    def __init__(self, is_new: bool) -> None:
        self.system: list[object] = []
        self.contents: list[object] = []
        self._is_new = is_new
        self._calls: dict[str, SentCall] = {}
        self._results: list[tuple[int, object]] = []  # of the step before, with the order of their calls
        self._shown: list[object] = []  # the parts of the content they stand in

    def write(self, turn: Turn) -> None:
        if turn.role == "system":
            self.system += [_system_part(part) for part in turn.parts if not (isinstance(part, Text) and not part.text)]
        elif turn.role == "assistant":
            step = Step(turn.parts, is_new=self._is_new)
            self._calls.update(step.calls)
            self._results, self._shown = [], []
            self._append("model", step.parts)
        else:
            behind = self._add_results(part for part in turn.parts if isinstance(part, ToolResult))
            self._append("user", [*behind, *_user_parts(turn.parts)])

    def _append(self, role: str, parts: list[object]) -> None:
        if parts:
            self.contents.append(_content(role, parts))

    def _add_results(self, results: Iterable[ToolResult]) -> list[object]:
        """The parts that must stand behind the results."""
        behind: list[object] = []
        for result in results:
            call = self._calls.get(result.call_id)
            name = call.name if call is not None else result.name
            if name is None:
                raise InvalidRequest(
                    f"the tool result `{result.call_id}` belongs to no call", param="messages", code="unknown_tool_call"
                )
            body: dict[str, object] = {"name": name, "response": _response(result)}
            if call is not None and call.has_id:
                body["id"] = result.call_id
            media = [part for part in result.parts if isinstance(part, Media)]
            inside = [part for part in media if self._is_new and fits_in_result(part)]
            if inside:
                body["parts"] = [write_media(part) for part in inside]
            if len(inside) < len(media):
                behind.append({"text": f"Returned by `{name}`:"})  # else nothing says which of several results it was
                behind += [write_media(part) for part in media if part not in inside]
            self._results.append((call.order if call is not None else _LAST, {"functionResponse": body}))
        if self._results and not self._shown:
            self.contents.append(_content("user", self._shown))
        self._results.sort(key=lambda item: item[0])
        self._shown[:] = [part for _, part in self._results]
        return behind


def _content(role: str, parts: list[object]) -> object:
    return {"role": role, "parts": parts}


def _response(result: ToolResult) -> dict[str, object]:
    """As text even if it is JSON: Google keeps numbers in objects as floats, which spoils long ids."""
    texts = [part.text for part in result.parts if isinstance(part, Text)]
    return {"error" if result.is_error else "result": texts if len(texts) > 1 else "".join(texts)}


def _system_part(part: Part) -> object:
    if isinstance(part, Text):
        return {"text": part.text}
    raise InvalidRequest("system prompts of Gemini are text", param="messages", code="unsupported_by_endpoint")


def _user_parts(parts: Sequence[Part]) -> list[object]:
    written: list[object] = []
    for part in parts:
        if isinstance(part, (Text, Refusal)) and part.text:
            written.append({"text": part.text})
        elif isinstance(part, Media):
            written.append(write_media(part))
    return written


def _dropped(turns: Sequence[Turn]) -> frozenset[str]:
    dropped = {"name" for turn in turns if turn.name}
    for turn in turns:
        dropped |= {"cache" for part in turn.parts if getattr(part, "cache", None) is not None}
        dropped |= {"detail" for part in turn.parts if isinstance(part, Media) and part.detail not in (None, "auto")}
    return frozenset(dropped)
