"""A graph that OpenVINO has compiled for the CPU: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.engine.openvino_api import compiled_for_cpu, openvino

_HIDDEN_SCORE = torch.finfo(torch.float32).min / 2
"""Added to what is not visible. Not -inf, which the padding behind a row would turn into NaN."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How products are computed, the weights being what they are."""

    name: str
    """For people."""
    precision: str
    """OpenVINO's `INFERENCE_PRECISION_HINT`."""
    quantised_inputs: int
    """Inputs of int8 matrices become int8 themselves on the way, so many of a row with one scale;
    0: never."""
    kv_dtype: torch.dtype
    """Of keys and values, and of attention's products."""

    @property
    def kv_type(self) -> openvino.Type:
        """`kv_dtype` as OpenVINO names it."""
        return openvino.Type.bf16 if self.kv_dtype == torch.bfloat16 else openvino.Type.f32


INT8 = Arithmetic("int8", "f32", 128, torch.bfloat16)
"""Fastest for few rows where the processor multiplies int8 (VNNI), and has bf16 for attention."""
INT8_FLOAT_KEYS = Arithmetic("int8", "f32", 128, torch.float32)
"""The same for processors without bf16."""
BFLOAT16 = Arithmetic("int8 weights, bf16 arithmetic", "bf16", 0, torch.bfloat16)
FLOAT32 = Arithmetic("float32 arithmetic", "f32", 0, torch.float32)
"""What the file says, exactly."""


class Request:
    """A compiled graph, to be run again and again."""

    def __init__(self, graph: openvino.Model, arithmetic: Arithmetic, threads: int) -> None:
        """Raises OpenVINO's own `RuntimeError`s."""
        options = {
            # Of its own accord it takes bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": arithmetic.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": arithmetic.quantised_inputs,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Bound to cores, its threads would wait for whoever is on them.
            "ENABLE_CPU_PINNING": False,
        }
        self._request = compiled_for_cpu(graph, options).create_infer_request()

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Compute; the inputs are read where they lie."""
        held = [tensor.contiguous() for tensor in inputs]  # until it has run
        for index, tensor in enumerate(held):
            self._request.set_input_tensor(index, _shared(tensor))
        self._request.infer()

    def output(self, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A view of what was computed last."""
        array = self._request.get_output_tensor(index).data
        if dtype == torch.bfloat16:  # which numpy does not know
            return torch.from_numpy(array.view("int16")).view(dtype)
        return torch.from_numpy(array)


def rotation(positions_BN: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, N, D) of rotary positions."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions_BN[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def additive(visible: Tensor) -> Tensor:
    """What is added to scores so that only what is visible counts."""
    return torch.zeros(visible.shape).masked_fill_(~visible, _HIDDEN_SCORE)


def _shared(tensor: Tensor) -> Any:
    if tensor.dtype != torch.bfloat16:
        return openvino.Tensor(tensor.numpy(), shared_memory=True)
    bits = tensor.view(torch.int16).numpy()
    return openvino.Tensor(bits, openvino.Shape(tensor.shape), openvino.Type.bf16)
