"""The three roles as three processes, each with a login of the bot's database that is a member of its own role alone:
from the slash command over HTTP, two signatures and a real restore, to the report in the channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bot.demo.people import DANIEL, OLIVIA, Account
from bot.demo.ports import free_ports
from bot.roles import Role
from bot.services.cards import PlanCard
from bot.slack.views import plan as plan_view
from storage.roles import DatabaseRole
from tests.fakes.slack import APP_TOKEN, BOT_TOKEN, SECRET, TEAM, FakeSlack, Message, signed_http
from tests.fixtures.endings import ends_once
from tests.fixtures.world import CHANNEL, LEDGER, FaultWorld

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]


class Front:
    """The Slack process, with its Slack in front of it and the world's worker behind the database."""

    def __init__(self, slack: FakeSlack, http: aiohttp.ClientSession, port: int) -> None:
        self.slack = slack
        self._http = http
        self._address = f"http://127.0.0.1:{port}/slack/events"

    async def send(self, body: Mapping[str, Any]) -> str:
        """What the ack says."""
        raw, headers = signed_http(body)
        async with self._http.post(self._address, data=raw, headers=headers) as answer:
            said = await answer.text()
            assert answer.status == 200, said
            return said

    async def command(self, name: str, text: str, person: Account = OLIVIA) -> str:
        return await self.send(self.slack.slash(name, text, user=person.slack_id, channel=CHANNEL))

    async def said(self, words: str) -> Message:
        """The message of the channel that says it."""

        def there() -> list[Message]:
            return [item for item in self.slack.messages if words in item.text + json.dumps(item.blocks)]

        await self.slack.until(lambda: bool(there()), 90)
        return there()[-1]

    async def approve(self, message: Message, token: str, person: Account) -> None:
        """Click, read the form, type the target and a reason, send."""
        slack, before = self.slack, set(self.slack.views)
        await self.send(slack.click(plan_view.APPROVE, token, message=message, user=person.slack_id))
        await slack.until(
            lambda: any(LEDGER in json.dumps(slack.views[view]) for view in set(slack.views) - before), 60
        )
        [view] = set(slack.views) - before
        await self.send(slack.submission(view, user=person.slack_id, reason="checked", typed=LEDGER))


@asynccontextmanager
async def apart(world: FaultWorld) -> AsyncIterator[Front]:
    # What other tests have said to nobody would come first, a message a second.
    await world.remembered("UPDATE outbox SET state = 'sent' WHERE state IN ('pending', 'sending') RETURNING id")
    async with FakeSlack() as slack, aiohttp.ClientSession() as http:
        slack.channels[CHANNEL] = "incidents"
        for person in (OLIVIA, DANIEL):
            account = person.slack_id
            slack.users[account] = {"id": account, "team_id": TEAM, "name": person.login, "real_name": person.name}
        [port] = free_ports(1)
        secrets = {"SLACK_BOT_TOKEN": BOT_TOKEN, "SLACK_APP_TOKEN": APP_TOKEN, "SLACK_SIGNING_SECRET": SECRET}
        front = await world.process(
            Role.SLACK,
            secrets | {"SLACK_API_URL": slack.url},
            DRBOT_SLACK_MODE="http",
            DRBOT_HTTP_PORT=str(port),
            DRBOT_DEMO="true",
        )
        clock = await world.process(Role.CLOCK, {})
        try:
            await asyncio.gather(front.started(), clock.started(), world.working(1))
            yield Front(slack, http, port)
            assert front.alive, front.said()
            assert clock.alive, clock.said()
            for process in (front, clock, *world.workers):
                assert "may not do this" not in process.said()
        finally:
            await asyncio.gather(front.kill(), clock.kill())


async def test_a_restore_from_the_command_to_the_report(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    async with apart(world) as front:
        await front.command("/dr-incident", "open Ledger is damaged --impact 1m")
        await front.said("Ledger is damaged")
        backup = world.backups[LEDGER]
        await front.command("/dr-restore", f'{LEDGER} --from {backup} --reason "it is damaged" --target {LEDGER}')
        message = await front.said(plan_view.APPROVE)
        card = await planned(world)
        await front.approve(message, card.token, DANIEL)
        await ends_once(world, card, oid, LEDGER)
        await front.said("achieved")
        assert await front.command("/dr-incident", "close restored") == ""
        await closed(world)
    resting = "SELECT count(*) FROM signature WHERE plan_id = %s AND inbox_key IN (SELECT key FROM inbox)"
    assert (await world.remembered(resting, card.plan_id))[0][0] == 2


async def closed(world: FaultWorld) -> None:
    async with asyncio.timeout(20):
        while True:
            if await world.remembered("SELECT FROM incident WHERE closed_at IS NOT NULL"):
                return
            await asyncio.sleep(0.05)


async def planned(world: FaultWorld) -> PlanCard:
    """The newest plan, read with the rights of the Slack role."""
    [row] = await world.remembered("SELECT token FROM plan ORDER BY created_at DESC LIMIT 1")
    return await world.office.desk.plan_card(str(row[0]))


async def test_each_process_is_logged_in_as_itself_alone(world: FaultWorld) -> None:
    async with apart(world):
        rows = await world.remembered(r"SELECT DISTINCT usename FROM pg_stat_activity WHERE usename LIKE 'login\_%%'")
        members = await world.remembered(
            "SELECT r.rolname, array_agg(g.rolname::text) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member"
            " JOIN pg_roles g ON g.oid = m.roleid WHERE r.rolname LIKE 'login\\_%%' GROUP BY 1"
        )
    logins = {DatabaseRole.SLACK, DatabaseRole.WORKER, DatabaseRole.CLOCK}
    assert {row[0] for row in rows} >= {f"login_{role}" for role in logins}
    assert all(groups == [login.removeprefix("login_")] for login, groups in members)
