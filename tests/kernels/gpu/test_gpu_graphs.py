"""What a step is padded to, how its numbers travel, and when its launches are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kernels.decoder import StepInput
from kernels.draw import Draw
from kernels.gpu.graphs import Buckets, Graphs, fit
from kernels.gpu.numbers import Numbers, Shape

SMALL = Buckets(tokens=(1, 2, 4, 8, 16), prompts=(1, 2, 4), blocks=(4, 8))


def test_sizes() -> None:
    assert [fit((1, 4, 8), count) for count in (0, 1, 2, 4, 8, 9, 17)] == [0, 1, 4, 4, 8, 16, 24]
    for wrong in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="`tokens`: sizes must be positive and ascend"):
            Buckets(tokens=wrong)
    with pytest.raises(ValueError, match="`most`: at least one recorded step"):
        Buckets(most=0)


def test_steps_are_recorded_when_they_are_seen_again_and_the_oldest_goes() -> None:
    done: list[str] = []
    graphs = Graphs(torch.device("cpu"), most=2)
    recorded: list[Any] = []
    record = graphs._record

    def counted(function: Callable[[], None]) -> Callable[[], None]:
        recorded.append(function)
        return record(function)

    graphs._record = counted  # type: ignore[method-assign]

    def step_of(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    graphs.run("a", step_of("first"))
    assert (done, len(recorded)) == (["first"], 0)
    graphs.run("a", step_of("second"))
    graphs.run("a", step_of("third"))  # the one that was recorded runs in its place
    assert (done, len(recorded)) == (["first", "second", "second"], 1)
    graphs.run("b", step_of("b"))
    graphs.run("a", step_of("a"))
    graphs.run("c", step_of("c"))  # b goes
    assert len(graphs) == 2
    graphs.run("a", step_of("a"))
    assert done[3:] == ["b", "second", "c", "second"]
    graphs.clear()
    graphs.run("a", step_of("fourth"))
    assert done[-1] == "fourth" and len(graphs) == 1


def test_numbers_reach_the_device_in_one_piece() -> None:
    inputs = StepInput(
        [5, 6, 7], [3, 4, 0], [19, 20, 90], [0, 2, 3], [5, 1], [[4, 5], [22]], [1, 2], [], [], [],
        [(1, Draw(0.5, 1 << 40, 0.25, 0.125, (1 << 64) - 5, 260))],
    )  # fmt: skip
    shape = Shape.of(inputs, SMALL)
    assert shape == Shape(tokens=4, sequences=2, blocks=4, rows=2, hidden=0, vocabulary=260)
    host, device = torch.full((shape.words + 8,), 7, dtype=torch.int32), torch.zeros(shape.words + 8, dtype=torch.int32)
    found = Numbers(shape, host, device)
    found.write(inputs)
    found.send()
    assert host[shape.words :].tolist() == [7] * 8 and device[shape.words :].tolist() == [0] * 8
    values = {name: field.tolist() for name, field in found.device.items()}
    assert values == {
        "tokens": [5, 6, 7, 0],
        "positions": [3, 4, 0, 0],
        "slots": [19, 20, 90, -1],
        "count": [3],
        "starts": [0, 2, 3],
        "lengths": [5, 1],
        "tables": [[4, 5, 0, 0], [22, 0, 0, 0]],
        "rows": [1, 2],
        "hidden": [],
        "temperature": [0.0, 0.5],
        "top_k": [0, 260],
        "top_p": [0.0, 0.25],
        "min_p": [0.0, 0.125],
        "keys": [0, -5],
        "places": [0, 1],
    }
    for field in found.device.values():
        assert (field.data_ptr() - device.data_ptr()) % 16 == 0
    assert np.shares_memory(found.host["tables"], host.numpy())


def test_what_a_step_is_padded_to() -> None:
    buckets = Buckets()
    answers = StepInput([1] * 5, [0] * 5, [0] * 5, [*range(6)], [1] * 5, [[0]] * 5, [*range(5)], [], [], [])
    assert Shape.of(answers, buckets) == Shape(8, 8, 16, 8, 0, 0)
    prompt = replace(answers, starts=[0, 4, 5], lengths=[4, 1], tables=[[0] * 17, [1]], logit_rows=[3, 4])
    assert Shape.of(prompt, buckets) == Shape(8, 8, 64, 8, 0, 0)
    middle = replace(answers, starts=[0, 5], lengths=[5], tables=[[0]], logit_rows=[])
    assert Shape.of(middle, buckets) == Shape(8, 1, 16, 0, 0, 0)
