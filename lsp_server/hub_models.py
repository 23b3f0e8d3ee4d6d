"""Hub ids in `mezzotint.model.path`: found on this machine, else offered, asked for and fetched.

Nothing is downloaded that the user has not agreed to, and another model serves until all of it is
here. Whatever fails on the way is a sentence in the status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pygls.lsp.server import LanguageServer

from lsp_server import window
from lsp_server.completion import Reason
from lsp_server.hub_download import HubDownload, HubOffer
from model.api import CheckpointError

_DOWNLOAD, _NOT_NOW = "Download", "Not now"
_MEANWHILE = "the model so far goes on"
"""How a sentence about a model that is not there ends."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wanted:
    """A hub id, and what is known of it."""

    name: str
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once this machine has been searched."""
    directory: Path | None = None


class HubModels:
    """The one checkpoint from the hub that the settings ask for, if they do."""

    def __init__(
        self,
        server: LanguageServer,
        tell: Callable[[Reason | None], None],
        on_fetched: Callable[[Path], None],
    ) -> None:
        """`tell` is given what a person should know of the model; `on_fetched` is called with the
        directory of a checkpoint that was not on this machine when `directory` was asked."""
        self._server = server
        self._tell = tell
        self._on_fetched = on_fetched
        self._wanted: _Wanted | None = None
        self._task: asyncio.Task[None] | None = None

    async def directory(self, name: str | None) -> Path | None:
        """Where the checkpoint of this hub id lies, or None, and then its download is seen to.

        The user is asked once for as long as `name` stays the same. Another one, or None, stops
        what was under way.
        """
        wanted = self._wanted
        if (None if wanted is None else wanted.name) != name:
            if self._task is not None:
                self._task.cancel()
            self._tell(None)
            self._wanted = wanted = None if name is None else _Wanted(name)
            self._task = None if wanted is None else asyncio.create_task(self._obtain(wanted))
        if wanted is None:
            return None
        await wanted.looked.wait()
        return wanted.directory

    async def close(self) -> None:
        """Stop what is under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _obtain(self, wanted: _Wanted) -> None:
        download = HubDownload(wanted.name)
        try:
            wanted.directory = await download.cached()
            wanted.looked.set()
            if wanted.directory is None:
                self._warn(f"asking the hub for {wanted.name}")
                await self._agree_and_fetch(wanted, download)
        except CheckpointError as error:
            self._warn(f"{error}; {_MEANWHILE}")
        except Exception:
            logger.exception("%s could not be obtained", wanted.name)
            self._warn(f"{wanted.name} could not be obtained, see the log; {_MEANWHILE}")
        finally:
            wanted.looked.set()
            await download.close()

    async def _agree_and_fetch(self, wanted: _Wanted, download: HubDownload) -> None:
        offer = await download.offer()
        if offer.missing_bytes and not await self._is_agreed(wanted.name, offer):
            return
        directory = await self._fetch(wanted.name, offer, download)
        if directory is not None:
            wanted.directory = directory
            self._tell(None)
            self._on_fetched(directory)

    async def _is_agreed(self, name: str, offer: HubOffer) -> bool:
        what = f"{_size(offer.missing_bytes)} (licence: {offer.licence})"
        self._warn(f"{name} is not on this machine; it waits for your answer")
        question = f"Mezzotint: download {name}, {what}, from the Hugging Face hub?"
        try:
            answer = await window.ask(self._server, question, _DOWNLOAD, _NOT_NOW)
        except window.CannotAskError:
            self._warn(
                f"{name} is not on this machine, and this editor cannot ask whether to download "
                f"{what}; run `mezzotint download {name}` and restart the editor"
            )
            return False
        if answer != _DOWNLOAD:
            self._warn(f"{name} was not downloaded, as you chose; {_MEANWHILE}")
        return answer == _DOWNLOAD

    async def _fetch(self, name: str, offer: HubOffer, download: HubDownload) -> Path | None:
        """Where the checkpoint lies now; None where the user cancelled."""
        progress = window.Progress(self._server, f"downloading {name}")

        def on_bytes(num_bytes: int) -> None:
            share = min(num_bytes / offer.missing_bytes, 1.0) if offer.missing_bytes else 1.0
            message = f"{_size(num_bytes)} of {_size(offer.missing_bytes)}"
            self._tell(Reason(kind="normal", message=f"downloading {name}: {message}"))
            progress.report(message, round(100 * share))

        fetching = asyncio.ensure_future(download.fetch(on_bytes))
        on_bytes(0)
        await progress.watch(fetching)
        if fetching.cancelled():
            self._warn(f"the download of {name} was cancelled; {_MEANWHILE}")
            return None
        return fetching.result()

    def _warn(self, message: str) -> None:
        self._tell(Reason(kind="warning", message=message))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
