"""The same measures through other engines, where they are installed: llama.cpp (its Python binding), transformers.

Both read the same file, decode greedily and use as many threads. What they cannot do in the same way is left out.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_engine.benchmark import BATCH_DECODED, BATCHES, DECODED, LONG, SHORT, Measure
from local_engine.errors import EngineError

FILLER = 1000  # some ordinary token


def measures(name: str, model: Path, threads: int) -> list[Measure]:
    """Loads the peer. Raises whatever it raises."""
    return {"llama_cpp": llama_cpp, "transformers": transformers}[name](model, threads)


def llama_cpp(model: Path, threads: int) -> list[Measure]:
    if model.is_dir():
        raise EngineError("llama.cpp reads GGUF files only")
    from llama_cpp import Llama  # type: ignore[import-not-found]  # only where it is installed

    llama = Llama(
        str(model), n_ctx=LONG + 2 * DECODED, n_batch=LONG, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def prefill(prompt: int) -> float:
        llama.reset()
        started = time.perf_counter()
        llama.eval([FILLER] * prompt)
        llama.sample(temp=0.0)
        return time.perf_counter() - started

    def decode(prompt: int) -> float:
        prefill(prompt)
        token = llama.sample(temp=0.0)
        started = time.perf_counter()
        for _ in range(DECODED - 1):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        return (DECODED - 1) / (time.perf_counter() - started)

    return _alone(prefill, decode)


def transformers(model: Path, threads: int) -> list[Measure]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    where = {"pretrained_model_name_or_path": str(model)}
    if model.is_file():
        where = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
    loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    loaded.eval()
    loaded.generation_config.eos_token_id = None

    def generate(sequences: int, prompt: int, tokens: int) -> float:
        ids = torch.full((sequences, prompt), FILLER)
        started = time.perf_counter()
        with torch.inference_mode():
            loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - started

    def decode(sequences: int, prompt: int, tokens: int) -> float:
        first = generate(sequences, prompt, 1)
        return sequences * (tokens - 1) / (generate(sequences, prompt, tokens) - first)

    def batch(size: int) -> Callable[[], float]:
        return lambda: decode(size, SHORT, BATCH_DECODED)

    found = _alone(lambda prompt: generate(1, prompt, 1), lambda prompt: decode(1, prompt, DECODED))
    return found + [Measure(f"batch_{size}", "tok/s", f"decode of {size} together", batch(size)) for size in BATCHES]


def _alone(prefill: Callable[[int], float], decode: Callable[[int], float]) -> list[Measure]:
    """The measures of one sequence. `prefill`: prompt length -> seconds; `decode`: prompt length -> tokens/s."""
    return [
        Measure("ttft_short_ms", "ms", f"first token of {SHORT} tokens", lambda: 1000 * prefill(SHORT)),
        Measure("decode_short", "tok/s", f"decode after {SHORT} tokens", lambda: decode(SHORT)),
        Measure("prefill_long", "tok/s", f"prompt of {LONG} tokens", lambda: LONG / prefill(LONG)),
        Measure("decode_long", "tok/s", f"decode after {LONG} tokens", lambda: decode(LONG)),
    ]
