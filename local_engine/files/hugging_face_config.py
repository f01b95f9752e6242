"""The `config.json` of a model folder as a `ModelConfig`.

Source of the semantics: the configuration classes of each family in Hugging Face transformers, with their defaults.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from local_engine.errors import ModelFileError
from local_engine.model_config import MAX_LAYERS, Architecture, ExpertsConfig, ModelConfig, RopeConfig, check

_MODEL_TYPES: dict[str, Architecture] = {
    "llama": "llama",
    "mistral": "llama",  # a llama whose layers all have a window
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "mixtral": "mixtral",
}
# What a key that is left out means; a null means it too, except where `from_hugging_face` says otherwise.
_COMMON: dict[str, Any] = {
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "smollm3": {"rope_theta": 2000000.0, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4, "sliding_window": 4096, "num_experts_per_tok": 8},
    "mixtral": {
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
    },
}


class Fields:
    """Typed reading of a JSON object; a null counts as left out."""

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.where = where
        self.defaults = defaults or {}

    def fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.where}: {what}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], name: str) -> Any:
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key) if default is None else default
        if value is None:
            self.fail(f"`{key}` is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.fail(f"`{key}` is not {name}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._get(key, default, (int,), "an integer"))

    def integer_where(self, key: str, null: int) -> int:
        """An integer whose null means `null`, also where it is left out and has no default."""
        return self.integer(key, null if key in self.values or key not in self.defaults else None)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default, (int, float), "a number")
        if not -1e30 < value < 1e30:
            self.fail(f"`{key}` is not a number of a sensible size")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        return bool(self._get(key, default, (bool,), "true or false"))

    def string(self, key: str, default: str | None = None) -> str:
        value = str(self._get(key, default, (str,), "a string"))
        if not value.isprintable():  # it would stand in a message
            self.fail(f"`{key}` is {ascii(value[:100])}")
        return value

    def list_of(self, key: str, kind: type, fewest: int = 0) -> list[Any] | None:
        """None: left out."""
        values = self.values.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            self.fail(f"`{key}` is not a list of {kind.__name__}")
        if len(values) < fewest:
            self.fail(f"`{key}` has {len(values)} entries for {fewest} layers")
        return values


def from_hugging_face(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The `config.json` of a model folder, of either generation (`rope_scaling` or `rope_parameters`).

    Raises `ModelFileError` when it describes a model that this engine would run wrongly.
    """
    kind = Fields(values, where).string("model_type")
    if kind not in _MODEL_TYPES:
        raise ModelFileError(
            f"{where}: the model type `{kind[:100]}` is not supported\n"
            f"hint: this engine runs {', '.join(sorted(_MODEL_TYPES))}"
        )
    if values.get("quantization_config") is not None:
        raise ModelFileError(
            f"{where}: the weights are quantised in a way of their own (`quantization_config`)\n"
            "hint: take the original weights, or a GGUF file; the engine quantises by itself (`--quant`)"
        )
    fields = Fields(values, where, _COMMON | _DEFAULTS[kind])
    if (activation := fields.string("hidden_act", "silu")) not in ("silu", "swish"):
        fields.fail(f"the activation `{activation[:100]}` is not supported, only `silu`")
    layers, heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    dim = fields.integer("hidden_size")
    if not 0 < layers <= MAX_LAYERS:
        fields.fail(f"`num_hidden_layers` is {layers}, not between 1 and {MAX_LAYERS}")
    if heads < 1:
        fields.fail(f"`num_attention_heads` is {heads}, it must be positive")
    experts, sparse = _experts(fields, kind, layers)
    no_rope = _layers_without_rope(fields, layers) if kind == "smollm3" else frozenset()
    config = ModelConfig(
        architecture=_MODEL_TYPES[kind],
        num_layers=layers,
        dim=dim,
        num_heads=heads,
        # left out and null differ: null is one key/value head for each head, and the usual width
        num_kv_heads=fields.integer_where("num_key_value_heads", null=heads),
        head_dim=fields.integer_where("head_dim", null=dim // heads),
        ffn_dim=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        rope=read_rope(fields),
        tied=fields.flag("tie_word_embeddings"),
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        experts=experts,
        sparse_layers=sparse,
        rotary_layers=frozenset(range(layers)) - no_rope if no_rope else None,
        windows=_windows(fields, kind, layers, no_rope),
        biases=_biases(fields, kind),
    )
    return check(config, where)


def _experts(fields: Fields, kind: str, layers: int) -> tuple[ExpertsConfig | None, frozenset[int]]:
    """The experts, and which layers have them."""
    if kind == "mixtral":
        # jitter of the router's input is for training only
        width = fields.integer("intermediate_size")
        count = fields.integer("num_local_experts", 8)
        config = ExpertsConfig(count, fields.integer("num_experts_per_tok"), width, normalise=True)
        return config, frozenset(range(layers))
    if kind != "qwen3_moe":
        return None, frozenset()
    count = fields.integer("num_experts" if fields.has("num_experts") else "num_local_experts", 128)
    step = fields.integer("decoder_sparse_step", 1)
    if step < 1:
        fields.fail(f"`decoder_sparse_step` is {step}, it must be positive")
    dense = fields.list_of("mlp_only_layers", int) or []
    sparse = frozenset(layer for layer in range(layers) if count > 0 and (layer + 1) % step == 0) - frozenset(dense)
    if not sparse:
        return None, frozenset()
    config = ExpertsConfig(
        count,
        fields.integer("num_experts_per_tok"),
        fields.integer("moe_intermediate_size", 768),
        normalise=fields.flag("norm_topk_prob", False),
    )
    return config, sparse


def _layers_without_rope(fields: Fields, layers: int) -> frozenset[int]:
    """SmolLM3: 1 in `no_rope_layers` is a layer that turns; left out: every fourth does not."""
    listed = fields.list_of("no_rope_layers", int, fewest=layers)
    if listed is not None:
        return frozenset(layer for layer in range(layers) if not listed[layer])
    interval = fields.integer("no_rope_layer_interval", 4)
    if interval < 1:
        fields.fail(f"`no_rope_layer_interval` is {interval}, it must be positive")
    return frozenset(layer for layer in range(layers) if (layer + 1) % interval == 0)


def _windows(fields: Fields, kind: str, layers: int, no_rope: frozenset[int]) -> tuple[int | None, ...]:
    """The sliding window of each layer; empty when none has one."""
    if kind == "llama":
        return ()
    if fields.values.get("sliding_window", fields.defaults.get("sliding_window")) is None:
        return ()
    size, used = fields.integer("sliding_window"), fields.flag("use_sliding_window")
    if kind in ("mistral", "mixtral"):  # every layer, and no switch
        return (size,) * layers
    if kind == "qwen3_moe":
        return (size,) * layers if used else ()
    types = fields.list_of("layer_types", str, fewest=layers)
    if types is not None:
        if unknown := set(types) - {"full_attention", "sliding_attention"}:
            fields.fail(f"the layer type `{min(unknown)[:100]}` is not supported")
        sliding = {layer for layer in range(layers) if types[layer] == "sliding_attention"}
        if sliding and kind != "smollm3" and not used:
            fields.fail("`layer_types` names sliding layers, but `use_sliding_window` is false")
    elif not used:
        sliding = set()
    elif kind == "smollm3":
        sliding = set(no_rope)
    else:
        sliding = set(range(max(0, fields.integer("max_window_layers")), layers))
    return tuple(size if layer in sliding else None for layer in range(layers)) if sliding else ()


def _biases(fields: Fields, kind: str) -> frozenset[str]:
    if kind == "qwen2":
        return frozenset({"qkv"})
    if kind in ("mixtral", "mistral"):
        return frozenset()
    attention = {"qkv", "attention_out"} if fields.flag("attention_bias") else set()
    ffn = {"ffn"} if kind in ("llama", "smollm3") and fields.flag("mlp_bias") else set()
    return frozenset(attention | ffn)


def read_rope(fields: Fields) -> RopeConfig:
    """Both generations: a base beside `rope_scaling`, and everything in `rope_parameters`."""
    values = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or {}
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        fields.fail("rotary embedding that differs from layer to layer is not supported")
    inner = Fields(values, fields.where)
    partial = inner.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        fields.fail(f"only {partial} of each head turns (`partial_rotary_factor`): not supported")
    theta = inner.number("rope_theta", fields.number("rope_theta"))
    kind = inner.string("rope_type", inner.string("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3", "yarn"):
        fields.fail(f"the rope scaling `{kind[:100]}` is not supported\nhint: linear, llama3 and yarn are")
    longest = fields.integer("max_position_embeddings")
    original = inner.integer("original_max_position_embeddings", longest)
    original = fields.integer("original_max_position_embeddings", original)  # beside the parameters it counts more
    if original < 1:
        fields.fail(f"`original_max_position_embeddings` is {original}, it must be positive")
    # yarn alone may leave the factor to the ratio of the lengths
    factor = inner.number("factor", longest / original if kind == "yarn" else None)
    if factor <= 0:
        fields.fail(f"the factor of the rope scaling is {factor}, it must be positive")
    parameters: dict[str, Any] = {"factor": factor}
    if kind != "linear":
        parameters["original_max_position_embeddings"] = original
    if kind == "llama3":
        parameters |= _llama3(inner)
    if kind == "yarn":
        parameters |= _yarn(inner)
    return RopeConfig(theta, kind, parameters)


def _llama3(inner: Fields) -> dict[str, Any]:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if not 0 < low < high:
        inner.fail(f"`low_freq_factor` {low} must be positive and below `high_freq_factor` {high}")
    return {"low_freq_factor": low, "high_freq_factor": high}


def _yarn(inner: Fields) -> dict[str, Any]:
    parameters: dict[str, Any] = {"truncate": inner.flag("truncate", True)}
    for name in ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"):
        if inner.has(name):
            parameters[name] = inner.number(name)
            if parameters[name] < 0:
                inner.fail(f"`{name}` is {parameters[name]}, it must not be negative")
    return parameters
