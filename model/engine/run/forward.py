"""What computes the backbone, and a denoiser beside it, on a device: new rows against kept keys
and values.

The engine's runner keeps the pages and gathers them; a `Forward` knows nothing of requests.

Shape letters: B batch rows, N new tokens a row, P tokens kept from before, E hidden size, G
key/value heads, D head dimension, V vocabulary, M hidden states that want logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser, WordTable
from model.transformer import TransformerConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward says of the tokens that ran."""

    hidden: Tensor
    """(B, N, E), behind the final norm: what `Forward.logits` reads."""
    kv: Tensor
    """(num_kv_layers, 2, B, G, N, D): keys, rotated, and values of these tokens. Layers beyond the
    backbone's own are zero: whoever keeps something there fills them in."""
    taps: Tensor | None
    """(B, N, T·E): hidden states behind T of the layers, each normalised to a root mean square of
    1, side by side; None where none are asked for."""


class Forward(WordTable, Protocol):
    """The backbone on a device. Calls come from one thread at a time."""

    config: TransformerConfig
    device: torch.device
    """Where it computes, and where what it is given lies."""
    num_kv_layers: int
    """Layers that `past` and `Rows.kv` have: the backbone's first, then a denoiser's, if any."""
    kv_dtype: torch.dtype
    """Of `past` and `Rows.kv`, on the device that `rows` runs on."""
    runtime: str
    """What computes, for people: "OpenVINO 2026.4, int8"."""
    problems: list[str]
    """What was tried and fails here, a sentence each."""
    costs: dict[int, float]
    """Milliseconds of a forward by its number of rows, measured here; empty if nobody measured."""

    def rows(
        self, ids_BN: Tensor, positions_BN: Tensor, past: Tensor | None, visible_BNT: Tensor
    ) -> Rows:
        """Run new tokens.

        `past` (num_kv_layers, 2, B, G, P, D), contiguous, or None for P = 0. `visible` (B, N,
        P + N) bool: what each token sees, the kept ones and then the new ones; a padding row sees
        itself at least. What is returned stays valid when `rows` is called again.
        """
        ...

    def logits(self, hidden_ME: Tensor) -> Tensor:
        """(M, E) -> (M, V) float32, each at its own position: of the token after it."""
        ...

    def beside(self, denoiser: Denoiser) -> DenoiserForward:
        """A denoiser as it runs beside this backbone; it lies on the same device."""
        ...


class DenoiserForward(Protocol):
    """A denoiser on the device of its backbone; `Denoiser` itself is one, and says what its
    methods do."""

    config: DenoiserConfig
    draft_ids: Tensor
    """(V,) tokens that `logits` are of."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the context's keys and values."""
        ...

    def context(self, taps_BNF: Tensor, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (layers, 2, B, G, N, D), and features (B, N, E)."""
        ...

    def end_logits(self, taps_BNF: Tensor) -> Tensor:
        """(B, N) float32."""
        ...

    def canvas(
        self,
        ids_BC: Tensor,
        known_BC: Tensor,
        positions_BC: Tensor,
        anchor_feature_BE: Tensor,
        past: Tensor,
        visible_BP: Tensor,
    ) -> Tensor:
        """(B, C, E)."""
        ...

    def canvas_end_logits(self, hidden_BCE: Tensor) -> Tensor:
        """(B,) float32."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, E) -> (…, V)."""
        ...

    def follow(self, hidden: Tensor, previous_ids: Tensor) -> Tensor:
        """(…, E) -> (…, E)."""
        ...

    def some_logits(self, hidden_BE: Tensor, places_BK: Tensor) -> Tensor:
        """(B, K)."""
        ...
