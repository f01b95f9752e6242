"""Another engine on the same model, in a process of its own: llama.cpp, transformers or vLLM.

`benchmark_child.py` starts it, with any Python that has the engine's packages: nothing of this project is imported
here. Standard input brings one JSON object a line, standard output gives one for each; whatever the engine itself
prints goes to standard error.

The first line tells how the start went: {"version", "load_s"}, or {"absent"} or {"failed"} with the reason. Then
  {"first_token": prompt}                  -> {"value": seconds}
  {"decode": [sequences, prompt, tokens]}  -> {"value": tokens a second, together, from the first tokens on}
  {"greedy": ids, "tokens": n, "stop": id} -> {"value": ids}       llama.cpp only, as the next one
  {"logits": ids, "to": path}              -> {"value": [rows, columns]}, which are in the file as fp32
  {"resident": true}                       -> {"value": bytes or null}
Each engine decodes greedily, with as many threads as it is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILLER = 200  # some ordinary token, for prompts of an exact length; in the smallest vocabulary too
STEP = 512  # tokens that llama.cpp takes at once
ROOM = 256  # positions by which its contexts grow
TOLD = 300  # characters of an error


class LlamaCpp:
    """Through its C interface, so that several sequences share a step; the likeliest token is found in numpy."""

    packages: tuple[str, ...] = ("llama_cpp", "numpy")

    @staticmethod
    def converted(model: Path, work: Path) -> Path:
        if model.is_dir():
            raise ValueError("llama.cpp reads GGUF files only")
        return model

    def __init__(self, model: Path, threads: int) -> None:
        import ctypes

        import llama_cpp  # type: ignore[import-not-found]  # only where it is installed
        import numpy

        self.api, self._numpy = llama_cpp, numpy
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self._threads = threads
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library calls it
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), wanted)
        if not self._model:
            raise ValueError("llama.cpp does not read this file")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}

    def _context(self, sequences: int, positions: int) -> Any:
        """A context for so many sequences of so many positions each, with nothing in it."""
        room = max(1024 if sequences == 1 else ROOM, -(-positions // ROOM) * ROOM)
        key = sequences, room
        if key not in self._contexts:
            wanted = self.api.llama_context_default_params()
            wanted.n_ctx, wanted.n_seq_max = sequences * room, sequences
            wanted.n_batch = wanted.n_ubatch = STEP
            wanted.n_threads = wanted.n_threads_batch = self._threads
            context = self.api.llama_init_from_model(self._model, wanted)
            if not context:
                raise ValueError("llama.cpp made no context")
            self._contexts[key] = context, self.api.llama_batch_init(STEP, 0, 1)
        context, batch = self._contexts[key]
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        return context, batch

    def _step(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of token, position, sequence, and whether its logits are wanted."""
        pointer, batch = context
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.logits[index] = 1, wanted
            batch.seq_id[index][0] = sequence
        if self.api.llama_decode(pointer, batch):
            raise RuntimeError("llama.cpp failed in a step")

    def _likeliest(self, context: Any, row: int) -> int:
        logits = self.api.llama_get_logits_ith(context[0], row)
        return int(self._numpy.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def _read(self, context: Any, ids: list[int], sequence: int = 0) -> int:
        """Reads a prompt; its first token."""
        last = 0
        for start in range(0, len(ids), STEP):
            part = ids[start : start + STEP]
            last = len(part) - 1
            rows = [(one, start + i, sequence, start + i == len(ids) - 1) for i, one in enumerate(part)]
            self._step(context, rows)
        return self._likeliest(context, last)

    def first_token(self, prompt: int) -> float:
        context = self._context(1, prompt)
        started = time.perf_counter()
        self._read(context, [FILLER] * prompt)
        return time.perf_counter() - started

    def decode(self, sequences: int, prompt: int, tokens: int) -> float:
        context = self._context(sequences, prompt + tokens)
        newest = [self._read(context, [FILLER] * prompt, sequence) for sequence in range(sequences)]
        started = time.perf_counter()
        for count in range(tokens):
            self._step(context, [(token, prompt + count, sequence, True) for sequence, token in enumerate(newest)])
            newest = [self._likeliest(context, sequence) for sequence in range(sequences)]
        return sequences * tokens / (time.perf_counter() - started)

    def greedy(self, ids: list[int], tokens: int, stop: int) -> list[int]:
        context = self._context(1, len(ids) + tokens)
        found = [self._read(context, ids)]
        while len(found) < tokens and found[-1] != stop:
            self._step(context, [(found[-1], len(ids) + len(found) - 1, 0, True)])
            found.append(self._likeliest(context, 0))
        return found

    def logits(self, ids: list[int], to: Path) -> list[int]:
        context = self._context(1, len(ids))
        with to.open("wb") as out:
            for start in range(0, len(ids), STEP):
                part = ids[start : start + STEP]
                self._step(context, [(one, start + i, 0, True) for i, one in enumerate(part)])
                rows = self.api.llama_get_logits(context[0])
                self._numpy.ctypeslib.as_array(rows, (len(part), self._vocabulary)).tofile(out)
        return [len(ids), self._vocabulary]


class LlamaCppFloat(LlamaCpp):
    """llama.cpp on the same weights as fp32: what its own arithmetic does without quantised activations."""

    packages = ("llama_cpp", "numpy", "gguf")

    @staticmethod
    def converted(model: Path, work: Path) -> Path:
        import gguf

        path = work / "f32.gguf"
        LlamaCpp.converted(model, work)  # refuses folders
        if path.exists():
            return path
        reader = gguf.GGUFReader(model)
        partial = work / "f32.partial"
        writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
                continue  # the writer's own
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
        for tensor in reader.tensors:
            data = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
            writer.add_tensor(tensor.name, data.reshape([int(n) for n in tensor.shape[::-1]]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.rename(path)
        return path


class Transformers:
    packages = ("transformers", "torch")

    @staticmethod
    def converted(model: Path, work: Path) -> Path:
        return model

    def __init__(self, model: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch = torch
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self._model = transformers_model(model)

    def first_token(self, prompt: int) -> float:
        ids = self._torch.full((1, prompt), FILLER)
        started = time.perf_counter()
        with self._torch.inference_mode():
            self._model(ids, logits_to_keep=1).logits.argmax()
        return time.perf_counter() - started

    def _generate(self, sequences: int, prompt: int, tokens: int) -> float:
        ids = self._torch.full((sequences, prompt), FILLER)
        mask = self._torch.ones_like(ids)
        count = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        started = time.perf_counter()
        with self._torch.inference_mode():
            self._model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **count)
        return time.perf_counter() - started

    def decode(self, sequences: int, prompt: int, tokens: int) -> float:
        first = self._generate(sequences, prompt, 1)
        return sequences * tokens / (self._generate(sequences, prompt, tokens + 1) - first)


def transformers_model(path: Path) -> Any:
    """The model in fp32, out of a GGUF file or a folder; nothing is fetched."""
    import torch
    from transformers import AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    model.eval()
    model.generation_config.eos_token_id = None
    return model


class Vllm:
    """vLLM on the CPU: fp32, nothing compiled, no prefix cache. A GGUF file is made into a folder first."""

    packages = ("vllm",)

    @staticmethod
    def converted(model: Path, work: Path) -> Path:
        return model if model.is_dir() else as_folder(model, work / "folder")

    def __init__(self, model: Path, threads: int) -> None:
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        os.environ.update(settings)  # noqa: TID251 - for vLLM, which is imported next; this process is its own
        import vllm  # type: ignore[import-not-found]  # only where it is installed

        self._vllm = vllm
        self.version = f"vllm {vllm.__version__}"
        self._llm = vllm.LLM(
            model=str(model),
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=16,
            enforce_eager=True,
            enable_prefix_caching=False,
        )

    def _generate(self, sequences: int, prompt: int, tokens: int) -> float:
        wanted = self._vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": [FILLER] * prompt} for _ in range(sequences)]
        started = time.perf_counter()
        self._llm.generate(prompts, wanted, use_tqdm=False)
        return time.perf_counter() - started

    def first_token(self, prompt: int) -> float:
        return self._generate(1, prompt, 1)

    def decode(self, sequences: int, prompt: int, tokens: int) -> float:
        first = self._generate(sequences, prompt, 1)
        return sequences * tokens / (self._generate(sequences, prompt, tokens + 1) - first)


def as_folder(path: Path, folder: Path) -> Path:
    """A GGUF file's model as config.json, tokenizer and fp32 safetensors."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    if not (folder / "config.json").exists():
        model = transformers_model(path)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
        tied = model.config.tie_word_embeddings
        weights = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain now
        model.config.save_pretrained(folder)
    return folder


PEERS: dict[str, Any] = {
    "llama_cpp": LlamaCpp,
    "llama_cpp_f32": LlamaCppFloat,
    "transformers": Transformers,
    "vllm": Vllm,
}


def resident_bytes() -> int | None:
    """Resident memory of this process now; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def answer(peer: Any, asked: dict[str, Any]) -> Any:
    if "first_token" in asked:
        return peer.first_token(asked["first_token"])
    if "decode" in asked:
        return peer.decode(*asked["decode"])
    if "greedy" in asked:
        return peer.greedy(asked["greedy"], asked["tokens"], asked["stop"])
    if "logits" in asked:
        return peer.logits(asked["logits"], Path(asked["to"]))
    return resident_bytes()


def reason(error: BaseException) -> str:
    """An error and its first cause: packages that import lazily name only what of their own is not to be had."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    shown = chain[:1] + chain[1:][-1:]
    return ", from ".join(f"{type(one).__name__}: {one}"[:TOLD] for one in shown)


def serve(options: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    made = PEERS[options.peer]
    missing = [name for name in made.packages if importlib.util.find_spec(name) is None]
    if missing:
        tell({"absent": f"`{missing[0]}` is not installed"})
        return
    try:
        model = made.converted(options.model, options.work)
        started = time.perf_counter()
        peer = made(model, options.threads)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is told to who asked
        tell({"failed": reason(error)})
        return
    tell({"version": peer.version, "load_s": time.perf_counter() - started})
    for line in sys.stdin:
        try:
            tell({"value": answer(peer, json.loads(line))})
        except Exception as error:  # noqa: BLE001 - likewise
            tell({"failed": reason(error)})


def main() -> int:
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != here]  # our modules' names are not the packages'
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for converted weights")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # prints of the engine, from C too, do not mix with the answers

        def tell(told: dict[str, Any]) -> None:
            out.write(json.dumps(told) + "\n")
            out.flush()

        serve(options, tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
