"""Checkpoints from the Hugging Face hub: `owner/name` or `owner/name@revision`.

Only safetensors, JSON and tokenizer files are fetched, never code and never a pickle, into the
cache that every program on this machine shares. What will be fetched, from which commit and under
which licence is known first (`offer`), and is said or asked. With `HF_HUB_OFFLINE=1` only what is
there already is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock
from huggingface_hub import (
    CacheNotFound,
    HfApi,
    constants,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import ModelInfo
from tqdm.auto import tqdm

from model.api import CheckpointError, hub_id

FILES = ("*.safetensors", "*.json", "merges.txt", "*.jinja")
"""What a checkpoint is read from."""


class HubUnreachableError(CheckpointError):
    """The hub does not answer, or not as it should; another try may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a download would fetch."""

    repository: str
    revision: str | None
    """As it was asked for; None: the repository's default branch."""
    commit: str
    num_files: int
    num_bytes: int
    """Of the whole checkpoint."""
    missing_bytes: int
    """Of what is not in the cache yet."""
    licence: str

    def __str__(self) -> str:
        return (
            f"{self.repository} at commit {self.commit}: {self.num_files} files, "
            f"{self.num_bytes / 1e9:.2f} GB; licence: {self.licence}"
        )


def local_directory(name: str | Path) -> Path:
    """The directory `name`, or where the checkpoint of that hub id lies, downloaded if need be.

    Raises `CheckpointError`.
    """
    if Path(name).is_dir():
        return Path(name)
    if hub_id(str(name)) is None:
        raise CheckpointError(
            f"there is no checkpoint directory {name}, and it is not a hub id either "
            "(owner/name or owner/name@revision)"
        )
    if constants.HF_HUB_OFFLINE:
        found = cached(str(name))
        if found is None:
            raise _not_here(str(name))
        return found
    try:
        offered = offer(str(name))
        print(offered, file=sys.stderr)
        return fetch(offered)
    except HubUnreachableError as error:
        raise CheckpointError(
            f"{error}. HF_HUB_OFFLINE=1 uses what was downloaded before; a local directory works "
            "as well"
        ) from error


def cached(name: str) -> Path | None:
    """Where the checkpoint of a hub id lies, if all of it is here; asks nobody.

    Without a revision it is the commit that was fetched last.
    """
    repository, revision = _parts(name)
    try:
        found = snapshot_download(
            repository,
            # What was fetched by its commit need not be called anything else in the cache.
            revision=revision or _newest_cached(repository),
            allow_patterns=list(FILES),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _newest_cached(repository: str) -> str | None:
    """The commit of a repository that was fetched last."""
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None
    fetched = [
        revision
        for found in cache.repos
        if (found.repo_type, found.repo_id) == ("model", repository)
        for revision in found.revisions
    ]
    newest = max(fetched, key=lambda revision: revision.last_modified, default=None)
    return None if newest is None else newest.commit_hash


def offer(name: str) -> Offer:
    """Ask the hub what it has under this id.

    Raises `CheckpointError`, also where there is no room for it.
    """
    repository, revision = _parts(name)
    if constants.HF_HUB_OFFLINE:
        raise _not_here(name)
    with _told_plainly(repository, revision):
        api = HfApi()
        info = api.model_info(repository, revision=revision, files_metadata=True)
        if info.gated:  # anybody may look at it, but not everybody may have it
            api.auth_check(repository)
    offered = _offer_of(repository, revision, info)
    _require_room(offered)
    return offered


def _offer_of(repository: str, revision: str | None, info: ModelInfo) -> Offer:
    """Raises `CheckpointError` for a repository that holds no checkpoint we read."""
    files = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in FILES)
    }
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise CheckpointError(
            f"{_id(repository, revision)} holds no config.json with safetensors beside it, so it "
            "is no checkpoint that can be loaded (pickles never are)"
        )
    commit = str(info.sha)
    here = {
        name
        for name in files
        if isinstance(try_to_load_from_cache(repository, name, revision=commit), str)
    }
    return Offer(
        repository=repository,
        revision=revision,
        commit=commit,
        num_files=len(files),
        num_bytes=sum(files.values()),
        missing_bytes=sum(size for name, size in files.items() if name not in here),
        licence=next((t[8:] for t in info.tags or () if t.startswith("license:")), "not stated"),
    )


