"""The denoiser by OpenVINO, on a CPU: its layers and its head, in the backbone's arithmetic.

What is small (telling a slot the token before it, the end behind a canvas) torch does.

Shape letters as in `model.denoiser.network`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.denoiser.network import Denoiser
from model.engine.openvino_api import openvino
from model.engine.run.openvino_graph import (
    F32,
    Graph,
    Value,
    graph_input,
    head_graph,
    integers,
    ops,
    rotated,
)
from model.engine.run.openvino_request import Arithmetic, Request, additive, rotation
from model.engine.run.packed_weights import Arrays, layer_parts, stored_as


class OpenVinoDenoiser:
    """See `DenoiserForward`."""

    def __init__(
        self, denoiser: Denoiser, arithmetic: Arithmetic, threads: int, *, keeps_float: bool = False
    ) -> None:
        """Of a denoiser in float32, whose layers are not needed any more afterwards. `keeps_float`:
        matrices stay as they are. Raises OpenVINO's own `RuntimeError`s."""
        self.config, self.draft_ids = denoiser.config, denoiser.draft_ids
        self.dtype = arithmetic.kv_dtype
        self._embed, self._follower = denoiser.embed, denoiser.follower
        self._mask, self._slots = denoiser.mask.detach(), denoiser.slots.detach()
        self._canvas_end = denoiser.canvas_end
        # The graphs look at these arrays: they have to stay.
        self._weights = weights = _arrays(denoiser, keeps_float=keeps_float)
        num_layers, num_taps = self.config.num_layers, len(self.config.taps)
        kv_type = arithmetic.kv_type
        self._context, self._end, self._canvas, self._head = (
            Request(graph, arithmetic, threads)
            for graph in (
                _context_graph(weights, num_layers, num_taps, kv_type),
                _end_graph(weights, num_taps),
                _canvas_graph(weights, num_layers, kv_type),
                head_graph(weights),
            )
        )

    @torch.no_grad()
    def context(self, taps_BNF: Tensor, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        """See `Denoiser.context`."""
        self._context.run([taps_BNF.float(), *self._rotation(positions_BN)])
        kept = self._context.output(0, self.dtype).unflatten(0, (-1, 2))
        return kept.clone(), self._context.output(1).clone()

    @torch.no_grad()
    def end_logits(self, taps_BNF: Tensor) -> Tensor:
        """See `Denoiser.end_logits`."""
        self._end.run([taps_BNF.float()])
        return self._end.output(0).clone()

    @torch.no_grad()
    def canvas(
        self,
        ids_BC: Tensor,
        known_BC: Tensor,
        positions_BC: Tensor,
        anchor_feature_BE: Tensor,
        past: Tensor,
        visible_BP: Tensor,
    ) -> Tensor:
        """See `Denoiser.canvas`."""
        size = ids_BC.shape[1]
        x = torch.where(known_BC[..., None], self._embed(ids_BC), self._mask) + self._slots[:size]
        visible = F.pad(visible_BP, (0, size), value=True)[:, None].expand(-1, size, -1)
        self._canvas.run([
            x, *self._rotation(positions_BC), additive(visible)[:, None, None],
            anchor_feature_BE.float()[:, None], *past.flatten(0, 1),
        ])  # fmt: skip
        return self._canvas.output(0).clone()

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Denoiser.logits`."""
        self._head.run([hidden.flatten(0, -2)])
        return self._head.output(0).clone().unflatten(0, hidden.shape[:-1])

    @torch.no_grad()
    def some_logits(self, hidden_BE: Tensor, places_BK: Tensor) -> Tensor:
        """See `Denoiser.some_logits`."""
        return (self._weights.rows("head", places_BK) @ hidden_BE[..., None]).squeeze(-1)

    @torch.no_grad()
    def follow(self, hidden: Tensor, previous_ids: Tensor) -> Tensor:
        """See `Denoiser.follow`."""
        return self._follower(hidden, self._embed(previous_ids))

    @torch.no_grad()
    def canvas_end_logits(self, hidden_BCE: Tensor) -> Tensor:
        """See `Denoiser.canvas_end_logits`."""
        return self._canvas_end(hidden_BCE[:, 0]).squeeze(-1)

    def _rotation(self, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        backbone = self.config.backbone
        return rotation(positions_BN, backbone.head_dim, backbone.rope_theta)


def _context_graph(
    weights: Arrays, num_layers: int, num_taps: int, kv_type: openvino.Type
) -> openvino.Model:
    """Taps (B, N, F) and cos and sin (B, 1, N, D) of their positions, to keys and values
    (2·layers, B, G, N, D) and features (B, N, E)."""
    graph, config = Graph(weights, kv_type), weights.config
    taps = graph_input(F32, -1, -1, num_taps * config.hidden_size)
    turn = [graph_input(F32, -1, 1, -1, config.head_dim) for _ in range(2)]
    features = graph.normalised(graph.product(taps, "fuse"))
    kept = list[Value]()
    for layer in range(num_layers):
        both = graph.biased(features, f"layers.{layer}.context")
        heads = ops.reshape(both, integers(0, 0, 2 * config.num_kv_heads, config.head_dim), True)
        by_head = ops.transpose(heads, integers(0, 2, 1, 3))
        k, v = ops.split(by_head, ops.constant(np.int64(1)), 2).outputs()
        if config.qk_norm:
            k = graph.norm(k, f"layers.{layer}.k_norm")
        kept += [ops.unsqueeze(graph.kept(each), integers(0)) for each in (rotated(k, turn), v)]
    results = [ops.result(ops.concat(kept, 0)), ops.result(features)]
    return openvino.Model(results, [taps, *turn], "context")  # pyright: ignore


def _end_graph(weights: Arrays, num_taps: int) -> openvino.Model:
    """Taps (B, N, F) to logits (B, N): that the middle ends behind a token."""
    graph = Graph(weights, F32)
    taps = graph_input(F32, -1, -1, num_taps * weights.config.hidden_size)
    logits = graph.biased(ops.swish(graph.biased(taps, "end_in")), "end_out")
    results = [ops.result(ops.squeeze(logits, integers(-1)))]
    return openvino.Model(results, [taps], "end")  # pyright: ignore


def _canvas_graph(weights: Arrays, num_layers: int, kv_type: openvino.Type) -> openvino.Model:
    """Slots (B, C, E) to normed hidden states (B, C, E).

    Inputs: the slots; cos and sin (B, 1, C, D) of their positions; an additive mask (B, 1, 1, C, P
    + C); the feature (B, 1, E) of the token before them; then, layer by layer, the context's keys
    and values (B, G, P, D).
    """
    graph, config = Graph(weights, kv_type), weights.config
    x = graph_input(F32, -1, -1, config.hidden_size)
    turn = [graph_input(F32, -1, 1, -1, config.head_dim) for _ in range(2)]
    mask = graph_input(F32, -1, 1, 1, -1, -1)
    anchor = graph_input(F32, -1, 1, config.hidden_size)
    inputs = [x, *turn, mask, anchor]
    states = ops.add(x, graph.product(anchor, "skip"))
    for layer in range(num_layers):
        past = [graph_input(kv_type, -1, config.num_kv_heads, -1, config.head_dim) for _ in "kv"]
        inputs += past
        states, _ = graph.layer(states, f"layers.{layer}.", turn, past, mask)
    results = [ops.result(graph.norm(states, "final_norm"))]
    return openvino.Model(results, inputs, "canvas")  # pyright: ignore


def _arrays(denoiser: Denoiser, *, keeps_float: bool) -> Arrays:
    """The weights that the graphs name."""
    config = denoiser.config.backbone
    parts: dict[str, list[Tensor]] = {
        "fuse": [denoiser.fuse.weight],
        "skip": [denoiser.skip.weight],
        "final_norm": [denoiser.final_norm.weight],
        "head": [denoiser.head],
        "end_in": [denoiser.end_in.weight],
        "end_in_bias": [denoiser.end_in.bias],
        "end_out": [denoiser.end_out.weight],
        "end_out_bias": [denoiser.end_out.bias],
    }
    for index, layer in enumerate(denoiser.layers):
        parts |= layer_parts(layer, f"layers.{index}.", config)
        context = (layer.context_k, layer.context_v)
        parts[f"layers.{index}.context"] = [each.weight for each in context]
        if config.qkv_bias:
            parts[f"layers.{index}.context_bias"] = [each.bias for each in context]
    stored = (stored_as(name, each, keeps_float=keeps_float) for name, each in parts.items())
    return Arrays(config, {name: array for each in stored for name, array in each.items()})
