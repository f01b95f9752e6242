"""A checkpoint's tensors as `Weights`: stacked, shared out between processes, read one at a time.

Projections that read the same input become one matrix (query, key, value; gate, up). Under a `Shard` attention is cut
by heads and feed-forward networks by neurons: rows of what comes first, the same columns of what follows it, so that
the sum over all ranks is the whole. A bias behind a cut matrix is added by rank 0 alone.
"""

from collections.abc import Callable

from torch import Tensor

from kernels.packed import Matrix
from local_engine.files.checkpoint import Checkpoint, Part, Stored, StoredMatrix
from local_engine.files.rope import inverse_frequencies
from local_engine.parallel import Shard
from local_engine.weights import DenseWeights, ExpertWeights, LayerWeights, Weights

Progress = Callable[[int, int], None]  # bytes read, bytes to read
Scheme = Callable[[str, Stored], Matrix]  # what a matrix of this name becomes

WHOLE = Shard()

# The last part of the names of those matrices that a scheme decides about; the rest is small and stays fp32.
MATRICES = frozenset({"embedding", "lm_head", "qkv", "attention_out", "gate_up", "down"})


def load_weights(
    checkpoint: Checkpoint,
    *,
    scheme: Scheme | None = None,
    shard: Shard = WHOLE,
    progress: Progress = lambda done, total: None,
) -> Weights:
    """Every tensor of `shard`, as `scheme` decides; None: in fp32. Memory: the result, and one matrix at a time.

    Raises `ModelFileError` when a tensor cannot be read, `EngineError` when the model cannot be shared out.
    """
    stored = layout(checkpoint, shard)
    total, done = sum(matrix.size for matrix in stored.values()), 0
    loaded: dict[str, Matrix] = {}
    for name, matrix in stored.items():
        decided = scheme is not None and name.rsplit(".", 1)[-1] in MATRICES
        loaded[name] = scheme(name, matrix) if scheme is not None and decided else matrix.read()
        done += matrix.size
        progress(done, total)
    if checkpoint.config.tied:
        loaded["lm_head"] = _tied_head(checkpoint, loaded["embedding"], scheme, shard)
    return _assemble(checkpoint, loaded, shard)


def tensor_plan(checkpoint: Checkpoint, shard: Shard = WHOLE) -> list[tuple[str, tuple[int, int], str, int]]:
    """Name, shape, format and bytes in the file of everything that `load_weights` would read. Nothing is read."""
    return [(name, matrix.shape, matrix.kind, matrix.size) for name, matrix in layout(checkpoint, shard).items()]


def layout(checkpoint: Checkpoint, shard: Shard) -> dict[str, StoredMatrix]:
    """What each matrix and vector of this rank's `Weights` is made of, in the order of the layers.

    Vectors are matrices of one column here. A tied output matrix is not listed.
    """
    return _Layout(checkpoint, shard).build()


class _Layout:
    def __init__(self, checkpoint: Checkpoint, shard: Shard) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.shard = shard
        config, width = self.config, self.config.head_dim
        self.queries = _scaled(shard.part(config.num_heads, "heads"), width)
        self.keys = _scaled(shard.kv_part(config.num_kv_heads), width)
        self.found: dict[str, StoredMatrix] = {}

    def build(self) -> dict[str, StoredMatrix]:
        self.add("embedding", self.part("embedding"))
        for layer in range(self.config.num_layers):
            self.attention(f"layers.{layer}.")
            if layer in self.config.sparse_layers:
                self.experts(f"layers.{layer}.")
            else:
                ffn = self.shard.part(self.config.ffn_dim, "feed-forward neurons")
                self.ffn(f"layers.{layer}.", ffn)
        self.add("final_norm", self.part("final_norm"))
        if "rope_factors" in self.checkpoint.tensors:
            self.add("rope_factors", self.part("rope_factors"))
        if not self.config.tied:
            self.add("lm_head", self.part("lm_head", rows=head_rows(self.config.vocab_size, self.shard)))
        return self.found

    def add(self, name: str, *parts: Part) -> None:
        self.found[name] = StoredMatrix(parts)

    def part(self, name: str, rows: range | None = None, columns: range | None = None) -> Part:
        """Rows and columns of a stored tensor; None: all."""
        tensor = self.checkpoint.tensors[name]
        return Part(tensor, rows or range(tensor.shape[0]), columns or range(tensor.shape[1]))

    def attention(self, at: str) -> None:
        self.add(at + "attention_norm", self.part(at + "attention_norm"))
        rows = {"query": self.queries, "key": self.keys, "value": self.keys}
        self.add(at + "qkv", *(self.part(at + name, rows=part) for name, part in rows.items()))
        if "qkv" in self.config.biases:
            self.add(at + "qkv_bias", *(self.part(f"{at}{name}_bias", rows=part) for name, part in rows.items()))
        if self.config.qk_norm:
            self.add(at + "query_norm", self.part(at + "query_norm"))
            self.add(at + "key_norm", self.part(at + "key_norm"))
        self.add(at + "attention_out", self.part(at + "attention_out", columns=self.queries))
        if "attention_out" in self.config.biases and self.shard.rank == 0:
            self.add(at + "attention_out_bias", self.part(at + "attention_out_bias"))
        self.add(at + "ffn_norm", self.part(at + "ffn_norm"))

    def ffn(self, at: str, neurons: range) -> None:
        self.add(at + "gate_up", self.part(at + "gate", rows=neurons), self.part(at + "up", rows=neurons))
        self.add(at + "down", self.part(at + "down", columns=neurons))
        if "ffn" in self.config.biases and at.count(".") == 2:
            self.add(
                at + "gate_up_bias", self.part(at + "gate_bias", rows=neurons), self.part(at + "up_bias", rows=neurons)
            )
            if self.shard.rank == 0:
                self.add(at + "down_bias", self.part(at + "down_bias"))

    def experts(self, at: str) -> None:
        self.add(at + "router", self.part(at + "router"))
        assert self.config.experts is not None, "a sparse layer has experts"
        neurons = range(self.config.experts.ffn_dim)
        if self.shard.experts == "split":
            neurons = self.shard.part(len(neurons), "neurons of an expert")
        for expert in own_experts(self.config.experts.count, self.shard):
            self.ffn(f"{at}experts.{expert}.", neurons)


