"""`drbot run` is the bot; with words behind it, it is about one run."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from actions.errors import UserError
from bot.cli import app


@pytest.mark.parametrize("words", [["pause", "k7m2n3p4q5", "--reason", "later"], ["happened"], ["undo-finished", "x"]])
def test_words_are_for_the_counter_which_needs_a_name(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRBOT_PERSON", raising=False)
    result = CliRunner().invoke(app, ["run", *words])
    assert isinstance(result.exception, UserError)
    assert "Set DRBOT_PERSON" in str(result.exception)


@pytest.mark.parametrize("words", [["backup", "--help"], ["backup", "help"], ["backup"]])
def test_help_of_a_noun_needs_neither_a_name_nor_a_database(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRBOT_PERSON", raising=False)
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.exception) == (0, None)
    assert "drbot backup run DATABASE [--reason TEXT]\n" in result.output


def test_roles_are_still_options_of_the_bot() -> None:
    result = CliRunner().invoke(app, ["run", "--role", "nobody"])
    assert result.exit_code == 2
    assert "'nobody' is not one of" in result.output
