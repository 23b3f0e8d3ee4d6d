"""What a key costs: tokens that no cache held."""

from __future__ import annotations

from model.benchmarks.keystrokes import Cost, by_kind, measure, replay, rows, summary
from model.benchmarks.session import Event
from model.benchmarks.setting import Setting


def event(text: str, cursor: int) -> Event:
    return Event(kind="type", document="a.py", language="python", text=text, cursor=cursor)


async def test_a_key_encodes_what_is_new_and_the_same_place_again_nothing(
    setting: Setting, code: str
) -> None:
    completer = setting.open_completer()
    at, typed = 60, "xy"
    grown = code[:at] + typed + code[at:]
    try:
        costs = await replay(completer, [event(code, at), event(code, at), event(grown, at + 2)])
    finally:
        await completer.close()
    first, again, key = costs
    assert 0 < first.encoded == first.context  # an empty cache
    assert again.encoded <= 1  # the last token, whose logits are wanted
    assert key.encoded < 6


async def test_a_session_s_figures_add_up(setting: Setting) -> None:
    figures = await measure(setting, 30)
    assert figures["events"] == sum(kind["events"] for kind in figures["kinds"].values()) == 30
    total = sum(k["events"] * k["tokens_per_keystroke"] for k in figures["kinds"].values())
    assert abs(total / 30 - figures["tokens_per_keystroke"]) < 0.01
    assert 0 < figures["cache_hit_rate"] < 1
    assert figures["cache_bytes"] > 0
    assert figures["ms_p50"] <= figures["ms_p95"]
    assert "tokens encoded a typed key" in [row.name for row in rows(figures, setting)]


def cost(encoded: int, *, kind: str = "type") -> Cost:
    return Cost(kind=kind, encoded=encoded, context=100, ms=5.0)  # type: ignore[arg-type]


def test_the_mean_counts_every_event_and_the_hit_rate_every_token() -> None:
    figures = summary([cost(100, kind="open"), cost(0), cost(2), cost(2)])
    assert figures["tokens_per_keystroke"] == 26.0
    assert figures["encoded_p50"] == 2.0
    assert figures["cache_hit_rate"] == 0.74


def test_each_kind_has_its_share_of_what_was_encoded() -> None:
    kinds = by_kind([cost(1), cost(59), cost(40, kind="open")])
    assert kinds["open"]["share_of_encoded"] == 0.4
    assert kinds["type"]["encoded_max"] == 59
