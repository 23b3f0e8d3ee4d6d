"""Real programs in real child processes."""

from __future__ import annotations

import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.evaluation import sandbox
from model.evaluation.sandbox import (
    LANGUAGES,
    Confinement,
    Limits,
    SandboxError,
    Verdict,
    run_program,
    run_programs,
)

SHORT = Limits(cpu_s=1, wall_s=3)
namespaces = pytest.mark.skipif(
    not sandbox.confinement().namespaces, reason="this machine allows no namespaces"
)


def python(program: str, limits: Limits = SHORT) -> Verdict:
    return run_program("python", program, limits=limits)


@pytest.fixture(params=[True, False], ids=["strongest", "weakest"])
def _confinements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine can do, and what the least able one can."""
    if not request.param:
        monkeypatch.setattr(sandbox, "confinement", lambda: Confinement(False, False))


@pytest.mark.usefixtures("_confinements")
class TestVerdicts:
    def test_a_program_that_gets_to_its_end_passes(self) -> None:
        assert python("assert 1 + 1 == 2") == Verdict("passed", "")

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("assert 1 == 2, 'no'", "AssertionError: no"),
            ("def (", "SyntaxError: invalid syntax"),
            ("import sys; sys.exit(0)", "ended early, exit status 0"),
            ("import os; os._exit(0)", "ended early, exit status 0"),
            ("input()", "EOFError: EOF when reading a line"),
            ("x = [0] * 10**10", "MemoryError"),
        ],
    )
    def test_a_program_that_does_not_fails_with_its_reason(self, program: str, reason: str) -> None:
        assert python(program) == Verdict("failed", reason)

    def test_an_infinite_loop_is_timed_out(self) -> None:
        verdict = python("while True: pass", Limits(cpu_s=1, wall_s=60))
        assert verdict == Verdict("timed out", "used up 1 s of CPU time")

    def test_a_program_that_only_waits_is_timed_out(self) -> None:
        verdict = python("import time; time.sleep(60)", Limits(cpu_s=1, wall_s=1.5))
        assert verdict == Verdict("timed out", "still running after 1.5 s")

    def test_endless_output_fills_no_disk(self) -> None:
        verdict = python("while True: print('x' * 10_000)", Limits(cpu_s=5, wall_s=20, file_mb=1))
        assert verdict.outcome == "failed"

    def test_nothing_of_our_environment_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEZZOTINT_TOKEN", "secret")
        assert python(
            "import os; assert 'secret' not in os.environ.values(), os.environ\n"
            "assert set(os.environ) <= {'PATH', 'HOME', 'TMPDIR', 'LC_ALL', 'LC_CTYPE'}"
        ) == Verdict("passed", "")

    def test_none_of_our_packages_can_be_imported(self) -> None:
        assert python("import torch").reason.startswith("ModuleNotFoundError")

    def test_its_directory_is_fresh_and_gone_afterwards(self) -> None:
        program = (
            "import os, tempfile\n"
            "open('a', 'x').write('x'); os.makedirs('b/c')\n"
            "tempfile.NamedTemporaryFile(delete=False).write(b'x')\n"
            "raise SystemExit(os.getcwd())"
        )
        directory = Path(python(program).reason)
        assert directory.is_absolute()
        assert not directory.exists()
        assert python(program).reason != str(directory)

    def test_a_file_grows_no_larger_than_allowed(self) -> None:
        program = "f = open('a', 'wb')\nfor _ in range(99): f.write(bytes(2**20)); f.flush()"
        verdict = python(program, Limits(cpu_s=5, wall_s=20, file_mb=4))
        assert verdict == Verdict("failed", "OSError: [Errno 27] File too large")

    def test_there_is_no_network(self, server: int) -> None:
        for address in (f"http://127.0.0.1:{server}/", "http://192.0.2.1/"):
            verdict = python(
                f"import urllib.request; urllib.request.urlopen({address!r}, timeout=2)",
                Limits(cpu_s=3, wall_s=20),
            )
            assert verdict.outcome == "failed"
            assert "network" in verdict.reason.lower()

    def test_what_it_leaves_running_ends_with_it(self) -> None:
        assert python("import os, time\nif os.fork() == 0: time.sleep(300)").outcome == "passed"
        assert_nothing_runs()


def assert_nothing_runs() -> None:
    """The kernel takes a moment to end what a killed program has started."""
    deadline = time.monotonic() + 20
    while _processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _processes() == []


def _processes() -> list[str]:
    """Command lines of the programs that are still running."""
    found: list[str] = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "mezzotint-" in line and line.rstrip().endswith("program.py"):
            found.append(line)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a web server on this machine: there is something to be reached."""
    httpd = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd.server_address[1]
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@namespaces
class TestNamespaces:
    def test_nothing_outside_its_directory_can_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        for place in (tmp_path, Path(tempfile.gettempdir()), Path("/dev/shm"), Path.home()):
            verdict = python(f"open({str(place / 'mezzotint-test')!r}, 'w')")
            assert verdict.outcome == "failed"
            assert not (place / "mezzotint-test").exists()

    def test_a_fork_bomb_stays_small(self) -> None:
        program = (
            "import os, time\n"
            "children = 0\n"
            "try:\n"
            "    while children < 200:\n"
            "        if os.fork() == 0:\n"
            "            time.sleep(60)\n"
            "        children += 1\n"
            "except BlockingIOError:\n"
            "    pass\n"
            "raise SystemExit(f'{children} children')"
        )
        verdict = python(program, Limits(cpu_s=2, wall_s=10, processes=10))
        children = int(verdict.reason.split()[0])
        assert 0 < children < 10

    def test_an_endless_fork_bomb_ends_with_its_time(self) -> None:
        program = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
        assert python(program, Limits(cpu_s=1, wall_s=2)).outcome == "timed out"
        assert_nothing_runs()

    def test_it_sees_no_other_process(self) -> None:
        program = f"import os; os.kill({os.getpid()}, 0)"
        assert python(program).reason.startswith("ProcessLookupError")


