from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from model.backbone.checkpoint import Backbone
from model.backbone.prompt import Prompt
from model.training.corpus import Document
from model.training.windows import NO_SOURCE, Window, WindowSampler, WindowShape, load_documents

SHAPE = WindowShape(
    far_tokens=48, suffix_tokens=24, plain_tokens=64, branches=3, canvases=24, slots=4,
    wide_slots=6,
)  # fmt: skip
MANY = range(40)


def sampler_of(
    document: Document, backbone: Backbone, *, draft_only: bool = False, **sizes: float
) -> WindowSampler:
    shape = replace(SHAPE, **sizes)  # pyright: ignore[reportArgumentType]
    return WindowSampler([document], backbone.tokenizer, shape, 0, draft_only=draft_only)


def same(a: Window, b: Window) -> bool:
    _, *names = (field.name for field in fields(Window))
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_window_is_the_same_each_time_and_another_one_by_its_number(sampler: WindowSampler):
    assert same(sampler.window(5), sampler.window(5))
    assert not torch.equal(sampler.window(5).ids, sampler.window(6).ids)


def test_a_branch_reads_as_the_products_prompt_does(
    document: Document, backbone: Backbone, code: str
):
    """Far text, suffix and near text are those that a cursor at the hole's end would have."""
    tokenizer = backbone.tokenizer
    sampler = sampler_of(document, backbone, plain_share=0.0, far_tokens=400, suffix_tokens=400)
    seen = 0
    for number in MANY:
        window = sampler.window(number)
        for row, is_real in zip(window.seen, window.is_seen, strict=True):
            ids = window.ids[row[is_real]].tolist()
            text = code_before(ids, tokenizer.fim_prefix, tokenizer.decode)
            middle = ids.index(tokenizer.fim_middle)
            suffix = tokenizer.decode(ids[ids.index(tokenizer.fim_suffix) + 1 : middle])
            body = tokenizer.decode(ids[middle + 1 :])
            if not text or not code.startswith(text) or not code.endswith(suffix):
                continue  # a window without far text, or with a short suffix
            seen += 1
            assert code == text + body + suffix
            prompt = Prompt.of(
                tokenizer, text + body, suffix, prefix_tokens=2000, suffix_tokens=400
            )
            assert list(prompt.suffix) == ids[ids.index(tokenizer.fim_suffix) + 1 : middle]
            whole = [*prompt.far, *prompt.near]
            assert [*ids[: ids.index(tokenizer.fim_prefix)], *ids[middle + 1 :]][
                : len(whole)
            ] == whole
    assert seen > 20


def code_before(ids: list[int], mark: int, decode) -> str:
    return decode(ids[: ids.index(mark)])


def test_tokens_see_the_far_text_and_their_own_branch_up_to_themselves(sampler: WindowSampler):
    for number in MANY:
        window = sampler.window(number)
        visible = window.visible()[0]
        assert visible.diagonal().all()
        assert not visible.triu(1).any()
        far = window.branch == 0
        for branch in window.branch.unique().tolist():
            mine = window.branch == branch
            others = ~mine & ~far
            assert not visible[mine][:, others].any()
            if branch:
                assert visible[mine][:, far].all()
        # Positions go on from the far text's in every branch.
        assert window.positions[visible.sum(1) - 1 >= 0].tolist() == (visible.sum(1) - 1).tolist()


def test_targets_are_the_text_behind_the_anchor_and_then_ends(
    document: Document, backbone: Backbone
):
    sampler = sampler_of(document, backbone, plain_share=0.0)
    eom = backbone.tokenizer.eos_id
    for number in MANY:
        window = sampler.window(number)
        for k, anchor in enumerate(window.anchors.tolist()):
            row = window.seen[window.canvas_branch[k]][window.is_seen[window.canvas_branch[k]]]
            at = row.tolist().index(anchor)
            rest = window.ids[row[at + 1 :]].tolist()
            size = window.targets.shape[1]
            assert window.targets[k].tolist() == (rest + [eom] * size)[:size]
            assert bool(window.at_end[k]) == (not rest)
            for slot, source in enumerate(window.sources[k].tolist()):
                if slot >= len(rest):
                    assert source == NO_SOURCE
                else:
                    assert window.ids[row[at + slot + 1]] == window.targets[k, slot]
                    assert source == row[at + slot]


def test_a_hole_ends_once_a_branch_and_a_canvas_stands_right_behind(
    document: Document, backbone: Backbone
):
    sampler = sampler_of(document, backbone, plain_share=0.0)
    for number in MANY:
        window = sampler.window(number)
        ends = (window.may_end == 1).nonzero()[:, 0].tolist()
        assert len(ends) == len(window.seen)
        assert sorted(window.anchors[window.at_end].tolist()) == ends


def test_text_without_a_suffix_has_no_end(document: Document, backbone: Backbone):
    window = sampler_of(document, backbone, plain_share=1.0).window(0)
    assert (window.may_end == -1).all()
    assert not window.at_end.any()
    assert (window.sources != NO_SOURCE).all()
    special = torch.tensor(sorted(backbone.tokenizer.special_ids))
    assert not torch.isin(window.ids, special).any()


def test_the_first_slot_is_always_known_and_a_draft_knows_no_other(
    document: Document, backbone: Backbone
):
    training = [sampler_of(document, backbone).window(i) for i in MANY]
    assert all(w.known[:, 0].all() for w in training)
    assert any(w.known[:, 1:].any() for w in training)
    assert {w.known.shape[1] for w in training} == {SHAPE.slots, SHAPE.wide_slots}
    drafting = [sampler_of(document, backbone, draft_only=True).window(i) for i in MANY]
    assert not any(w.known[:, 1:].any() for w in drafting)
    assert {w.known.shape[1] for w in drafting} == {SHAPE.slots}
    # No end within a draft, but right before it.
    assert all((w.sources[~w.at_end] != NO_SOURCE).all() for w in drafting)


@pytest.mark.parametrize(
    ("size", "message"),
    [({"far_tokens": 0}, "far_tokens is 0"), ({"slots": 1}, "two slots"),
     ({"canvases": -1}, "canvases is -1")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(size: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        WindowShape(**size)


def test_a_corpus_without_files_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no files in train-"):
        load_documents(tmp_path)
