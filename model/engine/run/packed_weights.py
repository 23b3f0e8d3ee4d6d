"""A backbone's weights as the CPU runs them, in one file kept beside the download.

Matrices are int8 rows with a scale each; products that read the same input are one matrix. The file
is a safetensors file, memory-mapped: what a graph is built from is not read twice, and the rows of
the embedding are looked up in it. It is made once, and again whenever it is not what it should be.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors.numpy import save_file
from torch import Tensor

from model.transformer import Layer, Transformer, TransformerConfig

FORMAT = "mezzotint backbone int8 1"
FILE = "int8.safetensors"
Array = npt.NDArray[Any]
Progress = Callable[[float], None]
"""Told the part that is done, 0 to 1."""

_SAME = 0.9
"""Cosine from which the head's rows serve as the embedding too; see `model.backbone.gguf_model`."""
_ROWS_AT_ONCE = 512
"""Of a matrix: so few stay in a core's cache from the first operation to the last."""
_KINDS = {"I8": np.int8, "F32": np.float32}


class PackedError(Exception):
    """A packed file is not there, or not what it should be."""


class Arrays:
    """Arrays by name: norms, and matrices, perhaps in int8 with the scales of their rows."""

    def __init__(self, config: TransformerConfig, arrays: dict[str, Array]) -> None:
        self.config, self._arrays = config, arrays

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def array(self, name: str) -> Array:
        """One that is there, not a copy."""
        return self._arrays[name]

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """(…) -> (…, E) float32: rows of a matrix."""
        rows = self._arrays[name][ids.numpy()].astype(np.float32)
        if scale_of(name) in self:
            rows *= self._arrays[scale_of(name)][ids.numpy()]
        return torch.from_numpy(rows)


class PackedWeights(Arrays):
    """A packed file, mapped into memory."""

    def __init__(self, path: Path, digest: str | None = None) -> None:
        """Raises `PackedError` unless it is whole, of this format and, where a digest is given,
        made of the checkpoint that has it."""
        try:
            with path.open("rb") as file:
                # Private, since OpenVINO wants memory that it could write.
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            (size,) = struct.unpack_from("<Q", self._content)
            header = json.loads(self._content[8 : 8 + size])
            stamp = header.pop("__metadata__")
            if stamp["format"] != FORMAT or stamp["digest"] != (digest or stamp["digest"]):
                raise PackedError(f"{path} was made of other weights, or by another release")
            super().__init__(
                TransformerConfig(**json.loads(stamp["config"])),
                {name: self._array(8 + size, entry) for name, entry in header.items()},
            )
        except PackedError:
            raise
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise PackedError(f"{path} cannot be read: {error}") from error
        missing = sorted(_names(self.config) - self._arrays.keys())
        if missing:
            raise PackedError(f"{path} lacks {missing[0]}")

    def _array(self, start: int, entry: dict[str, Any]) -> Array:
        first, end = entry["data_offsets"]
        kind, shape = np.dtype(_KINDS[entry["dtype"]]), entry["shape"]
        if end - first != int(np.prod(shape)) * kind.itemsize:
            raise ValueError("sizes that contradict each other")
        return np.frombuffer(self._content, kind, int(np.prod(shape)), start + first).reshape(shape)

    def embedded(self, ids: Tensor) -> Tensor:
        """(…) -> (…, E) float32: rows of the embedding."""
        return self.rows("embedding" if "embedding" in self else "head", ids)

    def head_rows(self, ids_V: Tensor) -> Tensor:
        """(V,) -> (V, E) float32: rows of the head."""
        return self.rows("head", ids_V)

    def forget_pages(self) -> None:
        """Give back the memory of what has been read of the file; the next look reads it anew."""
        if hasattr(self._content, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._content.madvise(mmap.MADV_DONTNEED)


def scale_of(name: str) -> str:
    """The tensor with the scales (O, 1) of a matrix's rows; a matrix without one is float32."""
    return f"{name}.scale"


def open_packed(
    folder: Path,
    digest: str,
    load: Callable[[], Transformer],
    progress: Progress = lambda _: None,
) -> PackedWeights:
    """The packed file in a folder, made first if need be. Raises `OSError` where it cannot be
    written, and whatever `load` raises; two processes at once make it once."""
    path = folder / FILE
    try:
        return PackedWeights(path, digest)
    except PackedError:
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        try:
            return PackedWeights(path, digest)  # the other process has made it
        except PackedError:
            pack(load(), path, digest, progress)
    return PackedWeights(path, digest)


def pack(
    model: Transformer,
    path: Path,
    digest: str,
    progress: Progress = lambda _: None,
    *,
    keeps_float: bool = False,
) -> None:
    """Write a backbone's weights, moved into place at once. `keeps_float`: matrices as they are.
    Raises `OSError`."""
    tensors = dict[str, Array]()
    parts = _parts(model)
    for done, (name, weights) in enumerate(parts.items()):
        tensors |= stored_as(name, weights, keeps_float=keeps_float)
        progress((done + 1) / (len(parts) + 1))
    stamp = {"format": FORMAT, "digest": digest, "config": json.dumps(asdict(model.config))}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=stamp)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    progress(1.0)


