"""The backbone as OpenVINO graphs, built operation by operation: no tracing, no conversion.

All sizes but the model's own are dynamic, and the mask is an input. Shape letters as in
`model.engine.run.forward`; H query heads, R of which share keys.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TypeAlias

import numpy as np

from model.engine.openvino_api import openvino
from model.engine.run.packed_weights import Array, Arrays, scale_of

ops = openvino.opset13
Value: TypeAlias = openvino.Node | openvino.Output
F32 = openvino.Type.f32


def rows_graph(
    weights: Arrays, *, kv_type: openvino.Type, tapped_layers: Items[int] = ()
) -> openvino.Model:
    """Embedded tokens (B, N, E) to normed hidden states (B, N, E), their keys and values (2·layers,
    B, G, N, D) and, where layers are tapped, their states (B, N, T·E).

    Inputs: the tokens; cos and sin (B, 1, N, D) of their positions; an additive mask (B, 1, 1, N,
    P + N); then, layer by layer, kept keys and kept values (B, G, P, D). Attention multiplies in
    `kv_type`, and keeps its softmax in float32.
    """
    graph, config = Graph(weights, kv_type), weights.config
    x = graph_input(F32, -1, -1, config.hidden_size)
    rotation = [graph_input(F32, -1, 1, -1, config.head_dim) for _ in range(2)]
    mask = graph_input(F32, -1, 1, 1, -1, -1)
    inputs, states, new, taps = [x, *rotation, mask], x, list[Value](), list[Value]()
    for layer in range(config.num_layers):
        kept = [
            graph_input(kv_type, -1, config.num_kv_heads, -1, config.head_dim) for _ in range(2)
        ]
        inputs += kept
        states, keys_values = graph.layer(states, f"layers.{layer}.", rotation, kept, mask)
        new += [ops.unsqueeze(each, integers(0)) for each in keys_values]
        if layer in tapped_layers:
            taps.append(graph.normalised(states))
    results = [graph.norm(states, "final_norm"), ops.concat(new, 0)]
    if taps:
        by_layer = dict(zip(sorted(tapped_layers), taps, strict=True))
        results.append(ops.concat([by_layer[layer] for layer in tapped_layers], -1))
    # Its stubs name another base class than its Model has.
    return openvino.Model([ops.result(r) for r in results], inputs, "rows")  # pyright: ignore


def head_graph(weights: Arrays) -> openvino.Model:
    """Hidden states (M, E) to logits (M, V)."""
    hidden = graph_input(F32, -1, weights.config.hidden_size)
    logits = Graph(weights, F32).product(hidden, "head")
    return openvino.Model([ops.result(logits)], [hidden], "head")  # pyright: ignore


class Graph:
    """What the graphs are made of."""

    def __init__(self, weights: Arrays, kv_type: openvino.Type) -> None:
        self._weights, self.config, self._kv_type = weights, weights.config, kv_type

    def normalised(self, x: Value) -> Value:
        """To a root mean square of 1."""
        mean = ops.reduce_mean(ops.power(x, _number(2.0)), integers(-1), True)
        root = ops.sqrt(ops.add(mean, _number(self.config.norm_eps)))
        return ops.multiply(x, ops.divide(_number(1.0), root))

    def norm(self, x: Value, name: str) -> Value:
        """RMSNorm."""
        return ops.multiply(self.normalised(x), _constant(self._weights.array(name)))

    def product(self, x: Value, name: str) -> Value:
        """x times a matrix, which stays as it is stored until the product itself."""
        matrix: Value = _constant(self._weights.array(name))
        if scale_of(name) in self._weights:
            scale = _constant(self._weights.array(scale_of(name)))
            matrix = ops.multiply(ops.convert(matrix, F32), scale)
        return ops.matmul(x, matrix, False, True)

    def biased(self, x: Value, name: str) -> Value:
        """`product`, plus a vector if there is one."""
        product, bias = self.product(x, name), f"{name}_bias"
        if bias not in self._weights:
            return product
        return ops.add(product, _constant(self._weights.array(bias)))

    def layer(
        self, x: Value, of: str, rotation: Items[Value], kept: Items[Value], mask: Value
    ) -> tuple[Value, tuple[Value, Value]]:
        """The states behind a layer, and its new keys and values (B, G, N, D)."""
        q, k, v = self._project(self.norm(x, f"{of}input_norm"), of)
        q = rotated(q, rotation)
        new = self.kept(rotated(k, rotation)), self.kept(v)
        keys, values = (ops.concat(pair, 2) for pair in zip(kept, new, strict=True))
        mixed = self._attention(q, keys, values, mask)
        x = ops.add(x, self.product(mixed, f"{of}o"))
        both = self.product(self.norm(x, f"{of}ffn_norm"), f"{of}gate_up")
        gate, up = ops.split(both, ops.constant(np.int64(-1)), 2).outputs()
        return ops.add(x, self.product(ops.multiply(ops.swish(gate), up), f"{of}down")), new

    def _project(self, normed: Value, of: str) -> tuple[Value, Value, Value]:
        """Unrotated q (B, H, N, D), k and v (B, G, N, D)."""
        config = self.config
        counts = config.num_heads, config.num_kv_heads, config.num_kv_heads
        qkv = self.biased(normed, f"{of}qkv")
        heads = ops.reshape(qkv, integers(0, 0, sum(counts), config.head_dim), True)
        by_head = ops.transpose(heads, integers(0, 2, 1, 3))
        split = ops.variadic_split(by_head, ops.constant(np.int64(1)), integers(*counts))
        q, k, v = split.outputs()
        if config.qk_norm:
            q, k = self.norm(q, f"{of}q_norm"), self.norm(k, f"{of}k_norm")
        return q, k, v

    def _attention(self, q: Value, keys: Value, values: Value, mask: Value) -> Value:
        """(B, N, H·D); heads that share keys are rows of one product."""
        config = self.config
        groups, dim = config.num_kv_heads, config.head_dim
        scaled = ops.multiply(q, _number(dim**-0.5))
        queries = self.kept(ops.reshape(scaled, integers(0, groups, -1, dim), True))
        scores = self._exact(ops.matmul(queries, keys, False, True))
        # (B, G, R·N, T) and (B, G, R, N, T): the mask is the same for all R.
        shared = config.num_heads // groups
        rows, columns = (ops.gather(ops.shape_of(mask), integers(i), integers(0)) for i in (3, 4))
        apart = ops.concat([integers(0, groups, shared), rows, columns], 0)
        masked = ops.add(ops.reshape(scores, apart, True), mask)
        together = ops.concat([integers(0, groups, -1), columns], 0)
        share = self.kept(ops.reshape(ops.softmax(masked, -1), together, True))
        mixed = self._exact(ops.matmul(share, values, False, False))
        by_head = ops.reshape(mixed, integers(0, config.num_heads, -1, dim), True)
        by_row = ops.transpose(by_head, integers(0, 2, 1, 3))
        return ops.reshape(by_row, integers(0, 0, config.num_heads * dim), True)

    def kept(self, x: Value) -> Value:
        """As keys and values are kept."""
        return x if self._kv_type == F32 else ops.convert(x, self._kv_type)

    def _exact(self, x: Value) -> Value:
        return x if self._kv_type == F32 else ops.convert(x, F32)


def rotated(x: Value, rotation: Items[Value]) -> Value:
    """See `model.transformer.rotate`."""
    cos, sin = rotation
    first, second = ops.split(x, ops.constant(np.int64(-1)), 2).outputs()
    turned = ops.concat([ops.negative(second), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def _constant(array: Array) -> Value:
    """A view of the file, not a copy; the graph must not outlive it."""
    return ops.constant(array, shared_memory=True)


def _number(value: float) -> Value:
    return ops.constant(np.float32(value))


def integers(*values: int) -> Value:
    """A vector of constants."""
    return ops.constant(np.array(values, dtype=np.int64))


def graph_input(kind: openvino.Type, *shape: int) -> Value:
    """An input; -1: any size."""
    return ops.parameter(openvino.PartialShape(list(shape)), kind)
