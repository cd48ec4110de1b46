"""The whole bot in front of an attacker: real PostgreSQL, the real Slack side over real HTTP, real workers, and an
executor that counts. An attack sends what Slack could send, or what somebody could send instead of Slack.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from sqlalchemy import text

from actions.contract import Risk
from bot.plan_file import DrPlan
from bot.services.cards import PlanCard, PlanState
from bot.slack.runtime import EVENTS_PATH, SlackRuntime
from storage import plans
from storage.session import Database
from tests.attack.launch import TARGET, Catalogue, CountingExecutor
from tests.fakes.slack import APP_TOKEN, BOT_TOKEN, SECRET, TEAM, FakeSlack, Message, signed_http
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.waiting import eventually

OLIVIA, DANIEL, SAM, STRANGER = "U0OLIVIA", "U0DANIEL", "U0SAM", "U0BEN"
"""Olivia asks, Daniel is a DBA, Sam is of security, Ben is a member of the workspace and of no roster."""

REASON = "the orders table is gone"


def with_roster(plan: DrPlan, change: Callable[[dict[str, Any]], None]) -> DrPlan:
    """The plan file after a change of its document."""
    document = plan.model_dump(mode="json")
    change(document)
    return DrPlan.model_validate(document)


@dataclass
class Posted:
    """A plan and its message."""

    card: PlanCard
    message: Message


class Stage:
    """`async with Stage.open(...)`: workers work and Slack can send."""

    def __init__(self, office: OfficeForTests, slack: FakeSlack, catalogue: Catalogue) -> None:
        self.office = office
        self.slack = slack
        self.catalogue = catalogue
        self.executor = CountingExecutor()
        office.ports = replace(office.ports, executor=self.executor)
        self.runtime: SlackRuntime
        self.http: aiohttp.ClientSession

    @property
    def memory(self) -> Database:
        return self.office.memory

    # ------------------------------------------------------------ playing

    @asynccontextmanager
    async def open(self, *, workers: int = 1, socket_mode: bool = False) -> AsyncIterator[None]:
        """Serve Slack and work."""
        async with (
            self.office.working(workers),
            self.serving(socket_mode=socket_mode) as self.runtime,
            aiohttp.ClientSession() as self.http,
        ):
            yield

    @asynccontextmanager
    async def serving(self, *, socket_mode: bool = False, office: OfficeForTests | None = None) -> AsyncIterator[Any]:
        """One process with the Slack role."""
        served = office or self.office
        runtime = SlackRuntime(
            bot_token=BOT_TOKEN,
            app_token=APP_TOKEN if socket_mode else None,
            signing_secret=SECRET,
            api_url=self.slack.url,
            socket_mode=socket_mode,
            http_host="127.0.0.1",
            http_port=0,
            desk=served.desk,
            outbox=served.deliveries,
            team=None,
            shared=served.plan.channels.shared,
            post_every=0.02,  # the fake limits nobody, and the pace has tests of its own
            update_every=0.02,
        )
        task = asyncio.create_task(runtime.run())
        try:
            ready = asyncio.create_task(runtime.ready.wait())
            await asyncio.wait({ready, task}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield runtime
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def address(self, runtime: SlackRuntime | None = None) -> str:
        return f"http://127.0.0.1:{(runtime or self.runtime).port}{EVENTS_PATH}"

    async def post(
        self, raw: str | bytes, headers: Mapping[str, str], *, runtime: SlackRuntime | None = None
    ) -> tuple[int, str]:
        """Send bytes to the door: status and answer."""
        async with self.http.post(self.address(runtime), data=raw, headers=dict(headers)) as response:
            return response.status, await response.text()

    async def send(self, body: Mapping[str, Any]) -> tuple[int, str]:
        """As Slack sends it."""
        return await self.post(*signed_http(body))

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
        await self.slack.until(lambda: len(self._cards()) > before, 30)
        message = self._cards()[-1]
        posted = Posted(await self.office.desk.plan_card(token_of(message)), message)
        known = "SELECT ts FROM card_message WHERE ref = :plan"  # the answer of the post is on its way to the database
        await eventually(lambda: self._is(known, message.ts, plan=posted.card.plan_id))
        return posted

    def _cards(self) -> list[Message]:
        return [message for message in self.slack.messages if "plan.details" in json.dumps(message.blocks)]

    async def window(self, posted: Posted, *, user: str = DANIEL, action: str = "plan.approve", **body: Any) -> str:
        """Click a button that opens a window; its id once it is filled."""
        before = set(self.slack.views)
        token = body.pop("token", posted.card.token)
        click = self.slack.click(action, token, message=posted.message, user=user) | body
        assert (await self.send(click))[0] == 200
        await self.slack.until(lambda: bool(set(self.slack.views) - before))
        [view] = set(self.slack.views) - before
        await self.slack.until(lambda: "fills by itself" not in json.dumps(self.slack.views[view]))
        return view

    async def submit(self, view: str, *, user: str = DANIEL, reason: str = "seen", typed: str = TARGET) -> str:
        """Send a form; what its window says then."""
        fields = (
            {"reason": reason, "typed": typed}
            if '"typed"' in json.dumps(self.slack.views[view])
            else {"reason": reason}
        )
        status, acknowledged = await self.send(self.slack.submission(view, user=user, **fields))
        assert status == 200
        if "fills by itself" not in acknowledged and '"update"' in acknowledged:
            return acknowledged  # refused before any handler
        return await self.said(view)

    async def said(self, view: str) -> str:
        await self.slack.until(lambda: "callback_id" not in self.slack.views[view])
        await self.slack.until(lambda: "fills by itself" not in json.dumps(self.slack.views[view]))
        return json.dumps(self.slack.views[view], ensure_ascii=False)

    async def sign(self, posted: Posted, *, user: str = DANIEL, action: str = "plan.approve", **form: str) -> str:
        """Open the form and send it."""
        return await self.submit(await self.window(posted, user=user, action=action), user=user, **form)

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

    async def value(self, query: str, **values: Any) -> Any:
        async with self.memory.session() as session:
            return (await session.execute(text(query), values)).scalar_one_or_none()

    async def _is(self, query: str, wanted: Any, **values: Any) -> bool:
        return bool(await self.value(query, **values) == wanted)

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

    async def until(self, posted: Posted, *states: PlanState) -> PlanCard:
        return await self.office.until(posted.card, *states)

    async def refused(self, code: str, posted: Posted | None = None, *, times: int = 1, starts: int = 0) -> None:
        """It was refused for this reason and no other, the record says so, and nothing was carried out but `starts`
        that people had signed for."""
        counted = "SELECT least(count(*), :times) FROM refusal"
        await eventually(lambda: self._is(counted, times, times=times), within=15)
        assert (found := await self.codes()) == [code] * times, found
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


def token_of(message: Message) -> str:
    """What the message's buttons carry."""
    for block in message.blocks:
        for element in block.get("elements", ()):
            if str(element.get("action_id", "")).startswith("plan."):
                return str(element["value"])
    raise AssertionError("a message without buttons")


def accounts(slack: FakeSlack) -> None:
    """The persons of the roster as full members of the workspace, and the channels."""
    for user, name in ((OLIVIA, "Olivia Ortega"), (DANIEL, "Daniel Dietrich"), (SAM, "Sam Sato")):
        slack.users[user] = {"id": user, "team_id": TEAM, "name": user.lower(), "real_name": name}
    slack.channels |= {CHANNEL: "incident", "#dr-audit": "dr-audit", "#dr-oncall": "dr-oncall"}


__all__ = ["DANIEL", "OLIVIA", "REASON", "SAM", "STRANGER", "Posted", "Risk", "Stage", "accounts", "with_roster"]
