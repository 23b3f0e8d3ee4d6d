"""A denoising step as an OpenVINO graph, built operation by operation: no tracing, no conversion.

It computes what `Denoiser.denoise` and the head do. All sizes but the model's own are dynamic, and
the mask is an input. Shape letters as in `model.denoiser`; R query heads share keys.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor, nn

from model.denoiser import Block, Denoiser, Role
from model.engine.openvino_api import openvino

ops = openvino.opset13
Value: TypeAlias = openvino.Node | openvino.Output


def step_graph(model: Denoiser) -> openvino.Model:
    """Canvases to logits (B, C, V).

    Inputs: ids (B, C), of each slot the token before it; their positions (B, C) in the prefix
    stream and (B, C) in the suffix stream; an additive mask (B, 1, 1, prefix + suffix + C); then,
    layer by layer, keys and values of the prefix and of the suffix (B, G, L, D).
    """
    graph = _Graph(model)
    ids, left, right = (_input(openvino.Type.i64, -1, -1) for _ in range(3))
    mask = _input(openvino.Type.f32, -1, 1, 1, -1)
    x, caches = graph.embed(ids), list[Value]()
    rotations = graph.rotation(left), graph.rotation(right)
    for block in model.blocks:
        prefix_keys, prefix_values, suffix_keys, suffix_values = (
            _input(openvino.Type.f32, -1, model.config.num_kv_heads, -1, model.config.head_dim)
            for _ in range(4)
        )
        caches += [prefix_keys, prefix_values, suffix_keys, suffix_values]
        streams = _Keys(0, prefix_keys, prefix_values), _Keys(1, suffix_keys, suffix_values)
        x = graph.layer(x, block, rotations, streams, mask)
    logits = ops.matmul(graph.norm(x, model.final_norm), graph.embedding, False, True)
    inputs = [ids, left, right, mask, *caches]
    # Its stubs name another base class than its Model has.
    return openvino.Model([logits], inputs, "step")  # pyright: ignore[reportGeneralTypeIssues]


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys and values of a stream, and which of the rotations queries have for them."""

    rotation: int
    keys: Value
    values: Value


class _Graph:
    """What the graph is made of."""

    def __init__(self, model: Denoiser) -> None:
        self.config = model.config
        self.embedding = _weight(model.embedding.weight)
        self._role = _weight(model.role_embedding.weight[Role.CANVAS])
        self._tables = _weight(model.cos), _weight(model.sin)

    def embed(self, ids: Value) -> Value:
        """(B, C) -> (B, C, E)."""
        rows = ops.gather(self.embedding, ids, _integers(0))
        return ops.add(ops.multiply(rows, _number(self.config.hidden_size**0.5)), self._role)

    def rotation(self, positions: Value) -> tuple[Value, ...]:
        """cos and sin (B, 1, C, D)."""
        rows = (ops.gather(table, positions, _integers(0)) for table in self._tables)
        return tuple(ops.unsqueeze(row, _integers(1)) for row in rows)

    def norm(self, x: Value, norm: nn.Module) -> Value:
        """RMSNorm, or nothing where the model has none."""
        if not isinstance(norm, nn.RMSNorm):
            return x
        assert norm.eps is not None
        mean = ops.reduce_mean(ops.multiply(x, x), _integers(-1), True)
        scale = ops.divide(_number(1.0), ops.sqrt(ops.add(mean, _number(norm.eps))))
        return ops.multiply(ops.multiply(x, scale), _weight(norm.weight))

    def layer(
        self,
        x: Value,
        block: Block,
        rotations: Items[tuple[Value, ...]],
        streams: Items[_Keys],
        mask: Value,
    ) -> Value:
        """The residual stream behind a layer."""
        q, k, v = self._project(self.norm(x, block.input_norm), block)
        queries = [self._grouped(_rotated(q, rotation)) for rotation in rotations]
        own = _Keys(0, _rotated(k, rotations[0]), v)
        mixed = self._attention(queries, [*streams, own], mask)
        x = ops.add(x, _product(mixed, block.attention.o_proj))
        normed, ffn = self.norm(x, block.ffn_norm), block.feed_forward
        gate = ops.swish(_product(normed, ffn.gate_proj))
        fed = ops.multiply(gate, _product(normed, ffn.up_proj))
        return ops.add(x, _product(fed, ffn.down_proj))

    def _project(self, x: Value, block: Block) -> tuple[Value, Value, Value]:
        """Unrotated q (B, H, C, D), k and v (B, G, C, D)."""
        attention, dim = block.attention, self.config.head_dim

        def heads(projection: nn.Linear) -> Value:
            split = ops.reshape(_product(x, projection), _integers(0, 0, -1, dim), True)
            return ops.transpose(split, _integers(0, 2, 1, 3))

        q, k = heads(attention.q_proj), heads(attention.k_proj)
        q, k = self.norm(q, attention.q_norm), self.norm(k, attention.k_norm)
        return q, k, heads(attention.v_proj)

    def _grouped(self, q: Value) -> Value:
        """Scaled queries (B, G, R·C, D): heads that share keys are rows of one product."""
        scaled = ops.multiply(q, _number(self.config.head_dim**-0.5))
        shape = _integers(0, self.config.num_kv_heads, -1, self.config.head_dim)
        return ops.reshape(scaled, shape, True)

    def _attention(self, queries: Items[Value], streams: Items[_Keys], mask: Value) -> Value:
        """(B, C, E); one softmax spans all streams."""
        scores = [ops.matmul(queries[s.rotation], s.keys, False, True) for s in streams]
        weights = ops.softmax(ops.add(ops.concat(scores, -1), mask), -1)
        values = ops.concat([s.values for s in streams], 2)
        mixed = ops.matmul(weights, values, False, False)
        by_head = _integers(0, self.config.num_heads, -1, self.config.head_dim)
        mixed = ops.transpose(ops.reshape(mixed, by_head, True), _integers(0, 2, 1, 3))
        return ops.reshape(mixed, _integers(0, 0, -1), True)


def _rotated(x: Value, rotation: Items[Value]) -> Value:
    """See `model.attention.rotate`."""
    cos, sin = rotation
    first, second = ops.split(x, ops.constant(np.int64(-1)), 2).outputs()
    turned = ops.concat([ops.negative(second), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def _product(x: Value, projection: nn.Linear) -> Value:
    return ops.matmul(x, _weight(projection.weight), False, True)


def _weight(tensor: Tensor) -> Value:
    return ops.constant(tensor.detach().float().contiguous().numpy())


def _number(value: float) -> Value:
    return ops.constant(np.float32(value))


def _integers(*values: int) -> Value:
    return ops.constant(np.array(values, dtype=np.int64))


def _input(kind: openvino.Type, *shape: int) -> Value:
    return ops.parameter(openvino.PartialShape(list(shape)), kind)
