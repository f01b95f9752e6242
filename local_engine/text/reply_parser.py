"""What a model generates, told apart: content, reasoning, tool calls. One state machine for streams and wholes.

The parser is fed token by token and says at once what is certain; what may still become a marker is held back. How the
text was cut into tokens makes no difference to the parts joined. What proves to be no call of a known tool is content,
as it was written. A reply that ends inside a call: arguments that have begun to be told stay as far as they are (the
caller sees that they are cut), anything before that is content.

Line breaks next to markers belong to the markers: behind `<think>`, before and behind `</think>`, and behind a call.
"""

import re
import secrets
from collections.abc import Callable

from local_engine.request import CallArguments, CallStart, Content, Part, Reasoning
from local_engine.text.call_markup import CallMarkup
from local_engine.text.call_object import CallObject
from local_engine.text.detokeniser import overlap
from local_engine.text.reply_format import (
    CLOSERS,
    END_THINK,
    FUNCTION,
    OPENERS,
    PLAIN,
    THINK,
    CallStyle,
    ReplyFormat,
    detect_format,
)

__all__ = ["PLAIN", "ReplyFormat", "ReplyParser", "detect_format"]

_MAX_BLANK = 64  # white space held back before something that may be a marker
_MAX_OPENING = 1 << 10  # characters between the beginning of a block of calls and its first call
_BLANK = re.compile(r"\s+")
# what may stand before, between and behind the calls of a block
_SEPARATORS: dict[CallStyle, str] = {"llama": " \t\r\n;,", "mistral": " \t\r\n,[]"}


