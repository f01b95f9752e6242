"""`python -m local_engine.quantise`: measures what quantisation does to a model, and chooses where it gets more bits.

Two tables, each matrix and then the whole model under every scheme, and one JSON object as the last line. The scheme
is written beside the model, where `--quant mixed` finds it.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kernels.packed import Matrix, nbytes
from local_engine import calibration
from local_engine.calibration import Effect, Option
from local_engine.errors import EngineError, ModelFileError
from local_engine.files.checkpoint import Checkpoint, Stored, open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.files.replacement import replacing
from local_engine.model import Model
from local_engine.perplexity import Score, Window, log_probabilities, reader, score, windows
from local_engine.quantisation import INT4, PLAIN_KINDS, Choice, Quantiser, Scheme, scheme_path
from local_engine.text.vocabulary import open_vocabulary

Advance = Callable[[float, str], None]  # the share of the work done, 0 to 1, and what is being done

CALIBRATION_WINDOW = 256  # tokens
EVALUATION_WINDOW, EVALUATION_STRIDE = 512, 256
CALIBRATION_SHARE = 0.7  # of the text; the rest is for evaluation
MAX_TEXT_BYTES = 64 << 20
PIPE_WIDTH = 160  # columns of a table that does not go to a terminal


@dataclass(frozen=True, slots=True)
class Total:
    """The whole model under one scheme."""

    name: str
    bytes: int  # of all matrices; norms and biases are the same in each
    score: Score
    loss: float  # perplexity above fp32's, relative


@dataclass(frozen=True, slots=True)
class Measurement:
    effects: list[Effect]
    chosen: dict[str, Option]
    scheme: Scheme
    totals: list[Total]

    def to_json(self) -> dict[str, Any]:
        matrices = [
            {"name": e.name, "kl": e.kl, "format": str(self.chosen[e.name].format), "bytes": self.chosen[e.name].size}
            for e in self.effects
        ]
        totals = {
            total.name: {"bytes": total.bytes, "loss": total.loss, **asdict(total.score)} for total in self.totals
        }
        return {"matrices": matrices, "totals": totals}


def measure_model(
    checkpoint: Checkpoint,
    text: str,
    *,
    budget: float = 0.15,
    calibration_tokens: int = 768,
    evaluation_tokens: int = 4096,
    progress: Advance = lambda share, what: None,
) -> Measurement:
    """`budget`: bytes above four bits everywhere, as a share of them. The model's weights as they are in the file,
    read as fp32, are the truth, also where the file is quantised itself. Raises `EngineError`."""
    config = checkpoint.config
    tokens = open_vocabulary(checkpoint, config.vocab_size).encode(text)
    sample, unseen = _texts(tokens, calibration_tokens, evaluation_tokens, config.context_length)
    weights = load_weights(checkpoint)
    model = Model(config, weights, EVALUATION_WINDOW)
    progress(0.0, "fp32")
    truth = [own.half() for own in log_probabilities(reader(model), unseen)]
    exact = score(reader(model), unseen, truth)
    eight_bit_cache = score(reader(model, "int8"), unseen, truth)
    effects = calibration.measure(
        config, weights, sample, progress=lambda share, what: progress(0.05 + 0.65 * share, what)
    )
    if not effects:
        raise EngineError("no matrix of this model can be quantised")
    whole = sum(matrix.nbytes for _, matrix in calibration.named_matrices(weights) if isinstance(matrix, torch.Tensor))
    del model, weights
    four = sum(_size_in(effect, INT4) for effect in effects)
    chosen = calibration.choose(effects, int(four * (1 + budget)))
    mixed = Scheme(calibration.choices(effects, chosen))
    calibrated = {e.name: Choice(_option_in(e, INT4).format, e.shape, e.kl, e.importance) for e in effects}
    quantisers = {
        "int8": Quantiser("int8", config),
        "fp8": Quantiser("fp8", config),
        "int4": Quantiser("int4", config),
        "int4 calibrated": Quantiser("mixed", config, Scheme(calibrated)),
        "int3": Quantiser("int3", config),
        "mixed by rule": Quantiser("mixed", config),
        "mixed by measurement": Quantiser("mixed", config, mixed),
    }
    totals = [
        Total("fp32", whole, exact, 0.0),
        Total("fp32, int8 KV", whole, eight_bit_cache, eight_bit_cache.perplexity / exact.perplexity - 1),
    ]
    for index, (name, quantiser) in enumerate(quantisers.items()):
        progress(0.7 + 0.3 * index / len(quantisers), name)
        size, found = _evaluated(checkpoint, quantiser, unseen, truth)
        totals.append(Total(name, size, found, found.perplexity / exact.perplexity - 1))
    progress(1.0, "done")
    record = {
        "budget": budget,
        "calibration_tokens": sum(len(window.tokens) for window in sample),
        "evaluation_tokens": exact.tokens,
        "totals": Measurement(effects, chosen, mixed, totals).to_json()["totals"],
    }
    return Measurement(effects, chosen, replace(mixed, measured=record), totals)


def _texts(tokens: list[int], calibrate: int, evaluate: int, context: int) -> tuple[list[Window], list[Window]]:
    """Windows spread over the first part of the text, and sliding ones over the rest."""
    length = min(CALIBRATION_WINDOW, context)
    split = int(len(tokens) * CALIBRATION_SHARE)
    count = max(1, calibrate // length)
    evaluated = tokens[split : split + evaluate]
    if split < count * length or len(evaluated) < 2:
        raise EngineError(
            f"the text has {len(tokens)} tokens, too few to calibrate on {count * length} of its first part\n"
            "hint: give a longer one with `--text`, or fewer `--calibration-tokens`"
        )
    each = split // count
    sample = [Window(tokens[n * each : n * each + length], 1) for n in range(count)]
    reach = min(EVALUATION_WINDOW, context)
    return sample, windows(evaluated, reach, max(1, min(EVALUATION_STRIDE, reach // 2)))


def _evaluated(
    checkpoint: Checkpoint, quantiser: Quantiser, texts: Sequence[Window], truth: Sequence[torch.Tensor]
) -> tuple[int, Score]:
    size = 0

    def quantised(name: str, stored: Stored) -> Matrix:
        nonlocal size
        matrix = quantiser.quantised(name, stored.read())  # whatever it is in the file
        size += nbytes(matrix)
        return matrix

    model = Model(checkpoint.config, load_weights(checkpoint, scheme=quantised), EVALUATION_WINDOW)
    return size, score(reader(model), texts, truth)


def _option_in(effect: Effect, format: Any) -> Option:
    """Its option of that format, or where that does not fit its rows, the one of the same name."""
    same = [o for o in effect.options if o.format == format] or [
        o for o in effect.options if o.format.name == format.name
    ]
    return same[0] if same else effect.options[0]


def _size_in(effect: Effect, format: Any) -> int:
    return _option_in(effect, format).size


def standard_text() -> str:
    """English prose and code that comes with CPython: the language reference."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def write_scheme(path: Path, scheme: Scheme) -> None:
    """The file is replaced as a whole or not at all. Raises `EngineError` when it cannot be written."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(scheme.to_json(), encoding="utf-8")
    except OSError as error:
        raise EngineError(
            f"cannot write `{path}`: {error.strerror}\nhint: name a place to write to with `--output`"
        ) from error


def tables(measurement: Measurement) -> tuple[Table, Table]:
    each = Table("matrix", "rows", "columns", "KL alone", "format", "MB", title="Each matrix, quantised alone")
    for effect in measurement.effects:
        option = measurement.chosen[effect.name]
        numbers = (str(effect.shape[0]), str(effect.shape[1]), f"{effect.kl:.5f}", str(option.format))
        each.add_row(effect.name, *numbers, f"{option.size / 1e6:.2f}")
    whole = Table("scheme", "MB", "perplexity", "loss", "KL", "same top token", title="The whole model")
    for total in measurement.totals:
        kl, agreement = total.score.kl or 0.0, total.score.agreement or 0.0
        whole.add_row(
            total.name,
            f"{total.bytes / 1e6:.1f}",
            f"{total.score.perplexity:.4f}",
            f"{total.loss:+.2%}",
            f"{kl:.5f}",
            f"{agreement:.2%}",
        )
    return each, whole


def percentage(text: str) -> float:
    share = float(text.removesuffix("%")) / 100
    if not 0 <= share <= 10:
        raise argparse.ArgumentTypeError(f"`{text}` is not between 0% and 1000%")
    return share


def count(text: str) -> int:
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"`{text}` is not at least 2")
    return number


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_engine.quantise", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder")
    parser.add_argument("--output", type=Path, help="where the scheme is written (default: beside the model)")
    parser.add_argument("--budget", type=percentage, default=0.15, help="bytes above four bits everywhere, like 15%%")
    parser.add_argument("--text", type=Path, help="UTF-8 text to measure on (default: Python's language reference)")
    parser.add_argument("--calibration-tokens", type=count, default=768)
    parser.add_argument("--evaluation-tokens", type=count, default=4096)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    return parser


def read_text(path: Path | None) -> str:
    if path is None:
        return standard_text()
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise EngineError(f"the text `{path}` is larger than {MAX_TEXT_BYTES >> 20} MB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"the text `{path}` cannot be read: {error}") from error


def run(options: argparse.Namespace) -> dict[str, Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeRemainingColumn())
    with (
        open_checkpoint(options.model) as checkpoint,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("loading", total=1.0)
        measurement = measure_model(
            checkpoint,
            read_text(options.text),
            budget=options.budget,
            calibration_tokens=options.calibration_tokens,
            evaluation_tokens=options.evaluation_tokens,
            progress=lambda share, what: bar.update(task, completed=share, description=what),
        )
        kept = sorted({s.type.name for s in checkpoint.tensors.values()} - PLAIN_KINDS)
    place = options.output or scheme_path(options.model)
    write_scheme(place, measurement.scheme)
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if not options.json:
        for table in tables(measurement):
            out.print(table)
        out.print(f"scheme: {place}", highlight=False, soft_wrap=True)
        if kept:
            note = "the file holds {} already, which `--quant mixed` keeps as it is: the scheme is for the rest"
            out.print(note.format(", ".join(kept)), highlight=False, soft_wrap=True)
    return {"model": str(options.model), "scheme": str(place), "kept": kept, **measurement.to_json()}


def main() -> int:
    # Read by the OpenMP runtime when its first thread starts: threads that spin slow down whoever shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251 - set for a library, not read as a setting
    options = arguments().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        result = run(options)
    except (EngineError, ModelFileError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return 130
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
