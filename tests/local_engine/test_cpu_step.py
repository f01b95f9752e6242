"""A whole step in C++ against the same step in plain torch, for every architecture; and the engine on top of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.cpu.backend import make
from kernels.dispatch import REFERENCE, Backend
from kernels.packed import Format, pack
from local_engine.backend import folder, open_library
from local_engine.batch import Batch
from local_engine.config import EngineConfig
from local_engine.files.checkpoint import open_checkpoint
from local_engine.files.loading import load_weights
from local_engine.kv_memory import KVMemory
from local_engine.model import Model
from local_engine.quantisation import scheme_of
from local_engine.runner import Runner, read_whole
from local_engine.sequence import Chunk, Sequence
from local_engine.weights import DenseWeights, ExpertWeights, Weights
from tests.local_engine.test_model import CASES
from tests.local_engine.tiny_models import CONFIGS, PLAIN, make_hf, random_weights, write_tokenizer


@pytest.fixture(scope="module")
def cpu() -> Backend:
    return make(open_library(folder(EngineConfig())), 2)


@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("quant", ["none", "int8", "mixed"])
def test_logits_are_those_of_the_reference(
    cpu: Backend, architecture: str, changes: dict[str, Any], quant: Any, tmp_path: Path
) -> None:
    make_hf(architecture, **changes).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tokens = torch.randint(0, 260, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with open_checkpoint(tmp_path) as checkpoint:
        weights = load_weights(checkpoint, scheme=scheme_of(quant, checkpoint.config))
        ours = Model(checkpoint.config, weights, 128, backend=cpu)
        theirs = Model(checkpoint.config, weights, 128, backend=REFERENCE)
    assert ours.whole_step is not None
    got, expected = read_whole(ours, [tokens])[0], read_whole(theirs, [tokens])[0]
    assert expected.std() > 1
    assert float((got - expected).abs().max()) <= (1e-4 if quant == "none" else 5e-3)


def quantised(weights: Weights, format: Format) -> Weights:
    """The same model with every matrix in a format: fp32 products may come from a library that rounds as it likes."""

    def ffn(own: DenseWeights | ExpertWeights) -> DenseWeights | ExpertWeights:
        if isinstance(own, DenseWeights):
            return replace(own, gate_up=pack(own.gate_up, format), down=pack(own.down, format))
        gate_up, down = (tuple(pack(matrix, format) for matrix in group) for group in (own.gate_up, own.down))
        return replace(own, gate_up=gate_up, down=down)

    layers = tuple(
        replace(
            layer,
            qkv=pack(layer.qkv, format),
            attention_out=pack(layer.attention_out, format),
            ffn=ffn(layer.ffn),
        )
        for layer in weights.layers
    )
    return replace(weights, layers=layers, lm_head=pack(weights.lm_head, format))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
def test_a_row_does_not_know_the_rest_of_the_step(cpu: Backend, name: str, kv_type: Any) -> None:
    """Whole prompts, small chunks, several sequences at once, guesses: the same bits. What speculation rests on."""
    config = CONFIGS[name]
    model = Model(config, quantised(random_weights(config), Format("int8", 8, 0)), 128, backend=cpu)
    texts = [torch.randint(0, 260, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 7, 23)]

    def read(sizes: list[int], together: bool) -> list[torch.Tensor]:
        """Logits of each text, read in chunks of these sizes, the last one for the rest."""
        runner = Runner(model, 32, 4, kv_type)
        sequences = []
        for index, text in enumerate(texts):
            sequence = Sequence.of(text, 0)
            sequence.every_row = True
            sequence.block_table = list(range(index * 10, index * 10 + 10))[:: -1 if index == 1 else 1]
            sequences.append(sequence)
        found: list[list[torch.Tensor]] = [[] for _ in texts]
        groups = [sequences] if together else [[sequence] for sequence in sequences]
        for group in groups:
            done = dict.fromkeys(group, 0)
            turn = 0
            while any(done[s] < len(s.tokens) for s in group):
                size = sizes[min(turn, len(sizes) - 1)]
                chunks = [
                    Chunk(s, done[s], min(size, len(s.tokens) - done[s])) for s in group if done[s] < len(s.tokens)
                ]
                for chunk, rows in zip(chunks, runner.run(chunks), strict=True):
                    assert rows.logits is not None
                    assert rows.best == rows.logits.argmax(-1).tolist()
                    found[sequences.index(chunk.sequence)].append(rows.logits)
                    done[chunk.sequence] += chunk.count
                turn += 1
        return [torch.cat(parts) for parts in found]

    whole = read([64], together=False)
    for sizes, together in (([64], True), ([1], False), ([3], True), ([5, 2, 1], True), ([4], False)):
        for one, other in zip(read(sizes, together), whole, strict=True):
            assert torch.equal(one, other)


def test_hidden_states_are_those_of_the_reference(cpu: Backend) -> None:
    weights = random_weights(PLAIN)
    sequence = Sequence.of(list(range(20)), 0)
    sequence.block_table, sequence.embed = [0, 1, 2, 3, 4], True
    found = [
        Runner(Model(PLAIN, weights, 64, backend=backend), 8, 4).run([Chunk(sequence, 0, 20)])[0].hidden
        for backend in (cpu, REFERENCE)
    ]
    assert found[0] is not None and found[1] is not None
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_a_damaged_row_is_told_and_stays_alone(cpu: Backend) -> None:
    weights = random_weights(PLAIN)
    embedding = weights.embedding
    assert isinstance(embedding, torch.Tensor)
    embedding[7] = float("nan")
    model = Model(PLAIN, weights, 64, backend=cpu)
    chunks = []
    for index, text in enumerate(([1, 2, 3], [5, 7, 9], [4, 5, 6])):
        sequence = Sequence.of(text, 0)
        sequence.block_table = [index]
        chunks.append(Chunk(sequence, 0, 3))
    found = Runner(model, 4, 4).run(chunks)
    assert found[1].best == [-1]
    for chunk, rows in ((chunks[0], found[0]), (chunks[2], found[2])):
        alone = Runner(model, 4, 4).run([chunk])[0]
        assert rows.logits is not None and alone.logits is not None
        assert rows.best == alone.best != [-1]
        assert torch.allclose(rows.logits, alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"tokens": [260]}, {"tokens": [-1]}, {"positions": [64]}, {"slots": [32]}, {"tables": [[8]]}],
    ids=lambda changes: next(iter(changes)),
)
def test_numbers_outside_of_the_memory_are_refused(cpu: Backend, changes: dict[str, Any]) -> None:
    model = Model(PLAIN, random_weights(PLAIN), 64, backend=cpu)
    right = Batch([1], [0], [0], [0, 1], [1], [[0]], [0], [])
    memory = KVMemory(PLAIN, 8, 4)
    assert model.forward(right, memory).best is not None
    with pytest.raises(IndexError, match="is not within"):
        model.forward(replace(right, **changes), memory)
