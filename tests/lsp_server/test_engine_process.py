"""Real engine processes, around a completer without a model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from another_engine import another_engine

from lsp_server.engine_link import engine_process
from lsp_server.engine_link.engine_process import Backoff, EngineProcess, EngineState
from model.api import (
    EngineAddress,
    EngineUnavailableError,
    InfillRequest,
    InvalidRequestError,
)
from model.serving.lifetime import GRACE_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and modes are POSIX")

FAKE_ENGINE = Path(__file__).parents[1] / "model" / "serving" / "fake_engine.py"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "run"
    monkeypatch.setenv("MEZZOTINT_RUNTIME_DIR", str(directory))
    monkeypatch.setattr(engine_process, "ENGINE_COMMAND", (sys.executable, str(FAKE_ENGINE)))
    yield directory
    for descriptor in directory.glob("*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(descriptor.read_text())["pid"], signal.SIGKILL)


class Window:
    """An `EngineProcess` and the states it went through."""

    def __init__(self, **settings: object) -> None:
        self.states: list[EngineState] = []
        self.engine = EngineProcess(on_state=self.states.append, **settings)

    @property
    def kinds(self) -> list[str]:
        return [state.kind for state in self.states]

    async def pid(self) -> int:
        """The engine's process id, which is what the fake completes everything with."""
        completer = await self.engine.completer(timeout=15)
        return int((await completer.complete(InfillRequest(prefix="x"))).candidates[0].text)


@contextlib.asynccontextmanager
async def window(**settings: object) -> AsyncIterator[Window]:
    opened = Window(**settings)
    await opened.engine.start()
    try:
        yield opened
    finally:
        await opened.engine.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), timeout_s)


async def test_windows_share_one_engine_which_leaves_after_the_last(runtime: Path) -> None:
    async with window() as first:
        async with window() as second:  # both find nobody, and race
            pid = await first.pid()
            assert await second.pid() == pid
        await asyncio.sleep(GRACE_S + 0.5)
        assert await first.pid() == pid
    assert first.kinds[0] == "starting"
    assert first.kinds[-2:] == ["ready", "stopped"]
    await until(lambda: not is_alive(pid))
    assert not list(runtime.glob("*.json"))


async def test_windows_of_different_models_get_different_engines(
    runtime: Path, tmp_path: Path
) -> None:
    async with window() as first, window(model_path=str(tmp_path)) as second:
        assert await first.pid() != await second.pid()


async def test_the_engine_leaves_after_its_only_window_was_killed(runtime: Path) -> None:
    client = (
        "import asyncio, sys\n"
        "from lsp_server.engine_link import engine_process\n"
        f"engine_process.ENGINE_COMMAND = (sys.executable, {str(FAKE_ENGINE)!r})\n"
        "async def main():\n"
        "    engine = engine_process.EngineProcess()\n"
        "    await engine.start()\n"
        "    await engine.completer(15)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", client], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        pid = json.loads(next(runtime.glob("*.json")).read_text())["pid"]
        process.kill()
    assert is_alive(pid)
    await until(lambda: not is_alive(pid))


async def test_a_killed_engine_is_restarted_and_the_state_says_so(runtime: Path) -> None:
    async with window() as window_:
        pid = await window_.pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: window_.engine.state.kind == "starting")
        assert "trying again in 0.5 s" in window_.engine.state.message
        assert await window_.pid() != pid
        assert window_.kinds.count("ready") == 2
        assert sum("trying again" in state.message for state in window_.states) == 1


async def test_a_slow_model_is_loading_then_ready(runtime: Path, tmp_path: Path) -> None:
    async with window(model_path=str(tmp_path / "slow")) as window_:
        await until(lambda: window_.engine.state.kind == "loading")
        with pytest.raises(EngineUnavailableError, match=r"loading .*slow"):
            await window_.engine.completer(timeout=0.01)
        await window_.pid()
        assert window_.kinds == ["starting", "loading", "ready"]


async def test_a_broken_checkpoint_fails_with_the_engines_sentence(
    runtime: Path, tmp_path: Path
) -> None:
    async with window(model_path=str(tmp_path / "broken")) as window_:
        with pytest.raises(EngineUnavailableError, match="holds no checkpoint; download one"):
            await window_.engine.completer(timeout=15)
        assert window_.kinds[-1] == "failed"
        descriptor = next(runtime.glob("*.json"), None)
        await until(lambda: descriptor is None or not descriptor.exists())  # no lease keeps it
        before = len(window_.states)
        await asyncio.sleep(0.7)
        assert len(window_.states) == before  # and it is not tried again by itself
        await window_.engine.start()
        assert window_.engine.state.kind == "starting"


