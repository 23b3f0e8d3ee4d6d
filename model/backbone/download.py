"""How a backbone of the catalogue gets onto this machine.

    FILE.part    the file's beginning, from whichever source; goes on where it broke off
    FILE         the whole file, moved here once its digest was checked
    FILE.sha256  says that it was
    FILE.lock    held by the one process that writes

Every source gives the same bytes, so one may go on where another broke off.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from model.api import CheckpointError
from model.backbone.catalogue import KNOWN, Known, checked, models_directory, seal, size
from model.backbone.digest import sha256_of
from model.backbone.http_file import SourceError, is_full
from model.backbone.hub_source import HubSource
from model.backbone.index_source import IndexSource

_WAIT_S = 0.2
_PROBE_S = 0.1
"""Another process may hold the lock for no more than this look at it."""
_SPARE_BYTES = 16 * 2**20
_RATE_OVER_S = 10.0
_REPORT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is."""

    num_bytes: int
    total: int
    bytes_per_s: float | None
    """Lately; None as long as that cannot be told."""

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest takes at this rate."""
        if not self.bytes_per_s:
            return None
        return (self.total - self.num_bytes) / self.bytes_per_s

    def __str__(self) -> str:
        text = f"{size(self.num_bytes)} of {size(self.total)}"
        if self.bytes_per_s and self.eta_s is not None:
            text += f", {self.bytes_per_s / 1e6:.1f} MB/s, {_duration(self.eta_s)} left"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A backbone that is here."""

    path: Path
    sha256: str
    source: str
    """`hub`, `index`, `file`, or `here` where nothing had to come."""
    num_bytes: int


class Source(Protocol):
    """Where a backbone's file may come from."""

    name: str
    title: str

    def working_bytes(self, wanted: Known) -> int:
        """Room that is needed beside the file itself."""
        ...

    def extend(self, partial: Path, wanted: Known, on_bytes: Callable[[int], None]) -> None:
        """Append to `partial`, which holds the file's beginning, what it lacks; `on_bytes` is told
        how many are there. Raises `SourceError`, `OSError`."""
        ...


