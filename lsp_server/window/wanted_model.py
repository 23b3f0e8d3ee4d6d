"""The model that the settings ask for: found on this machine, else offered, asked for and fetched.

A backbone of the catalogue (the default one where nothing is set) and a checkpoint of the Hugging
Face hub go the same way. Nothing is downloaded that the user has not agreed to. What served before
goes on until all of the new one is here; where nothing did, nothing is completed, and the status
says what that waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pygls.lsp.server import LanguageServer

from lsp_server.ask.completion import Reason
from lsp_server.engine_link.model_download import ModelDownload, Offer
from lsp_server.window import dialogs
from lsp_server.window.declined import DeclinedModels
from model.api import CheckpointError, Completer, EngineUnavailableError, hub_id
from model.backbone.catalogue import command_for, find, is_known, known, size

_DOWNLOAD, _NO = "Download", "No"
_LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


def is_named(model: str) -> bool:
    """Whether a setting names a model that can be fetched, and is not a path."""
    return is_known(model) or hub_id(model) is not None


class NoModel:
    """An `EngineSource` where there is no model: says why, as things stand."""

    def __init__(self, reason: Callable[[], Reason | None]) -> None:
        self._reason = reason

    async def start(self) -> None:
        """There is nothing to start; `WantedModel` sees to the model."""

    async def completer(self, timeout: float) -> Completer:
        """Raises `EngineUnavailableError`, at once."""
        reason = self._reason()
        raise EngineUnavailableError(
            f"there is no model on this machine; `{command_for('')}` gets one"
            if reason is None
            else reason.message
        )

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass(slots=True)
class _Wanted:
    """A model's name, and what is known of it."""

    name: str
    ask_anyway: bool
    """Whether the user is asked though they said no before."""
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once this machine has been searched."""
    path: Path | None = None
    is_busy: bool = False
    """Whether the user is being asked, or a download goes on."""

    @property
    def called(self) -> str:
        """For people."""
        return known(self.name).title if is_known(self.name) else self.name


class WantedModel:
    """The one model that the settings name, if they name one and not a path."""

    def __init__(
        self,
        server: LanguageServer,
        declined: DeclinedModels,
        *,
        tell: Callable[[Reason | None], None],
        serves: Callable[[], bool],
        on_fetched: Callable[[Path], None],
    ) -> None:
        """`tell` is given what a person should know of the model; `serves` says whether another one
        answers meanwhile; `on_fetched` is called with the place of a model that was not on this
        machine when `path` was asked."""
        self._server = server
        self._declined = declined
        self._tell = tell
        self._serves = serves
        self._on_fetched = on_fetched
        self._wanted: _Wanted | None = None
        self._was_asked_for_any = False
        self._task: asyncio.Task[None] | None = None

    async def path(self, name: str | None) -> Path | None:
        """Where the model of this name lies, or None, and then its download is seen to.

        The user is asked once for as long as `name` stays the same, and not at all where they once
        said no, unless they have just named it. Another one, or None, stops what was under way.
        """
        wanted = self._wanted
        if (None if wanted is None else wanted.name) != name:
            wanted = self._want(name, ask_anyway=self._was_asked_for_any)
        self._was_asked_for_any = True
        if wanted is None:
            return None
        await wanted.looked.wait()
        return wanted.path

    def ask_again(self) -> None:
        """Offer the model that is not here once more: the user asks for it. What is under way
        goes on."""
        wanted = self._wanted
        if wanted is not None and wanted.path is None and not wanted.is_busy:
            self._want(wanted.name, ask_anyway=True)

    async def close(self) -> None:
        """Stop what is under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _want(self, name: str | None, *, ask_anyway: bool) -> _Wanted | None:
        if self._task is not None:
            self._task.cancel()
        if name is None:
            self._tell(None)
        self._wanted = wanted = None if name is None else _Wanted(name, ask_anyway)
        self._task = None if wanted is None else asyncio.create_task(self._obtain(wanted))
        return wanted

    async def _obtain(self, wanted: _Wanted) -> None:
        """Find it, or fetch it, or wait until somebody else has."""
        try:
            if is_known(wanted.name):
                self._found(wanted, find(wanted.name))
                if wanted.path is None:
                    await self._fetch_or_find(wanted)
            else:
                await self._fetch_told(wanted)
        finally:
            wanted.looked.set()

    async def _fetch_or_find(self, wanted: _Wanted) -> None:
        """It may also come from another window, or from the command that a person was told."""
        fetching = asyncio.create_task(self._fetch_told(wanted))
        try:
            while wanted.path is None:
                await asyncio.sleep(_LOOK_EVERY_S)
                if (found := find(wanted.name)) is not None:
                    self._arrived(wanted, found)
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _fetch_told(self, wanted: _Wanted) -> None:
        """Ask and fetch; whatever fails on the way is a sentence in the status."""
        download = ModelDownload(wanted.name)
        wanted.is_busy = True
        try:
            found = await download.cached()
            if not wanted.looked.is_set():
                self._found(wanted, found)
            elif found is not None:
                self._arrived(wanted, found)
            if found is None:
                await self._agree_and_fetch(wanted, download)
        except CheckpointError as error:
            self._warn(str(error))
        except Exception:
            logger.exception("%s could not be obtained", wanted.called)
            self._warn(f"{wanted.called} could not be obtained, see the log")
        finally:
            wanted.is_busy = False
            await download.close()

    async def _agree_and_fetch(self, wanted: _Wanted, download: ModelDownload) -> None:
        if not is_known(wanted.name):
            self._warn(f"asking the hub for {wanted.name}")
        offer = await download.offer()
        needs_answer = offer.missing_bytes and not offer.is_under_way
        if needs_answer and not await self._is_agreed(wanted, offer):
            return
        path = await self._fetch(wanted, offer, download)
        if path is not None:
            self._arrived(wanted, path)

    def _found(self, wanted: _Wanted, path: Path | None) -> None:
        wanted.path = path
        if path is None:
            self._warn(f"{wanted.called} is not on this machine")
        else:
            self._tell(None)
        wanted.looked.set()

    def _arrived(self, wanted: _Wanted, path: Path) -> None:
        if wanted.path is None:
            wanted.path = path
            self._tell(None)
            self._on_fetched(path)

    async def _is_agreed(self, wanted: _Wanted, offer: Offer) -> bool:
        if wanted.name in self._declined and not wanted.ask_anyway:
            self._warn_of_no(wanted)
            return False
        what = f"{size(offer.missing_bytes)} (licence: {offer.licence})"
        self._warn(f"{wanted.called} is not on this machine; it waits for your answer")
        why = "Mezzotint needs a model" if not wanted.name else "Mezzotint"
        origin = "" if is_known(wanted.name) else ", from the Hugging Face hub"
        question = f"{why}: download {offer.title}, {what}{origin}?"
        try:
            answer = await dialogs.ask(self._server, question, _DOWNLOAD, _NO)
        except dialogs.CannotAskError:
            restart = "" if is_known(wanted.name) else " and restart the editor"
            self._warn(
                f"{wanted.called} is not on this machine, and this editor cannot ask whether to "
                f"download {what}; run `{command_for(wanted.name)}`{restart}"
            )
            return False
        if answer == _DOWNLOAD:
            self._declined.discard(wanted.name)
            return True
        if answer == _NO:
            self._declined.add(wanted.name)
        self._warn_of_no(wanted)
        return False

    async def _fetch(self, wanted: _Wanted, offer: Offer, download: ModelDownload) -> Path | None:
        """Where the model lies now; None where the user cancelled."""
        progress = dialogs.Progress(self._server, f"downloading {wanted.called}")

        def on_bytes(num_bytes: int) -> None:
            share = min(num_bytes / offer.missing_bytes, 1.0) if offer.missing_bytes else 1.0
            message = f"{size(num_bytes)} of {size(offer.missing_bytes)}"
            told = f"downloading {wanted.called}: {message}"
            self._tell(Reason(kind="normal", message=told))
            progress.report(message, round(100 * share))

        fetching = asyncio.ensure_future(download.fetch(on_bytes))
        on_bytes(0)
        await progress.watch(fetching)
        if fetching.cancelled():
            self._warn(
                f"the download of {wanted.called} was cancelled; `{command_for(wanted.name)}` "
                "goes on with it"
            )
            return None
        return fetching.result()

    def _warn_of_no(self, wanted: _Wanted) -> None:
        command = command_for(wanted.name)
        self._warn(f"{wanted.called} was not downloaded, as you chose; `{command}` gets it")

    def _warn(self, message: str) -> None:
        """Tell of a model that is not there, and what comes of that."""
        meanwhile = "the model so far goes on" if self._serves() else "nothing is completed so far"
        self._tell(Reason(kind="warning", message=f"{message}; {meanwhile}"))
