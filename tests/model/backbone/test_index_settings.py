"""Which package index is asked: the one that the user's pip asks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from model.backbone.index_source import IndexSettings


@pytest.fixture(autouse=True)
def pip_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty file of settings, and nothing in the environment."""
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "NO_INDEX", "PROXY", "CERT"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "pip.conf"
    config.touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return config


def test_the_environment_comes_before_pips_files(
    pip_without_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_without_settings.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nproxy = http://proxy.example:3128\n"
        "extra-index-url =\n  https://more.example/simple\n  file:///a/folder\n"
    )
    settings = IndexSettings.of_pip()
    assert settings.urls == ("https://mirror.example/simple", "https://more.example/simple")
    assert settings.proxy == "http://proxy.example:3128"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert IndexSettings.of_pip().urls[0] == "https://other.example/simple"


def test_whoever_lets_pip_ask_no_index_has_none_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert IndexSettings.of_pip().urls == ()


def test_without_pip_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert IndexSettings.of_pip().urls == ("https://pypi.org/simple",)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    assert IndexSettings.of_pip().urls == ("https://uv.example/simple",)
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    assert IndexSettings.of_pip().urls == ("https://pip.example/simple",)
