"""Checkpoints from the Hugging Face hub: `owner/name` or `owner/name@revision`.

Only safetensors, JSON and tokenizer files are fetched, never code and never a pickle, into the
cache that every program on this machine shares. What will be fetched, from which commit and under
which licence is said first. With `HF_HUB_OFFLINE=1` only what is there already is used.
"""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CacheNotFound, HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from model.api import CheckpointError

FILES = ("*.safetensors", "*.json", "merges.txt", "*.jinja")
"""What a checkpoint is read from."""

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


def local_directory(name: str | Path) -> Path:
    """The directory `name`, or where the checkpoint of that hub id lies, downloaded if need be.

    Raises `CheckpointError`.
    """
    if Path(name).is_dir():
        return Path(name)
    match = _HUB_ID.fullmatch(str(name))
    if match is None:
        raise CheckpointError(
            f"there is no checkpoint directory {name}, and it is not a hub id either "
            "(owner/name or owner/name@revision)"
        )
    repository, revision = match.groups()
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, revision)
    return _downloaded(repository, revision)


def _from_cache(repository: str, revision: str | None) -> Path:
    try:
        found = snapshot_download(
            repository,
            # What was fetched by its commit bears no other name in the cache.
            revision=revision or _newest_cached(repository),
            allow_patterns=list(FILES),
            local_files_only=True,
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and {_id(repository, revision)} has not been downloaded as a "
            "whole; unset it once, or give a local directory"
        ) from error
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


def _downloaded(repository: str, revision: str | None) -> Path:
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        print(_announcement(repository, info), file=sys.stderr)
        # By the commit: what was announced is what comes, whatever happens to the branch.
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=list(FILES)))
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
        raise CheckpointError(
            f"{_id(repository, revision)} cannot be fetched from {constants.ENDPOINT} ({error}). "
            "HF_HUB_OFFLINE=1 uses what was downloaded before; a local directory works as well"
        ) from error


def _announcement(repository: str, info: ModelInfo) -> str:
    """Commit, size and licence of what is about to be fetched."""
    files = [s for s in info.siblings or () if any(fnmatch(s.rfilename, p) for p in FILES)]
    size = sum(file.size or 0 for file in files) / 1e9
    licence = next((t[8:] for t in info.tags or () if t.startswith("license:")), "not stated")
    return (
        f"{repository} at commit {info.sha}: {len(files)} files, {size:.2f} GB; licence: {licence}"
    )


def _id(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository}@{revision}"
