from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.api import CheckpointError
from model.families.configs import read_config
from model.families.weights import load_transformer
from model.transformer import Transformer

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def dream(tmp_path: Path, write: Callable[..., Path]) -> Path:
    return write(tmp_path / "dream", "Dream")


def load(directory: Path) -> Transformer:
    return load_transformer(directory, read_config(directory))


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as info:
        load(directory)
    return str(info.value)


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def test_shards_give_what_one_file_gives(
    dream: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    sharded = write(tmp_path / "sharded", "Dream", shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    for one, other in zip(load(dream).parameters(), load(sharded).parameters(), strict=True):
        assert one.equal(other)


def test_weights_come_in_the_dtype_asked_for(dream: Path) -> None:
    model = load_transformer(dream, read_config(dream), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.cos.dtype == torch.float32


@pytest.mark.parametrize("family", ["a2d-qwen2", "CoDA"])
def test_a_stored_head_counts_whatever_the_config_says_and_else_the_embedding_is_it(
    family: str, tmp_path: Path, write: Callable[..., Path]
) -> None:
    directory = write(tmp_path / family, family)
    model = load(directory)
    assert model.head.weight is model.embedding.weight
    edit(directory, lambda w: w.update({"lm_head.weight": torch.ones(352, 32)}))
    assert load(directory).head.weight.eq(1).all()


def test_a_head_that_should_be_there_is_missed(dream: Path) -> None:
    edit(dream, lambda w: w.pop("lm_head.weight"))
    assert "lm_head.weight should have shape [352, 32], found nothing" in refusal(dream)


def test_products_are_converted_one_by_one_and_the_head_is_not(dream: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def convert(linear: nn.Linear) -> nn.Module:
        seen.append(tuple(linear.weight.shape))
        return nn.Identity()

    model = load_transformer(dream, read_config(dream), convert=convert)
    assert len(seen) == 7 * 2
    assert isinstance(model.head, nn.Linear)


class TestBadInput:
    def test_a_truncated_file_is_named(self, dream: Path) -> None:
        file = dream / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        message = refusal(dream)
        assert str(file) in message
        assert "truncated" in message
        file.write_bytes(b"")
        assert str(file) in refusal(dream)

    def test_a_file_with_bytes_to_spare_is_named(self, dream: Path) -> None:
        file = dream / "model.safetensors"
        file.write_bytes(file.read_bytes() + b"\0" * 64)
        assert str(file) in refusal(dream)

    def test_missing_shards_are_named(self, tmp_path: Path, write: Callable[..., Path]) -> None:
        directory = write(tmp_path / "sharded", "Dream", shards=3)
        names = ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
        for name in names:
            (directory / name).unlink()
        message = refusal(directory)
        assert all(name in message for name in names)

    def test_a_pickle_is_not_read(self, dream: Path) -> None:
        (dream / "model.safetensors").rename(dream / "pytorch_model.bin")
        assert "only safetensors are read" in refusal(dream)

    def test_an_index_cannot_point_out_of_its_directory(self, dream: Path) -> None:
        place = {Q_PROJ: "../model.safetensors"}
        (dream / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
        assert "../model.safetensors" in refusal(dream)

    def test_an_index_that_contradicts_its_files_is_refused(
        self, tmp_path: Path, write: Callable[..., Path]
    ) -> None:
        directory = write(tmp_path / "sharded", "Dream", shards=2)
        file = directory / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        place = index["weight_map"]
        place[Q_PROJ] = next(name for name in set(place.values()) if name != place[Q_PROJ])
        file.write_text(json.dumps(index))
        message = refusal(directory)
        assert Q_PROJ in message
        assert place[Q_PROJ] in message

    def test_a_wrong_shape_tells_tensor_expected_and_found(self, dream: Path) -> None:
        edit(dream, lambda w: w.update({Q_PROJ: torch.zeros(31, 32)}))
        message = refusal(dream)
        assert f"{Q_PROJ} should have shape [32, 32], found [31, 32]" in message

    def test_missing_and_unknown_tensors_are_named(self, dream: Path) -> None:
        edit(dream, lambda w: (w.pop(Q_PROJ), w.update({"extra": torch.zeros(2)})))
        message = refusal(dream)
        assert f"{Q_PROJ} should have shape [32, 32], found nothing" in message
        assert "extra should have shape none at all, found [2]" in message

    def test_nothing_is_loaded_before_everything_is_checked(
        self, dream: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edit(dream, lambda w: w.update({"model.norm.weight": torch.zeros(1)}))
        monkeypatch.setattr("model.families.weights._fill", lambda *_: pytest.fail("loaded"))
        refusal(dream)

    def test_tables_that_every_reader_computes_are_passed_over(self, dream: Path) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        edit(dream, lambda w: w.update({name: torch.zeros(4)}))
        load(dream)


class TestConfig:
    def test_an_unknown_model_type_lists_the_known(self, dream: Path) -> None:
        (dream / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        message = refusal(dream)
        known = ("Dream", "llada", "qwen2", "a2d-qwen2", "sdar", "llama", "CoDA")
        assert "'gpt2'" in message
        assert all(repr(name) in message for name in known)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"hidden_size": None}, "hidden_size"),
            ({"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
            ({"use_sliding_window": True}, "sliding-window"),
            ({"hidden_act": "gelu"}, "gelu"),
            ({"num_key_value_heads": 3}, "heads"),
            ({"head_dim": 7}, "even"),
            ({"attention_bias": True}, "attention_bias"),
        ],
    )
    def test_what_would_be_computed_wrongly_is_refused(
        self, dream: Path, change: dict[str, object], named: str
    ) -> None:
        raw = json.loads((dream / "config.json").read_text())
        (dream / "config.json").write_text(json.dumps({**raw, **change}))
        assert named in refusal(dream)

    def test_a_missing_key_is_named(self, dream: Path) -> None:
        raw = json.loads((dream / "config.json").read_text())
        del raw["intermediate_size"]
        (dream / "config.json").write_text(json.dumps(raw))
        assert "intermediate_size" in refusal(dream)

    def test_a_directory_without_a_config_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config\.json is missing"):
            read_config(tmp_path)

    def test_each_family_has_its_conventions(self, checkpoints: Callable[[str], Path]) -> None:
        def of(family: str) -> tuple[object, ...]:
            c = read_config(checkpoints(family))
            return (c.shifts_logits, c.attention, c.block_size, c.qkv_bias, c.qk_norm)

        assert of("Dream") == of("DreamOn") == (True, "full", 0, True, False)
        assert of("llada") == (False, "full", 0, False, False)
        assert of("qwen2") == (True, "full", 0, True, False)
        assert of("a2d-qwen2") == (False, "full", 0, True, False)
        assert of("sdar") == (False, "block-causal", 4, False, True)
        assert of("llama") == (False, "block-causal", 4, False, False)
        assert of("CoDA") == (True, "full", 0, False, True)
