"""The chain of custody: what people say in Slack, what runs set aside, and where it is shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pyrage
import pytest
from sqlalchemy import select
from sqlmodel import col

from actions.backup.evidence import Vault
from actions.contract import JournalEntry, JournalState, Kept, Plan, Report, Risk, Step
from actions.errors import RefusedError, UserError
from actions.site import EvidencePolicy
from actions.steps.databases import SwapDatabases
from actions.steps.old_primary import StopPrimary
from actions.steps.promotion import PromoteScratch
from actions.steps.run_control import UndoStep
from bot import cli_evidence
from bot.counter import Counter
from bot.plan_file import DrPlan, dump
from bot.ports import ReplyTo, Who
from bot.router import Command, Router
from bot.run_record import DatabaseJournal
from bot.services import custody
from bot.services.evidence_files import EvidenceFiles
from bot.settings import Settings
from storage import custody as stored
from storage import incidents, outbox, plans, runs
from storage.custody import Event
from storage.runs import LeaseLostError
from storage.tables import CustodyEvent, Incident, PlanRow, RefusalRow
from tests.fakes.clock import MemoryClock
from tests.fakes.s3 import MemoryObjects
from tests.fakes.toy import ToyStep
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.shared_s3 import S3
from tests.integration.test_record_tampering import checked
from tests.unit.test_site import ADDRESSES, KEYS

pytestmark = pytest.mark.integration

SHA = "ab" * 32


async def say(office: OfficeForTests, words: str, *, person: str = "olivia", key: str | None = None) -> None:
    """As typed in Slack: `evidence list`."""
    command = Router().parse_slash("/dr", words)
    await office.desk.ask(office.who(person), command, reply=ReplyTo(channel=CHANNEL, user=person), key=key)


async def chain(office: OfficeForTests, item: int = 1) -> Sequence[CustodyEvent]:
    async with office.memory.session() as session:
        return await stored.chain(session, item)


async def report(office: OfficeForTests, words: str) -> Report:
    """What the worker answers."""
    command = Router().parse_slash("/dr-evidence", words)
    async with office.at_work.session() as session:
        return await custody.report(session, command.name, command.params, CHANNEL)


async def lines_of(office: OfficeForTests) -> list[tuple[str, str]]:
    document = json.loads(await office.incidents.exported(1, "json"))
    return [(line["actor"], line["text"]) for line in document["timeline"] if line["kind"] == "evidence"]


async def test_an_item_from_hand_to_hand(office: OfficeForTests) -> None:
    await say(office, "incident open Orders are gone")
    await say(office, f'evidence add "Disk of web-1" --where "room 12" --source "host web-1" --sha256 {SHA.upper()}')
    await say(office, 'evidence hand e-1 <@U0SAM|sam> "for the laboratory"', person="daniel")
    await say(office, 'evidence record E-1 copied "image made" --where "laboratory"', person="sam")
    await say(office, f"evidence record 1 viewed compared --sha256 {'cd' * 32}", person="sam")
    await say(office, 'evidence hand E-1 "Notary Meier" against receipt', person="sam")
    await say(office, "evidence hand E-1 @daniel to be kept", person="sam")
    rows = await chain(office)
    assert [(row.seq, row.action, row.actor, row.holder) for row in rows] == [
        (1, "collected", "Olivia Ortega", "Olivia Ortega"),
        (2, "handed", "Daniel Dietrich", "Sam Sato"),
        (3, "copied", "Sam Sato", ""),
        (4, "viewed", "Sam Sato", ""),
        (5, "handed", "Sam Sato", "Notary Meier"),
        (6, "handed", "Sam Sato", "Daniel Dietrich"),
    ]
    assert rows[0].sha256 == SHA
    assert rows[0].data["class"] == "normal"
    assert rows[1].data == {"person": "daniel", "account": "U0DANIEL"}
    assert rows[3].reason == "compared; its SHA-256 is not the one it was collected with"
    assert await lines_of(office) == [
        ("Olivia Ortega", "E-1 collected: Disk of web-1 (room 12)"),
        ("Daniel Dietrich", "E-1 handed to Sam Sato: for the laboratory"),
        ("Sam Sato", "E-1 copied: image made (laboratory)"),
        ("Sam Sato", "E-1 viewed: compared; its SHA-256 is not the one it was collected with"),
        ("Sam Sato", "E-1 handed to Notary Meier: against receipt"),
        ("Sam Sato", "E-1 handed to Daniel Dietrich: to be kept"),
    ]
    async with office.memory.session() as session:
        told = [row.payload for row in await outbox.due(session, limit=50) if row.kind == "text"]
    assert told[0] == {
        "text": "Olivia Ortega recorded about evidence:",
        "said": "E-1 collected: Disk of web-1 (room 12)",
    }

    listed = await report(office, "list")
    assert listed.rows == (("E-1", "Disk of web-1", "normal", "handed", "Daniel Dietrich", "laboratory"),)
    shown = await report(office, "show E-1")
    assert shown.title == "E-1: Disk of web-1"
    assert "Source: host web-1" in shown.lines
    assert f"SHA-256: {SHA}" in shown.lines
    assert shown.rows[0][5] == SHA
    assert [row[4] for row in shown.rows][1] == "handed to Sam Sato: for the laboratory"


async def test_the_worker_answers_in_slack_and_at_a_terminal(office: OfficeForTests) -> None:
    await say(office, "incident open Orders are gone")
    await say(office, "evidence add Disk of web-1")
    counter = Counter(office.at_terminal, office.terminal, office.deliveries, person="sam", channel="C0ONCALL")
    async with office.working():
        told, good = await counter.ask("evidence", ["list"])
        assert good
        assert "E-1" in told
        told, _ = await counter.ask("evidence", ["show", "E-1"])
        assert told.startswith("E-1: Disk of web-1")
        told, good = await counter.ask("evidence", ["show", "E-2"])
        assert (told, good) == ("There is no evidence E-2; see `/dr-evidence list`.", False)
        told, _ = await counter.ask("evidence", ["record", "E-1", "sealed", "bag 4711", "--where", "room 12"])
        assert told == "Done; it is on the timeline."
    assert (await chain(office))[1].data == {"person": "sam", "account": "cli"}


async def test_a_command_that_comes_again_is_one_event(office: OfficeForTests) -> None:
    await say(office, "incident open Orders are gone")
    for _ in range(2):
        await say(office, "evidence add Disk of web-1", key="deed-1")
        await say(office, "evidence record E-1 sealed bag 4711", key="deed-2")
    assert [row.action for row in await chain(office)] == ["collected", "sealed"]
    assert len(await lines_of(office)) == 2


async def test_numbers_have_no_gaps_when_many_add(office: OfficeForTests) -> None:
    await say(office, "incident open Orders are gone")
    await asyncio.gather(*(say(office, f"evidence add Disk {number}") for number in range(6)))
    await asyncio.gather(*(say(office, "evidence record E-1 viewed") for _ in range(6)))
    assert [row.seq for row in await chain(office)] == list(range(1, 8))
    assert [len(await chain(office, item)) for item in range(2, 8)] == [1, 1, 1, 1, 1, 0]


async def test_what_is_not_done_says_what_is(office: OfficeForTests) -> None:
    with pytest.raises(UserError, match="no open incident"):
        await say(office, "evidence add Disk of web-1")
    assert (await report(office, "list")).lines[0].startswith("Nothing is on record")
    await say(office, "incident open Orders are gone")
    await say(office, "evidence add Disk of web-1")
    for words, told in (
        ("evidence show E-9", "There is no evidence E-9"),
        ("evidence list --incident 9", "There is no incident 9"),
    ):
        with pytest.raises(UserError, match=told):
            await report(office, words.removeprefix("evidence "))
    for words, told in (
        ("evidence hand E-9 sam it is his", "There is no evidence E-9"),
        ("evidence hand E-1 U0STRANGER it is his", "on no roster"),
        ("evidence add x --sha256 abc", "64 hexadecimal digits"),
        ("evidence record E-1 burnt", "`viewed`, `copied`, `exported`, `sealed`"),
        ("evidence add x --file /etc/passwd", "drbot evidence add TITLE --file FILE"),
        ("evidence verify", "drbot evidence verify"),
    ):
        with pytest.raises(UserError, match=told):
            await say(office, words)
    with pytest.raises(RefusedError, match="hand E-1 PERSON WHY"):
        await say(office, "evidence record E-1 destroyed by fire")
    assert len(await chain(office)) == 1


async def test_the_exports_carry_every_chain_and_its_proof(office: OfficeForTests) -> None:
    sealed = LedgerForTests(office.memory, office.clock)
    await say(office, "incident open Orders are gone")
    await say(office, 'evidence add "Disk &lt;b&gt;one&lt;/b&gt; | two" --where "room 12"')
    await sealed.sealed()
    await say(office, "evidence record E-1 sealed bag 4711")
    document = json.loads(await office.incidents.exported(1, "json"))
    [item] = document["evidence"]
    assert (item["label"], item["title"]) == ("E-1", "Disk <b>one</b> | two")
    first, second = item["events"]
    [leaf] = [line for line in document["proof"][1:] if line["position"] == first["position"]]
    assert json.loads(leaf["leaf"])["kind"] == "custody_event"
    assert json.loads(leaf["leaf"])["row"]["action"] == "collected"
    assert leaf["proof"]
    assert second["position"] is None
    markdown = await office.incidents.exported(1, "md")
    assert "### E-1: Disk &lt;b>one&lt;/b> \\| two" in markdown
    assert "sealed: bag 4711 |  | not sealed |" in markdown
    page = await office.incidents.exported(1, "html")
    assert "<h3>E-1: Disk &lt;b&gt;one&lt;/b&gt; | two</h3>" in page
    assert "custody_event" in await office.incidents.exported(1, "jsonl")
    assert checked(sealed).good, list(checked(sealed).lines())
    await sealed.as_clock.dispose()


async def test_a_gap_in_a_chain_and_an_event_nobody_was_told_of_are_found(ledger: LedgerForTests) -> None:
    """Also before anything was sealed, when no witness could miss the row."""
    async with ledger.memory.session() as session:
        session.add(an_incident())
        await session.flush()
        for item, seq, action in ((1, 1, "collected"), (1, 3, "viewed"), (3, 1, "collected")):
            session.add(
                CustodyEvent(
                    item=item,
                    seq=seq,
                    incident_id="inc1",
                    action=action,
                    actor="Olivia",
                    occurred_at=ledger.clock.now(),
                )
            )
            await session.flush()
    said = "\n".join(checked(ledger).lines())
    assert "something happened to evidence and the timeline does not say so: E-1 collected, E-1 viewed, E-3" in said
    assert "an event of evidence is missing in its chain: E-1 no. 3" in said
    assert "an item of evidence is missing: E-2" in said


def an_incident() -> Incident:
    now = MemoryClock().now()
    return Incident(
        id="inc1", title="gone", severity="SEV1", commander="olivia", channel="C1", impact_started_at=now,
        declared_at=now, rto_s=60,
    )  # fmt: skip


# ---------------------------------------------------------------- what runs set aside

SWAP = SwapDatabases(
    server="primary",
    current="shop",
    copy_name="shop_new",
    aside="shop_quarantine_p1",
    old_oid=1,
    mark="m",
    copy_mark="c",
    live_mark="l",
)
STOP = StopPrimary(
    server="primary",
    scratch="s3s4s5s6s7",
    system_id="7",
    timeline_id=1,
    address="db1:5432",
    directory="/data",
    mark="p1",
    optional=True,
)
PROMOTE = PromoteScratch(scratch="s3s4s5s6s7", server="primary", timeline_id=1)


async def a_run(office: OfficeForTests, name: str = "p1", *, incident: bool = True) -> PlanRow:
    if incident and not await _incident(office):
        await say(office, "incident open Orders are gone")
    now = office.clock.now()
    row = PlanRow(
        id=name,
        action="toy.run",
        digest="d",
        risk="DESTRUCTIVE",
        plan_schema=1,
        requester="olivia",
        reason="gone",
        channel=CHANNEL,
        token=name,
        incident_id=await _incident(office) if incident else None,
        created_at=now,
        expires_at=now,
    )
    async with office.memory.session() as session:
        await plans.add(session, row)
    return row


async def _incident(office: OfficeForTests) -> str | None:
    async with office.memory.session() as session:
        found = await incidents.open_in(session, CHANNEL)
        return None if found is None else found.id


async def noted(office: OfficeForTests, row: PlanRow, step: Step, state: JournalState) -> None:
    async with office.at_work.session() as session:
        await custody.note_step(session, row, step, state, office.clock.now())


async def test_a_quarantined_database_is_one_item_whatever_becomes_of_the_run(office: OfficeForTests) -> None:
    row, retry = await a_run(office), await a_run(office, "p2")
    await noted(office, row, SWAP, JournalState.APPLYING)
    await noted(office, row, SWAP, JournalState.UNDONE)  # it had not come so far
    assert await chain(office) == []
    for _ in range(2):
        await noted(office, row, SWAP, JournalState.VERIFIED)
    [first] = await chain(office)
    assert (first.actor, first.location) == ("drbot", "database `shop_quarantine_p1` on server `primary`, closed")
    assert first.data["source"] == "run p1"
    for _ in range(2):
        await noted(office, row, SWAP, JournalState.UNDONE)
    for _ in range(2):
        await noted(office, retry, SWAP, JournalState.VERIFIED)
    for _ in range(2):
        await noted(office, retry, UndoStep(run="p2", number=1, step=SWAP), JournalState.VERIFIED)
    assert [item.action for item in await chain(office)] == ["collected", "released", "stored", "released"]
    assert await chain(office, 2) == []
    assert [text.split(":")[0] for _, text in await lines_of(office)] == [
        "E-1 collected", "E-1 released", "E-1 stored", "E-1 released",
    ]  # fmt: skip


async def test_the_former_primary_of_a_promotion_is_an_item(office: OfficeForTests) -> None:
    row = await a_run(office)
    await noted(office, row, PROMOTE.model_copy(update={"server": ""}), JournalState.VERIFIED)
    await noted(office, row, PROMOTE, JournalState.VERIFIED)
    [only] = await chain(office)
    assert only.data["title"] == "Former primary `primary`, whose place `scratch-s3s4s5s6s7` has taken"
    for _ in range(2):
        for step in (PROMOTE, STOP):
            await noted(office, row, step, JournalState.VERIFIED)
    events = await chain(office)
    assert [event.action for event in events] == ["collected", "stored"]
    assert events[1].location == "server at db1:5432, data in `/data`, closed; its run says whether it is down"


async def test_outside_an_incident_nothing_is_evidence(office: OfficeForTests) -> None:
    await noted(office, await a_run(office, incident=False), SWAP, JournalState.VERIFIED)
    assert await chain(office) == []


async def test_what_a_run_outside_the_incident_puts_back_is_released_all_the_same(office: OfficeForTests) -> None:
    """The incident may be closed by then."""
    row = await a_run(office)
    await noted(office, row, SWAP, JournalState.VERIFIED)
    for number, step in enumerate((UndoStep(run="p1", number=1, step=SWAP), SWAP), start=2):
        await noted(office, await a_run(office, f"p{number}", incident=False), step, JournalState.VERIFIED)
    assert [item.action for item in await chain(office)] == ["collected", "released", "stored"]
    assert {item.incident_id for item in await chain(office)} == {row.incident_id}


class KeepingStep(ToyStep):
    """Sets something aside."""

    @property
    def keeps(self) -> Kept:
        return Kept(key="toy", title="A toy", location="the box")


async def test_a_journal_notes_it_with_its_line_or_not_at_all(office: OfficeForTests) -> None:
    """A worker that has lost the run to another writes neither."""
    row = await a_run(office)
    step = KeepingStep(plan_id="p1", number=1)
    plan = Plan(
        id="p1", action="toy.run", summary="Toy", risk=Risk.DESTRUCTIVE, target="toy", params={}, steps=(step,),
        made_at=office.clock.now(),
    )  # fmt: skip
    async with office.memory.session() as session:
        await runs.claim(session, "p1", owner="w1", lease=timedelta(0), locks=())
    async with office.memory.session() as session:
        assert await runs.claim(session, "p1", owner="w2", lease=timedelta(minutes=1), locks=()) == 2
    entry = JournalEntry(step=0, state=JournalState.VERIFIED, at=office.clock.now())
    with pytest.raises(LeaseLostError):
        await DatabaseJournal(office.at_work, row, plan, owner="w1", epoch=1).append(entry)
    assert await chain(office) == []
    await DatabaseJournal(office.at_work, row, plan, owner="w2", epoch=2).append(entry)
    assert [item.action for item in await chain(office)] == ["collected"]


async def test_secrets_of_this_process_do_not_get_into_a_chain(office: OfficeForTests) -> None:
    class Hiding:
        def tree(self, value: object) -> object:
            return json.loads(json.dumps(value).replace("hunter22", "[secret]"))

    await say(office, "incident open Orders are gone")
    incident = await _incident(office)
    assert incident is not None
    event = Event(
        action="collected",
        actor="Olivia Ortega",
        occurred_at=office.clock.now(),
        reason="hunter22",
        location="hunter22",
        data={"title": "of hunter22"},
    )
    async with office.memory.session() as session:
        session.info["mask"] = Hiding()
        await custody.collect(session, incident, event, key="k")
    [row] = await chain(office)
    assert "hunter22" not in json.dumps([row.reason, row.location, row.data, await lines_of(office)])


# ---------------------------------------------------------------- files, at the command line


def files_of(office: OfficeForTests, vault: Vault | None) -> EvidenceFiles:
    incidents_there = office.services(office.at_terminal)[2]
    return EvidenceFiles(office.at_terminal, office.terminal, incidents_there, vault, office.clock)


def at_a_terminal(*words: str) -> tuple[Who, Command]:
    return Who(source="cli", person="sam", channel=CHANNEL), Router().parse_argv(["evidence", *words])


async def test_without_a_bucket_the_hash_and_the_place_are_on_record(office: OfficeForTests, tmp_path: Path) -> None:
    await say(office, "incident open Orders are gone")
    (tmp_path / "web.log").write_bytes(b"GET /")
    told = await files_of(office, None).add(*at_a_terminal("add", "Log of web", "--file", str(tmp_path / "web.log")))
    assert told.startswith(f"E-1 of incident 1: SHA-256 {hashlib.sha256(b'GET /').hexdigest()}. The plan file names no")
    [row] = await chain(office)
    assert row.location.startswith(f"{tmp_path}/web.log on ")
    assert (row.data["bytes"], row.data["account"]) == (5, "cli")
    found, good = await files_of(office, None).verify(*at_a_terminal("verify"))
    assert not good, "nothing was looked at"
    assert found.lines[0].startswith("Nothing could be verified")
    assert found.rows[0][2:] == ("unverifiable", "the bot holds no copy; ask who holds it")
    assert len(await chain(office)) == 1


async def test_a_file_that_is_not_the_one_named_by_its_hash_is_not_taken_up(
    office: OfficeForTests, tmp_path: Path
) -> None:
    await say(office, "incident open Orders are gone")
    (tmp_path / "web.log").write_bytes(b"GET /")
    words = ("add", "Log of web", "--file", str(tmp_path / "web.log"), "--where", "disk of web-1", "--sha256")
    objects = MemoryObjects("vault")
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    files = files_of(office, Vault(objects, EvidencePolicy(bucket="vault", recipients=(recipient,))))
    with pytest.raises(UserError, match=f"not {SHA}, so it was not taken up"):
        await files.add(*at_a_terminal(*words, SHA))
    assert (objects.buckets["vault"], await chain(office)) == ({}, [])
    with pytest.raises(UserError, match="There is no incident 7"):
        await files.add(*at_a_terminal(*words, SHA, "--incident", "7"))
    async with office.memory.session() as session:
        refused = await session.execute(select(RefusalRow).order_by(col(RefusalRow.id)))
        [other, mistaken] = refused.scalars()
    assert (other.person, other.code, mistaken.person, mistaken.code) == ("sam", "other_content", "sam", "not_possible")
    assert SHA in other.text
    await files.add(*at_a_terminal(*words, hashlib.sha256(b"GET /").hexdigest()))
    rows = await chain(office)
    assert [row.sha256 for row in rows] == [hashlib.sha256(b"GET /").hexdigest()] * 2
    assert rows[0].location.endswith(", disk of web-1")


async def test_a_file_at_the_command_line_is_stored_verified_and_missed(
    office: OfficeForTests, s3: S3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wired as `drbot evidence` is, over a real store."""
    await say(office, "incident open Orders are gone")
    settings = a_plan_with(office, s3, bucket, tmp_path, monkeypatch)
    file = tmp_path / "disk.img"
    file.write_bytes(b"image" * 500_000)
    add = Router().parse_argv(["evidence", "add", "Disk", "--file", str(file), "--incident", "1"])
    verify = Router().parse_argv(["evidence", "verify", "--incident", "1"])
    assert cli_evidence.here(add)
    assert cli_evidence.here(verify)
    assert not cli_evidence.here(Router().parse_argv(["evidence", "add", "Disk"]))

    told, good = await cli_evidence.carry_out(settings, add)
    assert good
    assert "read back and compared" in told
    collected, kept = await chain(office)
    assert (kept.action, kept.actor, kept.sha256) == ("stored", "Sam Sato", collected.sha256)
    key = str(kept.data["key"])
    assert key.startswith("kept/evidence/1/")
    assert kept.location == f"s3://{bucket}/{key}"

    told, good = await cli_evidence.carry_out(settings, verify)
    assert good
    s3.client().put_object(Bucket=bucket, Key=key, Body=b"something else")
    told, good = await cli_evidence.carry_out(settings, verify)
    assert not good
    assert "altered" in told
    s3.client().delete_object(Bucket=bucket, Key=key)
    environment = os.environ | {
        "DATABASE_URL": office.memory.url,
        "DRBOT_PLAN_FILE": str(settings.plan_file),
        "DRBOT_DATA_DIRECTORY": str(tmp_path),
        "DRBOT_PERSON": "sam",
    }
    typed = [sys.executable, "-m", "bot.cli", "evidence", "verify", "--incident", "1"]
    process = await asyncio.create_subprocess_exec(*typed, env=environment, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"missing" in said
    assert [row.reason.rpartition(": ")[2] for row in (await chain(office))[2:]] == ["ok", "altered", "missing"]


def a_plan_with(
    office: OfficeForTests, s3: S3, bucket: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings of Sam's command line, with a plan that keeps evidence in this bucket."""
    for name in (*ADDRESSES, *KEYS):
        monkeypatch.setenv(f"DR_{name}", "http://127.0.0.1:9")
    monkeypatch.setenv("TEST_ACCESS", s3.access_key)
    monkeypatch.setenv("TEST_SECRET", s3.secret_key)
    document = office.plan.model_dump(mode="json")
    place = {"name": bucket, "purpose": "evidence", "region": s3.region, "endpoint": s3.endpoint, "prefix": "kept/"}
    keys = {"access_key": "env:TEST_ACCESS", "secret_key": "env:TEST_SECRET"}
    document["buckets"].append(place | keys)
    document["evidence"] = {"bucket": bucket}
    document["backups"]["recipients"] = [str(pyrage.x25519.Identity.generate().to_public())]
    file = directory / "dr-plan.yml"
    file.write_text(dump(DrPlan.model_validate(document)))
    own = {"plan_file": file, "data_directory": directory, "person": "sam", "database_url": office.memory.url}
    return Settings.model_validate(own)
