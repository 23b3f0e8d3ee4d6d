"""Two real processes on this machine, exchanging over gloo as several GPUs do over NCCL."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.backbone.checkpoint import Backbone
from model.denoiser import load_denoiser
from model.training import distributed
from model.training.optimizer import MasterOptimizer

MEMBER = Path(__file__).with_name("group_member.py")
ROOT = MEMBER.parents[3]
CPU = torch.device("cpu")
TINY = [
    *("--windows", "1", "--layers", "1", "--canvases", "4", "--draft-vocabulary", "60"),
    *("--device", "cpu", "--dtype", "float32", "--json"),
]


def torchrun(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Start two processes. Their own threads would only fight for the cores."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def finish(group: subprocess.Popen[str]) -> str:
    """Its standard output, once all of it has ended well."""
    try:
        out, err = group.communicate(timeout=120)
    finally:
        group.kill()
    assert group.returncode == 0, err
    return out


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]


def test_alone_every_exchange_gives_back_what_it_got() -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    distributed.average(tensors)
    assert [t.tolist() for t in tensors] == [[1.0, 2.0], [[3.0]]]
    assert distributed.largest(1.0, False, device=CPU) == [1.0, False]
    assert distributed.total(2.0, 5, device=CPU) == [2.0, 5]
    with distributed.joined(CPU), distributed.first_alone():
        assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_one_step_of_two_processes_is_one_process_with_their_mean_gradient(tmp_path: Path) -> None:
    finish(torchrun([MEMBER, "exchange", tmp_path]))
    member = load_member()
    model = member.small_model()
    for parameter, *grads in zip(
        model.parameters(), *(member.gradients_of(rank, model) for rank in range(2)), strict=True
    ):
        parameter.grad = (grads[0] + grads[1]) / 2
    alone = MasterOptimizer(model, learning_rate=0.01, weight_decay=0.1)
    norm = alone.step(1.0)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert found["norm"] == pytest.approx(norm)
        for name, master in alone.masters.items():
            torch.testing.assert_close(found["masters"][name], master)
        assert found["world_size"] == 2
        assert found["largest"] == [1.0, 0.0]
        assert found["total"] == [3.0, 20.0]
    assert (tmp_path / "order").read_text().split() == ["0", "1"]


def load_member():
    spec = importlib.util.spec_from_file_location("group_member", MEMBER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_processes_train_one_model_and_only_one_of_them_speaks(
    folder: Path, tiny_backbone_folder: Path, backbone: Backbone, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["-m", "model.training", folder, "--backbone", tiny_backbone_folder]
    out = finish(torchrun([*arguments, "--out", run, "--minutes", "0.01", *TINY]))
    (line,) = out.splitlines()
    figures = json.loads(line)
    assert figures["minutes"] >= 0.01
    assert [row["step"] for row in log_of(run)] == [figures["steps"]]
    assert load_denoiser(run / "checkpoint", backbone.digest, backbone.model).config.num_layers == 1


@pytest.mark.slow
@pytest.mark.timeout(400)  # two groups, one after the other
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_the_run_resumes(
    folder: Path, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [
        MEMBER, "train", tmp_path, folder, "--backbone", tiny_backbone_folder, "--out", run, *TINY
    ]  # fmt: skip
    group = torchrun([*arguments, "--minutes", "60"])
    pid_file = tmp_path / "rank-1.pid"
    deadline = time.monotonic() + 90
    while not pid_file.is_file() or not pid_file.read_text():
        assert group.poll() is None, group.communicate()[1]
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.05)
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    finish(group)
    stopped = [int((tmp_path / f"rank-{rank}.stopped").read_text()) for rank in range(2)]
    assert stopped[0] == stopped[1] > 0
    # A line for each step's report, and one for the save at the end.
    steps = [row["step"] for row in log_of(run)]
    assert steps == [*range(1, stopped[0] + 1), stopped[0]]

    longer = log_of(run)[-1]["seconds"] / 60 + 0.005
    out = finish(torchrun([*arguments, "--minutes", str(longer)]))
    assert json.loads(out)["steps"] > stopped[0]
    assert log_of(run)[len(steps)]["step"] == stopped[0] + 1
