"""Ways around a rule that itself holds: another channel, another incident, another name. Rows E1 on of
docs/reference/attacks.md."""

from __future__ import annotations

from typing import Any

import pytest

from actions.errors import UserError
from bot.ports import ReplyTo
from bot.router import Command
from tests.attack.stage import Stage

pytestmark = [pytest.mark.attack, pytest.mark.integration]

ELSEWHERE = "C0ELSEWHERE"


async def incident(stage: Stage, name: str, person: str, **params: Any) -> None:
    command = Command(name=f"incident.{name}", params=params)
    await stage.office.desk.ask(
        stage.office.who(person, ELSEWHERE), command, reply=ReplyTo(channel=ELSEWHERE, user=person)
    )


async def test_e1_suspect_slack_is_not_left_by_another_channel(stage: Stage) -> None:
    """Two hijacked accounts ask where there is no incident, and try to close the one that knows of them."""
    await incident(stage, "open", "olivia", title="Somebody else clicks")
    await incident(stage, "suspect_slack", "sam", text="that was not me")
    assert (await stage.ask())[0] == 200
    await stage.refused("slack_suspect")
    with pytest.raises(UserError, match="stays open"):
        await incident(stage, "close", "daniel")
    await stage.refused("slack_suspect", times=2)
