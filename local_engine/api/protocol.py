"""What the OpenAI wire formats have in common: request bytes to checked options, deltas to response bodies.

Formats: https://platform.openai.com/docs/api-reference, and the fields that vLLM adds to them
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html). Fields that do not change the answer (`user`,
`metadata`, `store`, ...) are ignored. Fields that would change it, and that the engine does not implement, are refused
with the code `unsupported_parameter` rather than silently dropped. `null` means the same as leaving a field out.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from local_engine.errors import GenerationError, RequestError
from local_engine.request import Delta, Request, SamplingParams

if TYPE_CHECKING:
    from local_engine.grammar import GrammarSpec
    from local_engine.text.vocabulary import Vocabulary

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_STOP_IDS = 256
MAX_BIASES = 1024
MAX_ANSWERS = 128  # `n`
MAX_LOGPROBS = 20
LEAST_LOGPROB = -9999.0
MAX_PRIORITY = 1000  # either way
MAX_SALT = 256  # characters

Body = TypeVar("Body")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(msgspec.Struct, kw_only=True):
    """The fields that chat and completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # structured output: see `structured_output.py`
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # known, and refused unless they say what is done anyway: see `NEUTRAL`
    best_of: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    bad_words: Any = None
    truncate_prompt_tokens: Any = None
    prompt_logprobs: Any = None
    include_stop_str_in_output: Any = None
    skip_special_tokens: Any = None
    return_tokens_as_token_ids: Any = None
    return_token_ids: Any = None
    logits_processors: Any = None
    allowed_token_ids: Any = None
    thinking_token_budget: Any = None


