"""Who guesses tokens ahead: what speculation asks of an n-gram index and of a draft model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from local_engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from local_engine.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a proposer can say about a sequence before a step is planned."""

    kind: int  # how sure it is, in its own terms: guesses of one kind come true about equally often
    guesses: list[int] = field(default_factory=list)  # empty: not known before they are computed


class Proposer(Protocol):
    def look(self, sequence: Sequence, room: int) -> Outlook | None:
        """What it would propose, up to `room` tokens; None: nothing."""

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        """Fills `draft` of the chunks, each with at most `draft_room` guesses for its sequence's next tokens."""

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended. Unknown ones are ignored."""
