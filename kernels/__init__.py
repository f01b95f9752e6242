"""The arithmetic of the engine, free of any knowledge of models, files or requests.

Public operations, all in `kernels.reference` (plain torch, fp32, the truth):
`rms_norm` · `rope_table` · `rope` · `attention` · `swiglu` · `dequantise_q8_0` · `dequantise_q4_1`.
A faster version of an operation lives in its own file and is tested against its twin there.
"""
