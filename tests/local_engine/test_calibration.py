"""Measuring what quantisation costs, and spending bytes by it: on tiny models, and through the command."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.packed import Format, Matrix, Packed, nbytes, pack, unpack
from local_engine.calibration import (
    Effect,
    Option,
    choices,
    choose,
    converted,
    measure,
    named_matrices,
    observe,
)
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.model import Model
from local_engine.perplexity import Window, log_probabilities, reader, score, windows
from local_engine.quantisation import INT4, INT8, Quantiser, Scheme, find_scheme, fitting, scheme_of, scheme_path
from local_engine.weights import DenseWeights, Weights
from tests.local_engine.tiny_models import CONFIGS, random_weights

TEXTS = [Window([(7 * n * n + n + k) % 260 for n in range(24)], 1) for k in (0, 100)]


@given(length=st.integers(2, 20), stride=st.integers(1, 20), count=st.integers(0, 90))
def test_sliding_windows_predict_every_token_once(length: int, stride: int, count: int) -> None:
    if stride >= length:
        with pytest.raises(ValueError, match="`stride`"):
            windows(range(count), length, stride)
        return
    tokens = list(range(count))
    found = windows(tokens, length, stride)
    assert [token for window in found for token in window.tokens[window.first :]] == tokens[1:]
    assert all(len(window.tokens) <= length and 1 <= window.first < len(window.tokens) for window in found)
    assert all(window.first >= length - stride for window in found[1:]), "as much context as was promised"


def uniform_but(token: int, logit: float) -> Tensor:
    row = torch.zeros(8)
    row[token] = logit
    return row


def test_scores_are_what_their_definitions_say() -> None:
    def read(logit: float):
        return lambda tokens: torch.stack([uniform_but((t + 1) % 8, logit) for t in tokens])

    texts = windows([0, 1, 2, 3, 0, 5], 4, 2)
    sure, even = read(2.0), read(0.0)
    right, wrong = math.exp(2) / (math.exp(2) + 7), 1 / (math.exp(2) + 7)
    found = score(sure, texts)
    assert found.tokens == 5 and found.kl is None
    assert found.perplexity == pytest.approx(math.exp(-(3 * math.log(right) + 2 * math.log(wrong)) / 5), rel=1e-6)
    truth = list(log_probabilities(sure, texts))
    assert score(sure, texts, truth).kl == 0 and score(sure, texts, truth).agreement == 1
    against = score(even, texts, truth)
    assert against.perplexity == pytest.approx(8)
    assert against.kl == pytest.approx(right * math.log(8 * right) + 7 * wrong * math.log(8 * wrong), rel=1e-5)
    with pytest.raises(ValueError, match="no token"):
        score(even, [])


def test_a_model_that_answers_nonsense_has_no_perplexity() -> None:
    found = score(lambda tokens: torch.full((len(tokens), 260), float("nan")), TEXTS)
    assert found.perplexity == math.inf


@pytest.mark.parametrize("name", ["plain", "windows", "rich", "experts"])
def test_matrices_are_named_once_and_converted_alike(name: str) -> None:
    config = CONFIGS[name]
    weights = random_weights(config)
    names = [name for name, _ in named_matrices(weights)]
    assert len(set(names)) == len(names)
    assert ("lm_head" in names) == (not config.tied)
    doubled = converted(weights, lambda name, matrix: unpack(matrix) * 2)
    assert [n for n, _ in named_matrices(doubled)] == names
    for (_, one), (_, two) in zip(named_matrices(weights), named_matrices(doubled), strict=True):
        assert torch.equal(unpack(one) * 2, unpack(two))
    assert (doubled.lm_head is doubled.embedding) == config.tied


def test_inputs_are_observed_as_the_matrices_see_them() -> None:
    """An input that is scaled up, and its columns down, leaves the model as it is: importance shows it."""
    config, weights = CONFIGS["plain"], random_weights(CONFIGS["plain"])
    scale = torch.ones(config.dim)
    scale[3] = 8.0
    layers = list(weights.layers)
    first = layers[0]
    assert isinstance(first.qkv, Tensor)
    layers[0] = replace(first, attention_norm=first.attention_norm * scale, qkv=first.qkv / scale)
    scaled = replace(weights, layers=tuple(layers))
    before, after = observe(config, weights, TEXTS), observe(config, scaled, TEXTS)
    assert set(before) == {name for name, _ in named_matrices(weights)} - {"embedding"}
    assert torch.allclose(after["layers.0.qkv"], before["layers.0.qkv"] * scale.square(), rtol=1e-3)
    assert torch.allclose(after["layers.1.down"], before["layers.1.down"], rtol=1e-3)


@pytest.mark.parametrize("name", ["plain", "windows", "rich", "experts"])
def test_an_effect_is_the_divergence_of_the_whole_model(name: str) -> None:
    """Only the layers behind a matrix are run to measure it; the whole model must say the same."""
    config, weights = CONFIGS[name], random_weights(CONFIGS[name])
    before = {name: unpack(matrix).clone() for name, matrix in named_matrices(weights)}
    told: list[float] = []
    effects = {effect.name: effect for effect in measure(config, weights, TEXTS, progress=lambda s, _: told.append(s))}
    assert all(torch.equal(before[name], unpack(matrix)) for name, matrix in named_matrices(weights)), "put back"
    assert told == sorted(told) and told[-1] == 1.0
    truth = list(log_probabilities(reader(Model(config, weights, 64)), TEXTS))
    for name in ("embedding", f"layers.{config.num_layers - 1}.attention_out", "layers.1.value"):
        near = converted(weights, partial(one_in_four_bits, effects[name], config.num_kv_heads * config.head_dim))
        found = score(reader(Model(config, near, 64)), TEXTS, truth)
        assert found.kl == pytest.approx(effects[name].kl, rel=0.03, abs=3e-5), name


def one_in_four_bits(effect: Effect, value_rows: int, name: str, matrix: Matrix) -> Matrix:
    """`matrix` as it is, but for the effect's own section."""
    if name != effect.name.replace("value", "qkv"):
        return matrix
    format = fitting(INT4, effect.shape[1])
    assert format is not None
    out = unpack(matrix).clone()
    rows = slice(-value_rows, None) if name != effect.name else slice(None)
    out[rows] = unpack(pack(out[rows], format, effect.importance))
    return out


