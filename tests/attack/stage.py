"""The whole bot in front of an attacker: real PostgreSQL, the real Slack side over real HTTP, real workers, and an
executor that counts. An attack sends what Slack could send, or what somebody could send instead of Slack.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from actions.contract import Risk
from bot.plan_file import DrPlan
from bot.services.cards import PlanState
from storage import plans
from tests.attack.launch import TARGET, Catalogue, CountingExecutor
from tests.fakes.slack import FakeSlack
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.slack_side import DANIEL, OLIVIA, SAM, STRANGER, Posted, SlackSide, accounts
from tests.fixtures.waiting import eventually

REASON = "the orders table is gone"


def with_roster(plan: DrPlan, change: Callable[[dict[str, Any]], None]) -> DrPlan:
    """The plan file after a change of its document."""
    document = plan.model_dump(mode="json")
    change(document)
    return DrPlan.model_validate(document)


class Stage(SlackSide):
    """The Slack side with an executor that counts."""

    def __init__(self, office: OfficeForTests, slack: FakeSlack, catalogue: Catalogue) -> None:
        super().__init__(office, slack)
        self.catalogue = catalogue
        self.executor = CountingExecutor()
        office.ports = replace(office.ports, executor=self.executor)

    async def ask(self, words: str | None = None, *, user: str = OLIVIA) -> tuple[int, str]:
        """The command that asks for the plan, as typed."""
        typed = words or f'{TARGET} --from b-1 --reason "{REASON}" --target {TARGET}'
        return await self.send(self.slack.slash("/dr-restore", typed, user=user, channel=CHANNEL))

    async def plan(self, **changes: Any) -> Posted:
        """A plan that waits for signatures, on its message in Slack."""
        for name, value in changes.items():
            setattr(self.catalogue, name, value)
        before = len(self._cards())
        status, _ = await self.ask()
        assert status == 200
        return await self._posted(before)

    async def sign_late(self, posted: Posted, *, user: str = DANIEL, typed: str = TARGET) -> None:
        """Send a form whose window was opened while the plan still took signatures."""
        metadata = {
            "token": posted.card.token,
            "digest": posted.card.digest,
            "channel": posted.message.channel,
            "ts": posted.message.ts,
            "target": "",
        }
        view = f"VLATE{len(self.slack.views)}"
        self.slack.views[view] = {
            "type": "modal",
            "callback_id": "sign.approve",
            "id": view,
            "hash": "late",
            "title": {"type": "plain_text", "text": "Approve"},
            "blocks": [],
            "private_metadata": json.dumps(metadata),
        }
        fields = {"reason": "seen", "typed": typed}
        assert (await self.send(self.slack.submission(view, user=user, **fields)))[0] == 200
        await self.said(view)

    # ------------------------------------------------------------ looking

    async def values(self, query: str, **values: Any) -> list[Any]:
        async with self.memory.session() as session:
            return list((await session.execute(text(query), values)).scalars())

    async def codes(self) -> list[str]:
        """Reason codes of all refusals, in order."""
        return await self.values("SELECT code FROM refusal ORDER BY id")

    async def signers(self, posted: Posted) -> list[tuple[str, str]]:
        async with self.memory.session() as session:
            return [(item.person, item.act) for item in await plans.signatures(session, posted.card.plan_id)]

    async def state(self, posted: Posted) -> PlanState:
        return (await self.office.desk.plan_card(posted.card.token)).state

    async def refused(
        self, code: str, posted: Posted | None = None, *, times: int = 1, starts: int = 0, by_worker: int = 0
    ) -> None:
        """It was refused for this reason and no other, the record says so, and nothing was carried out but `starts`
        that people had signed for. `by_worker`: so often besides by the worker that ended the plan."""
        counted, rows = "SELECT least(count(*), :times) FROM refusal", times + by_worker
        await eventually(lambda: self._is(counted, rows, times=rows), within=15)
        assert (found := await self.codes()) == [code] * rows, found
        assert await self.value("SELECT min(length(text)) FROM refusal") > 20, "a refusal says why"
        refusals = await self.value("SELECT count(*) FROM refusal")
        assert await self.value("SELECT count(*) FROM leaf WHERE kind = 'refusal'") == refusals, "it is on the record"
        if posted is not None:
            lines = "SELECT count(*) FROM timeline_entry WHERE kind = 'refusal' AND data->>'plan' = :plan"
            assert await self.value(lines, plan=posted.card.plan_id) == times
        await self.untouched(starts)

    async def refused_by_worker(self, code: str, posted: Posted, *, starts: int = 0) -> None:
        """The same for what no person did: the worker that was to start or go on with the plan has refused it."""
        await self.refused(code, starts=starts)
        row = "SELECT person || ' ' || plan_id FROM refusal"
        assert await self.value(row) == f"drbot {posted.card.plan_id}"

    async def untouched(self, starts: int = 0) -> None:
        """The workers have looked, and the executor was not called, or not more often than that."""
        await asyncio.sleep(0.15)
        assert len(self.executor.starts) == starts


__all__ = ["DANIEL", "OLIVIA", "REASON", "SAM", "STRANGER", "Posted", "Risk", "Stage", "accounts", "with_roster"]
