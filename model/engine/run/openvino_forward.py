"""The backbone by OpenVINO, on a CPU.

Shape letters as in `model.engine.run.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.engine.openvino_api import compiled_for_cpu, openvino
from model.engine.run.forward import Rows
from model.engine.run.openvino_graph import BF16, F32, head_graph, rows_graph
from model.engine.run.packed_weights import PackedWeights
from model.engine.run.torch_forward import checked_taps, kv_layers

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


INT8 = Arithmetic("int8", "f32", 128, torch.bfloat16)
"""Fastest for few rows where the processor multiplies int8 (VNNI), and has bf16 for attention."""
INT8_FLOAT_KEYS = Arithmetic("int8", "f32", 128, torch.float32)
"""The same for processors without bf16."""
BFLOAT16 = Arithmetic("int8 weights, bf16 arithmetic", "bf16", 0, torch.bfloat16)
FLOAT32 = Arithmetic("float32 arithmetic", "f32", 0, torch.float32)
"""What the file says, exactly."""


class OpenVinoForward:
    """See `Forward`."""

    device = torch.device("cpu")

    def __init__(
        self,
        weights: PackedWeights,
        arithmetic: Arithmetic = INT8,
        *,
        threads: int | None = None,
        tapped_layers: Sequence[int] = (),
        num_kv_layers: int | None = None,
    ) -> None:
        """Compiles for so many threads, or as many as torch has. Raises OpenVINO's own
        `RuntimeError`s, and `ValueError` for a layer that the model does not have."""
        self.config, self.arithmetic = weights.config, arithmetic
        own = self.config.num_layers
        self.num_kv_layers = kv_layers(own, num_kv_layers)
        self.tapped_layers = checked_taps(tapped_layers, own)
        self.kv_dtype = arithmetic.kv_dtype
        self.threads = threads or torch.get_num_threads()
        self.runtime = f"OpenVINO {openvino.__version__.split('-')[0]}, {arithmetic.name}"
        self.problems: list[str] = []
        self.costs: dict[int, float] = {}
        self._weights, self._kv_type = weights, BF16 if self.kv_dtype == torch.bfloat16 else F32
        self._frequencies = self.config.rope_theta ** (
            -torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
        )
        graph = rows_graph(weights, kv_type=self._kv_type, tapped_layers=self.tapped_layers)
        self._rows = self._compiled(graph)
        self._head = self._compiled(head_graph(weights))
        self._settle()

    def _compiled(self, graph: openvino.Model) -> Any:
        """A request, which is to be used again."""
        options = {
            # Of its own accord it takes bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": self.arithmetic.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.arithmetic.quantised_inputs,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # Bound to cores, its threads would wait for whoever is on them.
            "ENABLE_CPU_PINNING": False,
        }
        return compiled_for_cpu(graph, options).create_infer_request()

    def _settle(self) -> None:
        """Run once: what is packed at the first use is packed, and the file's pages can go."""
        one = torch.zeros(1, 1, dtype=torch.long)
        rows = self.rows(one, one, None, torch.ones(1, 1, 1, dtype=torch.bool))
        self.logits(rows.hidden[0])
        self._weights.forget_pages()

    @torch.no_grad()
    def rows(
        self, ids_BN: Tensor, positions_BN: Tensor, past: Tensor | None, visible_BNT: Tensor
    ) -> Rows:
        """See `Forward.rows`."""
        config, (batch, num) = self.config, ids_BN.shape
        if past is None:
            size = (config.num_layers, 2, batch, config.num_kv_heads, 0, config.head_dim)
            past = torch.empty(size, dtype=self.kv_dtype)
        angles = positions_BN[:, None, :, None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)
        mask = torch.zeros(visible_BNT.shape).masked_fill_(~visible_BNT, _HIDDEN_SCORE)
        own = past[: config.num_layers].flatten(0, 1)
        inputs = [
            self._weights.embedded(ids_BN), angles.cos(), angles.sin(), mask[:, None, None], *own
        ]  # fmt: skip
        # They share their memory with these tensors, which live until the request has run.
        for index, tensor in enumerate(inputs):
            self._rows.set_input_tensor(index, self._shared(tensor))
        self._rows.infer()
        kv = torch.zeros((self.num_kv_layers, 2, *own.shape[1:3], num, config.head_dim)).to(
            self.kv_dtype
        )
        kv[: config.num_layers].flatten(0, 1).copy_(self._output(1, self.kv_dtype))
        taps = self._output(2).clone() if self.tapped_layers else None
        return Rows(self._output(0).clone(), kv, taps)

    @torch.no_grad()
    def logits(self, hidden_ME: Tensor) -> Tensor:
        """See `Forward.logits`."""
        hidden = hidden_ME.contiguous()
        self._head.set_input_tensor(0, self._shared(hidden))
        self._head.infer()
        return torch.from_numpy(self._head.get_output_tensor(0).data).clone()

    def _output(self, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A view of what the request has computed."""
        array = self._rows.get_output_tensor(index).data
        if dtype == torch.bfloat16:  # which numpy does not know
            return torch.from_numpy(array.view("int16")).view(dtype)
        return torch.from_numpy(array)

    def _shared(self, tensor: Tensor) -> Any:
        if tensor.dtype != torch.bfloat16:
            return openvino.Tensor(tensor.contiguous().numpy(), shared_memory=True)
        bits = tensor.contiguous().view(torch.int16).numpy()
        return openvino.Tensor(bits, openvino.Shape(tensor.shape), BF16)
