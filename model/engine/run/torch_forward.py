"""The backbone by torch: the plain reference, in any dtype on any device.

Shape letters as in `model.engine.run.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.denoiser.network import Denoiser
from model.engine.run.forward import DenoiserForward, Rows
from model.transformer import Transformer


class TorchForward:
    """See `Forward`."""

    def __init__(
        self,
        model: Transformer,
        *,
        tapped_layers: Sequence[int] = (),
        num_kv_layers: int | None = None,
    ) -> None:
        """`tapped_layers`: indices of the layers behind which hidden states are wanted.

        Raises `ValueError` for a layer that the model does not have.
        """
        self.model, self.config = model, model.config
        self.device = model.final_norm.weight.device
        self.num_kv_layers = kv_layers(model.config.num_layers, num_kv_layers)
        self.tapped_layers = checked_taps(tapped_layers, model.config.num_layers)
        self.kv_dtype = model.final_norm.weight.dtype
        kind = str(self.kv_dtype).removeprefix("torch.")
        self.runtime = f"torch {torch.__version__.split('+')[0]}, {kind}"
        self.problems: list[str] = []
        self.costs: dict[int, float] = {}

    @torch.no_grad()
    def rows(
        self, ids_BN: Tensor, positions_BN: Tensor, past: Tensor | None, visible_BNT: Tensor
    ) -> Rows:
        """See `Forward.rows`."""
        model, config = self.model, self.config
        x = model.embedding(ids_BN)
        cos, sin = (t[positions_BN].unsqueeze(1).to(x.dtype) for t in (model.cos, model.sin))
        batch, num = ids_BN.shape
        size = (self.num_kv_layers, 2, batch, config.num_kv_heads, num, config.head_dim)
        kv, taps = x.new_zeros(size), dict[int, Tensor]()
        for index, layer in enumerate(model.layers):
            kept = None if past is None else (past[index, 0], past[index, 1])
            x, (keys, values) = layer(x, (cos, sin), visible_BNT[:, None], kept)
            kv[index, 0], kv[index, 1] = keys, values
            if index in self.tapped_layers:
                taps[index] = F.rms_norm(x, x.shape[-1:], eps=config.norm_eps)
        side_by_side = [taps[index] for index in self.tapped_layers]
        return Rows(
            model.final_norm(x), kv, torch.cat(side_by_side, dim=-1) if side_by_side else None
        )

    @torch.no_grad()
    def logits(self, hidden_ME: Tensor) -> Tensor:
        """See `Forward.logits`."""
        return self.model.logits(hidden_ME).float()

    def embedded(self, ids: Tensor) -> Tensor:
        """See `WordTable.embedded`."""
        return self.model.embedded(ids)

    def head_rows(self, ids_V: Tensor) -> Tensor:
        """See `WordTable.head_rows`."""
        return self.model.head_rows(ids_V)

    def beside(self, denoiser: Denoiser) -> DenoiserForward:
        """See `Forward.beside`."""
        return denoiser


def kv_layers(own: int, wanted: int | None) -> int:
    """`num_kv_layers` for a backbone of so many layers. Raises `ValueError` for fewer."""
    if wanted is not None and wanted < own:
        raise ValueError(f"keys and values of {wanted} layers; the backbone itself has {own}")
    return own if wanted is None else wanted


def checked_taps(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers, which have to be there. Raises `ValueError`."""
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(f"there are layers 0 to {num_layers - 1} to tap, not {wrong[0]}")
    return tuple(layers)
