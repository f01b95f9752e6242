"""Rooflines and what is summed up of them, against figures worked out by hand."""

from __future__ import annotations

import importlib
import json

import pytest

from kernels.gpu.__main__ import main
from kernels.gpu.compilation import PACKAGE
from kernels.gpu.hardware import gpu
from kernels.gpu.roofline import ASSUMED, IDEAL, Assumptions, estimate
from kernels.gpu.specimen import Work
from kernels.gpu.throughput import (
    BATCHES,
    CONTEXTS,
    MODELS,
    PUBLISHED,
    WEIGHTS,
    Experts,
    Model,
    Weights,
    attention,
    hit,
    launches,
    table,
    throughput,
)

QWEN, MIXTRAL, LLAMA = MODELS
FP16, FP8, INT4 = WEIGHTS
WIDE = Model("wide", 1, 4096, 32, 8, 128, 14_336, 32_000)
TURNED = Model("turned", 1, 14_336, 32, 8, 128, 4096, 32_000)  # the product downwards is 14,336 x 4,096
NAMED = {weights.name: weights for weights in WEIGHTS}


def test_the_slower_of_memory_and_arithmetic_counts() -> None:
    h100 = gpu("H100")
    half = Assumptions(bandwidth=0.5, arithmetic=0.25, launch=1e-6)
    memory = estimate(Work("", bytes=3_350_000_000, flops=1, peak="fp16"), h100, half)
    assert memory is not None and memory.bound == "memory" and memory.seconds == pytest.approx(2e-3 + 1e-6)
    arithmetic = estimate(Work("", bytes=1, flops=1_979_000_000_000, peak="fp8"), h100, half)
    assert arithmetic is not None and arithmetic.bound == "arithmetic"
    assert arithmetic.seconds == pytest.approx(4e-3 + 1e-6)
    launch = estimate(Work("", bytes=1, flops=1, peak="fp32"), h100, half)
    assert launch is not None and launch.bound == "launch" and launch.seconds == pytest.approx(1e-6, rel=1e-3)
    assert estimate(Work("", bytes=1, flops=1, peak="fp8"), gpu("A100")) is None


def test_worked_example() -> None:
    """Qwen3-30B-A3B on an H100, 64 sequences of 4,096, without losses: KV cache 160, experts 355, 183 and 94, output
    186 microseconds."""
    h100 = gpu("H100")
    mixed = attention(64, 4096, 32 * 128, 4 * 128, 8, 2)
    assert mixed.bytes == pytest.approx(537e6, rel=0.01)
    assert hit(Experts(128, 8), 64) == pytest.approx(126, abs=0.5)
    for weights, expected in ((FP16, 355e-6), (FP8, 183e-6), (INT4, 94e-6)):
        works = {work.shape: work for work, _ in launches(QWEN, h100, weights, 64, 4096)}
        seconds = 0.0
        for name in ("experts' gate and up", "experts' down"):
            found = estimate(works[name], h100, IDEAL)
            assert found is not None and found.bound == "memory"
            seconds += found.seconds
        assert seconds == pytest.approx(expected, rel=0.03)
    read, output = estimate(mixed, h100, IDEAL), estimate(works["output matrix"], h100, IDEAL)
    assert read is not None and read.seconds == pytest.approx(160e-6, rel=0.01)
    assert output is not None and output.seconds == pytest.approx(186e-6, rel=0.07)  # with the logits, in fp32


@pytest.mark.parametrize(
    ("operation", "variant", "launch", "model", "weights", "batch", "context"),
    [
        ("attention", "bf16, 128 wide", "attention", QWEN, FP16, 64, 4096),
        ("experts", "gate and up, plain, fp16, up to 16 of an expert", "experts' gate and up", QWEN, FP16, 256, 1024),
        ("experts", "down, plain, fp16, up to 16 of an expert", "experts' down", QWEN, FP16, 256, 1024),
        ("combine", "fp16, 8 of width 2,048", "combine", QWEN, FP16, 4096, 1024),
        ("rms_norm", "bf16, residual fp32, 2048 wide", "norm", QWEN, FP16, 64, 1024),
        ("swiglu", "fp16, 14336 wide", "SwiGLU", WIDE, FP16, 64, 1024),
        ("linear", "int4-128, fp16, up to 64 rows", "down", TURNED, Weights("int4-128", 0.515625, "fp16"), 64, 1024),
    ],
)
def test_launches_are_those_of_the_kernels(
    operation: str, variant: str, launch: str, model: Model, weights: Weights, batch: int, context: int
) -> None:
    """What is summed up for a model is what the operations say of their own launches."""
    module = importlib.import_module(f"{PACKAGE}.{operation}")
    (own,) = [one.work for one in module.specimens(90) if one.variant == variant]
    (found,) = [one for one, _ in launches(model, gpu("H100"), weights, batch, context) if one.shape == launch]
    assert found.bytes == pytest.approx(own.bytes, rel=0.005)
    assert found.flops == (0 if launch in ("combine", "norm", "SwiGLU") else pytest.approx(own.flops))
    assert found.peak == own.peak


