"""The local engine: a GGUF model behind an OpenAI-compatible server, in one process.

One token's path, in file order:
`server` and `protocol` (HTTP to a checked request) -> `template` and `text` (messages to token ids) -> `async_engine`
(event loop to the engine's thread) -> `engine.step` -> `scheduler` and `kv_cache` (which tokens, which blocks) ->
`runner` (tensors) -> `model` and `kernels` (logits) -> `sampler` (a token) -> `text` (its characters) -> back.

`gguf`, `config` and `weights` read the model file. `scheduler`, `sequence`, `kv_cache`, `request`, `protocol` and
`server` do not import torch.
"""
