"""The benchmark's figures as tables: each engine, the ratios between them, and the share of what the machine allows."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from local_engine.benchmark_measures import LONG, Column, Figure, Reading

OURS = "hatchway"
COMPARED = frozenset({"tok/s", "ms"})  # units of figures that peers have too


def speeds(columns: Mapping[str, Column]) -> Table:
    """One column for the engine and one for each peer; the machine's own figures are in `limits`."""
    engines = [name for name in columns if name != "machine"]
    rows: dict[str, Figure] = {}
    for name in engines:
        rows = columns[name] | rows if name == OURS else rows | columns[name]
    shown = Table("median (best)", "unit", *engines)
    rows = {name: columns[OURS].get(name, figure) for name, figure in rows.items()}
    for name, figure in rows.items():
        cells = [columns[engine].get(name) for engine in engines]
        shown.add_row(figure.what, figure.unit, *("-" if one is None else _cell(one) for one in cells))
    return shown


def _cell(figure: Figure) -> str:
    single = len(figure.values) == 1
    return f"{figure.median:.4g}" if single else f"{figure.median:.4g} ({figure.best:.4g})"


def ratios(columns: Mapping[str, Column]) -> dict[str, dict[str, dict[str, Any]]]:
    """{peer: {measure: {"median", "best"}}}: how many times as fast our engine is; and the same under `best_peer`,
    by the peer with the best median of that measure, named in `peer`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for peer, figures in columns.items():
        if peer in (OURS, "machine"):
            continue
        for name, theirs in figures.items():
            ours = columns[OURS].get(name)
            if ours is not None and theirs.unit in COMPARED:
                ratio = {
                    "median": _times(ours.median, theirs.median, theirs.unit),
                    "best": _times(ours.best, theirs.best, theirs.unit),
                }
                found.setdefault(peer, {})[name] = ratio
    best: dict[str, dict[str, Any]] = {}
    for peer, measures in found.items():
        for name, ratio in measures.items():
            if name not in best or ratio["median"] < best[name]["median"]:
                best[name] = {**ratio, "peer": peer}
    return found | {"best_peer": best} if found else {}


def _times(ours: float, theirs: float, unit: str) -> float:
    ratio = ours / theirs if unit == "tok/s" else theirs / ours
    return float(f"{ratio:.4g}")


def ratio_table(columns: Mapping[str, Column]) -> Table:
    found = ratios(columns)
    peers = [name for name in found if name != "best_peer"]
    shown = Table("times as fast, by medians (by bests)", *peers, "best peer")
    for name, best in found["best_peer"].items():
        cells = [found[peer].get(name) for peer in peers]
        told = ["-" if one is None else f"{one['median']:.2f} ({one['best']:.2f})" for one in cells]
        shown.add_row(columns[OURS][name].what, *told, f"{best['median']:.2f} ({best['peer']})")
    return shown


def limits(columns: Mapping[str, Column], reading: Reading) -> dict[str, float]:
    """What the machine allows, and the share of it that was reached; the best of both: a limit is the most there is.

    A share over 1 is possible: kernels that multiply integers are not bound by fp32.
    """
    ours, machine = columns[OURS], columns["machine"]
    memory = 1e9 * machine["memory_read"].best / reading.weight_bytes
    arithmetic = 1e9 * machine["fp32_product"].best / (2 * reading.products)
    found = {
        "memory_read_gb_s": machine["memory_read"].best,
        "fp32_gflop_s": machine["fp32_product"].best,
        "weights_mb": reading.weight_bytes / 1e6,
        "decode_limit_tok_s": memory,
        "decode_share": ours["decode_short"].best / memory,
        "prefill_limit_tok_s": arithmetic,
    }
    if "prefill_long" in ours:
        found["prefill_share"] = ours["prefill_long"].best / arithmetic
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def limit_table(found: Mapping[str, float]) -> Table:
    shown = Table("limit of the machine", "it gives, at best", "tokens/s that allows", "share reached, at best")
    memory, arithmetic = found["memory_read_gb_s"], found["fp32_gflop_s"]
    shown.add_row(
        f"reading memory: {found['weights_mb']:.0f} MB of weights for each token",
        f"{memory:.4g} GB/s",
        f"{found['decode_limit_tok_s']:.4g}",
        f"{found['decode_share']:.0%}",
    )
    share = found.get("prefill_share")
    shown.add_row(
        f"fp32 products: a prompt of {LONG} tokens",
        f"{arithmetic:.4g} GFLOP/s",
        f"{found['prefill_limit_tok_s']:.4g}",
        "-" if share is None else f"{share:.0%}",
    )
    return shown


def numbers(figures: Column) -> dict[str, float]:
    """As they go into the JSON object: medians under their names, and the best where there was more than one run."""
    return {name: float(f"{one.median:.5g}") for name, one in figures.items()} | {
        f"{name}_best": float(f"{one.best:.5g}") for name, one in figures.items() if len(one.values) > 1
    }
