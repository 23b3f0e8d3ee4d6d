from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model.engine.canvas.layout import CanvasLayout
from model.engine.canvas.sequence import CanvasFill as CanvasFill
from model.engine.canvas.sequence import CanvasParams
from model.engine.canvas.sequence import CanvasSequence as CanvasSequence
from model.engine.run.joint_runner import IDLE_CONTEXTS, ContextCache, JointRunner
from model.families.layout import OpenLayout
from model.families.tokenizer import FillInTheMiddle
from model.transformer import Transformer, TransformerConfig, visibility

VOCAB, MASK, EOS = 40, 39, 38
FULL = TransformerConfig(
    model_type="Dream",
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    max_positions=400,
    rope_theta=1e4,
    norm_eps=1e-6,
    is_tied=False,
    shifts_logits=True,
)
CONFIGS = {
    "shifted": FULL,
    "unshifted": replace(FULL, shifts_logits=False),
    "blocks": replace(FULL, shifts_logits=False, attention="block-causal", block_size=4),
}


class FakeTokenizer:
    """The ids that a layout asks for."""

    no_token_id, vocab_size, bos_id, eos_id, expand_id = VOCAB, VOCAB + 1, None, EOS, None
    end_id, turn_end_ids = EOS, ()
    special_ids = frozenset(range(35, VOCAB + 1))
    fill_in_the_middle = FillInTheMiddle(35, 36, 37, "prefix-suffix")


def runner_of(config: TransformerConfig, cache: ContextCache = "none") -> JointRunner:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Transformer(config).double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.register_rotation("cpu")
    layout = OpenLayout(config, FakeTokenizer())  # type: ignore[arg-type]
    return JointRunner(model.requires_grad_(False).eval(), layout, cache=cache)


def sequence_of(
    runner: JointRunner, prefix: list[int], suffix: list[int], length: int | None = None
) -> CanvasSequence:
    layout = runner.layout
    blocks = runner.model.config.attention == "block-causal"

    def to_edge(s: CanvasSequence) -> int:
        return layout.slots_to_edge(s.prefix, s.suffix, len(s.committed))

    fill = CanvasFill(
        prefix=layout.prefix_stream(prefix),
        suffix=layout.suffix_stream(suffix),
        layout=CanvasLayout((16,)),
        canvas_slots=to_edge if blocks else lambda _: 128,
    )
    params = CanvasParams(length=length)
    end_id = EOS if length is None else VOCAB
    return CanvasSequence.of(
        fill, params, mask_id=MASK, end_id=end_id, max_context=runner.max_context
    )


def alone(runner: JointRunner, ids: list[int]) -> Tensor:
    """Logits (L, V) of one whole text, nothing cached and nothing padded."""
    row, positions = torch.tensor([ids]), torch.arange(len(ids))[None]
    visible = visibility(runner.model.config, positions, torch.ones_like(row, dtype=torch.bool))
    return runner.model.logits(runner.model.hidden(row, positions, visible)[0])[0]


@pytest.mark.parametrize("kind", ["shifted", "unshifted"])
def test_a_canvas_is_read_between_prefix_and_suffix_by_the_familys_shift(kind: str) -> None:
    runner = runner_of(CONFIGS[kind])
    sequence = sequence_of(runner, [1, 2, 3], [4, 5], length=3)
    logits = runner.denoise([sequence])
    assert logits.shape == (1, 3, VOCAB + 1)
    expected = alone(runner, [1, 2, 3, MASK, MASK, MASK, 4, 5])
    first = 2 if kind == "shifted" else 3
    torch.testing.assert_close(logits[0, :3, :VOCAB], expected[first : first + 3])
    assert logits[..., VOCAB].eq(float("-inf")).all()


