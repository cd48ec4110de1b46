"""`break-glass` before a command, and the words of reviews and suspicion."""

from __future__ import annotations

import pytest

from actions.errors import UserError
from bot.router import Router


def test_break_glass_marks_the_command_behind_it() -> None:
    plain = Router().parse_slash("/dr", 'restore shop --reason "gone" --target shop')
    alone = Router().parse_slash("/dr", 'break-glass restore shop --reason "gone" --target shop')
    assert alone == plain.model_copy(update={"break_glass": True})


@pytest.mark.parametrize("words", ["break-glass", "break-glass status", "break-glass break-glass restore shop"])
def test_what_cannot_be_started_alone_is_told_with_an_example(words: str) -> None:
    with pytest.raises(UserError, match="Example: `/dr break-glass restore"):
        Router().parse_slash("/dr", words)


def test_a_review_takes_the_plan_and_words() -> None:
    command = Router().parse_slash("/dr", "review k7m2n3p4q5 right backup -- right hour")
    assert (command.name, command.params["plan"]) == ("review", "k7m2n3p4q5")
    assert command.params["text"].startswith("right backup")


def test_suspicion_needs_no_words() -> None:
    assert Router().parse_slash("/dr-incident", "suspect-slack").name == "incident.suspect_slack"
