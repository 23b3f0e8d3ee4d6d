"""The plain path of the kernels against the model's own attention and the sampler's arithmetic."""

from __future__ import annotations

import torch

from model.attention import KeyValue, canvas_attention
from model.engine.kernels.reference import PagedStreams, head, paged_attention


def test_paged_streams_give_the_attention_of_the_same_streams_laid_out_plainly() -> None:
    torch.manual_seed(1)
    q = torch.randn(2, 1, 4, 5, 16)
    keys, values = torch.randn(2, 7, 2, 16, 16)
    pages = torch.tensor([[[4, 1, 6]], [[4, 3, 0]]], dtype=torch.int32)
    lengths = torch.tensor([[37], [20]], dtype=torch.int32)

    def plain(role: int) -> KeyValue:
        first, second = (pool[pages[role, 0].long()].transpose(0, 1).flatten(1, 2)
                         for pool in (keys, values))  # fmt: skip
        length = int(lengths[role, 0])
        return first[None, :, :length], second[None, :, :length]

    own_keys, own_values = torch.randn(2, 1, 2, 5, 16)
    found = paged_attention(
        q,
        (keys, values),
        PagedStreams(pages, lengths),
        (own_keys, own_values),
        torch.tensor([3], dtype=torch.int32),
    )
    canvas = (own_keys[:, :, :3], own_values[:, :, :3])
    expected = canvas_attention(
        q[0, :, :, :3], q[1, :, :, :3], plain(0), plain(1), canvas, None, None, None, 3
    )
    torch.testing.assert_close(found[:, :, :3], expected)


def test_beliefs_are_those_of_the_softmax_over_what_is_allowed() -> None:
    hidden, weight = torch.eye(3), torch.randn(5, 3)
    forbidden = torch.tensor([False, True, False, False, False])
    no_end = torch.tensor([False, True, False])
    beliefs = head(hidden, weight, torch.tensor([True, True, False]), no_end, forbidden, end_id=4)
    for row, allowed in [(0, [0, 2, 3, 4]), (1, [0, 2, 3])]:
        probabilities = weight[allowed, row].softmax(0)
        assert beliefs.tokens[row] == allowed[int(probabilities.argmax())]
        torch.testing.assert_close(beliefs.confidence[row], probabilities.max())
        entropy = -(probabilities * probabilities.log()).sum()
        torch.testing.assert_close(beliefs.entropy[row], entropy)
    assert (beliefs.tokens[2], beliefs.confidence[2], beliefs.entropy[2]) == (0, 0, 0)
