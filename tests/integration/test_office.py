"""From a request to a report on a real database: signatures, refusals, runs, take-over, the timeline."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Act
from actions.contract import Query, Report
from actions.errors import UserError
from actions.ports import Ports
from bot.counter import Counter
from bot.ports import ReplyTo, Who
from bot.router import Command
from bot.services.cards import PlanCard, PlanState, StepState
from bot.worker import POLL
from storage import outbox, plans, requests
from storage.session import Database
from storage.tables import OutboxRow, RequestRow
from tests.fakes.toy import WORLD, ToyCatalogue, ToyParams
from tests.fixtures.office import CHANNEL, OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually


async def approve(
    office: OfficeForTests, person: str, card: PlanCard, *, typed: str = "toy", reason: str = "seen", ts: str = "1.0"
) -> str:
    return await office.desk.sign(
        office.who(person),
        card.token,
        act=Act.APPROVE,
        digest=card.digest,
        typed=typed,
        reason=reason,
        channel=CHANNEL,
        ts=ts,
    )


async def a_plan(office: OfficeForTests, **params: Any) -> PlanCard:
    card = await office.planned(await office.ask("olivia", "toy.run", **params))
    await office.posted(card)
    return card


async def refusals(office: OfficeForTests) -> list[str]:
    async with office.memory.session() as session:
        return list((await session.execute(text("SELECT code FROM refusal ORDER BY id"))).scalars())


async def test_two_persons_sign_and_the_plan_runs_by_itself(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office, steps=3)
        assert card.state is PlanState.PENDING
        assert card.missing == ("1 more person(s) besides the requester", "1 of dba") or card.missing
        assert "starts now" in await approve(office, "daniel", card)
        ended = await office.until(card, PlanState.SUCCEEDED)
    assert [step.state for step in ended.steps] == [StepState.VERIFIED] * 3
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]
    assert [line.act for line in ended.signers] == [Act.REQUEST, Act.APPROVE]


async def test_nothing_runs_on_the_request_alone(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        await asyncio.sleep(0.3)
        assert (await office.desk.plan_card(card.token)).state is PlanState.PENDING
    assert card.plan_id not in WORLD


@pytest.mark.parametrize(
    ("person", "change", "code"),
    [
        ("olivia", {}, "self_approval"),
        ("U0GUEST", {}, "not_on_roster"),
        ("daniel", {"typed": "tyo"}, "wrong_target"),
        ("daniel", {"reason": " "}, "no_reason"),
        ("daniel", {"ts": "9.9"}, "stale_revision"),
    ],
)
async def test_a_signature_that_does_not_count_is_refused_and_recorded(
    office: OfficeForTests, person: str, change: dict[str, str], code: str
) -> None:
    async with office.working():
        card = await a_plan(office)
        with pytest.raises(UserError):
            await approve(office, person, card, **change)
        assert await refusals(office) == [code]
        assert (await office.desk.plan_card(card.token)).state is PlanState.PENDING
    assert card.plan_id not in WORLD


async def test_a_double_click_adds_one_signature_and_one_run(office: OfficeForTests) -> None:
    async with office.working(workers=2):
        card = await a_plan(office, seconds=0.1)
        results = await asyncio.gather(*(approve(office, "daniel", card) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(item, str) for item in results) == 1
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def test_a_denial_ends_the_plan(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        await office.desk.sign(
            office.who("sam"),
            card.token,
            act=Act.DENY,
            digest=card.digest,
            typed="",
            reason="wrong hour",
            channel=CHANNEL,
            ts="1.0",
        )
        ended = await office.until(card, PlanState.DENIED)
        assert "wrong hour" in ended.message
        with pytest.raises(UserError):
            await approve(office, "daniel", card)
    assert card.plan_id not in WORLD


async def test_a_request_without_the_typed_target_makes_no_plan(office: OfficeForTests) -> None:
    async with office.working():
        text_shown = await office.refused(await office.ask("olivia", "toy.run", typed="tyo"))
    assert "`toy`" in text_shown
    assert await refusals(office) == ["wrong_target"]
    async with office.memory.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM plan"))).scalar_one() == 0


async def test_a_failed_step_undoes_what_was_done(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office, steps=3, fails=2)
        await approve(office, "daniel", card)
        ended = await office.until(card, PlanState.FAILED)
    assert WORLD[card.plan_id] == ["do 1", "undo 2", "undo 1"]
    assert "told to fail" in ended.message


async def test_an_unclear_step_asks_and_holds_its_locks(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office, steps=2, unclear=2, key="asks")
        await approve(office, "daniel", card)
        await office.until(card, PlanState.ASKING)
        second = await a_plan(office, key="asks")
        await approve(office, "daniel", second)
        await asyncio.sleep(0.3)
        assert (await office.desk.plan_card(second.token)).state is PlanState.APPROVED
    assert WORLD[card.plan_id] == ["do 1"]


async def test_conflicting_runs_take_turns_and_others_go_on(office: OfficeForTests) -> None:
    async with office.working(workers=3):
        same = [await a_plan(office, seconds=0.2, key="same") for _ in range(2)]
        other = await a_plan(office, seconds=0.2, key="other")
        await asyncio.gather(*(approve(office, "daniel", card) for card in [*same, other]))
        ended = [await office.until(card, PlanState.SUCCEEDED) for card in [*same, other]]
    spans = [(card.started_at, card.ended_at) for card in ended if card.started_at and card.ended_at]
    (_, first_end), (second_start, second_end) = sorted(spans[:2])
    assert second_start >= first_end
    assert spans[2][0] < second_end


async def test_a_worker_that_stops_hands_over_and_no_step_runs_twice(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office, steps=4, seconds=0.2)
        await approve(office, "daniel", card)
        await office.until(card, PlanState.RUNNING)
        await asyncio.sleep(0.3)
    async with office.working():
        ended = await office.until(card, PlanState.SUCCEEDED)
    assert sorted(WORLD[card.plan_id]) == ["do 1", "do 2", "do 3", "do 4"]
    assert [step.state for step in ended.steps] == [StepState.VERIFIED] * 4


async def test_an_expiry_that_was_changed_voids_the_plan(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        async with office.memory.session() as session:
            await session.execute(text("UPDATE plan SET expires_at = now() - interval '1 second'"))
        with pytest.raises(UserError, match="expired"):
            await approve(office, "daniel", card)
        await office.until(card, PlanState.VOID)


async def test_a_changed_document_voids_the_plan(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        async with office.memory.session() as session:
            change = """UPDATE plan SET document = jsonb_set(document, '{target}', '"other"')"""
            await session.execute(text(change))
        with pytest.raises(UserError):
            await approve(office, "daniel", card, typed="other")
        await office.until(card, PlanState.VOID)
    assert card.plan_id not in WORLD


async def incident(office: OfficeForTests, name: str, **params: Any) -> None:
    await office.desk.ask(
        office.who("olivia"), Command(name=f"incident.{name}", params=params), reply=ReplyTo(channel=CHANNEL)
    )


async def test_what_is_restored_is_from_before_the_impact_of_its_incident(office: OfficeForTests) -> None:
    async with office.working():
        outside = await a_plan(office)
        await incident(office, "open", title="Orders are gone", severity="SEV1", impact="2h")
        inside = await a_plan(office)
    async with office.memory.session() as session:
        rows = [await plans.get(session, card.plan_id) for card in (outside, inside)]
    unknown, impact = (row and row.document["params"]["before"] for row in rows)
    assert unknown is None
    late = datetime.now(UTC) - timedelta(hours=2) - datetime.fromisoformat(str(impact))
    assert timedelta(0) <= late < timedelta(minutes=1)


async def test_an_incident_from_opening_to_its_achieved_rto(office: OfficeForTests) -> None:
    await incident(office, "open", title="Orders are gone", severity="SEV1", impact="10m")
    async with office.working():
        card = await a_plan(office)
        await approve(office, "daniel", card)
        await office.until(card, PlanState.SUCCEEDED)
        with pytest.raises(UserError, match="already open"):
            await incident(office, "open", title="Again")
        await incident(office, "open", title="Elsewhere", channel="C0ELSEWHERE")
        for channel in (CHANNEL, "C0ELSEWHERE"):
            with pytest.raises(UserError, match=f"already open in (this channel|channel `{channel}`); close it first"):
                await incident(office, "open", title="Again", channel=channel)
        await incident(office, "note", text="a <b>note</b> | with pipes")
        await incident(office, "close", summary="restored")
    document = json.loads(await office.incidents.exported(1, "json"))
    assert 600 <= document["achieved_rto_s"] < 630
    kinds = [line["kind"] for line in document["timeline"]]
    assert kinds[0] == "incident"
    assert {"signature", "run", "step", "recovered", "note"} <= set(kinds)
    assert [line["seq"] for line in document["timeline"]] == sorted(line["seq"] for line in document["timeline"])
    page = await office.incidents.exported(1, "html")
    assert "&lt;b&gt;note" in page
    assert "<script" not in page
    assert "a &lt;b>note&lt;/b> \\| with pipes" in await office.incidents.exported(1, "md")


async def test_incidents_are_read_at_a_terminal_and_nothing_is_sent_to_slack(office: OfficeForTests) -> None:
    await incident(office, "open", title="Orders are gone", impact="10m")
    await incident(office, "note", text="the vendor\nhas called")
    await incident(office, "note", text="\x1b[2J\u202e\u200b rang")
    waiting = await office.deliveries.due(10)
    terminal = Counter(office.at_terminal, office.terminal, office.deliveries, person="daniel", channel=CHANNEL)

    said = {words: await terminal.ask("incident", words.split()) for words in ("list", "show", "timeline", "show 1")}
    assert all(good for _, good in said.values())
    assert re.search(r"1 +Orders are gone +SEV1 +open", said["list"][0])
    assert said["show"] == said["show 1"]
    assert "Incident 1: Orders are gone\nSeverity: SEV1\nCommander: Olivia" in said["show"][0]
    assert "the vendor has called" in said["timeline"][0]
    assert r"\x1b[2J\u202e\u200b rang" in said["timeline"][0]
    assert not set(said["timeline"][0]) & {"\x1b", "\u202e", "\u200b"}
    for form, begin in (("html", "<!doctype html>"), ("md", "# Incident 1"), ("json", "{")):
        text, _ = await terminal.ask("incident", ["timeline", form])
        assert text.startswith(begin)
        assert "has called" in text
    assert len(waiting) == 3
    assert await office.deliveries.due(10) == []
    with pytest.raises(UserError, match="There is no incident 7; see"):
        await terminal.ask("incident", ["show", "7"])


async def test_whoever_waits_at_a_terminal_is_told_each_step_as_it_begins(office: OfficeForTests) -> None:
    told: list[str] = []
    terminal = Counter(
        office.at_terminal, office.terminal, office.deliveries, person="olivia", channel=CHANNEL, aside=told.append
    )
    async with office.working():
        card = await a_plan(office, steps=2, seconds=1.5)
        await approve(office, "daniel", card)
        said, good = await terminal.follow(card.plan_id)
    assert good
    assert said.startswith(f"Plan {card.plan_id} ({card.short_code}) succeeded")
    about, first, second = told
    assert about.startswith(f"Plan {card.plan_id} ({card.short_code}): ")
    assert (first[:14], second[:14]) == ("Step 1 of 2: " + first[13], "Step 2 of 2: " + second[13])


async def test_a_plan_is_found_by_the_code_that_its_card_shows(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
    async with office.memory.session() as session:
        found = await plans.by_code(session, card.short_code)
        assert found is not None
        assert found.id == card.plan_id
        for text_ in ("", card.short_code[:4], "%" * 8, "0" * 8):
            assert await plans.by_code(session, text_) is None


async def test_a_refusal_that_comes_in_while_it_is_looked_for_is_told_as_one(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await office.ask("olivia", "toy.run", steps=1)
    terminal = Counter(office.at_terminal, office.terminal, office.deliveries, person="olivia", channel=CHANNEL)
    read = outbox.answers

    async def late(session: AsyncSession, request: int) -> Sequence[OutboxRow]:
        async with office.memory.session() as other:  # the worker commits right now
            row = await requests.get(other, request)
            assert row is not None
            row.state, row.error = "failed", "`CEST` is no moment."
            await outbox.add(other, "text", CHANNEL, payload={"text": "`CEST` is no moment.", "request": request})
        return await read(session, request)

    monkeypatch.setattr(outbox, "answers", late)
    assert await terminal._answer(asked) == ("`CEST` is no moment.", False)


async def test_a_message_is_pinned_once_and_only_by_the_roster(office: OfficeForTests) -> None:
    await incident(office, "open", title="Orders are gone")
    pin = {"channel": CHANNEL, "ts": "5.0", "text": "seen at 10:31", "author": "Sam", "permalink": "https://x/p5"}
    now = office.clock.now() - timedelta(minutes=3)
    for person in ("daniel", "sam"):
        await office.desk.pin(office.who(person), **pin, occurred_at=now)
    with pytest.raises(UserError, match="roster"):
        await office.desk.pin(office.who("U0GUEST"), **pin, occurred_at=now)
    document = json.loads(await office.incidents.exported(1, "json"))
    assert [line["text"] for line in document["timeline"] if line["kind"] == "message"] == ["seen at 10:31"]


async def test_strangers_are_refused_and_recorded(office: OfficeForTests) -> None:
    for who in (Who(slack_user="U0GUEST", channel=CHANNEL), Who(source="cli", person="nobody")):
        with pytest.raises(UserError, match="not on the roster"):
            await office.desk.ask(who, Command(name="toy.run"), reply=ReplyTo())
    assert await refusals(office) == ["not_on_roster", "not_on_roster"]


async def test_the_command_line_cannot_sign(office: OfficeForTests) -> None:
    command = Command(name="toy.run", reason="x", typed="toy")
    async with office.working():
        request = await office.terminal.ask(Who(source="cli", person="olivia"), command, reply=ReplyTo())
        assert "ask in Slack" in await office.refused(request or 0)


async def test_what_the_command_line_asked_is_not_sent_to_slack(office: OfficeForTests) -> None:
    async with office.memory.session() as session:
        await outbox.add(session, "text", "", payload={"text": "for a terminal"})
        await outbox.add(session, "text", CHANNEL, payload={"text": "for Slack"})
    assert [row.payload["text"] for row in await office.deliveries.due(10)] == ["for Slack"]


async def test_a_click_that_was_not_carried_out_is_found_again_and_done_once(office: OfficeForTests) -> None:
    assert await office.desk.store("click-1", "ask", {"text": "note"})
    assert [key for key, _ in await office.desk.unfinished("ask")] == ["click-1"]
    await incident(office, "open", title="Orders are gone")
    note = Command(name="incident.note", params={"text": "once"})
    for _ in range(2):
        await office.desk.ask(office.who("olivia"), note, reply=ReplyTo(channel=CHANNEL), key="click-1")
    toy = Command(name="toy.run", reason="gone", typed="toy")
    numbers = [await office.desk.ask(office.who("olivia"), toy, reply=ReplyTo(), key="click-2") for _ in range(2)]
    assert numbers[0] == numbers[1]
    await office.desk.finish("click-1")
    assert await office.desk.unfinished("ask") == []
    document = json.loads(await office.incidents.exported(1, "json"))
    assert [line["text"] for line in document["timeline"] if line["kind"] == "note"] == ["once"]


class Meeting(Query[ToyParams]):
    """Answers once three ask at the same time."""

    name: ClassVar[str] = "toy.meet"
    summary: ClassVar[str] = "Meet"
    params = ToyParams
    barrier: ClassVar[asyncio.Barrier]

    async def read(self, params: ToyParams, ports: Ports) -> Report:
        await self.barrier.wait()
        return Report(title="met")


class MeetingCatalogue(ToyCatalogue):
    QUERIES = (Meeting,)

    def query(self, name: str, /) -> Query[Any]:
        return Meeting()


class Hanging(Query[ToyParams]):
    """A status that waits for a store which neither answers nor refuses."""

    name: ClassVar[str] = "status.backups"
    summary: ClassVar[str] = "Hang"
    params = ToyParams

    async def read(self, params: ToyParams, ports: Ports) -> Report:
        await asyncio.Event().wait()
        raise AssertionError(params, ports)


class HangingCatalogue(ToyCatalogue):
    QUERIES = (Hanging,)

    def query(self, name: str, /) -> Query[Any]:
        return Hanging()


async def test_a_status_that_waits_for_a_store_is_answered_all_the_same(memory: Database) -> None:
    office = OfficeForTests(memory, shipped_plan(), catalogue=HangingCatalogue())
    at_work = asyncio.create_task(office.worker(status_within=timedelta(milliseconds=300)).run())
    try:
        async with office.memory.session() as session:
            row = RequestRow(kind="query", name=Hanging.name, person="olivia", channel=CHANNEL)
            asked = await requests.add(session, row)

        async def told() -> bool:
            async with office.memory.session() as session:
                found = await outbox.answers(session, asked)
            return any("a bucket or a server neither answers nor refuses" in str(each.payload) for each in found)

        await eventually(told, within=POLL.total_seconds() * 1.9)
    finally:
        at_work.cancel()
        await asyncio.gather(at_work, return_exceptions=True)
        await office.close()


async def test_requests_that_come_at_once_are_answered_beside_each_other(memory: Database) -> None:
    office = OfficeForTests(memory, shipped_plan(), catalogue=MeetingCatalogue())
    Meeting.barrier = asyncio.Barrier(3)
    async with office.working():
        await a_plan(office)  # by now all takers wait
        async with office.memory.session() as session:  # one transaction: one notification for the three
            rows = [RequestRow(kind="query", name=Meeting.name, person="olivia", channel=CHANNEL) for _ in range(3)]
            asked = [await requests.add(session, row) for row in rows]

        async def answered() -> bool:
            async with office.memory.session() as session:
                return all([await outbox.answers(session, request) for request in asked])

        await eventually(answered, within=POLL.total_seconds() * 1.9)  # nobody had to look by himself
    await office.close()