def own_experts(count: int, shard: Shard) -> range:
    """Which of a layer's experts this rank holds, whole or its part of them."""
    return shard.part(count, "experts") if shard.experts == "spread" else range(count)


def head_rows(vocab_size: int, shard: Shard) -> range:
    """This rank's rows of the output matrix; all of them where they do not divide."""
    return shard.part(vocab_size, "tokens") if vocab_size % shard.size == 0 else range(vocab_size)


def _scaled(part: range, by: int) -> range:
    return range(part.start * by, part.stop * by)


def _tied_head(checkpoint: Checkpoint, embedding: Matrix, scheme: Scheme | None, shard: Shard) -> Matrix:
    """The embedding itself, or this rank's rows of it."""
    rows = head_rows(checkpoint.config.vocab_size, shard)
    if len(rows) == checkpoint.config.vocab_size:
        return embedding
    if isinstance(embedding, Tensor):
        return embedding[rows.start : rows.stop]
    tensor = checkpoint.tensors["embedding"]
    part = StoredMatrix((Part(tensor, rows, range(tensor.shape[1])),))
    # under the embedding's name, so that it gets the embedding's format
    return scheme("embedding", part) if scheme is not None else part.read()


def _assemble(checkpoint: Checkpoint, loaded: dict[str, Matrix], shard: Shard) -> Weights:
    config = checkpoint.config

    def vector(name: str) -> Tensor | None:
        found = loaded.get(name)
        return found.view(-1) if isinstance(found, Tensor) else None

    def norm(name: str) -> Tensor:
        found = loaded[name]
        assert isinstance(found, Tensor), "a scheme does not decide about vectors"
        return found.view(-1)

    def ffn(at: str) -> DenseWeights | ExpertWeights:
        router = loaded.get(at + "router")
        if not isinstance(router, Tensor) or config.experts is None:
            return DenseWeights(
                loaded[at + "gate_up"], loaded[at + "down"], vector(at + "gate_up_bias"), vector(at + "down_bias")
            )
        own = own_experts(config.experts.count, shard)
        return ExpertWeights(
            router,
            tuple(loaded[f"{at}experts.{expert}.gate_up"] for expert in own),
            tuple(loaded[f"{at}experts.{expert}.down"] for expert in own),
            own.start,
        )

    def layer(at: str) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(at + "attention_norm"),
            qkv=loaded[at + "qkv"],
            attention_out=loaded[at + "attention_out"],
            ffn_norm=norm(at + "ffn_norm"),
            ffn=ffn(at),
            qkv_bias=vector(at + "qkv_bias"),
            attention_out_bias=vector(at + "attention_out_bias"),
            query_norm=vector(at + "query_norm"),
            key_norm=vector(at + "key_norm"),
        )

    frequencies, factor = inverse_frequencies(config)
    stretched = vector("rope_factors")
    return Weights(
        embedding=loaded["embedding"],
        layers=tuple(layer(f"layers.{number}.") for number in range(config.num_layers)),
        final_norm=norm("final_norm"),
        lm_head=loaded["lm_head"],
        inverse_frequencies=frequencies if stretched is None else frequencies / stretched,
        rope_factor=factor,
    )