def test_a_sensitive_layer_gets_more_bits() -> None:
    config = replace(CONFIGS["plain"], num_layers=4, dim=64, ffn_dim=64, head_dim=16)
    weights = random_weights(config, 3)
    layers = list(weights.layers)
    for index, layer in enumerate(layers):
        assert isinstance(layer.ffn, DenseWeights) and isinstance(layer.ffn.down, Tensor)
        layers[index] = replace(layer, ffn=replace(layer.ffn, down=layer.ffn.down * (2.0 if index == 2 else 1e-3)))
    weights = replace(weights, layers=tuple(layers))
    effects = measure(config, weights, TEXTS)
    down = {e.name: e.kl for e in effects if e.name.endswith("down")}
    assert down["layers.2.down"] > 20 * max(kl for name, kl in down.items() if name != "layers.2.down")
    four = sum(next(o.size for o in e.options if o.format == INT4) for e in effects)
    chosen = choose(effects, int(four * 1.4))
    assert sum(option.size for option in chosen.values()) <= four * 1.4
    assert chosen["layers.2.down"].format == INT8
    assert all(chosen[name].format.bits <= 4 for name in down if name != "layers.2.down")


def test_bytes_spent_by_measurement_beat_four_bits_everywhere() -> None:
    config, weights = CONFIGS["rich"], random_weights(CONFIGS["rich"], 1)
    effects = measure(config, weights, TEXTS)
    four = {
        e.name: next(o for o in e.options if o.format == INT4)
        for e in effects
        if any(o.format == INT4 for o in e.options)
    }
    unseen = [Window([(3 * n * n + 5 * n + k) % 260 for n in range(40)], 1) for k in (1, 33, 77)]
    truth = list(log_probabilities(reader(Model(config, weights, 64)), unseen))

    def divergence(chosen: dict[str, Option]) -> float:
        quantiser = Quantiser("mixed", config, Scheme(choices(effects, chosen)))
        near: Weights = converted(weights, lambda name, matrix: quantiser.quantised(name, unpack(matrix)))
        kl = score(reader(Model(config, near, 64)), unseen, truth).kl
        assert kl is not None
        return kl

    uniform = {e.name: four.get(e.name, e.options[0]) for e in effects}
    budget = int(sum(option.size for option in uniform.values()) * 1.4)
    assert divergence(choose(effects, budget)) < 0.7 * divergence(uniform)


@st.composite
def menus(draw: st.DrawFn) -> list[Effect]:
    """Up to four matrices with up to four options each."""
    found = []
    for index in range(draw(st.integers(1, 4))):
        sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True))
        options = [Option(Format("int4", 4, n), n, draw(st.floats(0, 10))) for n in sorted(sizes)]
        found.append(Effect(str(index), (1, 1), 0.0, tuple(options), None))
    return found


