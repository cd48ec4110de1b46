"""A new epoch of the record takes the keys of two persons: whoever rules the database cannot give up the past alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from actions.errors import UserError
from bot.cli import app
from bot.services.keys import Keys
from bot.services.record.adoption import begin
from bot.services.record.epochs import BEGUN, SIGNED
from bot.verify import checkpoints
from bot.verify.adoption import Acceptance
from bot.verify.findings import Tampering, Verdict
from storage import timeline
from storage.roles import DatabaseRole
from storage.session import NotAllowedError
from tests.fixtures.adopting import AdoptersForTests
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.ssh_keys import MakeKey, public_line
from tests.integration.test_record import forget

pytestmark = [pytest.mark.integration, pytest.mark.attack]

OWN_EPOCH = "INSERT INTO log_epoch (epoch, base, number, person, reason) VALUES (1, 0, :number, 'olivia', 'trust me')"


async def refusals(ledger: LedgerForTests) -> list[tuple[str, str]]:
    async with ledger.memory.session() as session:
        rows = await session.execute(text("SELECT person, code FROM refusal ORDER BY id"))
        return [(row.person, row.code) for row in rows]


async def rewrite(ledger: LedgerForTests) -> None:
    """Empty the log, write another past and say that an epoch began with it: as the owner of the tables can."""
    number = await ledger.number()
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("timeline_entry", "leaf", "unsealed_leaf", "sealed_leaf", "subtree", "checkpoint"):
            await session.execute(text(f"DELETE FROM {table}"))
    await ledger.note("nothing happened")
    async with ledger.memory.session() as session:
        await session.execute(text(OWN_EPOCH), {"number": number})


async def test_a_rewritten_past_with_an_epoch_of_its_own_is_not_signed(ledger: LedgerForTests) -> None:
    await ledger.sealed("it happened")
    await ledger.sealed("and more")
    await rewrite(ledger)
    watch = ledger.watch()
    assert "was started without the keys of two persons" in await watch.disagreement()
    assert not await watch.may_claim()
    assert not await ledger.sealer().agrees()
    clock = ledger.as_clock
    assert not await begin(clock, ledger.watch(database=clock), ledger.clock)


async def test_a_note_about_its_signatures_does_not_help_a_forged_epoch(
    ledger: LedgerForTests, make_key: MakeKey
) -> None:
    """Every process may add to the timeline: what counts is what two keys have signed, about just this epoch."""
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("it happened")
    await ledger.sealed("and more")
    await forget(ledger, above=2)
    adoption = both.adoption(ledger.memory)
    await both.signs(adoption, "olivia")
    async with ledger.memory.session() as session:
        [entry] = await timeline.of_kinds(session, None, (SIGNED,))
        proof = entry.data["proof"]
        facts = "\n".join(["drbot record adoption 1", "epoch 1", "base 0", "number 1", f"given-up 1 3 {'ab' * 32}"])
        facts += f"\nkept 0 {'ab' * 32}\n"
        for proofs in ([proof, proof], [proof], ["", "no proof"], None):
            data = {"epoch": 1, "facts": facts, "proofs": proofs}
            await timeline.add(
                session, incident_id=None, kind=BEGUN, actor="drbot", occurred_at=ledger.clock.now(), text="", data=data
            )
        await session.execute(text(OWN_EPOCH), {"number": 1})
    assert "without the keys of two persons" in await ledger.watch().disagreement()


async def test_a_sealed_epoch_is_the_one_that_was_sealed(ledger: LedgerForTests, make_key: MakeKey) -> None:
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("it happened")
    await ledger.sealed("and more")
    await forget(ledger, above=2)
    await both.adopt(ledger.memory)
    await ledger.sealed("after")
    assert await ledger.watch().disagreement() == ""
    ledger.keys = Keys({})  # both have left since
    assert await ledger.watch().disagreement() == ""
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("UPDATE log_epoch SET base = 1 WHERE epoch = 1"))
    assert "is not the one that was sealed" in await ledger.watch().disagreement()


@pytest.mark.parametrize("role", [DatabaseRole.CLI, DatabaseRole.SLACK, DatabaseRole.WORKER])
async def test_no_login_but_the_sealers_may_write_an_epoch(ledger: LedgerForTests, role: DatabaseRole) -> None:
    login = ledger.memory.acting_as(role)
    with pytest.raises(NotAllowedError):
        async with login.session() as session:
            await session.execute(text(OWN_EPOCH), {"number": 1})
    await login.dispose()


async def test_signatures_that_do_not_count_are_refused_and_recorded(ledger: LedgerForTests, make_key: MakeKey) -> None:
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("it happened")
    await ledger.sealed("and more")
    await forget(ledger, above=2)
    adoption = both.adoption(ledger.memory)
    with pytest.raises(UserError, match="is not on the roster"):
        await adoption.statement("mallory", "trust me")
    with pytest.raises(UserError, match=r"is none of daniel's keys"):
        await both.signs(adoption, "daniel", key=both.keys["olivia"])
    await both.signs(adoption, "olivia")
    with pytest.raises(UserError, match="already recorded"):
        await both.signs(adoption, "olivia")
    assert await refusals(ledger) == [
        ("mallory", "not_on_roster"), ("daniel", "bad_proof"), ("olivia", "already_signed"),
    ]  # fmt: skip
    clock = ledger.as_clock
    assert not await begin(clock, ledger.watch(database=clock), ledger.clock)


async def test_a_first_signature_of_yesterday_does_not_wait_for_ever(ledger: LedgerForTests, make_key: MakeKey) -> None:
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("it happened")
    await ledger.sealed("and more")
    await forget(ledger, above=2)
    adoption = both.adoption(ledger.memory)
    await both.signs(adoption, "olivia")
    await both.signs(adoption, "daniel")
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("UPDATE timeline_entry SET recorded_at = recorded_at - interval '25 hours'"))
    clock = ledger.as_clock
    assert not await begin(clock, ledger.watch(database=clock), ledger.clock)


# ---------------------------------------------------------------- the verifier


def checked(ledger: LedgerForTests, acceptance: Acceptance) -> Verdict:
    verdict = Verdict()
    lines = [(f"witness:{number}", line) for number, line in enumerate(ledger.kept[0].lines, start=1)]
    checkpoints.read(lines, [checkpoints.public_key(ledger.public)], verdict, acceptance)
    return verdict


async def adopted(ledger: LedgerForTests, make_key: MakeKey) -> AdoptersForTests:
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("one", "two")
    await ledger.sealed("three", "four")
    await forget(ledger, above=3)
    await ledger.note("another past")
    await both.adopt(ledger.memory)
    await ledger.sealed("after")
    return both


async def test_a_past_that_was_given_up_is_bad_until_the_reader_accepts_it(
    ledger: LedgerForTests, make_key: MakeKey, tmp_path: Path
) -> None:
    both = await adopted(ledger, make_key)
    file = both.allowed_signers(tmp_path / "allowed_signers")
    verdict = checked(ledger, Acceptance((), file))
    assert verdict.first is not None
    assert verdict.first.kind is Tampering.GIVEN_UP
    assert "epoch 1 began with checkpoint" in verdict.first.text
    assert "2 entries that witnesses knew in epoch 0 were given up" in verdict.first.text
    assert "`--accept-epoch 1 --signers FILE`" in verdict.first.text
    verdict = checked(ledger, Acceptance((1,), file))
    assert verdict.good, list(verdict.lines())
    [note] = [note for note in verdict.notes if note.startswith("Accepted: epoch 1")]
    assert note.endswith("signed by daniel, olivia.")


async def test_an_epoch_is_not_accepted_on_the_word_of_others(
    ledger: LedgerForTests, make_key: MakeKey, tmp_path: Path
) -> None:
    both = await adopted(ledger, make_key)
    file = tmp_path / "allowed_signers"
    both.allowed_signers(file)
    one = tmp_path / "one"
    one.write_text(f"olivia {public_line(both.keys['olivia'])}\n")
    twice = tmp_path / "twice"  # another name for the same key is no second person: he has not signed as that
    twice.write_text("".join(f"{name} {public_line(both.keys['olivia'])}\n" for name in ("olivia", "daniel")))
    for signers in (one, twice):
        verdict = checked(ledger, Acceptance((1,), signers))
        assert verdict.first is not None
        assert "1 of 2 persons of the allowed_signers file" in verdict.first.text
    lines, at = ledger.kept[0].lines, 2
    found = json.loads(lines[at])
    for change, said in (
        ({"facts": found["adoption"]["facts"].replace("base 3", "base 0")}, "has another base"),
        ({"facts": found["adoption"]["facts"].replace("given-up 2", "given-up 1")}, "gives up another past"),
        ({"facts": found["adoption"]["facts"].replace("kept 3", "kept 2")}, "keeps other entries"),
        ({"facts": found["adoption"]["facts"] + "more\n"}, "0 of 2 persons"),
        ({"facts": ""}, "no signatures for it"),
    ):
        lines[at] = json.dumps(found | {"adoption": found["adoption"] | change})
        verdict = checked(ledger, Acceptance((1,), file))
        assert verdict.first is not None, said
        assert said in verdict.first.text


async def test_the_command_ends_with_1_until_the_epoch_is_accepted(
    ledger: LedgerForTests, make_key: MakeKey, tmp_path: Path
) -> None:
    both = await adopted(ledger, make_key)
    file = both.allowed_signers(tmp_path / "allowed_signers")
    witness = tmp_path / "checkpoints.jsonl"
    witness.write_text("".join(f"{line}\n" for line in ledger.kept[0].lines))
    command = ["timeline", "verify", "--database", ledger.memory.url, "--checkpoints", str(witness)]
    command += ["--key", ledger.public]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1
    assert "BAD: given up past: epoch 1 began" in found.output
    found = CliRunner().invoke(app, [*command, "--accept-epoch", "1", "--signers", str(file)])
    assert found.exit_code == 0, found.output
    assert "GOOD" in found.output
    found = CliRunner().invoke(app, [*command, "--accept-epoch", "1"])
    assert isinstance(found.exception, UserError)
    assert "Give `--signers FILE`" in str(found.exception)