def test_what_ends_an_answer_counts_as_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(CONFIGS["unshifted"])
    sequence = sequence_of(runner, [1, 2, 3], [], length=2)
    plain = runner.denoise([sequence])
    monkeypatch.setattr(FakeTokenizer, "turn_end_ids", (36, 37))
    folded = runner.denoise([sequence])
    expected = plain[..., [EOS, 36, 37]].exp().sum(dim=-1).log()
    torch.testing.assert_close(folded[..., EOS], expected)
    others = [i for i in range(VOCAB) if i != EOS]
    assert folded[..., others].equal(plain[..., others])
    monkeypatch.setattr(FakeTokenizer, "end_id", VOCAB)  # DreamOn's, whose EOS deletes
    assert runner.denoise([sequence]).equal(plain)


def test_without_a_prefix_the_first_slot_of_a_shifted_model_predicts_itself() -> None:
    runner = runner_of(FULL)
    logits = runner.denoise([sequence_of(runner, [], [4, 5], length=2)])
    expected = alone(runner, [MASK, MASK, 4, 5])
    torch.testing.assert_close(logits[0, :2, :VOCAB], expected[[0, 0]])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_batch_of_all_sizes_is_computed_as_each_alone(kind: str) -> None:
    runner = runner_of(CONFIGS[kind])
    blocks = kind == "blocks"
    batch = [
        sequence_of(runner, [1, 2, 3], [4, 5], None if blocks else 3),
        sequence_of(runner, [7] * 21, [8] * 5, None if blocks else 20),
        sequence_of(runner, [], [], None if blocks else 1),
    ]
    together = runner.denoise(batch)
    for row, sequence in enumerate(batch):
        runner.close_context(sequence)
        separately = runner.denoise([sequence])[0]
        size = len(sequence.canvas)
        torch.testing.assert_close(together[row, :size], separately[:size])


def decide(sequence: CanvasSequence, token: int) -> None:
    slot = sequence.canvas.index(MASK)
    sequence.canvas[slot] = token


def test_dual_is_exact_in_a_canvass_first_step_and_an_approximation_afterwards() -> None:
    exact, dual = runner_of(FULL), runner_of(FULL, "dual")
    ours = sequence_of(exact, [1, 2, 3], [4, 5, 6], length=4)
    theirs = sequence_of(dual, [1, 2, 3], [4, 5, 6], length=4)
    torch.testing.assert_close(dual.denoise([theirs])[:, :4], exact.denoise([ours])[:, :4])
    assert dual.cache_bytes > 0
    for sequence in (ours, theirs):
        decide(sequence, 9)
    approximate, true = dual.denoise([theirs])[:, :4, :VOCAB], exact.denoise([ours])[:, :4, :VOCAB]
    error = (approximate - true).abs().max()
    assert 1e-6 < error < true.std() * 3
    dual.close_context(theirs)
    torch.testing.assert_close(dual.denoise([theirs])[:, :4, :VOCAB], true)
    dual.close_context(theirs)
    assert dual.cache_bytes == 0
    dual.check_integrity()


def test_dual_computes_what_its_definition_says() -> None:
    """The canvas, and the place that predicts its first slot, against what is frozen around."""
    dual = runner_of(FULL, "dual")
    prefix, suffix = [1, 2, 3], [4, 5, 6]
    sequence = sequence_of(dual, prefix, suffix, length=4)
    dual.denoise([sequence])
    decide(sequence, 9)
    model = dual.model
    row = torch.tensor([[*prefix, *[MASK] * 4, *suffix]])
    _, caches = model.hidden(row, torch.arange(10)[None], None)
    outside = [0, 1, 7, 8, 9]
    past = [(k[:, :, outside], v[:, :, outside]) for k, v in caches]
    inside = torch.tensor([[3, 9, MASK, MASK, MASK]])
    hidden, _ = model.hidden(inside, torch.arange(2, 7)[None], None, past)
    expected = model.logits(hidden)[0, :4]
    torch.testing.assert_close(dual.denoise([sequence])[0, :4, :VOCAB], expected)


def test_dual_freezes_anew_when_a_canvas_changes_its_length() -> None:
    dual = runner_of(FULL, "dual")
    sequence = sequence_of(dual, [1, 2, 3], [4, 5, 6], length=4)
    dual.denoise([sequence])
    del sequence.canvas[3]
    expected = alone(dual, [1, 2, 3, MASK, MASK, MASK, 4, 5, 6])
    torch.testing.assert_close(dual.denoise([sequence])[0, :3, :VOCAB], expected[2:5])


