"""Proxies and certificates of the environment that cannot be followed: a sentence that names them,
wherever a client is made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model.api import CompletionError, EngineAddress, InvalidRequestError
from model.backbone.http_file import SourceError, http_client
from model.engines import connect_remote

PROXIES = [
    ("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:9", "socksio"),
    ("ALL_PROXY", "socks5h://127.0.0.1:9", "socksio"),
    ("ALL_PROXY", "socks4://user:hunter2@127.0.0.1:9", "Unknown scheme"),
    ("HTTPS_PROXY", "quic://127.0.0.1:9", "Unknown scheme"),
    ("HTTPS_PROXY", "http://proxy.example:port", "Invalid port"),
    ("https_proxy", "http://[::1", "Invalid port"),
]
KINDS = ["auto", "openai", "llama.cpp"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as though it were not installed


async def refusal(kind: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        await connect_remote(EngineAddress(url="https://engine.example", kind=kind, key="sesame"))
    return sentence(caught.value)


def sentence(error: CompletionError) -> str:
    assert "\n" not in str(error)
    assert "hunter2" not in str(error)
    return str(error)


@pytest.mark.parametrize(("name", "proxy", "said"), PROXIES)
async def test_a_proxy_that_cannot_be_used_is_told(
    name: str, proxy: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, proxy)
    with pytest.raises(SourceError) as caught:
        http_client()
    for told in (sentence(caught.value), *[await refusal(kind) for kind in KINDS]):
        assert "proxy" in told
        assert said in told


def missing(folder: Path) -> Path:
    return folder / "missing.pem"


def a_folder(folder: Path) -> Path:
    return folder


def no_certificate(folder: Path) -> Path:
    (folder / "text.pem").write_text("hello")
    return folder / "text.pem"


@pytest.mark.parametrize("made", [missing, a_folder, no_certificate])
async def test_certificates_that_cannot_be_read_are_told_by_their_file(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = str(made(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", file)
    with pytest.raises(SourceError) as caught:
        http_client()
    kinds = [*KINDS, "mezzotint"]
    for told in (sentence(caught.value), *[await refusal(kind) for kind in kinds]):
        assert f"SSL_CERT_FILE ({file})" in told


async def test_an_engine_on_this_machine_needs_neither(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/missing.pem")
    address = EngineAddress(url="http://127.0.0.1:1", kind="openai")
    await (await connect_remote(address)).close()


@pytest.mark.parametrize("url", ["https://engine.example:0x", "https://[::1", "https://a:99999"])
async def test_an_address_of_its_own_that_is_malformed_is_not_the_proxys_fault(url: str):
    with pytest.raises(InvalidRequestError, match="the engine's address"):
        await connect_remote(EngineAddress(url=url, kind="openai"))


async def test_a_key_that_no_header_can_hold_is_told_and_not_shown():
    with pytest.raises(InvalidRequestError, match="its key is malformed") as caught:
        await connect_remote(EngineAddress(url="https://a.example", kind="openai", key="sésame語"))
    assert "sésame" not in str(caught.value)
