"""Runs programs that a model wrote: each in a child process with as few rights as it can have.

Where Linux allows it (also for ordinary users, unless an administrator forbids it), a program has
no network, sees no process but its own, and can write to one fresh directory only, which is its
working directory and is removed afterwards. Everywhere a program has limits on its CPU time, its
memory, its files and its processes, an end at a wall-clock time, no standard input, no environment
and none of our packages. Where there are no namespaces, Python's sockets are closed to it by an
audit hook instead; that keeps accidents off the network, not attackers, and other languages are
not run at all.

It is no place for programs that mean harm: they read what the user can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from model.evaluation import confine

Outcome = Literal["passed", "failed", "timed out"]

_PYTHON = getattr(sys, "_base_executable", None) or sys.executable  # no virtual environment
_FIRST_USER = 1_000_000_000
"""User ids from here on belong to nobody; each child of root gets one of its own."""
_OUTPUT_SHOWN = 4096
_NAMES_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")

_NO_SOCKETS = """\
import runpy, sys
def closed(event, arguments):
    if event.startswith("socket.") or event in ("os.system", "subprocess.Popen", "os.exec"):
        raise PermissionError(f"{event}: there is no network here")
sys.addaudithook(closed)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class SandboxError(RuntimeError):
    """Programs cannot be run here. Says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    cpu_s: int = 5
    wall_s: float = 20.0
    """Longer than `cpu_s`, since a busy machine lets a program wait."""
    memory_mb: int = 1024
    """Address space of each process."""
    file_mb: int = 16
    """The largest file, standard output included."""
    processes: int = 16
    open_files: int = 128

    def __post_init__(self) -> None:
        for name in ("cpu_s", "wall_s", "memory_mb", "file_mb", "processes", "open_files"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended."""

    outcome: Outcome
    reason: str
    """One line; empty when it passed."""


@dataclass(frozen=True, slots=True)
class Language:
    """How programs of a language are run here."""

    suffix: str
    command: tuple[str, ...]
    """The program's file is appended."""
    farewell: str
    """Statement that prints the text `{}`: a program that gets there has passed its tests."""
    bounded_by_address_space: bool = True
    """False for a runtime that reserves far more than it uses and bounds its memory by itself."""


