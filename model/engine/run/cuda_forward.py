"""The backbone as CUDA runs it: new rows against streams that lie in pages.

The same function as `TorchForward`, made of the operations of `kernels` and of joint projections,
in bf16 or with weights in float8. Every shape follows from the inputs' shapes and nothing from
their contents, and nothing waits for the device, so that a forward can be recorded. On a CPU it is
the same code over plain torch.

Shape letters as in `model.engine.run.forward` and `model.engine.kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.engine.kernels.choice import Kernels, kernels_for
from model.engine.kernels.reference import PagedStreams, Projection
from model.engine.run.eight_bits import Float8Linear
from model.engine.run.float8 import Float8Weight, linear
from model.engine.run.forward import Rows
from model.engine.run.torch_forward import TorchForward
from model.transformer import Layer, Transformer


@dataclass(frozen=True, slots=True)
class PagedRows:
    """What a forward reads, all on the device."""

    ids_BN: Tensor
    """int32; any valid id where a row only pads."""
    positions_BN: Tensor
    """int32."""
    visible_BNN: Tensor
    """bool: which of the new rows each one sees, itself at least."""
    streams: PagedStreams


class _PagedLayer:
    """A layer's weights, put together as a forward multiplies them."""

    def __init__(self, layer: Layer, next_norm: Tensor, eps: float, is_float8: bool) -> None:
        self.qkv = _joined(is_float8, layer, "q_proj", "k_proj", "v_proj")
        self.o = _joined(is_float8, layer, "o_proj")
        self.gate_up = _joined(is_float8, layer, "gate_proj", "up_proj")
        self.down = _joined(is_float8, layer, "down_proj")
        self.ffn_norm, self.next_norm = layer.ffn_norm.weight, next_norm
        projections = (layer.q_proj, layer.k_proj, layer.v_proj)
        biases: list[Tensor] = [p.bias for p in projections if p.bias is not None]
        norms = None
        if isinstance(layer.q_norm, nn.RMSNorm) and isinstance(layer.k_norm, nn.RMSNorm):
            norms = (layer.q_norm.weight, layer.k_norm.weight)
        self.projection = Projection(torch.cat(biases) if biases else None, norms, eps)


def _joined(is_float8: bool, layer: Layer, *names: str) -> Tensor | Float8Weight:
    """One weight for several projections of the same input. The layer's own become views of it:
    nothing is on the device twice."""
    projections = [getattr(layer, name) for name in names]
    sizes = [p.out_features for p in projections]
    weight = torch.cat([p.weight for p in projections]) if len(names) > 1 else projections[0].weight
    if is_float8:
        joint = Float8Weight.of(weight)
        for name, projection, rows in zip(names, projections, joint.split(sizes), strict=True):
            setattr(layer, name, Float8Linear(projection, rows))
        return joint
    for projection, rows in zip(projections, weight.split(sizes), strict=True):
        projection.weight.data = rows
    return weight.detach()


class CudaForward(TorchForward):
    """A `Forward`, and `over_pages`, which `CudaRunner` records."""

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        *,
        is_float8: bool = False,
        tapped_layers: Sequence[int] = (),
        num_kv_layers: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        """`is_float8`: the layers' weights, which then are the model's, too. `kernels`: None for
        the fastest that work here.

        Raises `ValueError` as `TorchForward` does, and for sizes that float8 cannot have.
        """
        super().__init__(model, tapped_layers=tapped_layers, num_kv_layers=num_kv_layers)
        config = self.config
        if kernels is None:
            kernels, problem = kernels_for(config, self.device, self.kv_dtype, is_float8=is_float8)
            self.problems = [] if problem is None else [problem]
        self.kernels = kernels
        if is_float8:
            _check_sizes(model)
        kind = "float8" if is_float8 else str(self.kv_dtype).removeprefix("torch.")
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self.runtime = f"torch {torch.__version__.split('+')[0]}, {kind}, on {card}"
        # Half of each table: its halves are alike.
        half = config.head_dim // 2
        self._cos = model.cos[:, :half].float().contiguous()
        self._sin = model.sin[:, :half].float().contiguous()
        self._first_norm = model.layers[0].input_norm.weight
        next_norms = [layer.input_norm.weight for layer in model.layers[1:]]
        self._layers = [
            _PagedLayer(layer, norm, config.norm_eps, is_float8)
            for layer, norm in zip(
                model.layers, [*next_norms, model.final_norm.weight], strict=True
            )
        ]

    def over_pages(self, rows: PagedRows, pages: Tensor, kv_out: Tensor) -> Rows:
        """Run new rows. `pages` (num_kv_layers, 2, P, G, PAGE_SIZE, D) is only read; keys and
        values of the new rows are put into `kv_out`, which is the result's `kv`."""
        config, kernels = self.config, self.kernels
        x = F.embedding(rows.ids_BN, self.model.embedding.weight)
        places = rows.positions_BN.long()
        rotation = (self._cos[places], self._sin[places])
        normed = F.rms_norm(x, x.shape[-1:], self._first_norm, config.norm_eps)
        taps = dict[int, Tensor]()
        for index, layer in enumerate(self._layers):
            new = (kv_out[index, 0], kv_out[index, 1])
            pool = (pages[index, 0], pages[index, 1])
            qkv = self._product(normed, layer.qkv)
            q = kernels.split_rotate(qkv, layer.projection, *rotation, new)
            mixed = kernels.paged_attention(q, pool, rows.streams, new, rows.visible_BNN)
            attended = self._product(mixed.flatten(-2), layer.o)
            x, normed = kernels.add_norm(x, attended, layer.ffn_norm, config.norm_eps)
            fed = kernels.swiglu(self._product(normed, layer.gate_up))
            fed = self._product(fed, layer.down)
            x, normed = kernels.add_norm(x, fed, layer.next_norm, config.norm_eps)
            if index in self.tapped_layers:
                taps[index] = F.rms_norm(x, x.shape[-1:], eps=config.norm_eps)
        tapped = [taps[index] for index in self.tapped_layers]
        return Rows(normed, kv_out, torch.cat(tapped, dim=-1) if tapped else None)

    @torch.no_grad()
    def logits(self, hidden_ME: Tensor) -> Tensor:
        """See `Forward.logits`."""
        return self.kernels.logits(hidden_ME, self.model.head.weight)

    def _product(self, x: Tensor, weight: Tensor | Float8Weight) -> Tensor:
        return linear(x, weight, self.kernels.quantised)


def _check_sizes(model: Transformer) -> None:
    """Before a layer is changed. Raises `ValueError`."""
    for layer in model.layers:
        for each in layer.modules():
            if isinstance(each, nn.Linear):
                Float8Weight.check_size(each.weight)
