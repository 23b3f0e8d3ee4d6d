"""Against llama.cpp's own server, with a model of random weights made here."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.api import EngineAddress, InfillRequest, InvalidRequestError
from model.engines import connect_remote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "gguf")),
        reason="llama.cpp (a wheel of 34 MB) is not installed: pip install xllamacpp gguf",
    ),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

HIDDEN, LAYERS, HEADS, FFN = 32, 2, 4, 64
CONTEXT = 1024
SPECIAL = ["<unk>", "<s>", "</s>"]
FIM = ["<PRE>", "<SUF>", "<MID>"]


def write_model(path: Path) -> None:
    """A Llama whose tokens are bytes."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *FIM]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.CONTROL] * 3]
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    for name, token in zip(("pre", "suf", "mid"), FIM, strict=True):
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", tokens.index(token))
    for name, tensor in _tensors(len(tokens)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    head = drawn(vocab_size, HIDDEN)
    tensors = {"token_embd.weight": drawn(vocab_size, HIDDEN), "output_norm.weight": ones}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}{name}.weight"] = drawn(HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"{block}{name}.weight"] = drawn(FFN, HIDDEN)
        tensors[f"{block}ffn_down.weight"] = drawn(HIDDEN, FFN)
        tensors[f"{block}attn_norm.weight"] = tensors[f"{block}ffn_norm.weight"] = ones
    # Printable ASCII: what takes several tokens a character has no confidence (test_engine.py).
    first, last = len(SPECIAL) + 32, len(SPECIAL) + 126
    head[first:last] *= 4
    tensors["output.weight"] = head
    return tensors


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import xllamacpp

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_model(path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 2 * CONTEXT
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.api_keys = ["sesame"]
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


async def complete(url: str, **request: Any) -> Any:
    connection = await connect_remote(EngineAddress(url=url, key="sesame"))
    try:
        return await connection.complete(InfillRequest(**request))
    finally:
        await connection.close()


async def test_it_is_found_out_and_ready(url: str) -> None:
    connection = await connect_remote(EngineAddress(url=url, key="sesame"))
    assert (await connection.health()).message.startswith("llama.cpp at 127.0.0.1")
    await connection.close()


async def test_an_infill_has_text_probabilities_and_token_ends(url: str) -> None:
    result = await complete(url, prefix="def f(x):\n    return ", suffix="\n", max_new_tokens=8)
    (candidate,) = result.candidates
    assert len(candidate.text) == result.tokens == 8
    assert not candidate.finished
    assert candidate.token_ends == tuple(range(1, 9))
    assert candidate.confidence == pytest.approx(math.prod(candidate.probabilities))
    assert all(0 < p < 1 for p in candidate.probabilities)


async def test_the_suffix_and_typed_text_matter_and_a_greedy_answer_repeats(url: str) -> None:
    first = await complete(url, prefix="a = ", suffix="\nb = 2\n", max_new_tokens=12)
    again = await complete(url, prefix="a = ", suffix="\nb = 2\n", max_new_tokens=12)
    other = await complete(url, prefix="a = ", suffix="\nprint(a)\n", max_new_tokens=12)
    assert first.candidates[0].text == again.candidates[0].text != other.candidates[0].text
    assert again.encoded_tokens < first.encoded_tokens  # its own cache
    typed = first.candidates[0].text[:4]
    rest = await complete(url, prefix="a = ", typed=typed, suffix="\nb = 2\n", max_new_tokens=8)
    assert rest.candidates[0].text.startswith(typed)


async def test_several_holes_and_several_candidates(url: str) -> None:
    holes = await complete(url, prefix="a(", between=(", ",), suffix=")", max_new_tokens=4)
    assert [len(text) for text in holes.candidates[0].texts] == [4, 4]
    several = await complete(url, prefix="a(", candidates=3, temperature=2.0, max_new_tokens=9)
    assert len(several.candidates) > 1


async def test_a_context_that_is_too_long_is_refused_in_its_words(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="exceeds the available context size"):
        await complete(url, prefix="x" * 3 * CONTEXT)


async def test_a_wrong_key_is_refused(url: str) -> None:
    connection = await connect_remote(EngineAddress(url=url, key="wrong"))
    with pytest.raises(InvalidRequestError, match="MEZZOTINT_API_KEY"):
        await connection.complete(InfillRequest(prefix="x"))
    await connection.close()


async def test_its_openai_route_with_a_template_gives_the_same_text_as_its_infill(url: str) -> None:
    address = EngineAddress(
        url=url, kind="openai", key="sesame", fim_template="<PRE>{prefix}<SUF>{suffix}<MID>"
    )
    connection = await connect_remote(address)
    request = InfillRequest(prefix="a = ", suffix="\nb = 2\n", max_new_tokens=12)
    assert (await connection.health()).model.endswith("tiny.gguf")
    (told,) = (await connection.complete(request)).candidates
    await connection.close()
    infill = await complete(url, prefix="a = ", suffix="\nb = 2\n", max_new_tokens=12)
    (same,) = infill.candidates
    assert told.text == same.text
    assert told.probabilities == pytest.approx(same.probabilities, rel=1e-3)
    assert told.token_ends == same.token_ends
