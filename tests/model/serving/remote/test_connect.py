"""What an address speaks is found out where that is safe, and what would leak a key is refused."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from fake_remote import Reply, fake_remote, json_reply, stream_reply
from shapes import (
    LLAMA_CPP,
    LLAMA_CPP_LOADING,
    MERCURY_MODELS,
    OPENAI_MODELS,
    llama_cpp_end,
    llama_cpp_token,
    openai_end,
    openai_token,
)

from model.api import (
    EngineAddress,
    EngineUnavailableError,
    InfillRequest,
    InvalidRequestError,
)
from model.engines import connect_remote
from model.serving.client import EngineClient
from model.serving.remote.detect import kind_of
from model.serving.remote.dialect import base_url, versioned

OK = json_reply({"status": "ok"}, **LLAMA_CPP)
NO_BODY = Reply()


async def test_llama_cpp_is_known_by_its_health_also_while_it_loads() -> None:
    loading = json_reply(LLAMA_CPP_LOADING, 503, **LLAMA_CPP)
    async with fake_remote({"/health": [loading, loading, OK, OK]}) as fake:
        connection = await connect_remote(EngineAddress(url=fake.url))
        assert (await connection.health()).state == "loading"
        assert (await connection.health()).state == "ready"
        await connection.close()


async def test_servers_that_list_models_are_taken_for_openai_and_asked_for_the_first() -> None:
    answer = stream_reply(openai_token("x", 0.5), openai_end())
    routes = {
        "/health": NO_BODY,
        "/v1/models": json_reply(OPENAI_MODELS),
        "/v1/completions": answer,
    }
    async with fake_remote(routes) as fake:
        connection = await connect_remote(EngineAddress(url=f"{fake.url}/v1"))
        health = await connection.health()
        await connection.complete(InfillRequest(prefix="a"))
        await connection.close()
    assert (health.state, health.model) == ("ready", "Qwen/Qwen2.5-Coder-1.5B")
    assert fake.asked_of("/v1/completions")[0].body["model"] == "Qwen/Qwen2.5-Coder-1.5B"


async def test_a_model_that_is_not_listed_is_refused_with_those_that_are() -> None:
    async with fake_remote({"/v1/models": json_reply(OPENAI_MODELS)}) as fake:
        connection = await connect_remote(EngineAddress(url=fake.url, kind="openai", model="coder"))
        with pytest.raises(InvalidRequestError, match="it lists Qwen"):
            await connection.health()
        await connection.close()


async def test_our_own_engine_is_known_by_its_health() -> None:
    health = {"state": "ready", "message": "serving m", "model": "m", "fraction": None}
    async with fake_remote({"/health": json_reply(health)}) as fake:
        connection = await connect_remote(EngineAddress(url=fake.url, token="sesame"))
        assert isinstance(connection, EngineClient)
        assert (await connection.health()).model == "m"
        await connection.close()
    assert fake.asked[-1].headers["authorization"] == "Bearer sesame"


async def test_finding_out_shows_no_key() -> None:
    routes = {"/health": NO_BODY, "/v1/models": json_reply(OPENAI_MODELS)}
    async with fake_remote(routes) as fake:
        assert await kind_of(EngineAddress(url=fake.url, key="sesame")) == "openai"
    assert len(fake.asked) == 2
    assert all("authorization" not in asked.headers for asked in fake.asked)


async def test_our_own_token_is_never_shown_to_another_kind() -> None:
    routes = {"/infill": stream_reply(llama_cpp_token("x", 0.5, 1), llama_cpp_end(2), done=False)}
    async with fake_remote(routes) as fake:
        address = EngineAddress(url=fake.url, kind="llama.cpp", token="sesame")
        connection = await connect_remote(address)
        await connection.complete(InfillRequest(prefix="a"))
        await connection.close()
    assert "authorization" not in fake.asked[0].headers


async def test_what_could_be_anything_has_to_be_named() -> None:
    async with fake_remote({"/health": json_reply({"status": "ok"})}) as fake:
        with pytest.raises(InvalidRequestError, match=r"mezzotint\.engine\.kind"):
            await connect_remote(EngineAddress(url=fake.url))


async def test_nobody_there_is_unavailable() -> None:
    async with fake_remote({}) as fake:
        pass
    with pytest.raises(EngineUnavailableError, match="does not answer"):
        await connect_remote(EngineAddress(url=fake.url))


async def test_mercury_is_known_by_its_host_and_nothing_is_asked_for_that() -> None:
    assert await kind_of(EngineAddress(url="https://api.inceptionlabs.ai/v1")) == "mercury"
    with pytest.raises(EngineUnavailableError):  # a look-alike is asked, and is not there
        await kind_of(EngineAddress(url="http://127.0.0.1:1/inceptionlabs.ai"))


async def test_mercurys_health_asks_for_its_models_with_the_key() -> None:
    async with fake_remote({"/v1/models": json_reply(MERCURY_MODELS)}) as fake:
        connection = await connect_remote(EngineAddress(url=fake.url, kind="mercury", key="sesame"))
        health = await connection.health()
        await connection.close()
    assert (health.state, health.model) == ("ready", "mercury-edit-2")
    assert fake.asked[0].headers["authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    ("url", "base", "version"),
    [
        ("http://h:1", "http://h:1", "/v1"),
        ("http://h:1/", "http://h:1", "/v1"),
        ("http://h:1/v1/", "http://h:1", "/v1"),
        ("http://h:1/v1/completions", "http://h:1", "/v1"),
        ("https://h/v1/fim/completions", "https://h", "/v1"),
        ("http://h/llama/infill", "http://h/llama", "/v1"),
        ("https://h/api/v4", "https://h/api/v4", ""),
        ("https://h/beta", "https://h/beta", "/v1"),
    ],
)
def test_a_pasted_endpoint_is_as_good_as_the_root(url: str, base: str, version: str) -> None:
    assert (base_url(url), versioned(url)) == (base, version)


@pytest.mark.parametrize("secret", ["key", "token"])
def test_a_key_does_not_cross_a_network_in_the_clear_unless_that_is_allowed(secret: str) -> None:
    with pytest.raises(InvalidRequestError, match="allowPlainHttp") as caught:
        EngineAddress(url="http://engine.example:8731", **{secret: "sesame"})
    assert "sesame" not in str(caught.value)
    EngineAddress(url="http://engine.example:8731", **{secret: "sesame"}, allow_plain_http=True)
    EngineAddress(url="https://engine.example:8731", **{secret: "sesame"})
    EngineAddress(url="http://engine.example:8731")
    for local in ("127.0.0.1", "localhost", "[::1]", "127.8.8.8"):
        EngineAddress(url=f"http://{local}:8731", **{secret: "sesame"})
    for other in ("127.0.0.1.example", "localhost.example", "0.0.0.0", "10.0.0.1"):
        with pytest.raises(InvalidRequestError):
            EngineAddress(url=f"http://{other}:8731", **{secret: "sesame"})


def test_an_address_shows_no_key() -> None:
    address = EngineAddress(url="http://localhost", key="sesame", token="sesame")
    assert "sesame" not in repr(address)


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://h", "http://", "http://[::1", "", "http://h:99999"]
)
def test_an_address_of_no_engine_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="must begin with"):
        EngineAddress(url=url)


def test_only_our_own_engine_listens_on_a_socket_of_the_file_system() -> None:
    assert EngineAddress(url="unix:/run/engine.sock", kind="mezzotint")
    with pytest.raises(InvalidRequestError, match="for a Mezzotint engine"):
        EngineAddress(url="unix:/run/engine.sock", kind="llama.cpp")


def test_a_password_in_the_address_is_refused_and_not_quoted() -> None:
    with pytest.raises(InvalidRequestError, match="give a key instead") as caught:
        EngineAddress(url="https://ada:lovelace@engine.example")
    assert "lovelace" not in str(caught.value)


@pytest.mark.parametrize("template", ["<PRE>{prefix}", "{prefix}{suffix}{prefix}", "x"])
def test_a_template_needs_each_part_once(template: str) -> None:
    with pytest.raises(InvalidRequestError, match="once each"):
        EngineAddress(url="http://localhost", fim_template=template)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2"]
    names = ["-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True
    )
    return made, key


@pytest.mark.parametrize("kind", ["auto", "llama.cpp", "mezzotint"])
async def test_a_certificate_counts_that_the_environment_names(
    certificate: tuple[Path, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    health = {"state": "ready", "message": "serving m"} if kind == "mezzotint" else {"status": "ok"}
    async with fake_remote({"/health": json_reply(health, **LLAMA_CPP)}, tls) as fake:
        address = EngineAddress(url=fake.url, kind=kind, key="sesame")
        with pytest.raises(EngineUnavailableError):
            await (await connect_remote(address)).health()
        assert not fake.asked  # not even the key
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        connection = await connect_remote(address)
        assert (await connection.health()).state == "ready"
        await connection.close()