def packed_folder(weights: Path, digest: str) -> Path:
    """Where what is made of a checkpoint is kept: beside it, or, where nobody may write there, in
    the user's cache."""
    beside = weights.with_name(f"{weights.name}.packed")
    if beside.is_dir() or os.access(weights.parent, os.W_OK):
        return beside
    return user_cache_path("mezzotint") / "packed" / digest


def stored_as(name: str, weights: list[Tensor], *, keeps_float: bool = False) -> dict[str, Array]:
    """What a product or norm becomes: matrices, one below the other, int8 and their rows' scales
    unless `keeps_float`."""
    if weights[0].dim() == 1 or keeps_float:
        return {name: torch.cat(weights).detach().float().contiguous().numpy()}
    rows, scales = _int8(weights)
    return {name: rows, scale_of(name): scales}


def _int8(weights: list[Tensor]) -> tuple[Array, Array]:
    """Rows of -127 to 127 of matrices below each other, and what each is to be multiplied by,
    (O, 1)."""
    rows, scales = list[Tensor](), list[Tensor]()
    for weight in weights:
        for piece in weight.detach().split(_ROWS_AT_ONCE):
            exact = piece.float()
            scale = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            rows.append((exact / scale).round_().to(torch.int8))
            scales.append(scale)
    return torch.cat(rows).numpy(), torch.cat(scales).numpy()


def _parts(model: Transformer) -> dict[str, list[Tensor]]:
    """What is stored, and of which parameters it is made, one below the other."""
    parts: dict[str, list[Tensor]] = {"final_norm": [model.final_norm.weight]}
    for index, layer in enumerate(model.layers):
        parts |= layer_parts(layer, f"layers.{index}.", model.config)
    parts["head"] = [model.head.weight]
    if not _are_one(model.embedding.weight, model.head.weight):
        parts["embedding"] = [model.embedding.weight]
    return parts


def layer_parts(layer: Layer, of: str, config: TransformerConfig) -> dict[str, list[Tensor]]:
    """The same of one layer, each name beginning with `of`."""
    qkv = (layer.q_proj, layer.k_proj, layer.v_proj)
    parts: dict[str, list[Tensor]] = {
        f"{of}input_norm": [layer.input_norm.weight],
        f"{of}qkv": [each.weight for each in qkv],
        f"{of}o": [layer.o_proj.weight],
        f"{of}ffn_norm": [layer.ffn_norm.weight],
        f"{of}gate_up": [layer.gate_proj.weight, layer.up_proj.weight],
        f"{of}down": [layer.down_proj.weight],
    }
    if config.qkv_bias:
        parts[f"{of}qkv_bias"] = [each.bias for each in qkv]
    if config.qk_norm:
        parts[f"{of}q_norm"] = [layer.q_norm.get_parameter("weight")]
        parts[f"{of}k_norm"] = [layer.k_norm.get_parameter("weight")]
    return parts


def _names(config: TransformerConfig) -> set[str]:
    """What a packed file of a model holds at least."""
    layer = ["input_norm", "qkv", "o", "ffn_norm", "gate_up", "down"]
    layer += ["qkv_bias"] * config.qkv_bias + ["q_norm", "k_norm"] * config.qk_norm
    layers = range(config.num_layers)
    return {"final_norm", "head", *(f"layers.{i}.{name}" for i in layers for name in layer)}


def _are_one(embedding: Tensor, head: Tensor) -> bool:
    """Whether they are the same matrix, perhaps stored in two precisions."""
    if embedding is head:
        return True
    step = max(1, len(head) // 256)
    rows = (each[::step].float().flatten() for each in (embedding, head))
    return F.cosine_similarity(*rows, dim=0).item() > _SAME