@settings(max_examples=200, deadline=None)
@given(effects=menus(), budget=st.integers(0, 120))
def test_choices_are_within_budget_and_near_the_best(effects: list[Effect], budget: int) -> None:
    chosen = choose(effects, budget)
    size = sum(option.size for option in chosen.values())
    smallest = sum(effect.options[0].size for effect in effects)
    assert size <= max(budget, smallest)
    assert all(chosen[effect.name] in effect.options for effect in effects)
    possible = [
        c for c in itertools.product(*(e.options for e in effects)) if sum(o.size for o in c) <= max(size, smallest)
    ]
    best = min(sum(o.effect for o in c) for c in possible)
    largest_step = max(
        (a.effect - b.effect for e in effects for a, b in itertools.combinations(e.options, 2)), default=0.0
    )
    assert sum(o.effect for o in chosen.values()) <= best + max(largest_step, 0.0) + 1e-9


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_engine.quantise", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_WAIT_POLICY": "passive"}
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the thin thread then\n" * 90)
    return path


def test_the_command_measures_and_writes_a_scheme_that_the_engine_uses(
    tiny_path: Path, text: Path, tmp_path: Path
) -> None:
    scheme_file = tmp_path / "scheme.json"
    done = run(
        "--model",
        tiny_path,
        "--output",
        scheme_file,
        "--text",
        text,
        "--budget",
        "20%",
        "--calibration-tokens",
        256,
        "--evaluation-tokens",
        200,
        "--threads",
        1,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    totals = result["totals"]
    assert list(totals) == [
        "fp32",
        "fp32, int8 KV",
        "int8",
        "fp8",
        "int4",
        "int4 calibrated",
        "int3",
        "mixed by rule",
        "mixed by measurement",
    ]
    assert totals["fp32"]["kl"] == pytest.approx(0, abs=1e-4) and totals["fp32"]["agreement"] == 1
    assert totals["int3"]["bytes"] < totals["int4"]["bytes"] < totals["int8"]["bytes"] < totals["fp32"]["bytes"]
    assert totals["int8"]["kl"] < totals["int4"]["kl"] and totals["int4"]["tokens"] == 199
    assert totals["mixed by measurement"]["bytes"] <= totals["int4 calibrated"]["bytes"] * 1.2
    assert totals["mixed by measurement"]["bytes"] == sum(m["bytes"] for m in result["matrices"])
    for shown in ("layers.1.value", "mixed by measurement", "same top token", "keeps as it is"):
        assert shown in done.stdout
    scheme = Scheme.from_json(scheme_file.read_text())
    assert set(scheme.choices) == {m["name"] for m in result["matrices"]}
    with open_checkpoint(tiny_path) as checkpoint:
        scheme_path(tmp_path / "m.gguf").write_text(scheme_file.read_text())
        quantiser = scheme_of("mixed", checkpoint.config, find_scheme(tmp_path / "m.gguf"))
        size = 0
        for name, matrix in named_matrices(load_weights(checkpoint)):
            packed = quantiser.quantised(name, unpack(matrix))
            size += nbytes(packed)
            if isinstance(packed, Packed) and name in scheme.choices:
                assert packed.format == scheme.choices[name].format
    assert size == totals["mixed by measurement"]["bytes"]


def test_only_json(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(tiny_path.read_bytes())
    done = run(
        "--model",
        tmp_path / "model.gguf",
        "--text",
        text,
        "--json",
        "--calibration-tokens",
        128,
        "--evaluation-tokens",
        20,
        "--threads",
        1,
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == ["model", "scheme", "kept", "matrices", "totals"]
    assert find_scheme(tmp_path / "model.gguf") is not None


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--model", "absent.gguf"], 1, "error: "),
        (["--model", "TINY", "--text", "absent.txt"], 1, "`absent.txt` cannot be read"),
        (["--model", "TINY", "--text", "SHORT"], 1, "hint: give a longer one with `--text`"),
        (
            [
                "--model",
                "TINY",
                "--text",
                "TEXT",
                "--evaluation-tokens",
                "9",
                "--calibration-tokens",
                "99",
                "--output",
                "/no/such/folder/x",
            ],
            1,
            "hint: name a place to write to with `--output`",
        ),
        (["--model", "TINY", "--budget", "-5%"], 2, "--budget"),
        (["--model", "TINY", "--calibration-tokens", "1"], 2, "not at least 2"),
    ],
)
def test_errors_are_one_message(
    arguments: list[str], status: int, said: str, tiny_path: Path, text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("the")
    places = {"TINY": str(tiny_path), "TEXT": str(text), "SHORT": str(short)}
    done = run(*(places.get(argument, argument) for argument in arguments), "--threads", 1)
    assert done.returncode == status and said in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_interrupted_it_leaves_nothing(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_path.read_bytes())
    command = [
        sys.executable,
        "-c",
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from local_engine import quantise\nprint('begun', flush=True)\nsys.exit(quantise.main())",
        "--model",
        str(model),
        "--evaluation-tokens",
        "100000",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and said.splitlines()[-1] == "interrupted: nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
