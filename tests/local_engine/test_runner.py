"""The runner and the paged memory against one reading of the whole text: cut, mixed, resumed, guessed, quantised."""

import math
import pickle
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from local_engine.batch import Batch
from local_engine.kv_memory import KVMemory, KVType, bytes_per_block
from local_engine.model import Model
from local_engine.model_config import ModelConfig
from local_engine.parallel import Shard
from local_engine.runner import Rows, Runner, read_whole
from local_engine.sequence import Chunk, Sequence
from tests.local_engine.tiny_models import CONFIGS, PLAIN, random_model, random_weights

SIZE = 4  # positions of a block
TEXT = [11, 250, 3, 77, 77, 140, 9, 62, 201, 5, 18, 33, 90, 120, 41, 2, 19, 88, 230]


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(CONFIGS[request.param])


def sequence_of(tokens: list[int], table: list[int], **fields: bool) -> Sequence:
    sequence = Sequence.of(tokens, 99)
    sequence.block_table = table
    for name, value in fields.items():
        setattr(sequence, name, value)
    return sequence


def equal(got: Tensor, expected: Tensor) -> bool:
    """Up to the rounding of products of other shapes; logits here are up to 6 large."""
    return got.shape == expected.shape and torch.allclose(got, expected, atol=2e-5, rtol=0.0)


def whole(model: Model, tokens: list[int]) -> Tensor:
    return read_whole(model, [tokens])[0]  # [n, V]


def logits(rows: Rows) -> Tensor:
    assert rows.logits is not None
    return rows.logits


def read_in(runner: Runner, sequence: Sequence, cuts: list[int]) -> Tensor:
    """The sequence in chunks that end at each of `cuts` -> logits of all positions."""
    edges = [0, *cuts, len(sequence.tokens)]
    chunks = [Chunk(sequence, start, end - start) for start, end in zip(edges, edges[1:], strict=False)]
    return torch.cat([logits(runner.run([chunk])[0]) for chunk in chunks])


def test_every_cut_reads_the_same(model: Model) -> None:
    expected, runner = whole(model, TEXT), Runner(model, 8, SIZE)
    table = [6, 1, 4, 0, 7]
    random = Random(0)
    cuts = [[cut] for cut in range(1, len(TEXT))] + [list(range(1, len(TEXT)))]
    cuts += [sorted(random.sample(range(1, len(TEXT)), 4)) for _ in range(10)]
    for cut in cuts:
        for layer in runner.memory.layers:
            layer.fill_(math.nan)  # what was not written in this round is not read
        got = read_in(runner, sequence_of(TEXT, table, every_row=True), cut)
        assert equal(got, expected), cut


