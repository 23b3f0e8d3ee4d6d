"""A backbone is loaded with the denoiser that is for it, and drafts with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.api import CheckpointError, InfillRequest
from model.backbone.checkpoint import load_backbone
from model.denoiser import Denoiser, DenoiserConfig, save_denoiser
from model.denoiser.shipped import VARIABLE, denoiser_folder
from model.serving.completer import EngineCompleter
from model.serving.loading import load_completer

REQUEST = InfillRequest(prefix="def add(a, b):\n    ", suffix="\n", max_new_tokens=12)


@pytest.fixture
def denoiser(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    backbone = load_backbone(tiny_backbone_folder)
    config = DenoiserConfig.of(backbone.model.config, num_layers=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Denoiser.of(config, backbone.model, torch.arange(10, 300))
        model.start_from(backbone.model)
    save_denoiser(tmp_path / "denoiser", model, backbone, thresholds={"end": 2, "canvas_end": 2})
    return tmp_path / "denoiser"


async def text_of(completer: EngineCompleter) -> str:
    try:
        return (await completer.complete(REQUEST)).candidates[0].text
    finally:
        await completer.close()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
async def test_a_named_denoiser_drafts_and_changes_no_text(
    tiny_backbone_folder: Path, denoiser: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counting(forward: object, *canvas: object) -> torch.Tensor:
        asked.append(1)
        return drafts(forward, *canvas)

    monkeypatch.setenv(VARIABLE, "none")
    expected = await text_of(load_completer(tiny_backbone_folder, device="cpu", dtype=dtype))
    monkeypatch.setenv(VARIABLE, str(denoiser))
    completer = load_completer(tiny_backbone_folder, device="cpu", dtype=dtype)
    kind = type(completer.engine.decoder.runner.denoiser)  # type: ignore[attr-defined]
    drafts = kind.canvas
    monkeypatch.setattr(kind, "canvas", counting)
    assert await text_of(completer) == expected
    assert asked


def test_one_that_is_for_another_backbone_is_refused_by_name(
    tiny_backbone_folder: Path, denoiser: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (denoiser / "config.json").read_text()
    digest = load_backbone(tiny_backbone_folder).digest
    (denoiser / "config.json").write_text(said.replace(digest, "0" * 64))
    monkeypatch.setenv(VARIABLE, str(denoiser))
    with pytest.raises(CheckpointError, match="was trained on the backbone"):
        load_completer(tiny_backbone_folder, device="cpu")


def test_a_folder_without_a_denoiser_is_refused(
    tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_completer(tiny_backbone_folder, device="cpu")


def test_the_shipped_one_is_for_its_own_backbone_alone(
    denoiser: Path, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("model.denoiser.shipped.SHIPPED", denoiser)
    assert denoiser_folder(load_backbone(tiny_backbone_folder).digest) == denoiser
    assert denoiser_folder("0" * 64) is None
    monkeypatch.setattr("model.denoiser.shipped.SHIPPED", denoiser / "nowhere")
    assert denoiser_folder("0" * 64) is None
