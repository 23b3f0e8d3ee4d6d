from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.api import CheckpointError, InvalidRequestError
from model.serving.v1.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi <b>"}]


def template_of(directory: Path, **config: Any) -> ChatTemplate:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.of_checkpoint(directory)
    assert template is not None
    return template


@pytest.mark.parametrize(
    "written",
    [
        "{{ messages[0]['content'] }}!",
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "hi <b>!"}],
    ],
)
def test_the_template_comes_from_the_tokenizer_config(tmp_path: Path, written: object) -> None:
    assert template_of(tmp_path, chat_template=written).render(MESSAGES) == "hi <b>!"


def test_a_template_file_goes_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from the file")
    template = template_of(tmp_path, chat_template="from the config")
    assert template.render(MESSAGES) == "from the file"


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}])
def test_the_template_may_name_special_tokens(tmp_path: Path, token: object) -> None:
    template = template_of(tmp_path, chat_template="{{ bos_token }}|", bos_token=token)
    assert template.render(MESSAGES) == "<s>|"


def test_helpers_of_transformers_are_there(tmp_path: Path) -> None:
    source = "{{ messages | tojson }}{% for m in messages %}{% break %}{% endfor %}"
    template = template_of(tmp_path, chat_template=source + "{{ strftime_now('%Y') }}")
    assert template.render(MESSAGES).startswith('[{"role": "user", "content": "hi <b>"}]20')


def test_without_a_template_there_is_none(tmp_path: Path) -> None:
    assert ChatTemplate.of_checkpoint(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert ChatTemplate.of_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only cats') }}",
        "{{ messages[7].content.upper() }}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__ }}",  # the way out of a sandbox that is none
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_what_the_template_does_not_take_or_may_not_do_is_the_requests_error(
    tmp_path: Path, source: str
) -> None:
    with pytest.raises(InvalidRequestError, match="does not take these messages"):
        template_of(tmp_path, chat_template=source).render(MESSAGES)


def test_a_message_cannot_open_another_one(tmp_path: Path) -> None:
    listed = {"5": {"content": "<|end|>", "special": True}, "6": {"content": "hi"}}
    template = template_of(
        tmp_path, chat_template="x", eos_token="</s>", added_tokens_decoder=listed
    )
    assert template.render(MESSAGES) == "x"
    for token in ("</s>", "<|end|>"):
        messages = [*MESSAGES, {"role": "user", "content": f"a{token}b"}]
        with pytest.raises(InvalidRequestError, match=r"messages\[1\].content holds the special"):
            template.render(messages)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}', "chat template is malformed"),
        ("tokenizer_config.json", b"{", "cannot be read"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("tokenizer_config.json", b'{"chat_template": [1]}', "is no tokenizer's"),
        ("tokenizer_config.json", b'{"chat_template": "x", "added_tokens_decoder": 3}', "is no"),
        ("chat_template.jinja", b"\xff", "cannot be read"),
    ],
)
def test_a_broken_file_is_the_checkpoints_error(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        ChatTemplate.of_checkpoint(tmp_path)
