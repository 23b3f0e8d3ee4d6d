from __future__ import annotations

from collections.abc import Collection

import httpx2
import pytest
from starlette.responses import PlainTextResponse

from model.serving.guard import Guard

TOKEN = "sesame"


async def status(hosts: Collection[str] | None, path: str = "/lease", **headers: str) -> int:
    guard = Guard(PlainTextResponse("in"), token=TOKEN, hosts=hosts)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=guard), base_url="http://localhost"
    ) as http:
        headers = {"authorization": f"Bearer {TOKEN}"} | headers
        return (await http.get(path, headers=headers)).status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8731", "LOCALHOST:1", "127.0.0.1:8731", "[::1]:8731", "10.0.0.7"],
)
async def test_this_machine_is_called_by_localhost_or_an_address(host: str) -> None:
    assert await status((), host=host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8731", "localhost.evil.example", "127.0.0.1.evil.example", ""],
)
@pytest.mark.parametrize("path", ["/health", "/lease", "/infill", "/v1/models"])
async def test_a_name_that_was_made_to_point_here_is_refused(host: str, path: str) -> None:
    assert await status((), path, host=host) == 403


async def test_a_name_may_be_allowed() -> None:
    assert await status(["gpu-box"], host="GPU-box:8731") == 200
    assert await status(["gpu-box"], host="other") == 403


async def test_on_a_private_socket_any_name_will_do() -> None:
    assert await status(None, host="engine") == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics"])
async def test_a_web_page_is_refused_even_with_the_token(path: str) -> None:
    assert await status((), path, origin="http://localhost:8731") == 403
    assert await status((), path, origin="null") == 403


@pytest.mark.parametrize("path", ["/metrics", "/lease", "/v1/models", "/v1/infill", "/nothing"])
async def test_every_route_but_health_needs_the_token(path: str) -> None:
    assert await status((), path, authorization="") == 401
    assert await status((), path, authorization="Bearer sesam") == 401


async def test_health_needs_no_token_and_takes_no_wrong_one() -> None:
    assert await status((), "/health", authorization="") == 200
    assert await status((), "/health", authorization="Bearer wrong") == 401


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
async def test_no_answer_invites_other_origins(path: str) -> None:
    guard = Guard(PlainTextResponse("in"), token=TOKEN, hosts=())
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=guard), base_url="http://localhost"
    ) as http:
        headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        response = await http.options(path, headers=headers)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control-")]
