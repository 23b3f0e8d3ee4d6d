"""The settings that VS Code offers are the settings that the server reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsp_server.settings import describe_settings, parse_settings

MANIFEST = Path(__file__).parents[2] / "editor-extension" / "package.json"
EXTENSION = json.loads(MANIFEST.read_text())
OFFERED: dict[str, dict[str, Any]] = EXTENSION["contributes"]["configuration"]["properties"]
PROPERTIES = {
    key.removeprefix("mezzotint.") + leaf: schema
    for key, group in OFFERED.items()
    for leaf, schema in (
        {f".{name}": one for name, one in group["properties"].items()}
        if "properties" in group
        else {"": group}
    ).items()
}
READ_BY_THE_EXTENSION = {"server.command"}


def values_at_the_edge(schema: dict[str, Any]) -> Iterator[object]:
    """The values that a schema names as allowed: its choices and its bounds."""
    yield from schema.get("enum", [])
    yield from (schema[bound] for bound in ("minimum", "maximum") if bound in schema)
    for alternative in schema.get("anyOf", []):
        yield from values_at_the_edge(alternative)


def nested(key: str, value: object) -> dict[str, Any]:
    """A dotted key's value, as VS Code sends it when asked for the whole section."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_manifest_and_server_have_the_same_settings_and_defaults() -> None:
    offered = {key: schema["default"] for key, schema in PROPERTIES.items()}
    read = {key: setting.default for key, setting in describe_settings().items()}
    assert {key: offered[key] for key in offered if key not in READ_BY_THE_EXTENSION} == read


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, schema in PROPERTIES.items() for value in values_at_the_edge(schema)],
)
def test_server_accepts_each_value_that_the_manifest_names(key: str, value: object) -> None:
    _, problems = parse_settings(nested(key, value))
    assert problems == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value + step)
        for key, schema in PROPERTIES.items()
        for bound, step in (("minimum", -1), ("maximum", 1))
        if isinstance(value := schema.get(bound), int)
    ],
)
def test_manifest_does_not_forbid_what_the_server_accepts(key: str, value: int) -> None:
    _, problems = parse_settings(nested(key, value))
    assert len(problems) == 1


def test_settings_are_few_enough_to_be_read() -> None:
    assert len(OFFERED) <= 25


def test_an_untrusted_workspace_names_no_program_model_or_address_and_opens_no_file() -> None:
    restricted = set(EXTENSION["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"])
    assert restricted <= OFFERED.keys()
    harmless = {"mezzotint.engine.idleUnloadMinutes"}
    engine = {key for key in OFFERED if key.startswith("mezzotint.engine.")} - harmless
    others = {"server.command", "model", "exclude", "log"}
    assert restricted == engine | {f"mezzotint.{name}" for name in others}


def test_a_groups_default_is_that_of_its_members() -> None:
    for key, group in OFFERED.items():
        if "properties" in group:
            members = {name: one["default"] for name, one in group["properties"].items()}
            assert group["default"] == members, key


def test_every_setting_says_what_it_does() -> None:
    for key, schema in PROPERTIES.items():
        assert schema.get("description") or schema.get("markdownDescription"), key
