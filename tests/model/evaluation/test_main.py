from __future__ import annotations

import pytest

from model.evaluation.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", ["", *COMMANDS, "replay"])
def test_every_command_has_a_help_that_can_be_printed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: mezzotint evaluate {command}".rstrip())
    if not command:
        assert all(name in told for name in (*COMMANDS, "replay"))
