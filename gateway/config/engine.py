"""How the engine of a local provider runs: the key `engine` of a provider whose adapter is `local`."""

from __future__ import annotations

from gateway.config.keys import KEYS
from gateway.config.model import EngineOptions
from gateway.config.section import Section

QUANTS = ("none", "int8", "int4", "int3", "fp8", "mixed")
KERNELS = ("auto", "triton", "cpu", "reference")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "fp32", "fp16", "bf16")
KV_TYPES = ("auto", "fp32", "fp16", "bf16", "int8")
SHARES = ("split", "spread")
_MOST = 1 << 30
_BOUNDS = {
    "draft_tokens": (1, 64),
    "kv_tokens": (1, _MOST),
    "context_length": (1, _MOST),
    "max_running": (1, 4096),
    "max_waiting": (0, 1 << 20),
    "threads": (1, 1024),
    "processes": (1, 64),
}


def compile_engine(provider: Section) -> EngineOptions:
    """What is left out is left to the engine; mistakes are reported."""
    section = provider.section("engine", KEYS["engine"])
    return EngineOptions(
        quant=section.choice("quant", QUANTS, "quantisation"),
        draft=section.text("draft"),
        kernels=section.choice("kernels", KERNELS, "kind of kernels"),
        device=section.choice("device", DEVICES, "device"),
        dtype=section.choice("dtype", DTYPES, "dtype"),
        kernel_tables=section.text("kernel_tables"),
        kv_type=section.choice("kv_type", KV_TYPES, "type"),
        experts=section.choice("experts", SHARES, "way to share experts"),
        prefix_cache=section.flag("prefix_cache"),
        step=section.seconds("step"),
        request_timeout=section.seconds("request_timeout"),
        numbers={
            name: value
            for name, (least, most) in _BOUNDS.items()
            if (value := section.integer(name, least=least, most=most)) is not None
        },
    )


def arguments(options: EngineOptions) -> list[str]:
    """The command line of `python -m local_engine` that says the same."""
    found: list[str] = []
    texts = {
        "quant": options.quant,
        "draft": options.draft,
        "kernels": options.kernels,
        "device": options.device,
        "dtype": options.dtype,
        "kernel-tables": options.kernel_tables,
        "kv-type": options.kv_type,
        "experts": options.experts,
    }
    for name, text in texts.items():
        found += [] if text is None else [f"--{name}", text]
    for name, number in options.numbers.items():
        found += [f"--{name.replace('_', '-')}", str(number)]
    if options.prefix_cache is False:
        found.append("--no-prefix-cache")
    if options.step is not None:
        found += ["--step-ms", f"{options.step * 1000:g}"]
    if options.request_timeout is not None:
        found += ["--request-timeout", f"{options.request_timeout:g}"]
    return found
