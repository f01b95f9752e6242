"""Launch configurations as data: the sizes of tiles, warps and stages of each operation, by size and architecture.

`configurations/OPERATION.json` holds for "default", and for architectures that need other ones ("sm_90"), a list of
rows in ascending order of `up_to` (of the size that the operation goes by; null in the last: any). A row is
`{"up_to": 16, "BLOCK_M": 16, ..., "num_warps": 4, "num_stages": 3}`. A file of the same form as
`{"OPERATION": {"sm_90": [...]}}`, written by tuning on a GPU, goes before what is shipped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "configurations"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """How one launch is cut up."""

    up_to: int | None
    sizes: Mapping[str, int]  # the kernel's constants, by their names
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {**self.sizes, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Tables:
    """The shipped configurations, and those that were measured on this machine's GPU."""

    tuned: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Tables":
        """What tuning has written. Raises `OSError`, and `ValueError` where the file is none of ours."""
        try:
            found = json.loads(path.read_text())
            tables = cls({name: {arch: rows for arch, rows in by.items()} for name, by in found.items()})
            for name in tables.tuned:
                for rows in tables.tuned[name].values():
                    _parse(name, rows)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"`{path}`: not a table of launch configurations: {error}") from error
        return tables

    def rows(self, operation: str, arch: int | None) -> list[Configuration]:
        """Every configuration that a GPU of this architecture (80, 90, ...; None: any) may run, smallest size first.

        Raises `KeyError` for an operation that has none.
        """
        known = {**_shipped(operation), **self.tuned.get(operation, {})}
        fitting = [int(name[3:]) for name in known if name != "default" and arch is not None and int(name[3:]) <= arch]
        return _parse(operation, known[f"sm_{max(fitting)}" if fitting else "default"])

    def find(self, operation: str, size: int, arch: int | None) -> Configuration:
        """The one for `size`, in whatever the operation goes by."""
        rows = self.rows(operation, arch)
        return next((row for row in rows if row.up_to is None or size <= row.up_to), rows[-1])


SHIPPED = Tables()


def architecture(device: torch.device) -> int | None:
    """80, 89, 90, ... of a CUDA device; None of anything else, the interpreter included."""
    return _capability(device.index or 0) if device.type == "cuda" and torch.version.cuda else None


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@cache
def _shipped(operation: str) -> Mapping[str, Rows]:
    path = FOLDER / f"{operation}.json"
    if not path.is_file():
        raise KeyError(f"no launch configurations for `{operation}`")
    found: Mapping[str, Rows] = json.loads(path.read_text())
    return found


def _parse(operation: str, rows: Rows) -> list[Configuration]:
    found = []
    for row in rows:
        sizes = {name: int(size) for name, size in row.items() if name.isupper()}
        found.append(Configuration(row["up_to"], sizes, int(row["num_warps"]), int(row["num_stages"])))
    if not found:
        raise KeyError(f"no launch configurations for `{operation}`")
    return found
