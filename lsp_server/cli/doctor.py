"""What `mezzotint doctor` finds out: one check after another, each with what to do about it.

A check that raises has failed: nothing in here assumes that a package, the checkpoint or the
engine is there. The model is described from its files, without torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import math
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model import api, engines
from model.api import hub_id
from model.backbone.catalogue import KNOWN, checked, resolve, size

_REINSTALL = "run `pip install --force-reinstall mezzotint` with this Python"
_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pygls", "starlette", "uvicorn")
_GRAMMARS = (
    *("python", "javascript", "typescript", "typescriptreact", "go", "rust", "java", "c", "cpp"),
    *("csharp", "ruby", "php", "shellscript", "html", "css", "json"),
)
"""The LSP language ids whose syntax is to be checked."""
_HEALTH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    """What was found; for a failed check, what is wrong."""
    fix: str = ""
    """What to do about it; an advice where nothing is wrong."""


def examine(model: str | Path, device: str) -> Iterator[Check]:
    """Check everything a completion needs, in the order in which it needs it.

    `model` is what a user calls a model (empty: the default one), `device` what `engines.load`
    takes.
    """
    yield _checked("python", _python, fix="")
    for package in _PACKAGES:
        yield _checked(package, partial(_package, package), fix=_REINSTALL)
    yield _checked("grammars", _grammars, fix=_REINSTALL)
    yield _checked("cpu", _cpu, fix="")
    yield _checked("cuda", _cuda, fix="see the torch check above")
    download = "`mezzotint download` gets the default one; another is given by --model"
    yield _checked("model", partial(_model, model), fix=download)
    private = "`chmod 700` it, or set MEZZOTINT_RUNTIME_DIR to a directory that only you can open"
    yield _checked("runtime folder", _runtime_directory, fix=private)
    again = "mend what it says; the next completion in an editor starts another engine"
    yield _checked("shared engine", _shared_engine, fix=again)
    above = "mend what failed above; if nothing did, try --device cpu"
    yield _checked("test fill", partial(_test_fill, model, device), fix=above)


def _checked(name: str, look: Callable[[], Check | str], *, fix: str) -> Check:
    """The finding of `look`; a text stands for "all is well", an exception for a failure."""
    try:
        found = look()
    except Exception as error:
        is_sentence = isinstance(error, api.CompletionError | OSError | _WrongError)
        detail = str(error) if is_sentence else f"{type(error).__name__}: {error}"
        return Check(name=name, ok=False, detail=detail, fix=fix)
    return found if isinstance(found, Check) else Check(name=name, ok=True, detail=found)


class _WrongError(Exception):
    """A check has failed. Its text is the detail."""


# --- What is installed ----------------------------------------------------------------------


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _package(name: str) -> str:
    importlib.import_module(name)
    return version(name)


def _grammars() -> str:
    from lsp_server.check.syntax import SyntaxChecker

    checker, broken = SyntaxChecker(), list[str]()
    for language in _GRAMMARS:
        try:
            if checker.new_errors("", 0, 0, "", language=language) is None:
                broken.append(language)
        except Exception as error:  # a missing wheel, or one for another tree-sitter
            broken.append(f"{language} ({error})")
    if broken:
        raise _WrongError(f"no syntax check for {', '.join(broken)}")
    return f"{len(_GRAMMARS)} load: {', '.join(_GRAMMARS)}"


# --- The device -----------------------------------------------------------------------------

_INSTRUCTION_SETS = {
    # As Linux spells them on x86 and Arm: what makes matrix products fast.
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve", "sve2", "sme"),
}


def _cpu() -> str:
    name, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):  # Linux alone has it
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split()) & _INSTRUCTION_SETS
    cores = f"{os.cpu_count()} cores"
    with contextlib.suppress(ImportError):
        cores += f", torch uses {importlib.import_module('torch').get_num_threads()} threads"
    return ", ".join([name, cores, *sorted(flags)])


def _cuda() -> Check | str:
    cuda: Any = importlib.import_module("torch").cuda
    devices = [
        f"cuda:{index} is {cuda.get_device_name(index)}" for index in range(cuda.device_count())
    ]
    if devices:
        return ", ".join(devices)
    if Path("/proc/driver/nvidia/version").exists():
        return Check(
            name="cuda",
            ok=True,
            detail="an NVIDIA driver runs here, but this torch cannot use it",
            fix="install a CUDA build of torch to complete on the GPU (see pytorch.org)",
        )
    return "no CUDA device; the CPU will do"


# --- The model ------------------------------------------------------------------------------


def _model(name: str | Path) -> str:
    path = resolve(name)
    if path.is_file():
        return _gguf_file(path)
    if hub_id(str(name)) is not None and not path.is_dir():
        return f"{name} is a hub id; the test fill fetches what is not here"
    return _folder(path)


def _gguf_file(file: Path) -> str:
    with file.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if not is_gguf:
        raise _WrongError(f"{file} is no GGUF file")
    known = next((each for each in KNOWN.values() if checked(each) == file), None)
    what = "a GGUF file" if known is None else f"{known.title}, digest checked"
    licence = "" if known is None else f"; licence: {known.licence}"
    return f"{file}: {what}, {size(file.stat().st_size)}{licence}"


def _folder(directory: Path) -> str:
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        training = ", ".join(f"{k} {v}" for k, v in config.get("training", {}).items())
        # A large checkpoint is in several files.
        weights = sorted(directory.glob("*.safetensors")) or [directory / "model.safetensors"]
        parameters = sum(map(_num_parameters, weights))
    except FileNotFoundError as error:
        raise _WrongError(f"{error.filename} is missing") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise _WrongError(f"{directory} holds a damaged checkpoint ({error})") from error
    num_bytes = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    return f"{directory}: {parameters / 1e6:.2f} M parameters, {num_bytes / 1e6:.1f} MB on disk" + (
        f"; training: {training}" if training else ""
    )


def _num_parameters(file: Path) -> int:
    """Counted in the header of a safetensors file: its length in 8 bytes, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        room = file.stat().st_size - 8 - length
        header: dict[str, Any] = json.loads(stream.read(length)) if room >= 0 else {}
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    if room < max((tensor["data_offsets"][1] for tensor in tensors), default=0):
        raise ValueError(f"{file.name} is cut short")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


