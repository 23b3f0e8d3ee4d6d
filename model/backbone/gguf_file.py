"""A GGUF file: its metadata and, one by one, its tensors as they are or dequantised.

The `gguf` package knows the kinds of blocks. Its reader wraps every string of a vocabulary in an
array, 10 s for one of 150,000 tokens; the header is read here, in a fraction of one.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, dequantize
from torch import Tensor

from model.api import CheckpointError

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_LONGEST = 1 << 28
"""Bytes of a string, or entries of a list, that no sound header exceeds."""
_AT_ONCE = 1 << 20
"""Values that one thread dequantises at a time; `gguf` takes a sixteenth of them a step."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a file, and how its values are written."""

    shape: tuple[int, ...]
    """As in torch: the values of the last dimension lie side by side."""
    kind: GGMLQuantizationType
    start: int
    """First byte in the file."""
    num_bytes: int


class GgufFile:
    """An open GGUF file, mapped into memory. Raises `CheckpointError` unless it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CheckpointError(f"{path} cannot be read as a GGUF file: {error}") from error
        header = _Header(path, memoryview(self._content))
        self.metadata: dict[str, Any] = header.metadata
        self.tensors: dict[str, StoredTensor] = header.tensors

    def tensor(
        self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A tensor's values, dequantised in float32 and then rounded to `dtype`.

        Raises `CheckpointError` for a kind that `gguf` does not dequantise.
        """
        stored = self.tensors[name]
        found = torch.empty(math.prod(stored.shape), dtype=dtype, device=device)
        spans = list(_spans(stored))

        def fill(span: tuple[int, int]) -> None:
            found[slice(*span)] = self._values(name, stored, *span).to(device, dtype)

        if len(spans) == 1:
            fill(spans[0])
        else:
            with ThreadPoolExecutor(min(len(spans), os.cpu_count() or 1)) as threads:
                list(threads.map(fill, spans))
        return found.view(stored.shape)

    def rows(self, name: str, step: int) -> Tensor:
        """Every `step`-th row of a matrix, in float32, without dequantising the others."""
        stored = self.tensors[name]
        num_rows, width = stored.shape
        picked = [
            self._values(name, stored, row * width, (row + 1) * width)
            for row in range(0, num_rows, step)
        ]
        return torch.stack(picked)

    def _values(self, name: str, stored: StoredTensor, first: int, last: int) -> Tensor:
        """Values first..last-1 in float32; both are borders of blocks."""
        block, size = GGML_QUANT_SIZES[stored.kind]
        blocks = (last - first) // block
        raw = np.frombuffer(
            self._content, np.uint8, blocks * size, stored.start + first // block * size
        )
        groups = raw.reshape(math.gcd(blocks, 16), -1)
        try:
            with np.errstate(all="ignore"):  # a damaged scale is found below
                found = dequantize(_typed(groups, stored.kind), stored.kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name} is stored as {stored.kind.name}, which cannot be "
                "dequantised; take another quantisation of this model, Q4_K_M say"
            ) from error
        values = torch.from_numpy(np.array(found, dtype=np.float32).ravel())
        if not math.isfinite(values.sum().item()):
            raise CheckpointError(
                f"{self.path} is damaged: tensor {name} holds what is no number; download it again"
            )
        return values


def _typed(raw: npt.NDArray[np.uint8], kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    return raw.view(plain[kind]) if kind in plain else raw


def _spans(stored: StoredTensor) -> Iterator[tuple[int, int]]:
    """Pieces of a tensor that are dequantised on their own: whole blocks each."""
    total = math.prod(stored.shape)
    block, _ = GGML_QUANT_SIZES[stored.kind]
    step = _AT_ONCE // block * block
    for first in range(0, total, step):
        yield first, min(total, first + step)


class _Header:
    """Reads what stands before the tensors."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self._path, self._content, self._at = path, content, 0
        if bytes(content[:4]) != MAGIC:
            raise CheckpointError(
                f"{path} is not a GGUF file: it begins with {bytes(content[:4])!r}, not {MAGIC!r}"
            )
        self._at = 4
        version = self._scalar("<I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{path} is a GGUF file of version {version}; versions 2 and 3 are read, in the "
                "byte order of usual processors"
            )
        num_tensors, num_entries = self._scalar("<Q"), self._scalar("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(self._sane(num_entries)):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        if (parts := self._number("split.count", 1)) > 1:
            raise CheckpointError(
                f"{path} is one of {parts} parts of a model; join them with `llama-gguf-split "
                "--merge`, or take a model in one file"
            )
        listed = [self._tensor() for _ in range(self._sane(num_tensors))]
        alignment = self._number("general.alignment", 32)
        data = -(-self._at // alignment) * alignment
        self.tensors = {
            name: self._placed(name, shape, number, data + offset)
            for name, shape, number, offset in listed
        }

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        shape = tuple(self._scalar("<Q") for _ in range(self._sane(self._scalar("<I"), 8)))
        return name, shape[::-1], self._scalar("<I"), self._scalar("<Q")

    def _number(self, key: str, default: int) -> int:
        found = self.metadata.get(key, default)
        if not isinstance(found, int) or found < 1:
            self._damaged(f"{key} is {found!r}, not a whole number above 0")
        return found

    def _placed(self, name: str, shape: tuple[int, ...], number: int, start: int) -> StoredTensor:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise CheckpointError(
                f"{self._path}: tensor {name} is stored as type {number}, which the installed gguf "
                "package does not know; update it, or take another quantisation of this model"
            ) from error
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            self._damaged(f"tensor {name} has rows of {shape[-1]} values in blocks of {block}")
        stored = StoredTensor(shape, kind, start, math.prod(shape) // block * size)
        if stored.start + stored.num_bytes > len(self._content):
            raise CheckpointError(
                f"{self._path} is cut short: tensor {name} ends at byte "
                f"{stored.start + stored.num_bytes}, the file at {len(self._content)}; "
                "download it again"
            )
        return stored

    def _value(self, number: int) -> Any:
        try:
            kind = GGUFValueType(number)
        except ValueError:
            self._damaged(f"its header has a value of type {number}")
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is not GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, length = self._scalar("<I"), self._sane(self._scalar("<Q"))
        if inner in _SCALARS:
            code = _SCALARS[GGUFValueType(inner)]
            return list(struct.unpack(f"<{length}{code[1]}", self._take(length * _size(code))))
        if inner != GGUFValueType.STRING:
            self._damaged(f"its header has a list of values of type {inner}")
        return [self._string() for _ in range(length)]

    def _string(self) -> str:
        raw = self._take(self._sane(self._scalar("<Q")))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self._damaged(f"its header holds {bytes(raw[:20])!r} where a text should be")

    def _scalar(self, code: str) -> Any:
        return struct.unpack(code, self._take(_size(code)))[0]

    def _take(self, num_bytes: int) -> memoryview:
        start, self._at = self._at, self._at + num_bytes
        if self._at > len(self._content):
            raise CheckpointError(
                f"{self._path} is cut short: it ends within its header, at byte "
                f"{len(self._content)}; download it again"
            )
        return self._content[start : self._at]

    def _sane(self, number: int, most: int = _LONGEST) -> int:
        if number > most:
            self._damaged(f"its header has a length of {number}")
        return number

    def _damaged(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._path} is damaged: {what}; download it again")


def _size(code: str) -> int:
    return struct.calcsize(code)