@pytest.mark.parametrize(
    ("name", "weights", "ceilings"),
    [
        ("A100", "fp16", (331, 613, 1979, 6056)),
        ("A100", "int4", (942, 2013, 5758, 12358)),
        ("H100", "fp16", (544, 1007, 3252, 9951)),
        ("H100", "fp8", (951, 1861, 5736, 14997)),
        ("H100", "int4", (1548, 3307, 9460, 20304)),
        ("B200", "fp16", (1299, 2404, 7766, 23763)),
        ("B200", "fp8", (2271, 4444, 13698, 35813)),
        ("B200", "int4", (3698, 7897, 22592, 48488)),
    ],
)
def test_ceilings_of_weights_and_cache_alone(name: str, weights: str, ceilings: tuple[float, ...]) -> None:
    """Worked out apart, as the bytes of weights, keys and values by the bandwidth. Ours have the activations too, and
    products of many rows that wait for arithmetic while the memory rests."""
    for batch, ceiling in zip(BATCHES, ceilings, strict=True):
        found = throughput(QWEN, gpu(name), NAMED[weights], batch, 1024, gpus=1, assumptions=IDEAL)
        assert found.tokens is not None and 0.87 * ceiling < found.tokens < ceiling


@pytest.mark.parametrize(
    ("name", "gpus", "ceilings"),
    [("H100", 4, (331, 813, 5629)), ("H200", 2, (237, 583, 4033)), ("B200", 1, (198, 486, 3361))],
)
def test_ceilings_of_several_gpus(name: str, gpus: int, ceilings: tuple[float, ...]) -> None:
    for batch, ceiling in zip(BATCHES, ceilings, strict=False):
        found = throughput(MIXTRAL, gpu(name), FP8, batch, 1024, kv=1, gpus=gpus, assumptions=IDEAL, exchange=0.0)
        assert found.tokens is not None and 0.94 * ceiling < found.tokens < ceiling


def test_parameters_are_those_of_the_models() -> None:
    billions = [round((model.matrices + 2 * model.vocab * model.dim) / 1e9, 1) for model in MODELS]
    assert billions == [30.5, 140.6, 405.8]


def test_what_does_not_fit_takes_more_gpus_or_none() -> None:
    by_hand = 405.8e9 * 2 + 64 * 1024 * 2 * 126 * 8 * 128 * 2  # weights, keys and values
    found = throughput(LLAMA, gpu("A100"), FP16, 64, 1024)
    assert found.gpus is None and found.tokens is None and found.memory == pytest.approx(by_hand, rel=1e-3)
    assert throughput(LLAMA, gpu("H200"), FP16, 64, 1024).gpus == 8
    assert throughput(QWEN, gpu("H100"), FP16, 1, 1024).gpus == 1
    assert throughput(QWEN, gpu("H100"), FP16, 256, 1024).gpus == 2


def test_losses_launches_and_exchanges_cost_time() -> None:
    ideal = throughput(LLAMA, gpu("H100"), FP8, 8, 1024, assumptions=IDEAL, exchange=0.0)
    free = throughput(LLAMA, gpu("H100"), FP8, 8, 1024, assumptions=IDEAL, exchange=1e-3)
    assert ideal.seconds is not None and free.seconds is not None
    assert free.seconds - ideal.seconds == pytest.approx(2 * 126 * 1e-3)
    slow = throughput(LLAMA, gpu("H100"), FP8, 8, 1024, assumptions=Assumptions(1.0, 1.0, 1e-3), exchange=0.0)
    count = sum(times for _, times in launches(LLAMA, gpu("H100"), FP8, 8, 1024, gpus=8))
    assert slow.seconds is not None and slow.seconds - ideal.seconds == pytest.approx(count * 1e-3)
    assert count == 126 * (2 + 1 + 1 + 2 + 1 + 1 + 1 + 1 + 4) + 4


def test_every_figure_is_labelled_and_has_its_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == "estimated"
    assert found["assumptions"]["bandwidth_share"] == ASSUMED.bandwidth
    assert len(found["decoding"]) == len(table()) == len(MODELS) * 4 * len(WEIGHTS) * len(CONTEXTS) * len(BATCHES)
    assert all("estimated_tokens_per_second" in line for line in found["decoding"])
    assert len(found["published"]) == len(PUBLISHED) and all(line["source"] for line in found["published"])
    assert main(["throughput"]) == 0
    printed = capsys.readouterr().out
    assert "(estimated)" in printed and "estimated, never measured" in printed and "4,000-6,000" in printed