class ReplyParser:
    """`feed` one generated token at a time, then `finish` once."""

    def __init__(self, format: ReplyFormat) -> None:
        self._format = format
        self._separators = _SEPARATORS.get(format.calls, " \t\r\n")
        self._openers = OPENERS[format.calls]
        self._closers = CLOSERS.get(format.calls, ())
        # markers that are tokens come as marks; the others are looked for in the text
        self._text_openers = tuple(m for m in self._openers if m not in format.marks)
        self._text_closers = tuple(m for m in self._closers if m not in format.marks)
        self._text_think = (THINK,) if format.reasoning and THINK not in format.marks else ()
        self._opener = re.compile("|".join(map(re.escape, self._text_openers))) if self._text_openers else None
        self._pending = ""  # text that cannot be judged yet
        self._out: list[Part] = []
        self._state: Callable[[bool], bool] = self._gap
        if format.reasoning_open:
            self._state = self._reason
        elif not format.reasoning and format.calls == "none":
            self._state = self._content  # nothing to wait for
        self._blank = ""  # held back in a gap
        self._is_first = not format.reasoning_open  # nothing but white space so far
        self._breaks = 0  # line breaks held back at the end of the reasoning so far
        self._reasoned = False  # some reasoning was told
        self._call: CallObject | CallMarkup | None = None
        self._is_told = False  # that call has begun to be
        self._opening = ""  # of a block, or since its last call: content unless a call follows
        self._block_calls = 0
        self.calls = 0  # how many were told

    @property
    def in_reasoning(self) -> bool:
        return self._state == self._reason

    @property
    def in_call(self) -> bool:
        return self._state in (self._block, self._read_call)

    def feed(self, text: str, mark: str | None) -> list[Part]:
        """The text of a token, then the marker that it is; a mark that the format does not know has no meaning."""
        if text:
            self._pending += text
            self._run(last=False)
        if mark is not None and mark in self._format.marks:
            self._run(last=True)
            self._on_mark(mark)
        return self._take()

    def finish(self) -> list[Part]:
        """What was held back."""
        self._run(last=True)
        if self._state == self._gap:
            self._tell(Content(self._leave_gap()))
        elif self._state == self._read_call:
            self._end_call()
        if self._state == self._block and not self._block_calls:
            self._enter_content("")
        return self._take()

    # What comes out

    def _take(self) -> list[Part]:
        out, self._out = self._out, []
        return out

    def _tell(self, part: Part) -> None:
        """Neighbours of one kind become one part."""
        if isinstance(part, CallStart):
            self._out.append(part)
            return
        if not part.text:
            return
        before = self._out[-1] if self._out else None
        if isinstance(part, Content) and isinstance(before, Content):
            self._out[-1] = Content(before.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(before, Reasoning):
            self._out[-1] = Reasoning(before.text + part.text)
        else:
            self._out.append(part)

    def _run(self, last: bool) -> None:
        """Lets the states read until nothing is left, or until they wait for more; `last`: no more text will come."""
        while self._pending and self._state(last):
            pass

    def _on_mark(self, mark: str) -> None:
        """A marker that is a token. Where it has no meaning it is text."""
        if self._state == self._read_call and self._call is not None:
            if self._call.in_string:
                self._pending += mark
                self._run(last=False)
                return
            self._end_call()
        if self._state == self._reason:
            if mark == END_THINK:
                self._enter_gap()
            elif mark != THINK or self._reasoned:
                self._reasoning(mark)
        elif mark == THINK and self._state == self._gap and self._is_first:
            self._enter_reasoning()
        elif mark in self._openers:
            self._open_block(mark)
        elif mark in self._closers and self._state == self._block and self._block_calls:
            self._enter_gap()
        else:
            self._enter_content(mark)

    # Between: at the beginning, behind reasoning, behind calls

    def _enter_gap(self) -> None:
        self._state = self._gap
        self._is_first = False
        self._blank = self._opening = ""

    def _leave_gap(self) -> str:
        """The white space held back, as far as it is content."""
        blank, self._blank = self._blank, ""
        return blank if self._is_first else blank.lstrip("\n")

    def _gap(self, last: bool) -> bool:
        text = self._pending
        if blank := _BLANK.match(text):
            end = min(blank.end(), _MAX_BLANK - len(self._blank))
            self._blank += text[:end]
            self._pending = text[end:]
            if end < blank.end():
                self._enter_content("")
            return True
        think = self._text_think if self._is_first else ()
        if any(text.startswith(marker) for marker in think):
            self._pending = text[len(THINK) :]
            self._enter_reasoning()
        elif self._opener is not None and (found := self._opener.match(text)):
            self._pending = text[found.end() :]
            self._open_block(found[0])
        elif self._format.calls == "llama" and text[0] == "{":
            self._open_block("")
        elif not last and any(marker.startswith(text) for marker in (*think, *self._text_openers)):
            return False
        else:
            self._enter_content("")
        return True

    # Content

    def _enter_content(self, text: str) -> None:
        """`text` is content, and so is what follows."""
        if self._state == self._gap:
            self._tell(Content(self._leave_gap()))
        elif self._state == self._block:
            opening = self._opening.lstrip(self._separators) if self._block_calls else self._opening
            self._tell(Content(opening))
        self._is_first = False
        self._state = self._content
        self._tell(Content(text))

    def _content(self, last: bool) -> bool:
        text = self._pending
        found = self._opener.search(text) if self._opener is not None else None
        if found is not None:
            self._tell(Content(text[: found.start()]))
            self._pending = text[found.end() :]
            self._open_block(found[0])
            return True
        held = 0 if last else max((overlap(text, marker) for marker in self._text_openers), default=0)
        self._tell(Content(text[: len(text) - held]))
        self._pending = text[len(text) - held :]
        return False

    # Reasoning

    def _enter_reasoning(self) -> None:
        self._blank = ""
        self._is_first = False
        self._state = self._reason

    def _reason(self, last: bool) -> bool:
        text = self._pending
        if self._text_think and not self._reasoned:  # the template has written the marker, and so may the model
            self._pending = text = text.lstrip("\n")
            if text.startswith(THINK):
                self._pending = text[len(THINK) :]
                return True
            if text and not last and THINK.startswith(text):
                return False
        in_text = END_THINK not in self._format.marks
        at = text.find(END_THINK) if in_text else -1
        if at >= 0:
            self._reasoning(text[:at])
            self._pending = text[at + len(END_THINK) :]
            self._enter_gap()
            return True
        held = overlap(text, END_THINK) if in_text and not last else 0
        self._reasoning(text[: len(text) - held])
        self._pending = text[len(text) - held :]
        return False

    def _reasoning(self, text: str) -> None:
        """Tells reasoning, without line breaks at its beginning and at its end."""
        text = text if self._reasoned else text.lstrip("\n")
        body = text.rstrip("\n")
        if body:
            self._tell(Reasoning("\n" * self._breaks + body))
            self._breaks = 0
            self._reasoned = True
        if self._reasoned:
            self._breaks += len(text) - len(body)

    # Calls

    def _open_block(self, marker: str) -> None:
        if self._state == self._gap:
            self._opening = self._leave_gap() + marker
        elif self._state == self._block and not self._block_calls:
            self._opening += marker
        else:
            self._opening = marker
        self._is_first = False
        self._block_calls = 0
        if marker == FUNCTION:
            self._begin_call(CallMarkup(self._format.tools))
        else:
            self._state = self._block

    def _block(self, last: bool) -> bool:
        text = self._pending
        rest = text.lstrip(self._separators)
        if len(rest) < len(text):
            self._opening += text[: len(text) - len(rest)]
            self._pending = rest
            if len(self._opening) > _MAX_OPENING:
                self._enter_content("")
            return True
        closer = next((m for m in self._text_closers if text.startswith(m)), None)
        if text[0] == "{":
            self._begin_call(CallObject(self._format.tools))
        elif self._format.calls == "qwen_xml" and text.startswith(FUNCTION):
            self._opening += FUNCTION
            self._pending = text[len(FUNCTION) :]
            self._begin_call(CallMarkup(self._format.tools))
        elif closer is not None and self._block_calls:
            self._pending = text[len(closer) :]
            self._enter_gap()
        elif self._opener is not None and (found := self._opener.match(text)):
            self._pending = text[found.end() :]
            self._open_block(found[0])
        elif not last and any(m.startswith(text) for m in (*self._text_closers, *self._openers)):
            return False
        else:
            self._enter_content("")
        return True

    def _begin_call(self, call: CallObject | CallMarkup) -> None:
        self._call = call
        self._is_told = False
        self._state = self._read_call

    def _read_call(self, last: bool) -> bool:
        call = self._call
        assert call is not None
        at = call.feed(self._pending, 0)
        self._pending = self._pending[at:]
        self._tell_call(call)
        if call.is_done or call.is_failed:
            self._end_call()
            return True
        return False

    def _tell_call(self, call: CallObject | CallMarkup) -> None:
        if call.name is None:
            return
        if not self._is_told:
            self._is_told = True
            self._opening = ""
            self._tell(CallStart(self.calls, f"call_{secrets.token_hex(12)}", call.name))
            self.calls += 1
            self._block_calls += 1
        if call.news:
            self._tell(CallArguments(self.calls - 1, "".join(call.news)))
            call.news.clear()

    def _end_call(self) -> None:
        """It is done, or it is none, or it was cut off."""
        call, self._call = self._call, None
        assert call is not None
        self._state = self._block
        if call.name is None:
            rest, self._pending = self._pending, ""
            self._enter_content("".join(call.raw))
            self._pending = rest
        elif isinstance(call, CallMarkup) and not call.is_done:
            rest, self._pending = self._pending, ""
            if call.in_string:
                call.finish(rest)
                rest = ""
            else:
                call.finish("")
            self._tell_call(call)
            self._enter_content(rest)
