"""The local engine: a model's files behind an OpenAI-compatible server.

One token's path, in file order:
`api.server` and `api.protocol*` (HTTP to checked requests) -> `text.template` and `text.vocabulary` (messages to token
ids) -> `async_engine` (event loop to the engine's thread) -> `engine.step` -> `scheduler`, `kv_cache` and `pace` (which
tokens, which blocks, how many) -> `speculation` (guesses) -> `runner`, `batch` (tensors) -> `model` and `kernels`
(logits) -> `sampler` (tokens) -> `generation`, `text.detokeniser`, `text.reply_parser` (what they say) -> back.

`files` reads models, `quantisation` decides how their matrices are kept, `memory_plan` counts what it all takes. The
scheduler and what it needs, and the server, do not import torch.
"""
