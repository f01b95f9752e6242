"""The arithmetic of the engine, free of any knowledge of models, files or requests.

`packed` is how quantised matrices are stored, `gguf_formats` how GGUF files store theirs, `reference` every operation
of the decoder in plain torch (fp32, the truth), `dispatch` which implementation of them a model runs on. A faster
version of an operation lives in its own file and is tested against its twin in `reference`.
"""
