"""The denoising loop: canvases from masks to text, by a model that decides alone."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import cast

from torch import Tensor

from model.api import InvalidRequestError
from model.engine.canvas.layout import CANVAS_SIZES
from model.engine.canvas.length import LengthPolicy
from model.engine.canvas.sampler import CanvasBatch, Vocabulary, decide
from model.engine.canvas.sequence import CanvasFill, CanvasParams, CanvasSequence
from model.engine.fill import Fill, FilledHoles, Sequence, fills_of, tell
from model.engine.run.joint_runner import JointRunner

NOT_FINITE = "the denoiser produced non-finite logits"


class CanvasDecoder:
    """A `Decoder` for open diffusion checkpoints."""

    def __init__(self, runner: JointRunner, vocabulary: Vocabulary, length: LengthPolicy) -> None:
        """`length` says how the model finds out how long a hole is."""
        self.runner, self.vocabulary, self.length = runner, vocabulary, length

    def check(self, fill: Fill) -> None:
        """See `Decoder.check`."""
        fill = cast("CanvasFill", fill)
        if fill.layout.size > CANVAS_SIZES[-1]:
            raise InvalidRequestError(
                f"the canvas has {fill.layout.size} slots; the largest has {CANVAS_SIZES[-1]}"
            )
        if not fill.params or not fill.prefix or not fill.suffix:
            raise InvalidRequestError("a fill needs a candidate, and streams that begin somewhere")
        vocab_size = self.runner.vocab_size
        for ids in (fill.prefix, fill.suffix, fill.typed, *fill.layout.between):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InvalidRequestError(f"token ids must lie in 0..{vocab_size - 1}")

    def start(self, fill: Fill) -> list[CanvasSequence]:
        """See `Decoder.start`."""
        return [
            CanvasSequence.of(
                cast("CanvasFill", fill),
                cast("CanvasParams", params),
                mask_id=self.vocabulary.mask_id,
                end_id=self.vocabulary.end_id,
                max_context=self.runner.max_context,
            )
            for params in fill.params
        ]

    def step(self, batch: Items[Sequence]) -> None:
        """See `Decoder.step`: one forward, and its decisions."""
        canvases = cast("list[CanvasSequence]", batch)
        logits = self.runner.denoise(canvases)
        for fill in fills_of(canvases):
            fill.forwards += 1
        self._commit(canvases, logits)

    def outputs(self, fill: Fill) -> list[FilledHoles]:
        """See `Decoder.outputs`."""
        sequences = self.length.best_first(cast("list[CanvasSequence]", fill.sequences))
        return [s.output or self._output(s) for s in sequences]

    def leave(self, sequence: Sequence) -> None:
        """See `Decoder.leave`."""
        self.runner.close_context(cast("CanvasSequence", sequence))

    def check_integrity(self) -> None:
        """See `Decoder.check_integrity`."""
        self.runner.check_integrity()

    def drop_cache(self) -> None:
        """See `Decoder.drop_cache`."""
        self.runner.drop_cache()

    def _commit(self, batch: Items[CanvasSequence], logits_BCV: Tensor) -> None:
        """Decide this step's slots of every canvas; close the canvases without masks."""
        self.length.look(batch, logits_BCV)
        for row in self._decide(batch, logits_BCV):
            sequence = batch[row]
            if sequence.step == sequence.params.steps:
                # An end that lost to a token behind it is still open; this was the last forward.
                while self.vocabulary.mask_id in sequence.canvas:
                    self._decide([sequence], logits_BCV[row, None])
            self.length.revise(sequence, self.vocabulary)
            if self.length.gives_up(sequence):
                self._conclude(sequence)
            else:
                self._take_stock(sequence)

    def _decide(self, batch: Items[CanvasSequence], logits_BCV: Tensor) -> list[int]:
        """Put what the sampler is sure of into the canvases: at least one slot in each. Returns
        the rows for which that went well."""
        canvases = CanvasBatch.of(batch, self.vocabulary.end_id, logits_BCV.device)
        broken = decide(canvases, logits_BCV[:, : canvases.ids.shape[1]], self.vocabulary).tolist()
        ids, confidences = canvases.ids.tolist(), canvases.confidence.tolist()
        fixed = canvases.fixed.tolist()
        for row, sequence in enumerate(batch):
            if broken[row]:
                sequence.error = FloatingPointError(NOT_FINITE)
                continue
            size = len(sequence.canvas)
            sequence.canvas = ids[row][:size]
            sequence.confidences = confidences[row][:size]
            sequence.fixed = fixed[row][:size]
            sequence.step += 1
        return [row for row in range(len(batch)) if not broken[row]]

    def _take_stock(self, sequence: CanvasSequence) -> None:
        """A canvas has had a step: tell, and go on or not."""
        first = self.length.best_first(cast("list[CanvasSequence]", sequence.fill.sequences))[0]
        if sequence is first and not tell(sequence):
            return
        if self._is_too_unsure(sequence):
            self._conclude(sequence)
        elif self.vocabulary.mask_id not in sequence.canvas:
            self._close_canvas(sequence)

    def _close_canvas(self, sequence: CanvasSequence) -> None:
        """A canvas without masks: done, or, for a lone hole without an end, on to a further one."""
        self.runner.close_context(sequence)
        if not sequence.go_on(
            mask_id=self.vocabulary.mask_id,
            end_id=self.vocabulary.end_id,
            max_context=self.runner.max_context,
        ):
            self._conclude(sequence)

    def _conclude(self, sequence: CanvasSequence) -> None:
        self.runner.close_context(sequence)
        sequence.output = self._output(sequence)

    def _is_too_unsure(self, sequence: CanvasSequence) -> bool:
        return sequence.is_too_unsure(
            mask_id=self.vocabulary.mask_id, end_id=self.vocabulary.end_id
        )

    def _output(self, sequence: CanvasSequence) -> FilledHoles:
        return sequence.as_it_stands(mask_id=self.vocabulary.mask_id, end_id=self.vocabulary.end_id)
