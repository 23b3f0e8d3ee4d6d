"""Canvas steps by OpenVINO, an optional runtime for CPUs (`mezzotint[openvino]`).

Cache, batches and streams are `ModelRunner`'s: of a stream one token is encoded at a time, mostly,
where OpenVINO gains nothing (docs/experiments.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.engine.model_runner import BatchContext, ModelRunner
from model.engine.openvino_api import compiled_for_cpu, openvino
from model.engine.openvino_graph import step_graph


class OpenVinoRunner(ModelRunner):
    """A float32 denoiser on the CPU, its step compiled."""

    def __init__(self, model: Denoiser, *, cache_bytes: int | None = None) -> None:
        """Compiles for as many threads as torch has. Raises `ValueError` for another device or
        dtype, and OpenVINO's own `RuntimeError`s."""
        super().__init__(model, cache_bytes=cache_bytes)
        if self.device.type != "cpu" or self.dtype != torch.float32:
            raise ValueError(f"OpenVINO runs float32 on a CPU, not {self.dtype} on {self.device}")
        options = {
            # Of its own accord it takes bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = compiled_for_cpu(step_graph(model), options)
        self._request = compiled.create_infer_request()
        # Inputs are shared with OpenVINO, which keeps none of them alive.
        self._inputs: list[np.ndarray] = []
        self._bound: BatchContext | None = None

    @property
    def runtime(self) -> str:
        """What computes the steps."""
        return f"OpenVINO {openvino.__version__.split('-')[0]}"

    def canvas_logits(self, ids_BC: Tensor, context: BatchContext) -> Tensor:
        """See `ModelRunner.canvas_logits`."""
        before_BC = torch.cat((context.before_B1, ids_BC[:, :-1]), dim=1)
        if context is self._bound:
            self._inputs[0][...] = before_BC.numpy()
        else:
            self._bound = None
            self._bind([before_BC, *_inputs_of(context)])
            self._bound = context
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data)

    def _bind(self, tensors: list[Tensor]) -> None:
        """Have the request read these, copied where they are not in one piece."""
        self._inputs = [tensor.contiguous().numpy() for tensor in tensors]
        for index, array in enumerate(self._inputs):
            self._request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))


def _inputs_of(context: BatchContext) -> list[Tensor]:
    """What the graph reads besides the canvases."""
    batch, size = context.left_BC.shape
    lengths = (context.prefix[0][0].shape[2], context.suffix[0][0].shape[2], size)
    masks = (context.prefix_mask, context.suffix_mask, context.canvas_mask)
    mask = torch.cat(
        [
            torch.zeros(batch, 1, 1, length) if mask is None else mask
            for mask, length in zip(masks, lengths, strict=True)
        ],
        dim=-1,
    )
    caches = zip(context.prefix, context.suffix, strict=True)
    return [
        context.left_BC - 1,
        context.right_BC,
        mask,
        *(t for prefix, suffix in caches for t in (*prefix, *suffix)),
    ]