def test_block_causal_caching_is_exact_over_steps_and_canvases() -> None:
    runner = runner_of(CONFIGS["blocks"])
    sequence = sequence_of(runner, [1, 2, 3, 1, 2], [4, 5])
    runs: list[int] = []
    for step in range(9):
        logits = runner.denoise([sequence])
        left, right = runner.layout.around(
            sequence.prefix, sequence.suffix, len(sequence.committed)
        )
        assert right == []
        size = len(sequence.canvas)
        expected = alone(runner, left + sequence.canvas)[len(left) :]
        torch.testing.assert_close(logits[0, :size, :VOCAB], expected)
        assert (len(left) + size) % 4 == 0
        runs.append(sequence.fill.encoded_tokens)
        decide(sequence, 10 + step)
        if MASK not in sequence.canvas:
            assert sequence.go_on(mask_id=MASK, end_id=EOS, max_context=runner.max_context)
    # A step reads no more of the context than a block that was decided since.
    assert max(b - a for a, b in pairwise(runs)) <= 4


def test_a_request_runs_only_the_blocks_that_no_earlier_one_began_with() -> None:
    """Typing appends to the prefix, which is what block-causal contexts can reuse, exactly."""
    runner = runner_of(CONFIGS["blocks"])
    text = list(range(1, 25))
    for typed in range(6):
        sequence = sequence_of(runner, text[: 18 + typed], [])
        logits = runner.denoise([sequence])
        left, _ = runner.layout.around(sequence.prefix, sequence.suffix, 0)
        size = len(sequence.canvas)
        expected = alone(runner, left + sequence.canvas)[len(left) :]
        torch.testing.assert_close(logits[0, :size, :VOCAB], expected)
        if typed:  # the tokens around the prefix move with its end, two of them and a block
            assert sequence.fill.encoded_tokens <= 8
        runner.close_context(sequence)
    runner.check_integrity()


def test_candidates_of_one_request_share_what_one_of_them_has_run() -> None:
    runner = runner_of(CONFIGS["blocks"])
    first, second = (sequence_of(runner, [1] * 20, [4, 5]) for _ in range(2))
    runner.denoise([first])
    assert runner.denoise([second]).equal(runner.denoise([first]))
    assert first.fill.encoded_tokens > 20
    assert second.fill.encoded_tokens < 4


def test_few_contexts_are_kept_and_none_that_another_begins_with() -> None:
    runner = runner_of(CONFIGS["blocks"])
    for start in (1, 2, 3, 4, 5, 5):
        sequence = sequence_of(runner, [start] * 20, [4, 5])
        runner.denoise([sequence])
        runner.close_context(sequence)
    one_context = runner.cache_bytes // IDLE_CONTEXTS
    longer = sequence_of(runner, [5] * 20, [4, 5])
    runner.denoise([longer])
    runner.close_context(longer)
    assert runner.cache_bytes == IDLE_CONTEXTS * one_context
    runner.drop_cache()
    assert runner.cache_bytes == 0


def test_when_memory_runs_out_the_idle_contexts_go(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(CONFIGS["blocks"])
    sequence = sequence_of(runner, [1] * 20, [4, 5])
    runner.denoise([sequence])
    runner.close_context(sequence)
    assert runner.cache_bytes > 0
    monkeypatch.setattr(runner.model, "hidden", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        runner.denoise([sequence])
    assert runner.cache_bytes == 0


def test_a_damaged_book_is_noticed() -> None:
    runner = runner_of(CONFIGS["blocks"])
    runner.denoise([sequence_of(runner, [1] * 20, [4, 5])])
    with pytest.raises(AssertionError):
        runner.check_integrity()


def test_a_model_without_room_for_a_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="130 positions leave no room"):
        runner_of(replace(FULL, max_positions=130))
