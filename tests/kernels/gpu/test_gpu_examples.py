"""What `tune` would launch on a GPU: an example for each row of each table. Nothing is launched here."""

from __future__ import annotations

import importlib

import pytest

from kernels.gpu.compilation import PACKAGE, operations
from kernels.gpu.configurations import FOLDER, SHIPPED
from kernels.gpu.specimen import ARCHITECTURES, NATIVE_FP8
from kernels.gpu.tuning import Example

TABLES = sorted(path.stem for path in FOLDER.glob("*.json"))


def examples(architecture: int) -> list[Example]:
    modules = [importlib.import_module(f"{PACKAGE}.{name}") for name in operations()]
    return [one for module in modules if hasattr(module, "examples") for one in module.examples(architecture)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_configuration_has_an_example(architecture: int) -> None:
    found = [(one.table, SHIPPED.find(one.table, one.size, architecture)) for one in examples(architecture)]
    usable = [table for table in TABLES if table != "linear_fp8" or architecture >= NATIVE_FP8]
    wanted = [(table, row) for table in usable for row in SHIPPED.rows(table, architecture)]
    assert [one for one in wanted if one not in found] == []