# field -> the values, beside null, that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "logits_processors": ([],),
    "allowed_token_ids": ([],),
    "thinking_token_budget": (),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a call wants of each answer, checked as far as that needs no tokenizer."""

    sampling: SamplingParams
    max_tokens: int | None  # None: up to a default and the rest of the context
    max_tokens_param: str  # the field that said so
    n: int = 1  # answers for each prompt
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_end: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    priority: int = 0
    cache_salt: str = ""
    grammar: "GrammarSpec | None" = None

    def requests(self, prompt: list[int], max_tokens: int, **rest: Any) -> list[Request]:
        """One request for each of the `n` answers; `rest`: further fields of `Request`."""
        return [
            Request(
                prompt,
                max_tokens,
                sampling=replace(self.sampling, choice=choice),
                stop=self.stop,
                stop_token_ids=self.stop_token_ids,
                min_tokens=min(self.min_tokens, max_tokens),
                ignore_end=self.ignore_end,
                priority=self.priority,
                **rest,
            )
            for choice in range(self.n)
        ]


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Raises `RequestError`, with `param` naming the field where that is known."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        where = re.search(r" - at `\$\.?([^`]*)`$", str(error))
        raise RequestError(f"the request does not fit the schema: {error}", param=where and where[1]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not valid JSON: {error}", code="invalid_json") from error


def require_model(asked: str, model: str) -> None:
    if asked != model:
        raise RequestError(
            f"the model `{asked[:200]}` does not exist here\nhint: this engine serves `{model}`",
            param="model",
            code="model_not_found",
            status=404,
        )


def unsupported(name: str, hint: str = "") -> RequestError:
    return RequestError(
        f"`{name}` is not supported as given{hint and f'{chr(10)}hint: {hint}'}",
        param=name,
        code="unsupported_parameter",
    )


def refuse_unsupported(body: msgspec.Struct, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            raise unsupported(name)


def options_of(
    body: GenerationBody,
    *,
    vocab_size: int,
    default_temperature: float,
    max_tokens_param: str = "max_tokens",
    least_tokens: int = 1,
    logprobs: int | None = None,
    grammar: "GrammarSpec | None" = None,
) -> Options:
    """Raises `RequestError` for anything that cannot be served as asked."""
    refuse_unsupported(body, NEUTRAL)
    if body.stream_options is not None and not body.stream:
        raise RequestError("`stream_options` is only allowed with `stream: true`", param="stream_options")
    max_tokens = getattr(body, max_tokens_param)
    if max_tokens is not None and max_tokens < least_tokens:
        raise RequestError(
            f"`{max_tokens_param}` is {max_tokens}, it must be at least {least_tokens}", param=max_tokens_param
        )
    n = int(within("n", body.n, 1, MAX_ANSWERS, 1))
    if body.best_of not in (None, n):
        raise unsupported("best_of", "leave it out, or give the number of answers")
    for name in ("min_tokens", "ignore_eos"):
        if grammar is not None and getattr(body, name):
            raise unsupported(name, f"a structured answer (`{grammar.param}`) ends where its grammar ends")
    stream_options = body.stream_options or StreamOptions()
    return Options(
        sampling=sampling_of(body, default_temperature, vocab_size, logprobs),
        max_tokens=max_tokens,
        max_tokens_param=max_tokens_param,
        n=n,
        stop=_stops(body.stop),
        stop_token_ids=_stop_ids(body.stop_token_ids or [], vocab_size),
        min_tokens=int(within("min_tokens", body.min_tokens, 0, 1 << 31, 0)),
        ignore_end=bool(body.ignore_eos),
        stream=bool(body.stream),
        include_usage=bool(stream_options.include_usage),
        continuous_usage=bool(stream_options.include_usage and stream_options.continuous_usage_stats),
        priority=int(within("priority", body.priority, -MAX_PRIORITY, MAX_PRIORITY, 0)),
        cache_salt=_salt(body.cache_salt),
        grammar=grammar,
    )


def sampling_of(
    body: GenerationBody, default_temperature: float, vocab_size: int, logprobs: int | None
) -> SamplingParams:
    return SamplingParams(
        temperature=within("temperature", body.temperature, 0, 2, default_temperature),
        top_p=within("top_p", body.top_p, 0, 1, 1.0),
        # -1 is another common way to say off
        top_k=max(0, int(within("top_k", body.top_k, -1, 1 << 31, 0))),
        min_p=within("min_p", body.min_p, 0, 1, 0.0),
        presence_penalty=within("presence_penalty", body.presence_penalty, -2, 2, 0.0),
        frequency_penalty=within("frequency_penalty", body.frequency_penalty, -2, 2, 0.0),
        repetition_penalty=within("repetition_penalty", body.repetition_penalty, 0.01, 100, 1.0),
        logit_bias=_biases(body.logit_bias or {}, vocab_size),
        seed=_seed(body.seed),
        logprobs=logprobs,
    )


def within(name: str, value: float | None, low: float, high: float, default: float) -> float:
    if value is None:
        return default
    if not low <= value <= high:
        raise RequestError(f"`{name}` is {value}, it must be between {low} and {high}", param=name)
    return value


def _seed(seed: int | None) -> int | None:
    if seed is not None and not -(1 << 63) <= seed < 1 << 63:
        raise RequestError("`seed` must fit 64 bits", param="seed")
    return seed


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise RequestError(f"`stop` has {len(stops)} entries, at most {MAX_STOPS} are allowed", param="stop")
    if any(not 1 <= len(s) <= MAX_STOP_LENGTH for s in stops):
        raise RequestError(f"each `stop` must have 1 to {MAX_STOP_LENGTH} characters", param="stop")
    return stops


def _stop_ids(ids: list[int], vocab_size: int) -> frozenset[int]:
    if len(ids) > MAX_STOP_IDS:
        raise RequestError(f"`stop_token_ids` has {len(ids)} entries, at most {MAX_STOP_IDS}", param="stop_token_ids")
    require_tokens(ids, "stop_token_ids", vocab_size)
    return frozenset(ids)


def require_tokens(ids: list[int], param: str, vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise RequestError(f"`{param}` holds {token}, which is no token id below {vocab_size}", param=param)


def _biases(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    if len(biases) > MAX_BIASES:
        raise RequestError(f"`logit_bias` has {len(biases)} entries, at most {MAX_BIASES}", param="logit_bias")
    result = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise RequestError(f"`logit_bias` key `{key[:40]}` is no token id below {vocab_size}", param="logit_bias")
        result[int(key)] = within("logit_bias", bias, -100, 100, 0.0)
    return result


def _salt(salt: str | None) -> str:
    if salt is not None and not 1 <= len(salt) <= MAX_SALT:
        raise RequestError(f"`cache_salt` must have 1 to {MAX_SALT} characters", param="cache_salt")
    return salt or ""


def answer_length(options: Options, prompt_tokens: int, context_length: int, default: int, param: str) -> int:
    """Tokens an answer may have. Raises `RequestError` when prompt and answer do not fit the context.

    `param` is the field that the prompt came from.
    """
    room = context_length - prompt_tokens
    if room < (0 if options.max_tokens == 0 else 1):
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens, but the context length is {context_length} tokens",
            param=param,
            code="context_length_exceeded",
        )
    if options.max_tokens is None:
        return min(room, default)
    if options.max_tokens > room:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and `{options.max_tokens_param}` is {options.max_tokens}, "
            f"but the context length is {context_length} tokens\nhint: at most {room} are left for the answer",
            param=options.max_tokens_param,
            code="context_length_exceeded",
        )
    return options.max_tokens


class TokenTexts:
    """How single tokens are shown beside their log-probabilities."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary

    def of(self, token: int) -> tuple[str, list[int] | None]:
        """Its text and its bytes. A token that is part of a character is shown as `bytes:\\xf0`, so that no two look
        the same; a control token by its name, and without bytes: it adds none to the text.
        """
        raw = self._vocabulary.token_bytes(token)
        if not raw:
            return self._vocabulary.token_text(token), None
        try:
            return raw.decode(), list(raw)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


