"""Text in, text out, around a tiny random backbone that can be told what to want."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from pathlib import Path

import pytest

from model.api import Frame, InfillRequest, InvalidRequestError, SupersededError
from model.engine.draft.verify import MOST_DRAFTED
from model.engine.run.backbone_runner import NewRows, Verdict
from model.serving.backbone_completer import BackboneCompleter
from model.serving.loading import load_completer

PREFIX = "def add(a, b):\n    "
SUFFIX = "\n\n\nprint(add(1, 2))\n"


@pytest.fixture
async def completer(tiny_backbone_folder: Path) -> AsyncIterator[BackboneCompleter]:
    completer = load_completer(tiny_backbone_folder, device="cpu", dtype="float32")
    assert isinstance(completer, BackboneCompleter)
    yield completer
    await completer.close()


def dictate(completer: BackboneCompleter, text: str, *, ends: bool = True) -> None:
    """Have the backbone want the text of every hole to be this, and then an end or nothing at
    all."""
    tokenizer, runner = completer._tokenizer, completer._decoder.runner
    run = runner.run

    def dictated(batch: Items[NewRows]) -> list[Verdict]:
        found = [verdict.logits.clone() for verdict in run(batch)]
        for new, logits in zip(batch, found, strict=True):
            fill = new.stream.fill
            wanted = tokenizer.encode(fill.heal.decode() + text)
            table = new.stream.table
            assert table is not None
            depths: list[int] = []
            for parent in new.parents:
                depths.append(0 if parent < 0 else depths[parent] + 1)
            for row, depth in enumerate(depths[len(depths) - len(logits) :]):
                place = table.length + depth + 1 - len(fill.prompt)
                logits[row] = 0.0
                if place < len(wanted):
                    logits[row, wanted[place]] = 20.0
                elif ends:
                    logits[row, tokenizer.eos_id] = 20.0
        return [Verdict(logits) for logits in found]

    runner.run = dictated  # type: ignore[method-assign]


def ask(prefix: str = PREFIX, suffix: str = SUFFIX, **options: object) -> InfillRequest:
    return InfillRequest(prefix=prefix, suffix=suffix, **options)  # type: ignore[arg-type]


class TestATextBecomesAHole:
    @pytest.mark.parametrize(
        ("prefix", "text"),
        [
            (PREFIX, "return a + b"),
            ("x = retu", "rn_value(1)"),
            ("print(", "'ä🙂', end='')"),
            ("", "import os"),
            ("a\n", ""),
        ],
    )
    async def test_what_the_backbone_writes_goes_on_where_the_cursor_is(
        self, completer: BackboneCompleter, prefix: str, text: str
    ) -> None:
        dictate(completer, text)
        result = await completer.complete(ask(prefix))
        (candidate,) = result.candidates
        assert candidate.text == text
        assert candidate.finished
        assert result.verified
        assert candidate.confidence > 0.99
        assert list(candidate.token_ends) == sorted(candidate.token_ends)
        assert candidate.token_ends[-1:] == ((len(text),) if candidate.token_ends else ())
        assert len(candidate.probabilities) == len(candidate.token_ends) + 1

    async def test_what_was_typed_is_what_it_begins_with(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "rn a + b")
        (candidate,) = (await completer.complete(ask(typed="retu"))).candidates
        assert candidate.text == "return a + b"
        assert all(end >= len("retu") for end in candidate.token_ends)

    async def test_it_ends_where_what_follows_is_repeated(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "return a + b\n\n\nprint(add(1, 2))\nand more", ends=False)
        result = await completer.complete(ask())
        (candidate,) = result.candidates
        assert (candidate.text, candidate.finished) == ("return a + b", True)
        assert candidate.confidence > 0.99
        assert candidate.token_ends[-1] == len(candidate.text)

    async def test_it_has_no_more_lines_than_are_wanted(self, completer: BackboneCompleter) -> None:
        dictate(completer, "c = a\n    c += b\n    return c")
        for max_lines, expected in ((1, "c = a"), (2, "c = a\n    c += b")):
            (candidate,) = (await completer.complete(ask(max_lines=max_lines))).candidates
            assert (candidate.text, candidate.finished) == (expected, True)

    async def test_it_ends_before_a_line_that_is_indented_less(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "return a\n\nclass More:\n    pass", ends=False)
        (candidate,) = (await completer.complete(ask(suffix="", min_indent=4))).candidates
        assert candidate.text.rstrip() == "return a"

    async def test_a_known_length_is_that_of_the_text(self, completer: BackboneCompleter) -> None:
        dictate(completer, "return a + b\n\n\nprint(add(1, 2))", ends=False)
        (candidate,) = (await completer.complete(ask(length_of="return a + b"))).candidates
        assert candidate.text == "return a + b"


class TestDrafts:
    async def test_what_was_typed_into_the_last_answer_costs_one_forward(
        self, completer: BackboneCompleter
    ) -> None:
        text = "return a + b * c"
        dictate(completer, text)
        await completer.complete(ask(document="a.py", client="me"))
        dictate(completer, text[9:])
        again = await completer.complete(ask(PREFIX + text[:9], document="a.py", client="me"))
        assert again.candidates[0].text == text[9:]
        assert again.forwards <= 1 + again.tokens // MOST_DRAFTED

    async def test_a_draft_that_comes_true_costs_one_forward_and_a_wrong_one_changes_nothing(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "return a")
        right = await completer.complete(ask(draft="return a"))
        wrong = await completer.complete(ask(draft="raise ValueError"))
        assert right.candidates == wrong.candidates
        assert right.forwards < wrong.forwards

    async def test_the_backbone_alone_writes_the_same(self, completer: BackboneCompleter) -> None:
        repeated = "def add(a, b):\n    return a + b\n\n"
        for seed in range(4):
            request = ask(repeated * 2 + PREFIX, seed=seed, drawn=bool(seed), max_new_tokens=24)
            drafted = await completer.complete(request)
            alone = await completer.complete(
                InfillRequest(**{  # type: ignore[arg-type]
                    **{name: getattr(request, name) for name in request.__slots__},
                    "policy": "autoregressive",
                })
            )  # fmt: skip
            assert [c.texts for c in drafted.candidates] == [c.texts for c in alone.candidates]

    async def test_a_frame_shows_the_draft_and_how_much_of_it_was_right(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "return a")
        frames: list[Frame] = []
        await completer.complete(ask(draft="return b"), on_frame=frames.append)
        assert "".join(slot or "" for slot in frames[0].slots).endswith("return b")
        assert frames[0].accepted is not None
        assert 0 < frames[0].accepted < len(frames[0].slots)
        assert frames[-1].text == "return a"


class TestSeveral:
    async def test_holes_are_filled_one_after_the_other(self, completer: BackboneCompleter) -> None:
        prompts: list[str] = []
        tokenizer, engine = completer._tokenizer, completer.engine
        submit = engine.submit

        def noted(fill: object) -> object:
            prompts.append(tokenizer.decode(fill.prompt))  # type: ignore[attr-defined]
            return submit(fill)  # type: ignore[arg-type]

        engine.submit = noted  # type: ignore[method-assign,assignment]
        dictate(completer, "xy")
        result = await completer.complete(ask("f(", ")\n", between=(", ", "; ")))
        assert result.candidates[0].texts == ("xy", "xy", "xy")
        assert [text.count("xy") for text in prompts] == [0, 1, 2]

    async def test_candidates_are_distinct_and_repeatable(
        self, completer: BackboneCompleter
    ) -> None:
        request = ask(candidates=6, temperature=2.0, max_new_tokens=8)
        result = await completer.complete(request)
        texts = [candidate.text for candidate in result.candidates]
        assert 1 < len(texts) == len(set(texts)) <= 6
        again = await completer.complete(request)
        assert [candidate.text for candidate in again.candidates] == texts

    async def test_a_newer_request_of_a_document_takes_the_place_of_an_older_one(
        self, completer: BackboneCompleter
    ) -> None:
        runner = completer._decoder.runner
        run = runner.run

        def slowly(batch: Items[NewRows]) -> list[Verdict]:
            time.sleep(0.05)
            return run(batch)

        runner.run = slowly  # type: ignore[method-assign]
        old = asyncio.create_task(completer.complete(ask(document="a.py", max_new_tokens=64)))
        await asyncio.sleep(0.02)
        await completer.complete(ask(document="a.py", max_new_tokens=1))
        with pytest.raises(SupersededError):
            await old


class TestWhatIsRefused:
    async def test_a_canvas_without_a_denoiser(self, completer: BackboneCompleter) -> None:
        for options in ({"policy": "threshold"}, {"steps": 4}):
            with pytest.raises(InvalidRequestError, match="no denoiser"):
                await completer.complete(ask(**options))

    async def test_a_context_that_must_fit_and_does_not(self, completer: BackboneCompleter) -> None:
        with pytest.raises(InvalidRequestError, match="more than this model reads"):
            await completer.complete(ask("x = 1\n" * 3000, must_fit=True, prefix_tokens=1 << 20))
        result = await completer.complete(ask("x = 1\n" * 3000))
        assert result.context.dropped > 1000

    async def test_a_rendered_conversation_is_read_as_it_is(
        self, completer: BackboneCompleter
    ) -> None:
        dictate(completer, "Hello.")
        request = InfillRequest(
            prefix="<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            special_tokens_in_prefix=True,
        )
        result = await completer.complete(request)
        assert result.candidates[0].text == "Hello."
        assert result.context.tokens == len(
            completer._tokenizer.encode(request.prefix, special=True)
        )
