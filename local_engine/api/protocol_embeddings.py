"""The embeddings wire format (https://platform.openai.com/docs/api-reference/embeddings).

An embedding is the mean of the last hidden states over the input's tokens, scaled to length 1 (as OpenAI's are), in
fp32. A model that was not trained for it gives directions that are only roughly those of meaning.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from local_engine.api.protocol import decode, refuse_unsupported, require_model
from local_engine.api.protocol_completions import Prompt, prompts_of
from local_engine.errors import GenerationError
from local_engine.request import Delta


class EmbeddingBody(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    # known, and refused
    dimensions: Any = None
    truncate_prompt_tokens: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {"dimensions": (), "truncate_prompt_tokens": ()}


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    inputs: list[Prompt]
    base64: bool


_decoder = msgspec.json.Decoder(EmbeddingBody)


def parse_embedding(body: bytes, model: str, vocab_size: int) -> EmbeddingCall:
    """Raises `RequestError`, with `param` naming the field, on anything that cannot be served as asked."""
    call = decode(_decoder, body)
    require_model(call.model, model)
    refuse_unsupported(call, NEUTRAL)
    return EmbeddingCall(prompts_of(call.input, "input", vocab_size), call.encoding_format == "base64")


def embeddings_body(model: str, call: EmbeddingCall, deltas: Sequence[Delta]) -> dict[str, Any]:
    """`deltas`: the last one of each input, in their order."""
    prompt_tokens = sum(delta.prompt_tokens for delta in deltas)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(unit(delta.embedding), call.base64)}
        for index, delta in enumerate(deltas)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def unit(vector: Sequence[float]) -> np.ndarray:
    """fp32 [D] of length 1. Raises `GenerationError` when there is no direction to keep."""
    values = np.asarray(vector, dtype=np.float64)
    length = np.linalg.norm(values)
    if not (np.isfinite(length) and length > 0):
        raise GenerationError("the model gave no usable hidden states for this input")
    return (values / length).astype("<f4")


def _encoded(vector: np.ndarray, as_base64: bool) -> str | list[float]:
    """base64 of the little-endian floats, or a list."""
    return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