def shown(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LEAST_LOGPROB)


def usage_body(deltas: Mapping[int, Delta], n: int) -> dict[str, Any]:
    """Counted in token ids, over the newest delta of each answer. The `n` answers to one prompt count it once.

    An end-of-turn token is one of the completion's, as it is generated like any other.
    """
    firsts = [delta for index, delta in deltas.items() if index % n == 0]
    prompt = sum(delta.prompt_tokens for delta in firsts)
    completion = sum(delta.completion_tokens for delta in deltas.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(delta.cached_tokens for delta in firsts)},
        "completion_tokens_details": {"reasoning_tokens": sum(d.reasoning_tokens for d in deltas.values())},
    }


class Answer:
    """The response bodies of one call: they share its id, time and model. Deltas go in, by the index of their answer.

    `chunks` makes the bodies of a stream, `add` and `whole` the one body of a call that does not stream.
    """

    prefix = ""  # of the id
    kind = ""  # `object` of a whole body
    chunk_kind = ""  # `object` of a chunk

    def __init__(self, model: str, fingerprint: str, options: Options, texts: TokenTexts) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.options = options
        self.texts = texts
        self.newest: dict[int, Delta] = {}
        self._common = {
            "id": self.id,
            "created": int(datetime.now(UTC).timestamp()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def opening(self) -> list[dict[str, Any]]:
        """The bodies that begin a stream."""
        return []

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The bodies that one delta makes, in a stream."""
        raise NotImplementedError

    def add(self, index: int, delta: Delta) -> None:
        """Keeps a delta for `whole`."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def usage_chunk(self) -> dict[str, Any]:
        """The last body of a stream that was asked for its usage."""
        return {**self._common, "object": self.chunk_kind, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        return usage_body(self.newest, self.options.n)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._common, "object": self.chunk_kind, "choices": [choice]}
        if self.options.continuous_usage:
            newest = self.newest.get(choice["index"])
            chunk["usage"] = usage_body({0: newest} if newest else {}, 1)
        elif self.options.include_usage:
            chunk["usage"] = None  # asked-for usage is `null` in every chunk but the last
        return chunk


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failure_body(error: RequestError | GenerationError) -> dict[str, Any]:
    if isinstance(error, RequestError):
        return error_body(error.message, error.kind, error.param, error.code)
    return error_body(str(error), "server_error", code=error.code)
