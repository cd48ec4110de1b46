"""The outbox reaches Slack once, in Slack's pace, whatever Slack answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actions.contract import Report
from bot.ports import Kind
from bot.slack.gateway import WebGateway
from bot.slack.sender import OutboxSender
from bot.slack.views.text import loading_modal
from tests.fakes.cards import NOW, a_card, an_incident, an_offer
from tests.fakes.desk import MemoryOutbox
from tests.fakes.slack import BOT_TOKEN, FakeSlack, Fault


@pytest.fixture
async def slack() -> AsyncIterator[FakeSlack]:
    async with FakeSlack() as fake:
        yield fake


@pytest.fixture
def gateway(slack: FakeSlack) -> WebGateway:
    return WebGateway(token=BOT_TOKEN, base_url=slack.url)


@pytest.fixture
def outbox() -> MemoryOutbox:
    outbox = MemoryOutbox()
    outbox.cards[Kind.PLAN, "p"] = a_card()
    outbox.cards[Kind.INCIDENT, "i"] = an_incident()
    return outbox


@pytest.fixture
def sender(outbox: MemoryOutbox, gateway: WebGateway) -> OutboxSender:
    return OutboxSender(outbox, gateway, now=lambda: NOW, update_every=0.05)


async def test_a_card_is_posted_once_and_then_updated(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    assert [message.updates for message in slack.messages] == [1]
    assert len(outbox.settled) == 2


async def test_many_rows_of_a_card_are_one_effect(slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender) -> None:
    for _ in range(15):
        outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    assert len(outbox.settled) == 15
    assert (len(slack.messages), outbox.reads) == (1, 1)


async def test_a_channel_gets_one_post_a_second_and_others_do_not_wait(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    for number in range(3):
        outbox.add(Kind.TEXT, "C0OPS", text=f"line {number}")
    outbox.add(Kind.TEXT, "C0GENERAL", text="elsewhere")
    start = time.monotonic()
    await sender.drain()
    assert 2.0 < time.monotonic() - start < 5.0
    assert [message.text for message in slack.messages if message.channel == "C0OPS"] == ["line 0", "line 1", "line 2"]
    assert slack.messages[1].channel == "C0GENERAL"
    assert slack.count("chat.postMessage") == 4


async def test_a_lost_answer_is_found_not_repeated(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    slack.fail("chat.postMessage", Fault(status=500, lost=True))
    row = outbox.add(Kind.TEXT, "C0OPS", text="once")
    await sender.drain()
    assert outbox.delays
    outbox.retry()
    await asyncio.sleep(0)
    sender._not_before.clear()
    await sender.drain()
    assert [message.text for message in slack.messages] == ["once"]
    assert outbox.settled == {row: slack.messages[0].ts}


async def test_a_card_whose_first_answer_was_lost_is_not_posted_by_another_row(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    slack.fail("chat.postMessage", Fault(status=500, lost=True))
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    sender._not_before.clear()
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    assert len(slack.messages) == 1


async def test_slack_s_pause_is_kept_and_no_row_is_lost(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    slack.fail("chat.postMessage", Fault(error="ratelimited", status=429, retry_after=40))
    for number in range(3):
        outbox.add(Kind.TEXT, "C0OPS", text=str(number))
    await sender.drain()
    assert slack.messages == []
    assert dict(outbox.delays) == dict.fromkeys((1, 2, 3), timedelta(seconds=40))
    outbox.retry()
    sender._not_before.clear()
    await sender.drain()
    assert sorted(message.text for message in slack.messages) == ["0", "1", "2"]


async def test_a_refused_token_keeps_the_rows(slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender) -> None:
    slack.fail("chat.postMessage", Fault(error="token_revoked"))
    outbox.add(Kind.TEXT, "C0OPS", text="a")
    await sender.drain()
    assert not outbox.dead
    assert outbox.delays == [(1, timedelta(seconds=60))]


async def test_what_can_never_be_sent_is_set_aside_with_its_reason(outbox: MemoryOutbox, sender: OutboxSender) -> None:
    outbox.add(Kind.TEXT, "C0NONE", text="a")
    outbox.add(Kind.PLAN, "C0OPS", ref="unknown")
    outbox.add(Kind.REPORT, "C0OPS", report={"nonsense": 1})
    outbox.add(Kind.TEXT, "C0OPS", text="still sent")
    await sender.drain()
    assert set(outbox.dead) == {1, 2, 3}
    assert "channel_not_found" in outbox.dead[1]
    assert set(outbox.settled) == {4}


async def test_a_deleted_card_is_posted_anew(slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender) -> None:
    outbox.places[Kind.PLAN, "p", "C0OPS"] = "1.2"
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    assert outbox.places[Kind.PLAN, "p", "C0OPS"] == slack.messages[0].ts


async def test_a_card_asked_for_again_is_posted_again(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    outbox.places[Kind.INCIDENT, "i", "C0OPS"] = "1.2"
    outbox.add(Kind.INCIDENT, "C0OPS", ref="i", again=True)
    await sender.drain()
    assert (slack.count("chat.postMessage"), slack.count("chat.update"), slack.count("pins.add")) == (1, 0, 0)


async def test_an_incident_gets_its_channel_and_its_pin(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    wish = {"name": "inc-7", "topic": "Orders", "invite": ["U0ANA"]}
    outbox.add(Kind.INCIDENT, "C0OPS", ref="i", create=wish)
    await sender.drain()
    made = next(name for name, label in slack.channels.items() if label == "inc-7")
    assert slack.messages[0].channel == made
    assert slack.pins == [(made, slack.messages[0].ts)]
    assert outbox.places[Kind.INCIDENT, "i", made] == slack.messages[0].ts


REFUSALS = ("user_not_found", "cant_invite", "user_is_restricted", "already_in_channel", "cant_invite_self")


async def test_accounts_that_cannot_be_invited_cost_neither_card_nor_the_others(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    slack.uninvited = {f"U0GONE{number}": why for number, why in enumerate(REFUSALS)}
    wish = {"name": "inc-7", "topic": "Orders", "invite": ["U0ANA", *slack.uninvited, "U0BEN"]}
    outbox.add(Kind.INCIDENT, "C0OPS", ref="i", create=wish)
    await sender.drain()
    made = next(name for name, label in slack.channels.items() if label == "inc-7")
    assert [message.channel for message in slack.messages] == [made]
    assert slack.invited == ["U0ANA", "U0BEN"]


@pytest.mark.parametrize("method", ["conversations.setTopic", "conversations.invite", "chat.postMessage"])
async def test_what_fails_after_a_channel_was_made_makes_no_second_one(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender, method: str
) -> None:
    slack.fail(method, Fault(error="fatal_error"))
    wish = {"name": "inc-7", "topic": "Orders", "invite": ["U0ANA"]}
    outbox.add(Kind.INCIDENT, "C0OPS", ref="i", create=wish)
    await sender.drain()
    await sender.drain()
    assert [label for label in slack.channels.values() if label.startswith("inc-7")] == ["inc-7"]


async def test_without_channels_the_incident_stays_where_it_was_opened(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    slack.missing |= {"conversations.create", "pins.add"}
    outbox.add(Kind.INCIDENT, "C0OPS", ref="i", create={"name": "inc-7"})
    await sender.drain()
    assert slack.messages[0].channel == "C0OPS"


@pytest.mark.parametrize("kind", [Kind.PLAN, Kind.INCIDENT])
async def test_no_card_is_posted_where_others_read_along(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender, kind: Kind
) -> None:
    slack.shared["C0OPS"] = "is_ext_shared"
    row = outbox.add(kind, "C0OPS", ref="p" if kind is Kind.PLAN else "i")
    await sender.drain()
    assert outbox.refusals == [(row, "shared_channel")]
    assert slack.messages == []


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.REPORT, Kind.FILE])
async def test_no_words_nor_file_are_posted_there_either(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender, kind: Kind
) -> None:
    slack.shared["C0OPS"] = "is_ext_shared"
    report = Report(title="Backups").model_dump(mode="json")
    row = outbox.add(kind, "C0OPS", text="who signed", report=report, filename="timeline.md", content="all of it")
    await sender.drain()
    assert outbox.refusals == [(row, "shared_channel")]
    assert slack.messages == []
    assert slack.count("files.getUploadURLExternal") == 0


async def test_a_card_that_stands_there_already_stays_true(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    slack.shared["C0OPS"] = "is_ext_shared"
    outbox.add(Kind.PLAN, "C0OPS", ref="p")
    await sender.drain()
    assert [message.updates for message in slack.messages] == [1]


async def test_answers_for_one_person_do_not_wait_for_the_channel(
    slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    report = Report(title="Backups", lines=("Newest is 3 h old.",)).model_dump(mode="json")
    outbox.add(Kind.REPORT, "C0OPS", report=report, user="U0ANA", response_url=slack.response_url())
    outbox.add(Kind.EPHEMERAL, "C0OPS", text="Refused.", user="U0BEN", response_url=None)
    start = time.monotonic()
    await sender.drain()
    assert time.monotonic() - start < 1.0
    assert len(slack.whispers) == 2
    assert slack.messages == []


async def test_an_open_modal_is_filled_and_a_closed_one_forgotten(
    slack: FakeSlack, gateway: WebGateway, outbox: MemoryOutbox, sender: OutboxSender
) -> None:
    view = await gateway.open_view(slack.trigger(), loading_modal("Restore"))
    offer = an_offer().model_dump(mode="json")
    outbox.add(Kind.VIEW, "C0OPS", ref=view, restore=offer)
    outbox.add(Kind.VIEW, "C0OPS", ref="V0CLOSED", title="Restore", text="No backup.")
    await sender.drain()
    assert slack.views[view]["callback_id"] == "restore.request"
    assert set(outbox.settled) == {1, 2}


async def test_files_are_uploaded_or_shown(slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender) -> None:
    outbox.add(Kind.FILE, "C0OPS", filename="t.md", title="Timeline", content="# T")
    await sender.drain()
    assert slack.files[0]["content"] == b"# T"
    slack.missing |= {"files.getUploadURLExternal"}
    outbox.add(Kind.FILE, "C0GENERAL", filename="t.md", title="Timeline", content="x" * 9000)
    await sender.drain()
    assert "takes no files" in slack.messages[0].text


async def test_it_wakes_for_new_rows(slack: FakeSlack, outbox: MemoryOutbox, sender: OutboxSender) -> None:
    task = asyncio.create_task(sender.run())
    await asyncio.sleep(0.05)
    outbox.add(Kind.TEXT, "C0OPS", text="a")
    await slack.until(lambda: len(slack.messages) == 1, seconds=2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
