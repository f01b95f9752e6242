"""The bundled model says, token for token, what the reference implementation says."""

from typing import Any

import pytest

from local_engine.engine import Engine

# The shortest answer, and the nearest tie: 0.01 between its best two logits. `bench/` runs all eight alone.
ALONE = (0, 2)


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
