"""A head that people were told in a channel, copied from there, vouches for the record as any witness does."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from bot.bootstrap import export_log
from bot.services.record.checkpoint import Checkpoint, Consumed, Signed
from bot.services.record.export import json_lines, prove
from bot.services.record.heads import LONGEST, Heads, sentence
from bot.settings import Settings
from bot.slack.views.text import sentence as message_of
from bot.verify import checkpoints, database
from bot.verify.findings import Tampering, Verdict
from bot.verify.sources import checkpoints as lines_of
from storage import timeline
from tests.fakes.clock import START
from tests.fixtures.ledger import LedgerForTests
from tests.integration.test_record_exports import verify
from tests.integration.test_record_tampering import EDIT, FIFTH, TAIL, an_incident, first, rehash, tamper

pytestmark = [pytest.mark.integration, pytest.mark.attack]


@pytest.fixture
async def notes(ledger: LedgerForTests) -> LedgerForTests:
    """Eight notes in four checkpoints; positions 1 to 8."""
    for number in range(4):
        await ledger.sealed(f"note {number}", f"note {number} and more")
    return ledger


async def told(ledger: LedgerForTests) -> str:
    """What stands in the code block of the message in the channel, as a person copies it."""
    ledger.clock.advance(timedelta(minutes=6))  # type: ignore[attr-defined]
    await ledger.sealer(channel="C0AUDIT").seal()
    async with ledger.memory.session() as session:
        query = text("SELECT payload ->> 'text' FROM outbox WHERE channel = 'C0AUDIT' ORDER BY id DESC LIMIT 1")
        message = message_of(str(await session.scalar(query)))
    [block] = message["blocks"]
    assert len(block["text"]["text"]) < 3000
    [line] = re.findall(r"\n```(.*)```", block["text"]["text"])
    return str(line)


def checked(ledger: LedgerForTests, *sources: str) -> Verdict:
    """What the verifier says of the database with these witnesses."""
    verdict = Verdict()
    lines = (line for source in sources for line in lines_of(source))
    witnessed = checkpoints.read(lines, [checkpoints.public_key(ledger.public)], verdict)
    database.verify(ledger.memory.url, witnessed, verdict)
    return verdict


async def test_the_channel_alone_is_a_witness(notes: LedgerForTests, tmp_path: Path) -> None:
    head = await told(notes)
    root = str(await scalar(notes, "SELECT encode(root, 'hex') FROM checkpoint ORDER BY number DESC LIMIT 1"))
    assert len(root) == 64
    assert f"root {root}" in json.loads(head)["body"]
    asked = ("--key", notes.public, "--database", notes.memory.url)
    done = verify("--checkpoints", head, *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 entries; witnesses cover 9." in done.stdout

    (tmp_path / "copied.txt").write_text(f"{head}\n")
    (tmp_path / "log.jsonl").write_text(await exported(notes))
    asked = ("--checkpoints", str(tmp_path / "copied.txt"), "--key", notes.public)
    assert verify(str(tmp_path / "log.jsonl"), *asked).returncode == 0
    (tmp_path / "log.jsonl").write_text((await exported(notes)).replace("note 3 and more", "note 3 and less"))
    done = verify(str(tmp_path / "log.jsonl"), *asked)
    assert done.returncode == 1
    assert "BAD: rewritten part: between position 0 and 8: not what checkpoint" in done.stdout


async def exported(ledger: LedgerForTests) -> str:
    lines: list[str] = []
    await export_log(Settings.model_validate({"database_url": ledger.memory.url}), lines.append)
    return "".join(lines)


async def scalar(ledger: LedgerForTests, query: str) -> object:
    async with ledger.memory.session() as session:
        return await session.scalar(text(query))


async def test_what_was_done_to_the_log_is_told_apart_by_a_head(notes: LedgerForTests) -> None:
    head = await told(notes)
    assert checked(notes, head).good
    tamper(notes, EDIT)
    verdict = checked(notes, head)
    assert first(verdict) == (Tampering.EDITED, 5)
    assert len(verdict.bad) == 1
    rehash(notes, f"seq = ({FIFTH})")
    assert first(checked(notes, head)) == (Tampering.REWRITTEN, 0)
    tamper(notes, *TAIL)
    assert first(checked(notes, head)) == (Tampering.TRUNCATED, 5)
    for number in range(4):
        await notes.note(f"another past {number}")
    await notes.sealer().seal()
    assert first(checked(notes, head)) == (Tampering.REBUILT, 0)


async def test_two_heads_say_between_which_entries(notes: LedgerForTests) -> None:
    early = await told(notes)
    await notes.sealed("note 8", "note 9")
    late = await told(notes)
    last = FIFTH.replace("= 5", "= 10")
    tamper(notes, f"UPDATE timeline_entry SET actor = 'Mallory' WHERE seq = ({last})")
    rehash(notes, f"seq = ({last})")
    assert first(checked(notes, early, late)) == (Tampering.REWRITTEN, 9)
    assert first(checked(notes, f"{early}\n\n{late}\n")) == (Tampering.REWRITTEN, 9)


async def test_a_head_beside_a_witness_takes_nothing_from_it(notes: LedgerForTests, tmp_path: Path) -> None:
    head = await told(notes)
    await notes.published(notes.sealer())
    file = tmp_path / "witness.jsonl"
    file.write_text("\n".join(notes.kept[0].lines))
    for sources in ((str(file), head), (head, str(file))):
        verdict = checked(notes, *sources)
        assert (verdict.good, verdict.notes) == (True, [])
    tamper(notes, EDIT)
    rehash(notes, f"seq = ({FIFTH})")
    assert first(checked(notes, head, str(file))) == (Tampering.EDITED, 5)


async def test_a_head_shows_what_the_other_witness_was_made_to_forget(notes: LedgerForTests, tmp_path: Path) -> None:
    """Whoever rules the bot's machine takes the newest lines out of its file, and the same entries out of the log."""
    head = await told(notes)
    file = tmp_path / "witness.jsonl"
    file.write_text("\n".join(notes.kept[0].lines[:2]))
    tamper(notes, *TAIL)
    assert checked(notes, str(file)).good
    assert first(checked(notes, str(file), head)) == (Tampering.TRUNCATED, 5)