class TestLanguages:
    @pytest.mark.parametrize(
        ("language", "right", "wrong", "reason"),
        [
            ("javascript", "const x = 1;", "throw new Error('no')", "Error: no"),
            ("shellscript", "test 1 = 1", "set -e; false", "ended early, exit status 1"),
            ("perl", "my $x = 1;", "die 'no';", "no at "),
        ],
    )
    def test_each_is_run_by_its_own_command(
        self, language: str, right: str, wrong: str, reason: str
    ) -> None:
        if shutil.which(LANGUAGES[language].command[0]) is None:
            pytest.skip(f"{LANGUAGES[language].command[0]} is not installed")
        assert run_program(language, right) == Verdict("passed", "")
        verdict = run_program(language, wrong)
        assert verdict.outcome == "failed"
        assert verdict.reason.startswith(reason)

    def test_one_that_it_does_not_know_is_refused_by_name(self) -> None:
        with pytest.raises(SandboxError, match=r"cobol programs cannot be run here; .*python"):
            run_programs([("cobol", "")])

    def test_one_whose_command_is_missing_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SandboxError, match="'perl' on the PATH; install it"):
            sandbox.require("perl")

    def test_without_namespaces_only_python_is_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "confinement", lambda: Confinement(False, False))
        with pytest.raises(SandboxError, match="no namespaces"):
            sandbox.require("javascript")


class TestManyPrograms:
    def test_verdicts_come_in_order(self) -> None:
        programs = [("python", f"assert {i} != 3") for i in range(6)]
        done: list[None] = []
        verdicts = run_programs(
            programs, limits=SHORT, workers=3, on_done=lambda: done.append(None)
        )
        assert [verdict.outcome for verdict in verdicts] == [
            "failed" if i == 3 else "passed" for i in range(6)
        ]
        assert len(done) == 6

    def test_no_limit_may_be_zero(self) -> None:
        with pytest.raises(ValueError, match="cpu_s is 0"):
            Limits(cpu_s=0)
