"""Signatures by key on a real database: a run with Slack away, and everything that must not count."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.errors import UserError
from bot.cli_sign import sign_plan
from bot.services.cards import PlanCard, PlanState
from bot.services.statements import Proof
from storage.session import Database, NotAllowedError
from tests.fakes.clock import TravellingClock
from tests.fakes.toy import WORLD
from tests.fixtures.keyed import KeyedOffice, keyed_plan
from tests.fixtures.office import OfficeForTests
from tests.fixtures.ssh_keys import MakeKey

pytestmark = [pytest.mark.integration, pytest.mark.attack]


async def refusals(keyed: KeyedOffice) -> list[str]:
    async with keyed.office.memory.session() as session:
        return list((await session.execute(text("SELECT code FROM refusal ORDER BY id"))).scalars())


async def test_two_keys_carry_a_plan_with_slack_away(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await keyed.ask("olivia")
        assert "the requester's own signature" in card.missing
        assert "still missing" in await keyed.sign("olivia", card)
        assert "starts now" in await keyed.sign("daniel", card)
        ended = await keyed.office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]
    assert [line.act for line in ended.signers] == [Act.REQUEST, Act.APPROVE]
    assert [proof.count("BEGIN SSH SIGNATURE") for proof in await keyed.signing("sam").proofs(card.plan_id)] == [1, 1]


async def test_slack_and_keys_count_together(keyed: KeyedOffice) -> None:
    office = keyed.office
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run"))
        await keyed.sign("daniel", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def test_what_is_shown_before_signing_cannot_steer_the_terminal(
    keyed: KeyedOffice, capsys: pytest.CaptureFixture[str]
) -> None:
    office = keyed.office
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run", reason="gone\x1b[2J\x1b]0;safe\x07"))
    said = await sign_plan(
        keyed.signing("daniel"), card.plan_id, Act.APPROVE, reason="seen\u202e", target="toy", key=keyed.keys["daniel"]
    )
    shown = capsys.readouterr().out

    assert "starts now" in said
    assert r"Olivia Ortega: request (gone\x1b[2J\x1b]0;safe\x07)" in shown
    assert "reason: seen\\u202e\n" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}


async def test_a_denial_and_a_withdrawal_by_key_end_a_plan(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        withdrawn = await asked_and_signed(keyed)
        await keyed.sign("olivia", withdrawn, Act.WITHDRAW, target="", reason="found another way")
        await keyed.office.until(withdrawn, PlanState.VOID)
        denied = await asked_and_signed(keyed)
        await keyed.sign("sam", denied, Act.DENY, target="", reason="wrong hour")
        assert "wrong hour" in (await keyed.office.until(denied, PlanState.DENIED)).message
    assert not {denied.plan_id, withdrawn.plan_id} & WORLD.keys()


async def hand_in(keyed: KeyedOffice, person: str, proof: Proof) -> str:
    return await keyed.signing(person).hand_in(proof)


async def asked_and_signed(keyed: KeyedOffice) -> PlanCard:
    card = await keyed.ask("olivia")
    await keyed.sign("olivia", card)
    return card


async def test_signatures_that_do_not_show_this_act_are_refused_and_recorded(
    keyed: KeyedOffice, make_key: MakeKey
) -> None:
    async with keyed.office.working():
        card, other = await asked_and_signed(keyed), await asked_and_signed(keyed)
        desk = keyed.signing("daniel")
        said = desk.statement(card, Act.APPROVE, target="toy", reason="seen")
        good = keyed.proof(said)
        edited = said.model_copy(update={"reason": "edited"})
        elsewhere = desk.statement(other, Act.APPROVE, target="toy", reason="seen")
        for proof, why in (
            (Proof(statement=edited, armored=good.armored), "does not fit"),  # another reason
            (Proof(statement=elsewhere, armored=good.armored), "does not fit"),  # replayed on another plan
            (keyed.proof(said, make_key("stolen")), "none of daniel's keys"),  # a key nobody knows
            (keyed.proof(said, keyed.keys["sam"]), "none of daniel's keys"),  # another person's key
            (keyed.proof(said, namespace="git"), "'git'"),  # signed for something else
            (Proof(statement=said, armored="forged"), "no SSH signature"),
        ):
            with pytest.raises(UserError, match=why):
                await hand_in(keyed, "daniel", proof)
        with pytest.raises(UserError, match="person is not"):  # daniel's statement in sam's name
            await hand_in(keyed, "sam", good)
        with pytest.raises(UserError, match="asked for by olivia"):  # a request for somebody else's plan
            await hand_in(keyed, "daniel", keyed.proof(desk.statement(card, Act.REQUEST, target="toy", reason="x")))
        assert await refusals(keyed) == ["bad_proof"] * 8
        assert "starts now" in await hand_in(keyed, "daniel", good)
        with pytest.raises(UserError):
            await hand_in(keyed, "daniel", good)
        await keyed.office.until(card, PlanState.SUCCEEDED)
        assert (await keyed.office.desk.plan_card(other.token)).state is PlanState.PENDING
    assert other.plan_id not in WORLD


@pytest.mark.parametrize(
    ("person", "target", "reason", "code"),
    [
        ("daniel", "tyo", "seen", "wrong_target"),
        ("daniel", "toy", " ", "no_reason"),
        ("nobody", "toy", "seen", "not_on_roster"),
    ],
)
async def test_the_same_rules_hold_as_in_slack(
    keyed: KeyedOffice, person: str, target: str, reason: str, code: str
) -> None:
    async with keyed.office.working():
        card = await asked_and_signed(keyed)
        keyed.keys.setdefault(person, keyed.keys["daniel"])
        with pytest.raises(UserError):
            await keyed.sign(person, card, target=target, reason=reason)
        assert await refusals(keyed) == [code]
        assert (await keyed.office.desk.plan_card(card.token)).state is PlanState.PENDING


async def test_an_expired_key_does_not_count(memory: Database, make_key: MakeKey) -> None:
    keys: dict[str, Path] = {person: make_key(person) for person in ("olivia", "daniel")}
    clock = TravellingClock()
    plan = keyed_plan(keys, options={"daniel": 'valid-before="20260101"'})
    keyed = KeyedOffice(OfficeForTests(memory, plan, clock=clock), keys, clock)
    async with keyed.office.working():
        card = await asked_and_signed(keyed)
        with pytest.raises(UserError, match="expired at 2026-01-01"):
            await keyed.sign("daniel", card)
    await keyed.office.close()


@pytest.mark.parametrize(
    "change",
    [
        "reason = 'another one'",
        "person = 'sam'",
        "typed = 'other'",
        "act = 'request'",
        "at = at + interval '1 hour'",
        "proof = replace(proof, 'toy', 'top')",
        "proof = ''",
    ],
)
async def test_a_worker_does_not_believe_a_row_that_the_proof_does_not_show(keyed: KeyedOffice, change: str) -> None:
    async with keyed.office.working():
        card = await asked_and_signed(keyed)
    await keyed.sign("daniel", card)  # while no worker is there
    async with keyed.office.memory.session() as session:
        await session.execute(text("ALTER TABLE signature DISABLE TRIGGER USER"))
        await session.execute(text(f"UPDATE signature SET {change} WHERE person = 'daniel'"))
        await session.execute(text("ALTER TABLE signature ENABLE TRIGGER USER"))
    async with keyed.office.working():
        after = await asked_and_signed(keyed)  # a later plan, so the first one was looked at
        await keyed.sign("daniel", after)
        await keyed.office.until(after, PlanState.SUCCEEDED)
        assert (await keyed.office.desk.plan_card(card.token)).state is not PlanState.SUCCEEDED
    assert card.plan_id not in WORLD


async def test_a_copied_row_does_not_bring_a_withdrawn_signature_back(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await keyed.ask("olivia")
        await keyed.sign("daniel", card)
        await keyed.sign("daniel", card, Act.WITHDRAW, target="", reason="not sure")
    async with keyed.office.memory.session() as session:
        await session.execute(
            text(
                "INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, proof, at) "
                "SELECT plan_id, person, act, digest, reason, typed, source, account, proof, at + interval '1 minute' "
                "FROM signature WHERE act = 'approve'"
            )
        )
    async with keyed.office.working():
        await keyed.sign("olivia", card)
        after = await asked_and_signed(keyed)
        await keyed.sign("daniel", after)
        await keyed.office.until(after, PlanState.SUCCEEDED)
    assert card.plan_id not in WORLD


async def test_a_plan_without_its_requester_does_not_run(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await keyed.ask("olivia")
        await keyed.sign("daniel", card)
        await keyed.sign("erik", card)
        after = await asked_and_signed(keyed)
        await keyed.sign("daniel", after)
        await keyed.office.until(after, PlanState.SUCCEEDED)
        assert (await keyed.office.desk.plan_card(card.token)).missing == ("the requester's own signature",)
    assert card.plan_id not in WORLD


async def test_the_terminal_cannot_sign_in_slacks_name(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await asked_and_signed(keyed)
    with pytest.raises(NotAllowedError, match="row-level security"):
        async with keyed.office.at_terminal.session() as session:
            await session.execute(
                text(
                    "INSERT INTO signature (plan_id, person, act, digest, reason, source, account, at) "
                    "VALUES (:plan, 'daniel', 'approve', 'x', 'x', 'slack', 'U0DANIEL', now())"
                ),
                {"plan": card.plan_id},
            )
