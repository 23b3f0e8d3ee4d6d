"""The compiled step against the denoiser it stands for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from canvases import between_random_streams, uncached
from model.engine.model_runner import ModelRunner

from model.denoiser import Denoiser
from model.engine.canvas.layout import CanvasLayout
from model.engine.canvas.sampler import Vocabulary
from model.engine.canvas.sequence import Fill, FilledHoles, Sequence
from model.engine.engine import Engine
from model.tokenizer import CodeTokenizer

if find_spec("openvino") is None:
    pytest.skip("needs openvino (extra `openvino`)", allow_module_level=True)

from model.engine.openvino_runner import OpenVinoRunner


def assert_exact(runner: OpenVinoRunner, *batch: Sequence) -> None:
    """Each canvas's logits are those of the denoiser, alone and uncached."""
    assert runner.open_contexts(batch) == list(batch)
    for seq, logits in zip(batch, runner.denoise(batch), strict=True):
        expected = uncached(runner.model, seq)
        torch.testing.assert_close(logits[: len(seq.canvas)], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def runner(model: Denoiser) -> OpenVinoRunner:
    return OpenVinoRunner(model)


@pytest.mark.parametrize(("prefix", "suffix", "size"), [(1, 1, 8), (40, 3, 16), (2, 64, 32)])
def test_a_step_gives_the_denoisers_logits_whatever_the_sizes(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer, prefix: int, suffix: int, size: int
) -> None:
    assert_exact(
        runner,
        between_random_streams(1, tokenizer.mask_id, prefix=prefix, suffix=suffix, size=size),
    )


def test_padding_in_a_batch_of_mixed_streams_and_canvases_changes_no_logits(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer
) -> None:
    sizes = [(40, 3, 16), (1, 50, 16), (33, 20, 32)]
    batch = [
        between_random_streams(seed, tokenizer.mask_id, prefix=prefix, suffix=suffix, size=size)
        for seed, (prefix, suffix, size) in enumerate(sizes)
    ]
    assert_exact(runner, *batch)
    assert_exact(runner, *batch[:2])  # equal canvases need no mask of their own


def test_candidates_may_share_one_copy_of_their_context(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer
) -> None:
    first = between_random_streams(1, tokenizer.mask_id, prefix=12, suffix=7)
    other = replace(first, canvas=[*first.canvas[:-1], 123], context=None)
    assert_exact(runner, first, other)


def test_a_fills_steps_and_a_typed_character_reach_the_compiled_step(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer
) -> None:
    seq = between_random_streams(1, tokenizer.mask_id, prefix=20, suffix=9)
    assert_exact(runner, seq)
    seq.canvas = [111, 112, *seq.canvas[2:]]
    assert_exact(runner, seq)
    runner.close_context(seq)
    typed = replace(seq, prefix=[*seq.prefix, 113], context=None)
    assert_exact(runner, typed)
    runner.close_context(typed)
    assert_exact(runner, seq)


def test_causal_decoding_between_two_steps_leaves_them_exact(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer
) -> None:
    batch = [
        between_random_streams(seed, tokenizer.mask_id, prefix=14 + seed, suffix=4)
        for seed in range(2)
    ]
    assert_exact(runner, *batch)
    runner.next_logits(batch[1:])
    runner.causal_log_probs(batch[1], [[111, 112]])
    assert_exact(runner, *batch)


def test_a_model_without_norms_of_queries_and_keys_compiles_too(
    tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]
) -> None:
    model = make_denoiser(tokenizer.vocab_size, dtype=torch.float32, qk_norm=False)
    assert_exact(
        OpenVinoRunner(model), between_random_streams(1, tokenizer.mask_id, prefix=5, suffix=6)
    )


def test_another_dtype_is_refused(
    tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]
) -> None:
    with pytest.raises(ValueError, match=r"runs float32 on a CPU, not torch\.bfloat16"):
        OpenVinoRunner(make_denoiser(tokenizer.vocab_size, dtype=torch.bfloat16))


# Tells every attempt to look up or reach a host, and what of the telemetry package was loaded.
_WATCHED = """
import sys, threading
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event.startswith("socket.") else None)
import model.engine.openvino_runner
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)
print(calls, [name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        env={**environment, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[] []"
    assert list(tmp_path.iterdir()) == []


# A thread that loads a model, another that lets it go, and signals to the first.
_SIGNALLED = """
import signal, threading
from model.denoiser import Denoiser, DenoiserConfig
from model.engine.openvino_runner import OpenVinoRunner

def load():
    config = DenoiserConfig(vocab_size=64, hidden_size=16, num_layers=1, num_heads=4, ffn_size=24)
    return [OpenVinoRunner(Denoiser(config).eval())]

signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
runners = load()
for act in (runners.clear, load):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_handled_after_a_model_is_let_go_by_another_thread() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "handled\nhandled\n"), run.stderr


def test_an_engine_fills_with_it_what_it_fills_with_torch(
    runner: OpenVinoRunner, tokenizer: CodeTokenizer
) -> None:
    vocabulary = Vocabulary.of(tokenizer, runner.vocab_size, torch.device("cpu"))
    found: list[list[FilledHoles]] = []
    for each in (ModelRunner(runner.model), OpenVinoRunner(runner.model)):
        engine = Engine(each, vocabulary)
        try:
            futures = [
                engine.submit(
                    Fill(
                        prefix=tokenizer.encode("def total(numbers):\n" * (1 + size // 32)),
                        suffix=tokenizer.encode("    return result\n")[::-1],
                        layout=CanvasLayout((size,)),
                    )
                )
                for size in (16, 32, 64)
            ]
            found.append([output for future in futures for output in future.result(60)])
        finally:
            engine.close()
    assert [one.holes for one in found[0]] == [other.holes for other in found[1]]
    assert any(hole for output in found[0] for hole in output.holes)
