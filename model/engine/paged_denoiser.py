"""The denoiser as a step on CUDA runs it: canvases against streams that lie in pages.

The same function as `Denoiser.denoise`, made of the operations of `kernels` and of joint
projections. Every shape follows from the inputs' shapes and nothing from their contents, and
nothing waits for the device, so that a step can be recorded. Shape letters as in `model.denoiser`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import KeyValue
from model.denoiser import Block, Denoiser, Role
from model.engine.float8 import Float8Weight, linear
from model.engine.kernels.choice import Kernels
from model.engine.kernels.reference import PagedStreams, Rotations


@dataclass(frozen=True, slots=True)
class PagedCanvases:
    """What a step reads, all on the device."""

    ids_BC: Tensor
    """int64; anything valid behind a row's own slots."""
    before_B: Tensor
    """int64, the last token of each prefix stream."""
    sizes_B: Tensor
    """int32, slots of each row's canvas; 0 for a row that only pads the batch."""
    streams: PagedStreams


class _Layer:
    """A block's weights, put together as a step multiplies them."""

    def __init__(self, block: Block, next_norm: Tensor, is_float8: bool) -> None:
        attention, ffn = block.attention, block.feed_forward
        weights = (
            _joined(attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj.weight,
            _joined(ffn.gate_proj, ffn.up_proj),
            ffn.down_proj.weight,
        )
        prepared = [Float8Weight.of(w) if is_float8 else w.detach() for w in weights]
        self.qkv, self.o, self.gate_up, self.down = prepared
        self.ffn_norm, self.next_norm = block.ffn_norm.weight, next_norm
        norms = (attention.q_norm, attention.k_norm)
        self.qk_norms = None
        if isinstance(norms[0], torch.nn.RMSNorm):
            self.qk_norms = (norms[0].weight, norms[1].weight)


def _joined(*projections: torch.nn.Linear) -> Tensor:
    """One weight for several projections of the same input. Theirs become views of it: nothing is
    on the device twice."""
    joint = torch.cat([p.weight for p in projections])
    for projection, rows in zip(
        projections, joint.split([p.out_features for p in projections]), strict=True
    ):
        projection.weight.data = rows
    return joint


class PagedDenoiser:
    """A loaded `Denoiser`'s `denoise` over pages."""

    @torch.no_grad()
    def __init__(self, model: Denoiser, kernels: Kernels, *, is_float8: bool = False) -> None:
        """Raises `ValueError` for sizes that float8 cannot have."""
        self.config, self.kernels = model.config, kernels
        self.embedding = model.embedding.weight.detach()
        self._role = model.role_embedding.weight[Role.CANVAS].detach()
        # Half of each table: its halves are alike.
        half = model.config.head_dim // 2
        self._cos = model.cos[:, :half].float().contiguous()
        self._sin = model.sin[:, :half].float().contiguous()
        self._first_norm = model.blocks[0].input_norm.weight
        next_norms = [block.input_norm.weight for block in model.blocks[1:]]
        self._layers = [
            _Layer(block, norm, is_float8)
            for block, norm in zip(
                model.blocks, [*next_norms, model.final_norm.weight], strict=True
            )
        ]

    def hidden(self, batch: PagedCanvases, pool: list[KeyValue]) -> Tensor:
        """Normed hidden states (B, C, E); `pool` has each layer's keys and values in pages."""
        shifted = torch.cat((batch.before_B[:, None], batch.ids_BC[:, :-1]), dim=1)
        scale = self.config.hidden_size**0.5
        x = F.embedding(shifted, self.embedding) * scale + self._role
        rotations = self._rotations(batch)
        normed = F.rms_norm(x, x.shape[-1:], self._first_norm, self.config.norm_eps)
        for layer, pages in zip(self._layers, pool, strict=True):
            x, normed = self._layer(layer, x, normed, batch, rotations, pages)
        return normed

    def _layer(
        self,
        layer: _Layer,
        x: Tensor,
        normed: Tensor,
        batch: PagedCanvases,
        rotations: Rotations,
        pages: KeyValue,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream behind a layer, and its norm for the next."""
        config, kernels = self.config, self.kernels
        heads, eps = (config.num_heads, config.num_kv_heads), config.norm_eps
        qkv = linear(normed, layer.qkv)
        q, k, v = kernels.split_rotate(qkv, layer.qk_norms, eps, rotations, *heads)
        mixed = kernels.paged_attention(q, pages, batch.streams, (k, v), batch.sizes_B)
        attended = linear(mixed.transpose(1, 2).flatten(-2), layer.o)
        x, normed = kernels.add_norm(x, attended, layer.ffn_norm, eps)
        fed = linear(kernels.swiglu(linear(normed, layer.gate_up)), layer.down)
        return kernels.add_norm(x, fed, layer.next_norm, eps)

    def _rotations(self, batch: PagedCanvases) -> Rotations:
        """A slot stands, for the prefix stream, where the token before it does (`Denoiser`)."""
        prefix_B, suffix_B = batch.streams.lengths_2B.long()
        slots = torch.arange(batch.ids_BC.shape[1], device=prefix_B.device)
        # A row that pads the batch has no stream; its place must exist all the same.
        left_BC = (prefix_B[:, None] - 1 + slots).clamp(min=0)
        right_BC = suffix_B[:, None].expand_as(left_BC)
        return Rotations(
            (self._cos[left_BC], self._sin[left_BC]), (self._cos[right_BC], self._sin[right_BC])
        )
