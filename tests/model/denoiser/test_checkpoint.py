from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbone import write_tiny_backbone

from model.api import CheckpointError
from model.backbone.checkpoint import Backbone, load_backbone
from model.denoiser import Denoiser, DenoiserConfig, load_denoiser, save_denoiser
from model.denoiser import checkpoint as checkpoint_module
from model.denoiser.checkpoint import CONFIG, WEIGHTS, pack_weights, unpack_weights


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return load_backbone(tiny_backbone_folder)


@pytest.fixture
def model(backbone: Backbone) -> Denoiser:
    config = DenoiserConfig.of(backbone.model.config, num_layers=1)
    model = Denoiser.of(config, backbone.model, torch.tensor([3, 5, 200, 301]))
    model.start_from(backbone.model)
    return model


@pytest.fixture
def saved(tmp_path: Path, model: Denoiser, backbone: Backbone) -> Path:
    save_denoiser(tmp_path / "denoiser", model, backbone, thresholds={"end": 0.75})
    return tmp_path / "denoiser"


def edit(directory: Path, **changes: object) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))


def test_what_is_saved_is_loaded_but_for_the_rounding(
    saved: Path, model: Denoiser, backbone: Backbone
):
    loaded = load_denoiser(saved, backbone.digest, backbone.model)
    assert loaded.config == model.config
    assert loaded.draft_ids.tolist() == [3, 5, 200, 301]
    assert (loaded.end_threshold, loaded.canvas_end_threshold) == (0.75, None)
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in model.state_dict().items():
        found = loaded.state_dict()[name]
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127
        assert ((found - tensor).abs() <= 0.51 * step.clamp(min=1e-6) + 0.01 * tensor.abs()).all()
    again = saved.with_name("again")
    save_denoiser(again, loaded, backbone)
    assert load_file(again / WEIGHTS)["skip.weight"].equal(
        load_file(saved / WEIGHTS)["skip.weight"]
    )


def test_matrices_take_a_byte_a_weight():
    stored = pack_weights({"big": torch.randn(64, 128), "small": torch.randn(7)})
    assert stored["big"].dtype == torch.int8
    assert stored["small"].dtype == torch.bfloat16
    zero = unpack_weights(pack_weights({"big": torch.zeros(64, 128)}))["big"]
    assert zero.eq(0).all()  # and no division by the largest of nothing


def test_a_denoiser_of_another_backbone_is_refused_by_name(saved: Path, tmp_path: Path):
    other = load_backbone(write_tiny_backbone(tmp_path / "other", seed=8))
    with pytest.raises(
        CheckpointError, match=r"was trained on the backbone tiny .* not on this one"
    ):
        load_denoiser(saved, other.digest, other.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mezzotint"}, "model_type 'mezzotint'"),
        ({"format_version": 9}, "format version 9"),
        ({"backbone": {}}, "which backbone"),
        ({"denoiser": {"taps": [0]}}, "describes no denoiser|tensor"),
        ({"denoiser": {"num_layers": 1, "taps": [99]}}, "describes no denoiser"),
        ({"denoiser": None}, "describes no denoiser"),
        ({"thresholds": {"end": "high"}}, "no usable thresholds"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    saved: Path, backbone: Backbone, changes: dict, message: str
):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(saved, backbone.digest, backbone.model)


def test_damaged_and_missing_files_are_named(saved: Path, backbone: Backbone):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_denoiser(saved, backbone.digest, backbone.model)
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is missing"):
        load_denoiser(saved, backbone.digest, backbone.model)
    (saved / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_denoiser(saved, backbone.digest, backbone.model)
    (saved / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=f"{CONFIG} is missing"):
        load_denoiser(saved, backbone.digest, backbone.model)


def test_weights_of_other_shapes_are_named(saved: Path, backbone: Backbone):
    stored = load_file(saved / WEIGHTS)
    stored["mask"] = torch.zeros(3)
    save_file(stored, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"tensor mask should have shape \(64,\), found \(3,"):
        load_denoiser(saved, backbone.digest, backbone.model)


@pytest.mark.parametrize("ids", [None, [], [-1], [100_000]])
def test_a_draft_vocabulary_that_the_backbone_lacks_is_refused(
    saved: Path, backbone: Backbone, ids: list[int] | None
):
    stored = load_file(saved / WEIGHTS)
    del stored["draft_ids"]
    if ids is not None:
        stored["draft_ids"] = torch.tensor(ids, dtype=torch.int32)
    save_file(stored, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match="draft_ids"):
        load_denoiser(saved, backbone.digest, backbone.model)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_draft(
    saved: Path, model: Denoiser, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    before = (saved / WEIGHTS).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OSError, match="what was there is intact"):
        save_denoiser(saved, model, backbone)
    assert (saved / WEIGHTS).read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