def fetch(offered: Offer, on_bytes: Callable[[int], None] | None = None) -> Path:
    """Download what was offered, by its commit, whatever has happened to the branch since.

    Shows bars on stderr, unless `on_bytes` is to be told, from several threads, how many bytes
    have come. Only one at a time fetches a repository; the next goes on with the files that are
    missing. Raises `CheckpointError`.
    """
    with _told_plainly(offered.repository, offered.revision), _alone(offered.repository):
        found = snapshot_download(
            offered.repository,
            revision=offered.commit,
            allow_patterns=list(FILES),
            tqdm_class=None if on_bytes is None else _meter(on_bytes),
        )
        if offered.revision is not None:
            _name_commit(Path(found), offered.revision)
    return Path(found)


_under_way: dict[Path, set[Path]] = {}
"""Folders that a download writes to, with the unfinished files of others in them."""


@contextlib.contextmanager
def _alone(repository: str) -> Generator[None]:
    """No other process of ours downloads this repository as long as this is open."""
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    lock = cache / ".locks" / f"{folder}.mezzotint.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    blobs = cache / folder / "blobs"
    with FileLock(lock):
        _under_way[blobs] = _unfinished(blobs)
        try:
            yield
        finally:
            del _under_way[blobs]


def _unfinished(blobs: Path) -> set[Path]:
    return set(blobs.glob("*.incomplete"))


def abandon() -> NoReturn:
    """End this process at once, also in the middle of a download: the threads of the hub's client
    cannot be stopped. Files that are whole stay; the others, which it would never use again, go."""
    for blobs, of_others in list(_under_way.items()):
        for file in _unfinished(blobs) - of_others:
            with contextlib.suppress(OSError):  # Windows keeps what is open
                file.unlink(missing_ok=True)
    os._exit(130)


def _require_room(offered: Offer) -> None:
    """Raise `CheckpointError` where the cache's disk is too small."""
    place = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < offered.missing_bytes:
        raise _no_room(
            f"{_id(offered.repository, offered.revision)} needs "
            f"{offered.missing_bytes / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free"
        )


def _no_room(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} in {constants.HF_HUB_CACHE}; make room, or set HF_HOME to a larger disk"
    )


def _name_commit(snapshot: Path, revision: str) -> None:
    """Let the cache know a commit by the branch or tag that it was asked for by."""
    if revision == snapshot.name:
        return
    reference = snapshot.parents[1] / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    draft = reference.with_name(f"{reference.name}.{os.getpid()}.new")
    draft.write_text(snapshot.name)
    draft.replace(reference)


def _meter(on_bytes: Callable[[int], None]) -> type[tqdm]:
    """A progress bar that nobody sees, for a hub client that tells its progress to bars alone."""

    class Meter(tqdm):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass]
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how | {"leave": False})

        def display(self, *_: object, **__: object) -> None:
            # Its other bar counts files.
            if self.unit == "B":
                on_bytes(int(self.n))

        def clear(self, *_: object, **__: object) -> None:
            """There is nothing on the screen."""

    return Meter


@contextlib.contextmanager
def _told_plainly(repository: str, revision: str | None) -> Generator[None]:
    """What the hub's client raises, as one sentence."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} wants its terms accepted: do so at {constants.ENDPOINT}/{repository}, "
            "and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is neither a directory nor a hub repository {repository} (a private one needs "
            "HF_TOKEN)"
        ) from error
    except Exception as error:  # the HTTP client below differs from version to version
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(f"no room is left for {_id(repository, revision)}") from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise HubUnreachableError(
            f"{_id(repository, revision)} cannot be fetched from {constants.ENDPOINT} ({reason})"
        ) from error


def _not_here(name: str) -> CheckpointError:
    return CheckpointError(
        f"HF_HUB_OFFLINE is set, and {name} has not been downloaded as a whole; unset it once, or "
        "give a local directory"
    )


def _parts(name: str) -> tuple[str, str | None]:
    parts = hub_id(name)
    assert parts is not None, name
    return parts


def _id(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository}@{revision}"
