"""The bundled model says, token for token, what the reference implementation says: in plain torch, and in C++ from the
quantised weights as the file has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local_engine.config import EngineConfig
from local_engine.engine import Engine

# The shortest answer, and the nearest tie: 0.01 between its best two logits. `bench/` runs all eight alone.
ALONE = (0, 2)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def engine(engine: Engine, model_path: Path, request: pytest.FixtureRequest) -> Engine:
    return engine if request.param == "reference" else Engine.load(model_path, EngineConfig(kernels="cpu"))


def test_all_at_once(engine: Engine, run: Any, greedy_reference: list[dict[str, Any]]) -> None:
    one = run(engine)
    for index, row in enumerate(greedy_reference):
        one.add(index, row["prompt_ids"], 64)
    one.step()
    one.finish()
    for index, row in enumerate(greedy_reference):
        assert one.tokens[index] == row["tokens"], row["prompt"]
        assert one.text(index) == engine.vocabulary.decode(row["tokens"])
        assert one.last(index).finish_reason == ("stop" if row["tokens"][-1] == 2 else "length")


@pytest.mark.parametrize("index", ALONE)
def test_alone(engine: Engine, run: Any, greedy_reference: list[dict[str, Any]], index: int) -> None:
    row = greedy_reference[index]
    one = run(engine)
    one.add(0, row["prompt_ids"], 64)
    assert one.finish().tokens[0] == row["tokens"]


@pytest.mark.parametrize("index", ALONE)
def test_with_a_prefix_hit_and_in_chunks(
    engine: Engine,
    run: Any,
    greedy_reference: list[dict[str, Any]],
    index: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First in chunks of eight tokens under a salt that nobody else has, then with what that left in the cache."""
    row = greedy_reference[index]
    monkeypatch.setattr(engine, "config", replace(engine.config, token_budget=8))
    one = run(engine)
    for request_id in (1, 2):
        one.add(request_id, row["prompt_ids"], 64, of={"salt": b"%d" % index})
        one.finish()
        assert one.tokens[request_id] == row["tokens"]
    assert one.last(1).cached_tokens == 0
    assert one.last(2).cached_tokens == (len(row["prompt_ids"]) - 1) // 16 * 16
