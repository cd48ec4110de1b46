"""Nobody signs what no worker would start: a void plan takes no signature, from Slack as little as by key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from actions.approval import Act, Code
from actions.errors import UserError
from bot.services.cards import PlanCard, PlanState
from tests.fakes.toy import WORLD, ToyCatalogue
from tests.fixtures.keyed import KeyedOffice
from tests.fixtures.office import OfficeForTests
from tests.integration.test_newer_version import Rewording
from tests.integration.test_office import a_plan, approve, refusals
from tests.integration.test_provenance import change

pytestmark = [pytest.mark.integration, pytest.mark.attack]

Sign = Callable[[KeyedOffice, PlanCard], Awaitable[str]]


async def in_slack(keyed: KeyedOffice, card: PlanCard) -> str:
    return await approve(keyed.office, "daniel", card)


async def by_key(keyed: KeyedOffice, card: PlanCard) -> str:
    return await keyed.sign("daniel", card)


both_doors = pytest.mark.parametrize("sign", [in_slack, by_key])


async def asked(keyed: KeyedOffice) -> PlanCard:
    """A plan of Olivia's, and no worker that would notice what becomes of it."""
    async with keyed.office.working():
        return await a_plan(keyed.office)


async def approvals(office: OfficeForTests, card: PlanCard) -> int:
    async with office.memory.session() as session:
        query = text("SELECT count(*) FROM signature WHERE plan_id = :plan AND act = 'approve'")
        return int((await session.execute(query, {"plan": card.plan_id})).scalar_one())


@asynccontextmanager
async def upgraded(keyed: KeyedOffice, catalogue: ToyCatalogue) -> AsyncIterator[KeyedOffice]:
    """The same people in front of another version of the bot."""
    newer = OfficeForTests(keyed.office.memory, keyed.office.plan, catalogue=catalogue, clock=keyed.clock)
    yield KeyedOffice(newer, keyed.keys, keyed.clock)
    await newer.close()


@both_doors
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE plan SET digest = repeat('0', 64) WHERE id = :plan", "does not match its digest"),
        ("UPDATE plan SET channel = channel || 'X' WHERE id = :plan", "is not what was signed: `channel`"),
        ("UPDATE request SET incident_id = 'x' WHERE plan_id = :plan", "no request for it is stored"),
        ("UPDATE signature SET reason = 'x' WHERE plan_id = :plan", "does not follow from what was received"),
    ],
)
async def test_a_plan_that_somebody_changed_takes_no_signature(
    keyed: KeyedOffice, sign: Sign, statement: str, words: str
) -> None:
    card = await asked(keyed)
    await change(keyed.office, statement, plan=card.plan_id)

    with pytest.raises(UserError, match=f"this plan is void.*{words}.*Ask for a new plan"):
        await sign(keyed, card)

    assert await refusals(keyed.office) == [Code.BAD_PROOF]
    assert await approvals(keyed.office, card) == 0


@both_doors
async def test_a_plan_that_another_version_words_anew_takes_no_signature(keyed: KeyedOffice, sign: Sign) -> None:
    card = await asked(keyed)

    async with upgraded(keyed, Rewording()) as newer:
        with pytest.raises(UserError, match=r"this plan is void.*commands by hand.*ask for it again"):
            await sign(newer, card)

    assert await refusals(keyed.office) == [Code.NOT_DECLARED]
    assert await approvals(keyed.office, card) == 0


async def test_a_request_signed_by_key_is_held_against_the_same(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await keyed.ask("olivia")
    await change(keyed.office, "UPDATE plan SET reason = 'because' WHERE id = :plan", plan=card.plan_id)

    with pytest.raises(UserError, match=r"this plan is void.*`reason` is another one"):
        await keyed.sign("olivia", card)


@both_doors
async def test_the_same_plan_left_alone_takes_it(keyed: KeyedOffice, sign: Sign) -> None:
    """The counter-proof: nothing but the change made those void."""
    card = await asked(keyed)

    assert "starts now" in await sign(keyed, card)
    assert await approvals(keyed.office, card) == 1


async def test_a_denial_is_taken_in_doubt(keyed: KeyedOffice) -> None:
    """It may be the last word on a plan that somebody repairs behind the bot's back."""
    card = await asked(keyed)
    await change(keyed.office, "UPDATE plan SET reason = 'because' WHERE id = :plan", plan=card.plan_id)
    await keyed.sign("sam", card, Act.DENY, target="", reason="something is wrong here")
    await change(keyed.office, "UPDATE plan SET reason = 'it is gone' WHERE id = :plan", plan=card.plan_id)

    async with keyed.office.working():
        await keyed.office.until(card, PlanState.DENIED)
    assert card.plan_id not in WORLD
