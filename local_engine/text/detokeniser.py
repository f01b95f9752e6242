"""From token ids to text that may be shown: the streaming detokeniser and stop strings.

The tokenizer is in `vocabulary.py`, the chat template in `template.py`.
"""

import codecs
from collections.abc import Collection
from dataclasses import dataclass

from local_engine.text.vocabulary import Vocabulary


class Detokeniser:
    """Token ids, one by one, to text: a character comes out when its last byte is in.

    A control token has no text, it is a mark: its name. So is a user-defined token that is among `marks`; the others
    are text.
    """

    def __init__(self, vocabulary: Vocabulary, marks: Collection[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._text_of = {token for name, token in vocabulary.user_defined.items() if name not in marks}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> tuple[str, str | None]:
        """-> text, and the mark that stands behind it. A mark ends an unfinished character."""
        mark = None if token in self._text_of else self._vocabulary.mark(token)
        if mark is None:
            return self._decoder.decode(self._vocabulary.token_bytes(token)), None
        return self.finish(), mark

    def finish(self) -> str:
        """What an incomplete character leaves: one replacement character, or nothing."""
        return self._decoder.decode(b"", final=True)


@dataclass(slots=True)
class StopScanner:
    """Passes text on, but holds back any end that could still become a stop string.

    `stopped` becomes True when one is found, and `matched` says which; it and everything after it is dropped. Of
    several that end in the same piece of text, the one that begins first wins, and of those the longest.
    """

    stops: tuple[str, ...]
    stopped: bool = False
    matched: str | None = None
    _held: str = ""

    def add(self, text: str) -> str:
        """New text -> text that is safe to show."""
        if self.stopped:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        found = [(at, -len(stop), stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            at, _, self.matched = min(found)
            self.stopped = True
            self._held = ""
            return text[:at]
        keep = max(overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back, once it is clear that no more will come."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, shorter than the whole of it."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
