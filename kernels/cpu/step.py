"""A whole step of a decoder in one call into the library: step.cpp, and its structures."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.arena import Arena
from kernels.cpu.attention import KV, Batch, Heads
from kernels.cpu.tiles import StackStruct, Tiles, prepare
from kernels.decoder import Decoder, DecoderLayer, DenseLayer, ExpertLayer, StepInput, StepOutput, StepRunner
from kernels.packed import Matrix

Pointer = ctypes.c_void_p
Int32, Float = ctypes.c_int32, ctypes.c_float


class ExpertsStruct(ctypes.Structure):
    """`Experts` of step.h."""

    _fields_ = (
        ("router", StackStruct),
        ("gate_up", Pointer),
        ("down", Pointer),
        ("count", Int32),
        ("per_token", Int32),
        ("width", Int32),
        ("normalise", Int32),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of step.h."""

    _fields_ = (
        ("attention_norm", Pointer),
        ("ffn_norm", Pointer),
        ("qkv", StackStruct),
        ("attention_out", StackStruct),
        ("gate_up", StackStruct),
        ("down", StackStruct),
        ("qkv_bias", Pointer),
        ("attention_out_bias", Pointer),
        ("gate_up_bias", Pointer),
        ("down_bias", Pointer),
        ("heads", Heads),
        ("experts", ExpertsStruct),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of step.h."""

    _fields_ = (
        ("layers", Pointer),
        ("num_layers", Int32),
        ("width", Int32),
        ("ffn_width", Int32),
        ("eps", Float),
        ("embedding", StackStruct),
        ("lm_head", StackStruct),
        ("final_norm", Pointer),
    )


class StepStruct(ctypes.Structure):
    """`Step` of step.h."""

    _fields_ = (
        ("batch", Batch),
        ("memory", Pointer),
        ("logit_rows", Pointer),
        ("hidden_rows", Pointer),
        ("num_logit_rows", Int32),
        ("num_hidden_rows", Int32),
        ("logits", Pointer),
        ("hidden", Pointer),
        ("best", Pointer),
    )


SIGNATURES = {
    "hatchway_new_workspace": (Pointer, (Int32,)),
    "hatchway_free_workspace": (None, (Pointer,)),
    "hatchway_step": (Int32, (Pointer, Pointer, ctypes.POINTER(ModelStruct), ctypes.POINTER(StepStruct))),
}
STRUCTURES = {3: ExpertsStruct, 4: LayerStruct, 5: ModelStruct, 6: StepStruct, 7: KV, 8: Heads, 9: Batch}


class CPUStepRunner(StepRunner):
    """`team`: an object with the handle of a team of threads, kept alive by this."""

    def __init__(self, functions: ctypes.CDLL, team: Any, decoder: Decoder) -> None:
        self._functions = functions
        self._team = team
        self._decoder = decoder
        self._kept: list[Any] = []  # what the structures point to
        self._layers = (LayerStruct * len(decoder.layers))(*map(self._layer, decoder.layers))
        dense = [layer.ffn for layer in decoder.layers if isinstance(layer.ffn, DenseLayer)]
        self._model = ModelStruct(
            ctypes.addressof(self._layers),
            len(decoder.layers),
            decoder.width,
            _width(dense[0].down) if dense else 0,
            decoder.eps,
            _stack(decoder.embedding),
            _stack(decoder.lm_head),
            self._at(decoder.final_norm),
        )
        self._cos, self._sin = decoder.cos.contiguous(), decoder.sin.contiguous()
        self._vocabulary = self._model.lm_head.rows
        self._memory: tuple[object, ctypes.Array[KV]] | None = None
        self._workspace = functions.hatchway_new_workspace(team.size)

    def __del__(self) -> None:
        if workspace := getattr(self, "_workspace", None):
            self._functions.hatchway_free_workspace(workspace)

    def run(self, step: StepInput) -> StepOutput:
        tokens = np.array(step.tokens, np.int32)
        starts, lengths = np.array(step.starts, np.int32), np.array(step.lengths, np.int32)
        positions, slots = np.array(step.positions, np.int32), np.array(step.slots, np.int64)
        tables = np.array([block for table in step.tables for block in table], np.int32)
        table_starts = np.array([0, *map(len, step.tables)], np.int32).cumsum(dtype=np.int32)
        logit_rows, hidden_rows = np.array(step.logit_rows, np.int32), np.array(step.hidden_rows, np.int32)
        self._check(step, tokens, positions, slots, tables)
        logits = torch.empty(len(logit_rows), self._vocabulary)
        hidden = torch.empty(len(hidden_rows), self._decoder.width)
        best = np.empty(len(logit_rows), np.int32)
        batch = Batch(
            tokens=len(tokens),
            sequences=len(lengths),
            ids=tokens.ctypes.data,
            positions=positions.ctypes.data,
            slots=slots.ctypes.data,
            starts=starts.ctypes.data,
            lengths=lengths.ctypes.data,
            tables=tables.ctypes.data,
            table_starts=table_starts.ctypes.data,
            cos=self._cos.data_ptr(),
            sin=self._sin.data_ptr(),
        )
        status = self._functions.hatchway_step(
            self._team.handle,
            self._workspace,
            self._model,
            StepStruct(
                batch,
                ctypes.addressof(self._kv(step)),
                logit_rows.ctypes.data,
                hidden_rows.ctypes.data,
                len(logit_rows),
                len(hidden_rows),
                logits.data_ptr(),
                hidden.data_ptr(),
                best.ctypes.data,
            ),
        )
        if status:
            raise MemoryError(f"no memory for a step of {len(tokens)} tokens")
        return StepOutput(logits, hidden, best.tolist())

    def _check(self, step: StepInput, *numbers: Any) -> None:
        """What would be read or written outside of its memory. Raises `IndexError`."""
        blocks, size = step.memory[0].shape[1:3]
        limits = (self._model.embedding.rows, len(self._cos), blocks * size, blocks)
        for name, found, limit in zip(("token", "position", "slot", "block"), numbers, limits, strict=True):
            if len(found) and not 0 <= found.min() <= found.max() < limit:
                raise IndexError(f"a {name} is not within 0 .. {limit - 1}")

    def _kv(self, step: StepInput) -> "ctypes.Array[KV]":
        if self._memory is None or self._memory[0] is not step.memory:
            kvs = map(KV.of, step.memory, step.scales)
            self._memory = step.memory, (KV * len(step.memory))(*kvs)
        return self._memory[1]

    def _layer(self, layer: DecoderLayer) -> LayerStruct:
        found = LayerStruct(
            attention_norm=self._at(layer.attention_norm),
            ffn_norm=self._at(layer.ffn_norm),
            qkv=_stack(layer.qkv),
            attention_out=_stack(layer.attention_out),
            qkv_bias=self._at(layer.qkv_bias),
            attention_out_bias=self._at(layer.attention_out_bias),
            heads=Heads(
                self._decoder.num_heads,
                self._decoder.num_kv_heads,
                self._decoder.head_dim,
                layer.window or 0,
                int(layer.turns),
                self._decoder.eps,
                self._at(layer.query_norm),
                self._at(layer.key_norm),
            ),
        )
        if isinstance(layer.ffn, ExpertLayer):
            found.experts = self._experts(layer.ffn)
        else:
            found.gate_up, found.down = _stack(layer.ffn.gate_up), _stack(layer.ffn.down)
            found.gate_up_bias, found.down_bias = self._at(layer.ffn.gate_up_bias), self._at(layer.ffn.down_bias)
        return found

    def _experts(self, ffn: ExpertLayer) -> ExpertsStruct:
        count = len(ffn.down)
        router = prepare(self._functions, self._team.handle, Arena(), ffn.router)
        gate_up = (StackStruct * count)(*map(_stack, ffn.gate_up))
        down = (StackStruct * count)(*map(_stack, ffn.down))
        self._kept += [router, gate_up, down]
        return ExpertsStruct(
            router.stack,
            ctypes.addressof(gate_up),
            ctypes.addressof(down),
            count,
            ffn.per_token,
            _width(ffn.down[0]),
            int(ffn.normalise),
        )

    def _at(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.float().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _stack(matrix: Matrix) -> StackStruct:
    assert isinstance(matrix, Tiles), "the matrices of a decoder are prepared by its backend"
    return matrix.stack


def _width(matrix: Matrix) -> int:
    assert isinstance(matrix, Tiles), "the matrices of a decoder are prepared by its backend"
    return matrix.shape[1]