def test_a_batch_of_many_kinds_reads_as_each_alone(model: Model) -> None:
    """Prompts whole and in parts, decoding, and an embedding in one step; rows come back to whom they belong."""
    random = Random(1)
    runner, free = Runner(model, 40, SIZE), random.sample(range(40), 40)
    chunks, expected = [], []
    for length, start in [(9, 0), (1, 0), (17, 16), (30, 5), (4, 3), (13, 8), (21, 0)]:
        tokens = [random.randrange(260) for _ in range(length)]
        sequence = sequence_of(tokens, [free.pop() for _ in range(-(-length // SIZE))])
        if start:
            runner.run([Chunk(sequence, 0, start)])
        chunks.append(Chunk(sequence, start, length - start))
        expected.append(whole(model, tokens)[-1:])
    tokens = TEXT[:6]
    embedding = sequence_of(tokens, [free.pop(), free.pop()], embed=True)
    partial = sequence_of(TEXT, [free.pop() for _ in range(5)])
    chunks[2:2] = [Chunk(embedding, 0, 6), Chunk(partial, 0, 7)]
    rows = runner.run(chunks)
    assert rows[2].logits is None and rows[2].hidden is not None
    assert rows[3].logits is None and rows[3].hidden is None  # does not reach its newest token
    head = model.backend.linear(rows[2].hidden, model.weights.lm_head, None)
    assert equal(head, whole(model, tokens))  # hidden states are those behind the logits
    for own, wanted in zip(rows[:2] + rows[4:], expected, strict=True):
        assert own.hidden is None
        assert equal(logits(own), wanted)


def test_the_same_chunks_again_change_nothing(model: Model) -> None:
    runner = Runner(model, 12, SIZE)
    for layer in runner.memory.layers:
        layer.zero_()  # what lies there by chance may be no number, and equals nothing
    first, second = sequence_of(TEXT, [3, 9, 5, 0, 1]), sequence_of(TEXT[::-1], [2, 8, 4, 7, 6])
    runner.run([Chunk(first, 0, 12)])
    chunks = [Chunk(first, 12, len(TEXT) - 12), Chunk(second, 0, len(TEXT))]
    once = [logits(rows).clone() for rows in runner.run(chunks)]
    memory = [layer[:, :10].clone() for layer in runner.memory.layers]
    again = runner.run(chunks)
    assert all(torch.equal(logits(rows), before) for rows, before in zip(again, once, strict=True))
    assert all(torch.equal(now[:, :10], then) for now, then in zip(runner.memory.layers, memory, strict=True))


def test_blocks_of_a_shared_prefix_serve_another_sequence(model: Model) -> None:
    runner = Runner(model, 8, SIZE)
    runner.run([Chunk(sequence_of(TEXT, [4, 2, 6, 1, 0]), 0, len(TEXT))])
    other = TEXT[:8] + [200, 201, 202]
    hit = sequence_of(other, [4, 2, 7])
    assert equal(logits(runner.run([Chunk(hit, 8, 3)])[0]), whole(model, other)[-1:])
    still = sequence_of(TEXT, [4, 2, 6, 1, 0])  # and the first one goes on undisturbed
    assert equal(logits(runner.run([Chunk(still, 18, 1)])[0]), whole(model, TEXT)[-1:])


def test_guesses_are_rows_of_their_own_and_leave_no_trace(model: Model) -> None:
    """Rows of a chunk with guesses are those of the text with them; rejected ones are written over."""
    runner, mate = Runner(model, 12, SIZE), sequence_of(TEXT[3:9], [11, 10])
    sequence = sequence_of(TEXT[:10], [5, 3, 8, 0])
    runner.run([Chunk(sequence, 0, 9)])
    for draft in ([60, 61, 62], [], [7], [60, 99, 1, 2]):
        chunk = Chunk(sequence, 9, 1, draft_room=4, draft=draft)
        rows, other = runner.run([chunk, Chunk(mate, 0, 6)])
        assert logits(rows).shape == (1 + len(draft), 260)
        assert equal(logits(rows), whole(model, TEXT[:10] + draft)[9:])
        assert equal(logits(other), whole(model, TEXT[3:9])[-1:])
    sequence.tokens += [44, 45]
    for start in (10, 11):
        rows = runner.run([Chunk(sequence, start, 1)])[0]
    assert equal(logits(rows), whole(model, TEXT[:10] + [44, 45])[-1:])


def test_logits_of_every_prompt_position_where_wanted() -> None:
    model = random_model()
    runner, sequence = Runner(model, 8, SIZE), sequence_of(TEXT, list(range(5)), every_row=True)
    parts = [logits(runner.run([Chunk(sequence, start, 5)])[0]) for start in (0, 5, 10)]
    assert [len(part) for part in parts] == [5, 5, 5]
    assert equal(torch.cat(parts), whole(model, TEXT)[:15])


def test_an_empty_step() -> None:
    assert Runner(random_model(), 2, SIZE).run([]) == []


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("cuts", [[], [7], [11], list(range(1, 19))])
def test_a_window_ends_where_it_says(window: int, cuts: list[int]) -> None:
    """One layer: the token `window` places back has no influence at all, the one after it has."""
    config = replace(PLAIN, num_layers=1, windows=(window,))
    model, position = Model(config, random_weights(config), 64), 18

    def last(changed: int) -> Tensor:
        tokens = [token + (index == changed) for index, token in enumerate(TEXT)]
        return read_in(Runner(model, 5, SIZE), sequence_of(tokens, [2, 0, 4, 3, 1], every_row=True), cuts)[position]

    base = last(-1)
    for place in range(position):
        same = torch.allclose(last(place), base, atol=1e-6)
        assert same == (place <= position - window), place


@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
def test_numbers_that_are_not_finite_stay_with_their_sequence(kv_type: KVType) -> None:
    weights = random_weights(CONFIGS["experts"])
    assert isinstance(weights.embedding, Tensor)
    embedding = weights.embedding.clone()
    embedding[7] = math.nan
    model = Model(CONFIGS["experts"], replace(weights, embedding=embedding), 64)
    runner = Runner(model, 12, SIZE, kv_type)
    broken, sound = sequence_of([5, 7, 9], [0]), sequence_of(TEXT, [1, 2, 3, 4, 5])
    alone = logits(runner.run([Chunk(sound, 0, len(TEXT))])[0]).clone()
    rows = runner.run([Chunk(broken, 0, 3), Chunk(sound, 0, len(TEXT))])
    assert not logits(rows[0]).isfinite().any()
    assert equal(logits(rows[1]), alone)
    after = runner.run([Chunk(sequence_of([5, 8], [0]), 0, 2)])[0]  # in the block that held them
    assert logits(after).isfinite().all()


@pytest.mark.parametrize(("kv_type", "least", "most"), [("int8", 1e-4, 0.02), ("fp16", 1e-6, 1e-3)])
def test_narrow_keys_and_values_are_close(model: Model, kv_type: KVType, least: float, most: float) -> None:
    """Each element of a key or value is off by at most 1/254 of its vector's largest, or as fp16 by 1/2048 of itself.

    So the logits move, but little: by less than 2 % of their spread, or 0.1 %, root mean square.
    """
    expected = whole(model, TEXT)
    for cuts in ([], [5, 6, 7, 13], list(range(1, len(TEXT)))):
        got = read_in(Runner(model, 8, SIZE, kv_type), sequence_of(TEXT, [6, 1, 4, 0, 7], every_row=True), cuts)
        error = float((got - expected).square().mean().sqrt() / expected.std())
        assert least < error < most, cuts


def test_fp16_memory_saturates() -> None:
    memory = KVMemory(PLAIN, 2, 4, "fp16")
    values = torch.full((1, 2 * PLAIN.num_kv_heads, PLAIN.head_dim), 1e6)
    values[0, 0, 0], values[0, 0, 1] = -1e6, math.inf
    memory.write(1, torch.tensor([5]), values)
    written = memory.layers[1][:, 1, 1]
    assert written.dtype == torch.float16
    assert written[0, :3].tolist() == [-65504.0, math.inf, 65504.0] and bool((written[1:] == 65504.0).all())


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2), Shard(3, 4)])
@pytest.mark.parametrize("config", [PLAIN, CONFIGS["rich"]])
def test_bytes_of_a_block_are_what_it_takes(config: ModelConfig, shard: Shard) -> None:
    kv_types: tuple[KVType, ...] = ("fp32", "fp16", "int8")
    for kv_type in kv_types:
        memory = KVMemory(config, 10, 8, kv_type, shard)
        taken = sum(tensor.nbytes for tensor in memory.layers)
        taken += sum(tensor.nbytes for tensor in memory.scales if tensor is not None)
        assert bytes_per_block(config, 8, kv_type, shard) * 10 == taken


def test_a_batch_travels_as_it_is() -> None:
    sequence = sequence_of(TEXT, [7, 3, 5, 1, 0])
    batch = Batch.of([Chunk(sequence, 6, 13, draft=[1]), Chunk(sequence_of([4, 5], [2]), 0, 1)], SIZE)
    assert pickle.loads(pickle.dumps(batch)) == batch
    assert batch.tokens == [*TEXT[6:], 1, 4]
    assert batch.positions == [*range(6, 20), 0]
    assert batch.slots[:3] == [3 * 4 + 2, 3 * 4 + 3, 5 * 4] and batch.slots[-1] == 2 * 4
    assert (batch.starts, batch.lengths) == ([0, 14, 15], [20, 1])
    assert (batch.tables, batch.logit_rows, batch.hidden_rows) == ([[7, 3, 5, 1, 0], [2]], [12, 13], [])