async def test_an_engine_that_cannot_start_points_to_its_log(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('no such package')")
    monkeypatch.setattr(engine_process, "ENGINE_COMMAND", broken)
    async with window() as window_:
        await until(lambda: "trying again" in window_.engine.state.message)
        assert "status 1" in window_.engine.state.message
    log = next(runtime.glob("*.log"))
    assert str(log) in window_.states[1].message
    assert log.read_text() == "no such package\n"


async def test_an_engine_that_left_for_want_of_work_comes_back_when_asked(runtime: Path) -> None:
    async with window(idle_unload_minutes=0.02) as window_:
        pid = await window_.pid()
        await until(lambda: window_.engine.state.kind == "stopped")
        assert await window_.pid() != pid


async def test_the_runtime_directory_is_private(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    async with window() as window_:
        await window_.pid()
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in runtime.iterdir()} == {0o600}


async def test_a_project_with_a_package_named_model_does_not_replace_ours(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    # Unlike a script's, the first place that `-c` imports from is the working directory.
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = (sys.executable, "-c", code, str(FAKE_ENGINE))
    monkeypatch.setattr(engine_process, "ENGINE_COMMAND", command)
    async with window() as window_:
        await window_.pid()


async def test_a_url_is_never_spawned_for(runtime: Path) -> None:
    async with window(address=lambda: EngineAddress(url="http://127.0.0.1:1")) as window_:
        with pytest.raises(EngineUnavailableError, match=r"127\.0\.0\.1:1 does not answer"):
            await window_.engine.completer(timeout=1)
    assert not runtime.exists()


async def test_our_own_engine_is_served_by_its_address_and_token(runtime: Path) -> None:
    async with window() as local:
        pid = await local.pid()
        found = json.loads(next(runtime.glob("*.json")).read_text())
        address = EngineAddress(url=found["socket"], token=found["token"])
        async with window(address=lambda: address) as remote:
            assert await remote.pid() == pid
        # A key of the person's takes the token's place.
        address = EngineAddress(url=found["socket"], key=found["token"], token="stale")
        async with window(address=lambda: address) as remote:
            assert await remote.pid() == pid


async def test_a_url_whose_engine_refuses_the_token_fails(runtime: Path) -> None:
    async with window() as local:
        await local.pid()
        address = json.loads(next(runtime.glob("*.json")).read_text())["socket"]
        async with window(address=lambda: EngineAddress(url=address, token="wrong")) as remote:
            await until(lambda: remote.engine.state.kind == "failed")
            assert "MEZZOTINT_TOKEN" in remote.engine.state.message


async def test_a_closed_one_does_not_start_again(runtime: Path) -> None:
    engine = EngineProcess()
    await engine.close()
    with pytest.raises(EngineUnavailableError, match="let go"):
        await engine.completer(timeout=1)
    assert not runtime.exists()


def test_the_back_off_doubles_to_half_a_minute_and_starts_over_after_a_healthy_one() -> None:
    backoff = Backoff()
    delays = [backoff.delay_s(ready_s=1) for _ in range(8)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.delay_s(ready_s=60) == 0.5


async def test_an_address_that_must_not_be_used_fails_with_its_reason(runtime: Path) -> None:
    def plain() -> EngineAddress:
        return EngineAddress(url="http://engine.example", key="sesame")

    async with window(address=plain) as window_:
        await until(lambda: window_.engine.state.kind == "failed")
    assert "allowPlainHttp" in window_.states[-2].message
    assert "sesame" not in window_.states[-2].message


@pytest.mark.parametrize(
    "fault",
    [ImportError("socksio"), ValueError("scheme"), AssertionError(), RecursionError(), OSError(2)],
)
async def test_whatever_stops_the_search_for_an_engine_is_a_failure_and_no_endless_start(
    runtime: Path, fault: Exception
) -> None:
    faults = [fault]

    def address() -> EngineAddress:
        raise faults.pop() if faults else InvalidRequestError("asked again")

    async with window(address=address) as window_:
        with pytest.raises(EngineUnavailableError):
            await window_.engine.completer(timeout=60)
        assert window_.engine.state.kind == "failed"
        assert window_.engine.state.message
        await window_.engine.start()  # a person may want another try
        await until(lambda: window_.engine.state.message == "asked again")


async def test_an_engine_of_another_kind_is_ready_fails_on_a_refused_key_and_can_be_retried(
    runtime: Path,
) -> None:
    async with another_engine() as other:
        other.answers["/infill"] = (401, {"error": {"message": "Invalid API Key"}})
        async with window(address=lambda: EngineAddress(url=other.url, key="sesame")) as window_:
            completer = await window_.engine.completer(timeout=15)
            with pytest.raises(InvalidRequestError, match="Invalid API Key"):
                await completer.complete(InfillRequest(prefix="x"))
            await until(lambda: window_.engine.state.kind == "failed")
            assert "MEZZOTINT_API_KEY" in window_.engine.state.message
            other.answers["/infill"] = (200, {"content": "y", "stop": True, "stop_type": "eos"})
            await window_.engine.start()
            completer = await window_.engine.completer(timeout=15)
            result = await completer.complete(InfillRequest(prefix="x"))
    assert result.candidates[0].text == "y"
    assert not runtime.exists()


async def test_an_engine_of_another_kind_that_goes_away_is_looked_for_until_it_is_back(
    runtime: Path,
) -> None:
    async with (
        another_engine() as other,
        window(address=lambda: EngineAddress(url=other.url)) as window_,
    ):
        completer = await window_.engine.completer(timeout=15)
        other.answers["/infill"] = other.answers["/health"] = (502, {})
        with pytest.raises(EngineUnavailableError, match="502"):
            await completer.complete(InfillRequest(prefix="x"))
        await until(lambda: "trying again" in window_.engine.state.message)
        other.answers["/health"] = (200, {"status": "ok"})
        await window_.engine.completer(timeout=30)