LANGUAGES = {
    "python": Language(".py", (_PYTHON, "-I", "-B"), "print('{}')"),
    "javascript": Language(".js", ("node", "--max-old-space-size=512"), "console.log('{}')", False),
    "typescript": Language(
        ".ts",
        ("node", "--max-old-space-size=512", "--experimental-strip-types", "--no-warnings"),
        "console.log('{}')",
        False,
    ),
    "shellscript": Language(".sh", ("bash", "--noprofile", "--norc"), "echo '{}'"),
    "perl": Language(".pl", ("perl",), "print '{}';"),
}
"""Languages that can be run, by LSP id; the first word of a command is looked up on the PATH."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """How far a program can be shut in on this machine."""

    namespaces: bool
    """No network, no other processes, one writable directory."""
    own_user: bool
    """Root only: the program runs as a user of its own, whom the process limit binds."""

    def __str__(self) -> str:
        parts = ["namespaces" if self.namespaces else "resource limits and an audit hook"]
        return ", ".join(parts + ["a user of its own"] * self.own_user)


def run_programs(
    programs: Sequence[tuple[str, str]],
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    on_done: Callable[[], object] | None = None,
) -> list[Verdict]:
    """Run (language, program) pairs, a few at a time; their verdicts, in order.

    `on_done` is called after each, in order. Raises `SandboxError` before the first one when
    a language cannot be run here.
    """
    for language in sorted({language for language, _ in programs}):
        require(language)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        running = [pool.submit(run_program, *program, limits=limits) for program in programs]
        try:
            for future in running:
                verdicts.append(future.result())
                if on_done is not None:
                    on_done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return verdicts


def run_program(language: str, program: str, *, limits: Limits | None = None) -> Verdict:
    """Run one program to its end; it passes if it gets there.

    A program that stops early (`sys.exit()` among its first lines) has not got there, whatever
    its exit status. Raises `SandboxError` when the language cannot be run here.
    """
    return _run(language, program, limits or Limits(), confinement())


def require(language: str) -> None:
    """Check that programs of `language` can be run here. Raises `SandboxError`."""
    shut_in = confinement()
    if language not in LANGUAGES:
        raise SandboxError(
            f"{language} programs cannot be run here; the sandbox knows "
            f"{', '.join(sorted(LANGUAGES))}"
        )
    if language != "python" and not shut_in.namespaces:
        raise SandboxError(
            f"this machine allows no namespaces, without which only Python can be kept off the "
            f"network; run the {language} problems on a Linux that allows them"
        )
    verdict = _run(language, "", Limits(), shut_in)
    if verdict.outcome != "passed":
        command = " ".join(LANGUAGES[language].command)
        raise SandboxError(
            f"not even an empty {language} program runs ({command}): {verdict.reason}"
        )


@cache
def confinement() -> Confinement:
    """The strongest confinement that works here, found out by running an empty program.

    Raises `SandboxError` when there is none.
    """
    if os.name != "posix":
        raise SandboxError("running tests needs Linux or macOS; on Windows, use WSL")
    choices = [True, False] if sys.platform == "linux" else [False]
    reason = ""
    for namespaces in choices:
        for own_user in choices if os.geteuid() == 0 else [False]:
            tried = Confinement(namespaces, own_user)
            verdict = _run("python", "", Limits(), tried)
            if verdict.outcome == "passed":
                return tried
            reason = verdict.reason
    raise SandboxError(f"not even an empty Python program runs in a sandbox here: {reason}")


def _run(language: str, program: str, limits: Limits, shut_in: Confinement) -> Verdict:
    how = LANGUAGES[language]
    token = secrets.token_hex(16)
    with _fresh_directories(shut_in) as (directory, outside, user):
        file = directory / f"program{how.suffix}"
        whole = f"{program}\n{how.farewell.format(token)}\n"
        file.write_bytes(whole.encode("utf-8", "replace"))
        order = {
            "command": [*_command(how, shut_in), str(file)],
            "directory": str(directory),
            "namespaces": shut_in.namespaces,
            "user": user,
            "limits": _rlimits(how, limits),
        }
        status = _wait(order, outside, limits.wall_s)
        output, errors = (_tail(outside / name) for name in ("stdout", "stderr"))
    if status is None:
        return Verdict("timed out", f"still running after {limits.wall_s:g} s")
    if status == confine.NOT_CONFINED:
        return Verdict("failed", errors.strip() or "could not be confined")
    if output.rstrip().endswith(token):
        return Verdict("passed", "")
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGXCPU, 128 + signal.SIGXCPU):
        return Verdict("timed out", f"used up {limits.cpu_s} s of CPU time")
    return Verdict("failed", _reason(errors) or f"ended early, exit status {status}")


def _reason(errors: str) -> str:
    """The line that names the error: Python's last one; Node goes on after it."""
    lines = [line for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if _NAMES_ERROR.match(line)]
    return (named or lines or [""])[-1].strip()[:200]


def _command(how: Language, shut_in: Confinement) -> list[str]:
    program, *arguments = how.command
    path = shutil.which(program)
    if path is None:
        raise SandboxError(f"there is no {program!r} on the PATH; install it")
    hook = [] if shut_in.namespaces else ["-c", _NO_SOCKETS]
    return [path, *arguments, *hook]


def _rlimits(how: Language, limits: Limits) -> dict[str, int]:
    memory = {"AS": limits.memory_mb * 2**20} if how.bounded_by_address_space else {}
    return {
        "CPU": limits.cpu_s,
        "FSIZE": limits.file_mb * 2**20,
        "NPROC": limits.processes,
        "NOFILE": limits.open_files,
        "CORE": 0,
        **memory,
    }


@contextlib.contextmanager
def _fresh_directories(shut_in: Confinement) -> Iterator[tuple[Path, Path, int | None]]:
    """The program's directory, one out of its reach for its output, and its user id (None: ours).

    The output's directory is ours alone. Both are gone afterwards.
    """
    user = _FIRST_USER + secrets.randbelow(2**29) if shut_in.own_user else None
    with (
        tempfile.TemporaryDirectory(prefix="mezzotint-", ignore_cleanup_errors=True) as outside,
        tempfile.TemporaryDirectory(prefix="mezzotint-", ignore_cleanup_errors=True) as inside,
    ):
        if user is not None:
            os.chown(inside, user, user)
        yield Path(inside).resolve(), Path(outside).resolve(), user


def _wait(order: dict[str, object], outside: Path, wall_s: float) -> int | None:
    """Run `confine` with `order`; its exit status, None when its time was up."""
    with open(outside / "stdout", "wb") as stdout, open(outside / "stderr", "wb") as stderr:
        child = subprocess.Popen(
            [_PYTHON, "-I", "-B", confine.__file__, json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            env={},
            start_new_session=True,
        )
    try:
        return child.wait(wall_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Also what the program left running in the background.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _tail(file: Path) -> str:
    """The end of a program's output."""
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - _OUTPUT_SHOWN))
        return stream.read().decode("utf-8", "replace")