def download(
    wanted: Known,
    *,
    sources: Sequence[Source] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Downloaded:
    """Fetch a backbone unless it is here; the first source that gives it is used.

    Another process that fetches it already is waited for. `on_note` is told, in a sentence, what
    comes from where. Whatever interrupts this leaves what has come, to go on with.
    Raises `CheckpointError`.
    """
    with _told_plainly(wanted):
        return _download(wanted, sources or (HubSource(), IndexSource()), on_progress, on_note)


def _download(
    wanted: Known,
    sources: Sequence[Source],
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> Downloaded:
    meter = _Meter(wanted.num_bytes, on_progress)
    with _alone(wanted, meter, on_note):
        if is_here(wanted):
            return _downloaded(wanted, "here")
        problems: list[str] = []
        for source in sources:
            try:
                _require_room(wanted, missing_bytes(wanted) + source.working_bytes(wanted))
                on_note(f"fetching {wanted.file_name} from {source.title}")
                source.extend(partial_file(wanted), wanted, meter)
                _check(partial_file(wanted), wanted, source.title)
            except SourceError as error:
                problems.append(f"{source.title}: {error}")
                on_note(problems[-1])
            else:
                _put_in_place(partial_file(wanted), wanted)
                return _downloaded(wanted, source.name)
    kept = missing_bytes(wanted)
    goes_on = f"; {size(wanted.num_bytes - kept)} are kept" if kept < wanted.num_bytes else ""
    raise CheckpointError(
        f"{wanted.file_name} cannot be fetched ({'; '.join(problems)}){goes_on}; "
        "try again later, or give a copy of the file with --from"
    )


def copy(
    wanted: Known, file: Path, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> Downloaded:
    """Take a backbone from a file on this machine, which stays. Raises `CheckpointError`."""
    with _told_plainly(wanted):
        meter = _Meter(wanted.num_bytes, on_progress)
        with _alone(wanted, meter):
            if is_here(wanted):
                return _downloaded(wanted, "here")
            num_bytes = file.stat().st_size
            if not file.is_file() or num_bytes != wanted.num_bytes:
                raise CheckpointError(_other_size(file, num_bytes, wanted))
            _require_room(wanted, wanted.num_bytes)
            copied = wanted.path.with_name(f"{wanted.file_name}.copy")
            try:
                _copy_bytes(file, copied, meter)
                _check(copied, wanted, str(file))
                _put_in_place(copied, wanted)
            finally:
                copied.unlink(missing_ok=True)
            return _downloaded(wanted, "file")


def _other_size(file: Path, num_bytes: int, wanted: Known) -> str:
    sentence = (
        f"{file} is not {wanted.title}: it holds {num_bytes:,} bytes instead of "
        f"{wanted.num_bytes:,}"
    )
    alike = next((k.name for k in KNOWN.values() if k.num_bytes == num_bytes), None)
    return sentence if alike is None else f"{sentence}, as {alike} does; give its name as well"


def is_here(wanted: Known) -> bool:
    """Whether the whole file lies in its place; one that somebody else put there is checked."""
    if checked(wanted) is not None:
        return True
    with contextlib.suppress(OSError):
        is_whole = wanted.path.stat().st_size == wanted.num_bytes
        if is_whole and sha256_of(wanted.path) == wanted.sha256:
            _seal(wanted)
            return True
    return False


def missing_bytes(wanted: Known) -> int:
    """How many bytes of it are not on this machine yet."""
    if checked(wanted) is not None:
        return 0
    with contextlib.suppress(OSError):
        return max(wanted.num_bytes - partial_file(wanted).stat().st_size, 0)
    return wanted.num_bytes


def partial_file(wanted: Known) -> Path:
    """Where the beginning of a file lies that has not come as a whole."""
    return wanted.path.with_name(f"{wanted.file_name}.part")


def _partial_files(wanted: Known) -> list[Path]:
    """The file's beginning, and what a source keeps beside it: pieces that are not whole."""
    return list(wanted.path.parent.glob(f"{glob.escape(partial_file(wanted).name)}*"))


def require_room(wanted: Known) -> None:
    """Raise `CheckpointError` where the disk is too small for what is missing."""
    with _told_plainly(wanted):
        _require_room(wanted, missing_bytes(wanted))


def _require_room(wanted: Known, num_bytes: int) -> None:
    place = models_directory()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    needed = num_bytes + _SPARE_BYTES
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{wanted.file_name} needs {size(needed)} in {place}, and {size(free)} are free; make "
            "room, or set MEZZOTINT_MODELS to a folder on a larger disk"
        )


def _check(file: Path, wanted: Known, title: str) -> None:
    """Raise `SourceError`, and throw the file away, unless it is exactly what is wanted."""
    num_bytes, digest = file.stat().st_size, sha256_of(file)
    if num_bytes != wanted.num_bytes or digest != wanted.sha256:
        file.unlink()
        raise SourceError(
            f"what came from {title} is not {wanted.file_name} as Mezzotint knows it (SHA-256 "
            f"{digest[:12]}… instead of {wanted.sha256[:12]}…) and was thrown away"
        )


def _put_in_place(file: Path, wanted: Known) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())  # a name on the disk before its bytes would outlive a power cut
    os.replace(file, wanted.path)
    _seal(wanted)
    for file in _partial_files(wanted):
        with contextlib.suppress(OSError):
            file.unlink()


def _seal(wanted: Known) -> None:
    draft = wanted.path.with_name(f"{wanted.file_name}.sha256.new")
    draft.write_text(f"{wanted.sha256}  {wanted.file_name}\n", "ascii")
    draft.replace(seal(wanted))


def _copy_bytes(file: Path, into: Path, on_bytes: Callable[[int], None]) -> None:
    num_bytes = 0
    with file.open("rb") as source, into.open("wb") as copied:
        while chunk := source.read(2**22):
            copied.write(chunk)
            num_bytes += len(chunk)
            on_bytes(num_bytes)


def _downloaded(wanted: Known, source: str) -> Downloaded:
    return Downloaded(
        path=wanted.path, sha256=wanted.sha256, source=source, num_bytes=wanted.num_bytes
    )


@contextlib.contextmanager
def _alone(
    wanted: Known, meter: _Meter, on_note: Callable[[str], None] = lambda _: None
) -> Generator[None]:
    """No other process of ours writes this file as long as this is open. While one does, its
    progress is ours."""
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(wanted)
    has_told = False
    while not _taken(lock, _WAIT_S):
        if not has_told:
            on_note(f"another process fetches {wanted.file_name}; waiting for it")
            has_told = True
        _tell_partial(wanted, meter)
    try:
        yield
    finally:
        lock.release()


def is_under_way(wanted: Known) -> bool:
    """Whether another process fetches it now. Raises `CheckpointError`."""
    if not wanted.path.parent.is_dir():
        return False
    with _told_plainly(wanted):
        lock = _lock(wanted)
        is_free = _taken(lock, _PROBE_S)
        lock.release()
    return not is_free


def wait_for_other(
    wanted: Known, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> Path:
    """Where it lies once another process has fetched it.

    Raises `CheckpointError`, also where that process was stopped.
    """
    meter = _Meter(wanted.num_bytes, on_progress)
    while is_under_way(wanted):
        _tell_partial(wanted, meter)
        time.sleep(_WAIT_S)
    found = checked(wanted)
    if found is None:
        raise CheckpointError(f"the download of {wanted.title} was stopped where it was begun")
    return found


def _lock(wanted: Known) -> FileLock:
    return FileLock(wanted.path.with_name(f"{wanted.file_name}.lock"))


def _taken(lock: FileLock, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    return True


def _tell_partial(wanted: Known, meter: _Meter) -> None:
    with contextlib.suppress(OSError):
        meter(sum(file.stat().st_size for file in _partial_files(wanted)))


@contextlib.contextmanager
def _told_plainly(wanted: Known) -> Generator[None]:
    """What the file system raises, as one sentence."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise CheckpointError(
                f"no room is left for {wanted.file_name} in {models_directory()}; make room, or "
                "set MEZZOTINT_MODELS to a folder on a larger disk"
            ) from error
        what = f"{error.strerror or error}: {error.filename or models_directory()}"
        raise CheckpointError(f"{wanted.file_name} cannot be put in place ({what})") from error


class _Meter:
    """Makes progress of numbers of bytes; listens to a source."""

    def __init__(self, total: int, on_progress: Callable[[Progress], None]) -> None:
        self._total = total
        self._on_progress = on_progress
        self._recent: deque[tuple[float, int]] = deque()

    def __call__(self, num_bytes: int) -> None:
        """So many bytes are there."""
        now = time.monotonic()
        num_bytes = min(num_bytes, self._total)
        if self._recent and now - self._recent[-1][0] < _REPORT_S and num_bytes < self._total:
            return
        if self._recent and num_bytes < self._recent[-1][1]:
            self._recent.clear()  # it began anew
        self._recent.append((now, num_bytes))
        while now - self._recent[0][0] > _RATE_OVER_S:
            self._recent.popleft()
        then, before = self._recent[0]
        rate = (num_bytes - before) / (now - then) if now - then >= 0.5 else None
        self._on_progress(Progress(num_bytes=num_bytes, total=self._total, bytes_per_s=rate))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
