"""The backbone by OpenVINO, on a CPU.

Shape letters as in `model.engine.run.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.denoiser.network import Denoiser
from model.engine.openvino_api import openvino
from model.engine.run.forward import DenoiserForward, Rows
from model.engine.run.openvino_denoiser import OpenVinoDenoiser
from model.engine.run.openvino_graph import head_graph, rows_graph
from model.engine.run.openvino_request import INT8, Arithmetic, Request, additive, rotation
from model.engine.run.packed_weights import PackedWeights
from model.engine.run.torch_forward import checked_taps, kv_layers


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
        self._weights = weights
        graph = rows_graph(weights, kv_type=arithmetic.kv_type, tapped_layers=self.tapped_layers)
        self._rows = Request(graph, arithmetic, self.threads)
        self._head = Request(head_graph(weights), arithmetic, self.threads)
        self._settle()

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
        cos, sin = rotation(positions_BN, config.head_dim, config.rope_theta)
        mask = additive(visible_BNT)[:, None, None]
        own = past[: config.num_layers].flatten(0, 1)
        self._rows.run([self._weights.embedded(ids_BN), cos, sin, mask, *own])
        kv = torch.zeros((self.num_kv_layers, 2, *own.shape[1:3], num, config.head_dim)).to(
            self.kv_dtype
        )
        kv[: config.num_layers].flatten(0, 1).copy_(self._rows.output(1, self.kv_dtype))
        taps = self._rows.output(2).clone() if self.tapped_layers else None
        return Rows(self._rows.output(0).clone(), kv, taps)

    @torch.no_grad()
    def logits(self, hidden_ME: Tensor) -> Tensor:
        """See `Forward.logits`."""
        self._head.run([hidden_ME])
        return self._head.output(0).clone()

    def embedded(self, ids: Tensor) -> Tensor:
        """See `WordTable.embedded`."""
        return self._weights.embedded(ids)

    def head_rows(self, ids_V: Tensor) -> Tensor:
        """See `WordTable.head_rows`."""
        return self._weights.head_rows(ids_V)

    def beside(self, denoiser: Denoiser) -> DenoiserForward:
        """See `Forward.beside`. Raises OpenVINO's own `RuntimeError`s."""
        return OpenVinoDenoiser(denoiser.float(), self.arithmetic, self.threads)
