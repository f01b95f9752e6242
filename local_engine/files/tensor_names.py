"""What the tensors of a model are called: by us, in Hugging Face's files, and in GGUF files.

Ours are `embedding`, `final_norm`, `lm_head`, `rope_factors`, and `layers.{i}.` followed by a key of `_HUGGING_FACE` or
by `experts.{e}.gate`, `.up` or `.down`. Sources: the modules of each family in Hugging Face transformers, and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from collections.abc import Iterator

from local_engine.model_config import ModelConfig

_HUGGING_FACE = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "attention_out": "self_attn.o_proj.weight",
    "attention_out_bias": "self_attn.o_proj.bias",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
    "router": "mlp.gate.weight",
}
_GGUF = {
    "attention_norm": "attn_norm.weight",
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "attention_out": "attn_output.weight",
    "attention_out_bias": "attn_output.bias",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "router": "ffn_gate_inp.weight",
}


class Names:
    """The names of one file format."""

    def __init__(
        self,
        layer: str,
        table: dict[str, str],
        whole: dict[str, str],
        experts: dict[str, str],
        aliases: dict[str, str],
        ignored: str,
    ) -> None:
        self._layer = layer  # what a layer's names begin with, `{}` for its number
        self._table = table
        self._whole = whole
        self._experts = experts  # after the layer's beginning, `{}` for the number of the expert -> gate, up, down
        self._keys = {theirs: ours for ours, theirs in table.items()} | aliases
        number = "(0|[1-9][0-9]{0,3})"
        self._pattern = re.compile(re.escape(layer).replace(r"\{\}", number) + r"(.+)", re.DOTALL)
        self._expert_patterns = [
            (re.compile(re.escape(theirs).replace(r"\{\}", number)), ours) for theirs, ours in experts.items()
        ]
        self._names = {theirs: ours for ours, theirs in whole.items()}
        self._ignored = re.compile(ignored)

    def place(self, name: str) -> str | None:
        """Our name of a file's tensor; None: it has none.

        A tensor that holds the same part of every expert is called `layers.{i}.experts.*.` and gate, up, down, or
        gate_up (gate first).
        """
        if name in self._names:
            return self._names[name]
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        prefix, rest = f"layers.{match[1]}", match[2]
        if rest in self._keys:
            return f"{prefix}.{self._keys[rest]}"
        for pattern, ours in self._expert_patterns:
            if found := pattern.fullmatch(rest):
                return f"{prefix}.experts.{found[1] if found.lastindex else '*'}.{ours}"
        return None

    def is_ignored(self, name: str) -> bool:
        """Whether it is a tensor that follows from the configuration, written down by some programs."""
        return self._ignored.fullmatch(name) is not None

    def theirs(self, ours: str) -> str:
        """The usual name in a file, for messages."""
        if ours in self._whole:
            return self._whole[ours]
        _, layer, key = ours.split(".", 2)
        if key in self._table:
            return self._layer.format(layer) + self._table[key]
        _, expert, part = key.split(".")
        usual = next(theirs for theirs, its in self._experts.items() if its == part)
        return self._layer.format(layer) + usual.format(expert)


HUGGING_FACE = Names(
    layer="model.layers.{}.",
    table=_HUGGING_FACE,
    whole={
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    },
    experts={
        "mlp.experts.{}.gate_proj.weight": "gate",
        "mlp.experts.{}.up_proj.weight": "up",
        "mlp.experts.{}.down_proj.weight": "down",
        "block_sparse_moe.experts.{}.w1.weight": "gate",
        "block_sparse_moe.experts.{}.w3.weight": "up",
        "block_sparse_moe.experts.{}.w2.weight": "down",
        "mlp.experts.gate_up_proj": "gate_up",
        "mlp.experts.down_proj": "down",
        "block_sparse_moe.experts.gate_up_proj": "gate_up",
        "block_sparse_moe.experts.down_proj": "down",
    },
    aliases={"block_sparse_moe.gate.weight": "router"},
    ignored=r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq",
)
GGUF = Names(
    layer="blk.{}.",
    table=_GGUF,
    whole={
        "embedding": "token_embd.weight",
        "final_norm": "output_norm.weight",
        "lm_head": "output.weight",
        "rope_factors": "rope_freqs.weight",
    },
    experts={
        "ffn_gate_exps.weight": "gate",
        "ffn_up_exps.weight": "up",
        "ffn_down_exps.weight": "down",
        "ffn_gate.{}.weight": "gate",
        "ffn_up.{}.weight": "up",
        "ffn_down.{}.weight": "down",
    },
    aliases={},
    ignored=r"blk\.[0-9]+\.attn_rot_embd\.weight",
)


def expected(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Our name and [rows, columns] of every tensor that a model of this shape has; a vector has one column.

    One by one: a hostile configuration may ask for more than memory would hold, and the first that is missing ends it.
    """
    dim, width = config.dim, config.head_dim
    queries, keys = config.num_heads * width, config.num_kv_heads * width
    yield "embedding", (config.vocab_size, dim)
    yield "final_norm", (dim, 1)
    if not config.tied:
        yield "lm_head", (config.vocab_size, dim)
    for layer in range(config.num_layers):
        own = {
            "attention_norm": (dim, 1),
            "query": (queries, dim),
            "key": (keys, dim),
            "value": (keys, dim),
            "attention_out": (dim, queries),
            "ffn_norm": (dim, 1),
        }
        if "qkv" in config.biases:
            own |= {"query_bias": (queries, 1), "key_bias": (keys, 1), "value_bias": (keys, 1)}
        if "attention_out" in config.biases:
            own["attention_out_bias"] = (dim, 1)
        if config.qk_norm:
            own |= {"query_norm": (width, 1), "key_norm": (width, 1)}
        if config.experts is not None and layer in config.sparse_layers:
            ffn = config.experts.ffn_dim
            own["router"] = (config.experts.count, dim)
            for expert in range(config.experts.count):
                begin = f"experts.{expert}."
                own |= {begin + "gate": (ffn, dim), begin + "up": (ffn, dim), begin + "down": (dim, ffn)}
        else:
            ffn = config.ffn_dim
            own |= {"gate": (ffn, dim), "up": (ffn, dim), "down": (dim, ffn)}
            if "ffn" in config.biases:
                own |= {"gate_bias": (ffn, 1), "up_bias": (ffn, 1), "down_bias": (dim, 1)}
        for name, shape in own.items():
            yield f"layers.{layer}.{name}", shape