async def test_a_forged_head_is_refused(notes: LedgerForTests) -> None:
    head = await told(notes)
    asked = ("--key", notes.public, "--database", notes.memory.url)
    line = json.loads(head)
    digit = re.search(r"root ([0-9a-f])", line["body"])
    assert digit is not None
    flipped = head.replace(digit[0], f"root {int(digit[1], 16) ^ 1:x}")
    stranger = Ed25519PrivateKey.generate().sign(line["body"].encode())
    forged = json.dumps(line | {"signature": base64.b64encode(stranger).decode()})
    unsigned = json.dumps({"body": line["body"]})
    for given, said in (
        (flipped, "the signature of checkpoint 5 is not the key's"),
        (forged, "the signature of checkpoint 5 is not the key's"),
        (unsigned, "the copied line is no checkpoint; copy it whole"),
        (head[:-30], "the copied line is no checkpoint; copy it whole"),
    ):
        done = verify("--checkpoints", given, *asked)
        assert done.returncode == 1
        assert said in done.stderr, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        done = verify("--checkpoints", given, "--checkpoints", head, *asked)
        assert done.returncode == 1, "also beside a good one"
        assert "BAD: forged checkpoint" in done.stdout
        assert said in done.stdout


async def test_an_export_of_an_incident_is_not_accused_by_the_heads_of_a_channel(
    notes: LedgerForTests, tmp_path: Path
) -> None:
    """Its checkpoint is seldom one of those that people were told."""
    early = await told(notes)
    await an_incident(notes)
    async with notes.memory.session() as session:
        now = notes.clock.now()
        await timeline.add(
            session, incident_id="inc1", kind="note", actor="Olivia", occurred_at=now, text="Orders gone"
        )
    await notes.sealed()
    async with notes.memory.session() as session:
        proof = json_lines(await prove(session, "inc1"), incident=1)
    path = tmp_path / "proof.jsonl"
    path.write_text(proof)
    done = verify(str(path), "--checkpoints", early, "--key", notes.public)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not among those given, of which some are missing" in done.stdout
    late = await told(notes)
    path.write_text(proof.replace("Orders", "Nothing"))
    assert verify(str(path), "--checkpoints", early, "--checkpoints", late, "--key", notes.public).returncode == 1


def test_the_end_of_an_incident_is_told_in_the_audit_channel_as_well() -> None:
    heads = Heads("C0AUDIT", every=timedelta(minutes=10))
    begin, end = head_at(1), head_at(1, minutes=1)
    assert heads.due(begin, {"one": "C0AUDIT"}) == ["C0AUDIT"]
    heads.told(["C0AUDIT"], begin, {"one": "C0AUDIT"})
    assert heads.due(end, {"one": "C0AUDIT"}) == []
    assert heads.due(end, {}) == ["C0AUDIT"]


async def test_an_incident_that_was_closed_while_nobody_sealed_gets_its_last_head(ledger: LedgerForTests) -> None:
    await an_incident(ledger)
    before = ledger.sealer(channel="C0AUDIT")
    await ledger.note("opened")
    await before.seal()
    ledger.clock.advance(timedelta(hours=2))  # type: ignore[attr-defined]
    async with ledger.memory.session() as session:
        await session.execute(text("UPDATE incident SET closed_at = :now"), {"now": ledger.clock.now()})
    await ledger.note("closed")
    told_there = "SELECT count(*) FROM outbox WHERE channel = 'C1'"
    assert await scalar(ledger, told_there) == 0

    after = ledger.sealer(channel="C0AUDIT")  # of a clock that has started again meanwhile
    await after.seal()
    assert await scalar(ledger, told_there) == 1
    await ledger.note("later")
    ledger.clock.advance(timedelta(hours=2))  # type: ignore[attr-defined]
    await after.seal()
    await ledger.note("later still")
    await ledger.sealer(channel="C0AUDIT").seal()
    assert await scalar(ledger, told_there) == 1


def head_at(number: int, *, minutes: int = 0, plans: int = 0) -> Checkpoint:
    return Checkpoint(
        number=number,
        epoch=0,
        base=0,
        size=number + minutes,
        root="ab" * 32,
        at=START + timedelta(hours=number, minutes=minutes),
        key="cd" * 8,
        consumed=(Consumed(plan="plan-1a2b3c4d", digest="ef" * 32),) * plans,
    )


def test_a_head_too_long_for_a_message_gives_way_to_the_next() -> None:
    heads = Heads("C0AUDIT", every=timedelta(minutes=10))
    incident = {"one": "C0ONE"}

    def told_of(checkpoint: Checkpoint, incidents: dict[str, str]) -> list[str]:
        channels = heads.due(checkpoint, incidents)
        heads.told(channels, checkpoint, incidents)
        return channels

    assert told_of(head_at(1), incident) == ["C0AUDIT"]
    assert told_of(head_at(2, plans=50), {}) == []
    assert told_of(head_at(3, plans=20), {}) == ["C0AUDIT", "C0ONE"]
    longest = head_at(3, plans=20)
    assert len(longest.body()) > LONGEST - 100
    text = sentence(longest, Signed(body=longest.body(), signature=bytes(64)))
    assert text in message_of(text)["blocks"][0]["text"]["text"]
