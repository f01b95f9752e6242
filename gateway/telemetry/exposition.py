"""Several processes' metrics as one: read in Prometheus' text format, added up, written again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """One metric. `kind`: `counter`, `gauge` or `histogram`; `name` is without `_total`. `sums`: value by the sample's
    name (`..._bucket`, `..._total`) and labels."""

    name: str
    kind: str
    documentation: str
    sums: dict[tuple[str, Labels], float] = field(default_factory=dict)


def add_up(texts: Sequence[bytes]) -> Mapping[str, Family]:
    """Families by name; samples of the same name and labels are added up.

    Adding is right for counters, histograms and the gauges used here; times of creation are left out.
    """
    families: dict[str, Family] = {}
    for text in texts:
        for read in text_string_to_metric_families(text.decode()):
            family = families.get(read.name)
            if family is None:
                family = families[read.name] = Family(read.name, read.type, read.documentation)
            for sample in read.samples:
                if not sample.name.endswith("_created"):
                    key = sample.name, tuple(sample.labels.items())
                    family.sums[key] = family.sums.get(key, 0.0) + sample.value
    return families


def merge_expositions(texts: Sequence[bytes]) -> bytes:
    """The sum of several expositions, as one."""
    lines: list[str] = []
    for name, family in add_up(texts).items():
        if not family.sums:
            continue
        full_name = f"{name}_total" if family.kind == "counter" else name
        lines += [f"# HELP {full_name} {family.documentation}", f"# TYPE {full_name} {family.kind}"]
        lines += [f"{sample}{_labels(labels)} {value}" for (sample, labels), value in family.sums.items()]
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = (value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for _, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for (name, _), value in zip(labels, escaped, strict=True)) + "}"
