"""One request while it runs: what its tokens mean to the client, and when it ends.

`add` takes the tokens one by one, in order, and keeps the parts of the reply that may be shown; `take_news` hands
them over. An end-of-turn token counts but has no text. Stop strings are looked for in content only: a stop that cut a
tool call would leave half a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from kernels.draw import Draw
from local_engine.errors import GenerationError
from local_engine.metrics import Pulse
from local_engine.request import CallStart, Content, Delta, FinishReason, Part, Request, TokenLogprobs
from local_engine.sampler import Sampled, Sampler
from local_engine.sequence import Sequence
from local_engine.text.detokeniser import Detokeniser, StopScanner
from local_engine.text.reply_parser import PLAIN, ReplyParser
from local_engine.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

    from local_engine.grammar import Matcher


@dataclass(slots=True, eq=False)
class Generation:
    request: Request
    sequence: Sequence
    sampler: Sampler
    vocabulary: Vocabulary
    detokeniser: Detokeniser
    parser: ReplyParser
    stops: StopScanner
    matcher: Matcher | None
    pulse: Pulse  # when its tokens came
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    count: int = 0  # tokens generated
    reasoning_count: int = 0
    hidden: Tensor | None = None  # [D] sum of the hidden states so far, of a request that embeds
    prompt_rows: int = 0  # prompt positions whose log-probabilities are known
    _called: bool = False
    _parts: list[Part] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request, sequence: Sequence, vocabulary: Vocabulary, pulse: Pulse) -> Generation:
        reply_format = request.reply_format or PLAIN
        return cls(
            request=request,
            sequence=sequence,
            sampler=Sampler(
                request.sampling,
                request.prompt,
                vocabulary.size,
                end_ids=vocabulary.end_ids | request.stop_token_ids,
                min_tokens=request.min_tokens,
            ),
            vocabulary=vocabulary,
            detokeniser=Detokeniser(vocabulary, reply_format.marks),
            parser=ReplyParser(reply_format),
            stops=StopScanner(request.stop),
            matcher=None if request.grammar is None else request.grammar.matcher(),
            pulse=pulse,
        )

    @property
    def draw(self) -> Draw | None:
        """How the model may sample the next token itself; None: it may not."""
        return self.sampler.draw if self.matcher is None else None

    def mask(self) -> np.ndarray | None:
        """bool [V]: the tokens that the grammar allows next; None: all."""
        return None if self.matcher is None else self.matcher.mask()

    def add(self, token: int) -> bool:
        """The next token. True when it is the last one: nothing after it counts."""
        self.count += 1
        reason = self._reason_of(token)
        if self.matcher is not None and reason != "stop":
            self.matcher.accept(token)
        text, mark = self.detokeniser.add(token)
        was_reasoning = self.parser.in_reasoning
        self._show(self.parser.feed(text, mark))
        self.reasoning_count += was_reasoning or self.parser.in_reasoning
        if self.stops.stopped:
            self.stopped_by, reason = self.stops.matched, "stop"
        elif reason is not None:
            self._finish_text()
        if reason == "stop" and self._called:
            reason = "tool_calls"
        self.finish_reason = reason
        return reason is not None

    def _reason_of(self, token: int) -> FinishReason | None:
        request = self.request
        if self.count > request.min_tokens:
            if token in request.stop_token_ids:
                self.stopped_by = token
                return "stop"
            if token in self.vocabulary.end_ids and not request.ignore_end:
                return "stop"
        return "length" if self.count >= request.max_tokens else None

    def _finish_text(self) -> None:
        """Everything that was held back: an unfinished character, call or stop string."""
        self._show(self.parser.feed(self.detokeniser.finish(), None))
        self._show(self.parser.finish())
        if self.stops.stopped:
            self.stopped_by = self.stops.matched
        elif held := self.stops.finish():
            self._parts.append(Content(held))

    def _show(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if self.stops.stopped:
                return
            if isinstance(part, Content):
                if text := self.stops.add(part.text):
                    self._parts.append(Content(text))
                continue
            if held := self.stops.finish():  # no stop string reaches across a call
                self._parts.append(Content(held))
            self._called = self._called or isinstance(part, CallStart)
            self._parts.append(part)

    def keep_logprobs(self, sampled: Iterable[Sampled]) -> None:
        if self.request.sampling.logprobs is not None:
            self._logprobs += [one.logprobs for one in sampled if one.logprobs is not None]

    def keep_prompt_logprobs(self, start: int, logprobs: list[TokenLogprobs]) -> None:
        """Of the prompt tokens behind positions `start` .. ; those that are known already (preempted) are left out."""
        if not self._prompt_logprobs and not self.prompt_rows:
            self._prompt_logprobs.append(None)
        new = logprobs[max(0, self.prompt_rows - start) :]
        self._prompt_logprobs += new
        self.prompt_rows += len(new)

    def keep_hidden(self, start: int, states: Tensor) -> None:
        """states [count, D] of the positions from `start`; a position that was added before is not added again."""
        new = states[max(0, self.prompt_rows - start) :]
        total = new.double().sum(0)
        self.hidden = total if self.hidden is None else self.hidden + total
        self.prompt_rows += len(new)

    def end_prompt(self) -> None:
        """The prompt is read, and nothing was to be generated."""
        self.finish_reason = "stop" if self.request.embed else "length"

    def take_news(self, error: GenerationError | None = None) -> Delta | None:
        """What came since the last call; None when there is nothing to tell."""
        is_last = error is not None or self.finish_reason is not None
        if not (is_last or self._parts or self._logprobs or self._prompt_logprobs or self.count):
            return None
        embedding: tuple[float, ...] = ()
        if is_last and self.hidden is not None and error is None:
            embedding = tuple((self.hidden / self.prompt_rows).tolist())
        delta = Delta(
            self.request.id,
            tuple(self._parts) if error is None else (),
            self.sequence.prompt_tokens,
            self.count,
            None if error is not None else self.finish_reason,
            error,
            cached_tokens=self.sequence.num_cached,
            reasoning_tokens=self.reasoning_count,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            embedding=embedding,
            stopped_by=self.stopped_by,
        )
        self._parts, self._logprobs, self._prompt_logprobs = [], [], []
        return delta
