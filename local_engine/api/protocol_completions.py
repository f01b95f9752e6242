"""The text completions wire format (https://platform.openai.com/docs/api-reference/completions)."""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from local_engine.api.protocol import (
    MAX_LOGPROBS,
    Answer,
    GenerationBody,
    Options,
    TokenTexts,
    decode,
    options_of,
    refuse_unsupported,
    require_model,
    require_tokens,
    shown,
    within,
)
from local_engine.api.structured_output import grammar_of
from local_engine.errors import RequestError
from local_engine.request import Delta, TokenLogprobs

DEFAULT_MAX_TOKENS = 16  # as OpenAI's
MAX_PROMPTS = 1024

Prompt = str | list[int]  # text, or token ids


class CompletionBody(GenerationBody, kw_only=True):
    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    # known, and refused unless they say what is done anyway
    suffix: Any = None
    prompt_embeds: Any = None
    add_special_tokens: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {"suffix": ("",), "prompt_embeds": (), "add_special_tokens": (True,)}


@dataclass(frozen=True, slots=True)
class CompletionCall:
    options: Options
    prompts: list[Prompt]
    echo: bool = False

    @property
    def prompt_logprobs(self) -> int | None:
        """How many of the likeliest tokens beside each prompt token are wanted; None: not even its own."""
        return self.options.sampling.logprobs if self.echo else None


_decoder = msgspec.json.Decoder(CompletionBody)


def parse_completion(body: bytes, model: str, default_temperature: float, vocab_size: int) -> CompletionCall:
    """Raises `RequestError`, with `param` naming the field, on anything that cannot be served as asked."""
    call = decode(_decoder, body)
    require_model(call.model, model)
    refuse_unsupported(call, NEUTRAL)
    options = options_of(
        call,
        vocab_size=vocab_size,
        default_temperature=default_temperature,
        least_tokens=0 if call.echo else 1,
        logprobs=None if call.logprobs is None else int(within("logprobs", call.logprobs, 0, MAX_LOGPROBS, 0)),
        grammar=grammar_of(call),
    )
    return CompletionCall(options, prompts_of(call.prompt, "prompt", vocab_size), bool(call.echo))


def prompts_of(value: str | list[Any], param: str, vocab_size: int) -> list[Prompt]:
    """One prompt or a list of them, each a text or token ids. Raises `RequestError`."""
    if isinstance(value, str) or (value and all(type(item) is int for item in value)):
        prompts: list[Any] = [value]
    else:
        prompts = value if isinstance(value, list) else [value]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(f"`{param}` has {len(prompts)} entries, 1 to {MAX_PROMPTS} are allowed", param=param)
    for index, prompt in enumerate(prompts):
        at = param if len(prompts) == 1 else f"{param}[{index}]"
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            require_tokens(prompt, at, vocab_size)
        elif not isinstance(prompt, str):
            raise RequestError(f"`{at}` must be a text or a list of token ids", param=at)
        if not prompt:
            raise RequestError(f"`{at}` is empty", param=at)
    return prompts


@dataclass(slots=True)
class _Choice:
    """One answer as far as it has been shown, and what waits to be."""

    echo: str = ""  # the prompt, until it is shown
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of tokens that were not shown yet
    offset: int = 0  # characters of the tokens shown so far
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )


class CompletionAnswer(Answer):
    """`prompts`: the token ids of each prompt; `texts` too where they are echoed."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self,
        model: str,
        fingerprint: str,
        call: CompletionCall,
        texts: TokenTexts,
        prompts: list[tuple[str, list[int]]],
    ) -> None:
        super().__init__(model, fingerprint, call.options, texts)
        self._with_logprobs = call.options.sampling.logprobs is not None
        self._prompts = [ids for _, ids in prompts]
        self._choices = {
            index: _Choice(echo=prompts[index // call.options.n][0] if call.echo else "")
            for index in range(len(prompts) * call.options.n)
        }

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        text = self._take(index, delta)
        choice = self._choices[index]
        if not text and delta.finish_reason is None:
            return []
        body: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, choice) if choice.logprobs else None,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            body["stop_reason"] = delta.stopped_by
        return [self._chunk(body)]

    def add(self, index: int, delta: Delta) -> None:
        self._choices[index].texts.append(self._take(index, delta))

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "text": "".join(choice.texts),
                "logprobs": self._logprobs(index, choice) if self._with_logprobs else None,
                "finish_reason": self.newest[index].finish_reason,
                "stop_reason": self.newest[index].stopped_by,
            }
            for index, choice in self._choices.items()
        ]
        return {**self._common, "object": self.kind, "choices": choices, "usage": self.usage()}

    def _take(self, index: int, delta: Delta) -> str:
        """The delta's text, behind the prompt if that is still to be echoed."""
        self.newest[index] = delta
        choice = self._choices[index]
        choice.logprobs += delta.prompt_logprobs
        choice.logprobs += delta.logprobs
        text, choice.echo = choice.echo + delta.text, ""
        return text

    def _logprobs(self, index: int, choice: _Choice) -> dict[str, Any]:
        """Four lists, side by side. The first token of a prompt has no log-probability: `null`."""
        first = self._prompts[index // self.options.n][0]
        taken, choice.logprobs = choice.logprobs, []
        names: list[str] = []
        offsets: list[int] = []
        for one in taken:
            name, raw = self.texts.of(first if one is None else one.token)
            names.append(name)
            offsets.append(choice.offset)
            choice.offset += len(choice.decoder.decode(bytes(raw or ())))
        return {
            "tokens": names,
            "token_logprobs": [None if one is None else shown(one.logprob) for one in taken],
            "top_logprobs": [None if one is None else self._top(one) for one in taken],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprobs) -> dict[str, float]:
        """The likeliest, and the token itself: one more than asked for when it is not among them."""
        pairs: Iterable[tuple[int, float]] = (*one.top, (one.token, one.logprob))
        return {self.texts.of(token)[0]: shown(logprob) for token, logprob in pairs}
