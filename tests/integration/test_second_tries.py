"""What the schedule asked for and was not done is told and asked for once more: once over replicas and restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import update
from sqlmodel import col

from bot.services.approvals import SCHEDULE
from storage import requests
from storage.session import Database
from storage.tables import RequestRow
from tests.integration.test_clockwork import MORNING, Replicas, asked, end, posted

pytestmark = pytest.mark.integration

NAME = "superprismora"
DUE = datetime.fromisoformat("2026-11-23T02:00:00+00:00")
FIRST = "schedule/dump/superprismora/2026-11-23T02:00Z"


def later(minutes: float) -> datetime:
    return DUE + timedelta(minutes=minutes)


@pytest_asyncio.fixture
async def clocks(memory: Database) -> AsyncIterator[Replicas]:
    made = Replicas(memory)
    await made.tick(MORNING)
    yield made
    for database in made.own:
        await database.dispose()


async def dumps(clocks: Replicas, minutes: float) -> list[str]:
    """What a look of all clocks has asked for."""
    return [key for key in await clocks.tick(later(minutes)) if key.split("/")[1] == "dump"]


async def failed(clocks: Replicas, minutes: float, message: str = "The disk is full.", state: str = "failed") -> None:
    """The newest request for a dump ended so."""
    await end(clocks.memory, (await asked(clocks.memory, "backup.dump"))[-1], state, message, at=later(minutes))


async def by_hand(memory: Database, name: str, **params: str) -> RequestRow:
    """Somebody asks for the same."""
    async with memory.session() as session:
        row = RequestRow(kind="command", name=name, params=params, person="olivia", state="done")
        await requests.add(session, row)
    return (await asked(memory, name))[-1]


async def test_a_dump_that_failed_is_told_and_asked_for_once_more_an_hour_later(clocks: Replicas) -> None:
    assert await dumps(clocks, 1) == [FIRST]
    await failed(clocks, 7)

    assert await dumps(clocks, 8) == []
    run = f"plan{(await asked(clocks.memory, 'backup.dump'))[0].id}"
    [told] = await posted(clocks.memory)
    assert told == (
        f"The scheduled dump of `superprismora` due 2026-11-23 02:00 UTC failed (run {run}): The disk is full. "
        "It is asked for once more at 2026-11-23 03:07 UTC, unless one is made before."
    )
    assert await dumps(clocks, 66) == []
    assert await dumps(clocks, 68) == [f"{FIRST}/again"]
    assert await dumps(clocks, 69) == []
    again = (await asked(clocks.memory, "backup.dump"))[-1]
    assert (again.params, again.person) == ({"database": NAME}, SCHEDULE)
    assert again.reason == "scheduled by the plan, once more after it failed"
    assert again.channel == clocks.plan.channels.on_call

    await failed(clocks, 75, "The disk is still full.")
    assert await dumps(clocks, 76) == []
    assert await dumps(clocks, 300) == []
    [_, last] = await posted(clocks.memory)
    assert "due 2026-11-23 02:00 UTC failed again" in last
    assert last.endswith(
        "The disk is still full. It is not tried again before its next time: look at what it says, then "
        "`/dr-backup run superprismora`."
    )
    assert await dumps(clocks, 24 * 60 + 1) == ["schedule/dump/superprismora/2026-11-24T02:00Z"]


async def test_clocks_that_were_started_anew_ask_no_second_time(memory: Database, clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7)
    assert await dumps(clocks, 70) == [f"{FIRST}/again"]

    others = Replicas(memory)
    assert await dumps(others, 71) == []
    await failed(others, 80)
    assert await dumps(others, 200) == []
    assert len(await asked(memory, "backup.dump")) == 2
    assert len(await posted(memory)) == 2
    for database in others.own:
        await database.dispose()


async def test_nothing_is_asked_for_while_the_same_runs_or_when_it_was_done_meanwhile(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7)
    await dumps(clocks, 8)
    mine = await by_hand(clocks.memory, "backup.dump", database=NAME)
    await end(clocks.memory, mine, "running", at=later(60))

    assert await dumps(clocks, 70) == []
    await end(clocks.memory, mine, "failed", at=later(80))
    assert await dumps(clocks, 81) == [f"{FIRST}/again"]


async def test_a_dump_that_people_have_made_meanwhile_is_enough(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7)
    await dumps(clocks, 8)
    mine = await by_hand(clocks.memory, "backup.dump", database=NAME)
    await end(clocks.memory, mine, "succeeded", at=later(30))

    assert await dumps(clocks, 70) == []
    assert len(await posted(clocks.memory)) == 1


async def test_a_dump_of_another_database_is_no_second_try(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7)
    other = await by_hand(clocks.memory, "backup.dump", database="another")
    await end(clocks.memory, other, "succeeded", at=later(30))

    assert await dumps(clocks, 70) == [f"{FIRST}/again"]


async def test_an_incremental_does_not_stand_in_for_a_full_backup(clocks: Replicas) -> None:
    server = clocks.plan.database(NAME).server
    key = f"schedule/full/{server}/2026-11-23T02:30Z"
    assert key in await clocks.tick(later(31))
    [full] = await asked(clocks.memory, "backup.base")
    await end(clocks.memory, full, "failed", at=later(40))
    assert f"schedule/incremental/{server}/2026-11-23T02:45Z" in await clocks.tick(later(45))
    incremental = (await asked(clocks.memory, "backup.base"))[-1]
    await end(clocks.memory, incremental, "running")
    assert f"{key}/again" not in await clocks.tick(later(101))  # one base backup of a server at a time
    await end(clocks.memory, incremental, "succeeded", at=later(102))

    assert f"{key}/again" in await clocks.tick(later(103))


async def test_a_retry_of_the_run_that_failed_is_enough(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7)
    [first] = await asked(clocks.memory, "backup.dump")
    retry = await by_hand(clocks.memory, "run.retry", run=f"plan{first.id}")
    await end(clocks.memory, retry, "succeeded", at=later(30))

    assert await dumps(clocks, 70) == []


@pytest.mark.parametrize(
    ("state", "again"), [("pre-empted", True), ("expired", True), ("aborted", False), ("denied", False)]
)
async def test_what_people_have_ended_is_not_asked_for_again(clocks: Replicas, state: str, *, again: bool) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 7, state=state)

    assert await dumps(clocks, 70) == ([f"{FIRST}/again"] if again else [])
    assert len(await posted(clocks.memory)) == again


async def test_what_could_not_be_planned_is_asked_for_once_more(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    [request] = await asked(clocks.memory, "backup.dump")
    async with clocks.memory.session() as session:
        await session.execute(
            update(RequestRow)
            .where(col(RequestRow.id) == request.id)
            .values(state="failed", error="The server does not answer.", created_at=later(1))
        )

    assert await dumps(clocks, 62) == [f"{FIRST}/again"]
    [told] = await posted(clocks.memory)
    assert "could not be planned: The server does not answer. It is asked for once more at" in told


async def test_one_that_failed_shortly_before_its_next_time_waits_for_that(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, 24 * 60 - 30)

    assert await dumps(clocks, 24 * 60 - 29) == []
    [told] = await posted(clocks.memory)
    assert "not tried again before its next time" in told
    assert await dumps(clocks, 24 * 60 + 31) == ["schedule/dump/superprismora/2026-11-24T02:00Z"]


async def test_an_incremental_that_comes_soon_anyway_is_not_asked_for_again(clocks: Replicas) -> None:
    await clocks.tick(later(1))
    [incremental] = await asked(clocks.memory, "backup.base")
    assert incremental.params["kind"] == "incremental"
    await end(clocks.memory, incremental, "failed", at=later(2))

    assert [key for key in await clocks.tick(later(14)) if "incremental" in key] == []
    assert await posted(clocks.memory) == []


async def test_an_old_failure_is_left_to_the_alarms(clocks: Replicas) -> None:
    await dumps(clocks, 1)
    await failed(clocks, -24 * 60)  # such as one of a line that comes once a week, after an update of the bot

    assert await dumps(clocks, 8) == []
    assert await posted(clocks.memory) == []