# --- The shared engine ----------------------------------------------------------------------


def _runtime_directory() -> str:
    from lsp_server.engine_link.engine_process import runtime_directory

    directory = runtime_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # as an engine's start does
    if sys.platform != "win32":
        status = directory.stat()
        if status.st_uid != os.getuid():
            raise _WrongError(f"{directory} belongs to another user")
        if mode := stat.S_IMODE(status.st_mode) & 0o077:
            raise _WrongError(f"{directory} lets others in (mode bits {mode:03o})")
    with tempfile.TemporaryFile(dir=directory):
        return f"{directory} is writable, and yours alone"


def _shared_engine() -> str:
    from lsp_server.engine_link.engine_process import runtime_directory

    descriptors = sorted(runtime_directory().glob("engine-*.json"))
    found = [asyncio.run(_health(descriptor)) for descriptor in descriptors]
    return "; ".join(found) or "not running; the first completion in an editor starts it"


async def _health(descriptor: Path) -> str:
    """How the engine is that a descriptor tells of; one that was killed leaves its own behind."""
    replaced = "the next completion in an editor starts another"
    try:
        told: dict[str, Any] = json.loads(descriptor.read_text("utf-8"))
        process = f"process {told['pid']}"
        connection = engines.connect(told["socket"], told["token"])
    except (ValueError, LookupError, TypeError):
        return f"{descriptor} describes no engine; {replaced}"
    try:
        health = await asyncio.wait_for(connection.health(), _HEALTH_TIMEOUT_S)
    except (api.EngineUnavailableError, asyncio.TimeoutError):
        return f"{process} does not answer; {replaced}"
    finally:
        await connection.close()
    if health.state == "failed":
        raise _WrongError(f"{process} has failed: {health.message}")
    return f"{process} is {health.state}: {health.message}"


# --- A completion ---------------------------------------------------------------------------

_TEST = api.InfillRequest(
    prefix="def add(a, b):\n    return ", suffix="\n", language="python", max_new_tokens=16
)


def _test_fill(model: str | Path, device: str) -> str:
    path = resolve(model)
    started = time.monotonic()
    completer = engines.load(path, device=device)
    loaded = time.monotonic()
    first, second = asyncio.run(_fill_twice(completer))
    if not second.candidates:
        raise _WrongError("the model gave no candidate")
    problems: list[str] = getattr(completer, "problems", [])
    runtime: str = getattr(completer, "runtime", "")
    return (
        f"{second.candidates[0].text!r} in {second.ms:.0f} ms, {second.forwards} forwards "
        f"(the first time {first.ms:.0f} ms, after {loaded - started:.1f} s of loading)"
        + (f", by {runtime}" if runtime else "")
        + "".join(f"; {why}" for why in problems)
    )


async def _fill_twice(completer: api.Completer) -> tuple[api.InfillResult, api.InfillResult]:
    try:
        return await completer.complete(_TEST), await completer.complete(_TEST)
    finally:
        await completer.close()
