"""The one place that says how the open families lay out the text around a hole.

    full attention:   [BOS] prefix [MASK]*n suffix [EOS]         [BOS] text [MASK]*n
    block-causal:     [BOS] <fim_prefix> prefix <fim_suffix> suffix <fim_middle> [MASK]*n
                                                                  [BOS] text [MASK]*n

Where nothing follows the hole, a full-attention model writes its own end, so none is given (but to
DreamOn, whose holes always lie between texts). A block-causal model never looks ahead, so what
follows the hole has to come first, in the order and with the tokens its base model learned for
that; where the tokenizer has none, the suffix is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.families.tokenizer import OpenTokenizer
from model.transformer import TransformerConfig


@dataclass(frozen=True, slots=True)
class OpenLayout:
    """The streams around a hole, and what becomes of them in front of the model."""

    config: TransformerConfig
    tokenizer: OpenTokenizer

    @property
    def sees_suffix(self) -> bool:
        """Whether the text after a hole has a place at all."""
        return self.config.attention == "full" or self.tokenizer.fill_in_the_middle is not None

    def prefix_stream(self, ids: Sequence[int]) -> list[int]:
        """The stream of the tokens before the hole, which begins with one token that stays when it
        is shortened. A text that starts with a special token, as rendered chat templates do, has
        its own beginning."""
        starts = bool(ids) and ids[0] in self.tokenizer.special_ids
        bos_id = self.tokenizer.bos_id if self.config.adds_bos and not starts else None
        return [self.tokenizer.no_token_id if bos_id is None else bos_id, *ids]

    def suffix_stream(self, ids: Sequence[int]) -> list[int]:
        """The stream of the tokens after the hole, the nearest last, likewise."""
        follows = bool(ids) or self.tokenizer.expand_id is not None
        eos_id = self.tokenizer.eos_id if self.config.adds_eos and follows else None
        return [self.tokenizer.no_token_id if eos_id is None else eos_id, *reversed(ids)]

    def around(
        self, prefix: Sequence[int], suffix: Sequence[int], num_committed: int
    ) -> tuple[list[int], list[int]]:
        """What the model reads before and after a canvas between two streams.

        The last `num_committed` tokens of `prefix` belong to the hole: canvases before this one.
        """
        after = self._tokens(suffix[::-1])
        if self.config.attention == "full":
            return self._tokens(prefix), after
        split = len(prefix) - num_committed
        edge, before = self._tokens(prefix[:1]), self._tokens(prefix[1:split])
        fim = self.tokenizer.fill_in_the_middle
        if fim is None or not after:
            return [*edge, *before, *prefix[split:]], []
        parts = [[fim.prefix, *before], [fim.suffix, *after]]
        if fim.order == "suffix-prefix":
            parts.reverse()
        return [*edge, *parts[0], *parts[1], fim.middle, *prefix[split:]], []

    def slots_to_edge(self, prefix: Sequence[int], suffix: Sequence[int], committed: int) -> int:
        """Slots of a canvas that ends where the block ends that it begins in; block-causal only."""
        left, _ = self.around(prefix, suffix, committed)
        return self.config.block_size - len(left) % self.config.block_size

    def _tokens(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i != self.tokenizer.no_token_id]
