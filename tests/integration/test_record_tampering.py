"""Whoever rules the database changes its record, and the verifier names what was done and the first bad entry."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bot import verify as verifier
from bot.services.record.export import json_lines, prove, write_log
from bot.verify import checkpoints, database, export
from bot.verify.findings import Tampering, Verdict
from storage import timeline
from storage.tables import Incident
from tests.fixtures.ledger import LedgerForTests
from tests.integration.test_record import a_plan

pytestmark = [pytest.mark.integration, pytest.mark.attack]

ENTRIES = 9  # the first epoch, eight notes
FIFTH = "SELECT ref FROM leaf JOIN sealed_leaf ON leaf_id = id WHERE position = 5"


@pytest.fixture
async def notes(ledger: LedgerForTests) -> LedgerForTests:
    """Eight notes in four checkpoints; positions 1 to 8."""
    for number in range(4):
        await ledger.sealed(f"note {number}", f"note {number} and more")
    return ledger


def superuser(ledger: LedgerForTests) -> psycopg.Connection:
    connection = psycopg.connect(ledger.memory.url, autocommit=True)
    connection.execute("SET session_replication_role = replica")  # no trigger fires
    return connection


def tamper(ledger: LedgerForTests, *statements: str) -> None:
    with superuser(ledger) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rehash(ledger: LedgerForTests, where: str = "true") -> None:
    """Make the leaves fit the rows again, as somebody who knows how they are made would."""
    with superuser(ledger) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(
            "SELECT seq, jsonb_build_object('kind', 'timeline_entry', 'row', to_jsonb(t))::text FROM timeline_entry t "
            f"WHERE {where}".encode()
        ).fetchall()
        for seq, content in rows:
            made = hashlib.sha256(b"\x00" + content.encode()).digest()
            connection.execute("UPDATE leaf SET hash = %s WHERE kind = 'timeline_entry' AND ref = %s", [made, seq])


def checked(ledger: LedgerForTests, *, witness: int = 0) -> Verdict:
    """What the verifier says of the database against one witness."""
    verdict = Verdict()
    lines = [(f"witness:{number}", line) for number, line in enumerate(ledger.kept[witness].lines, start=1)]
    witnessed = checkpoints.read(lines, [checkpoints.public_key(ledger.public)], verdict)
    database.verify(ledger.memory.url, witnessed, verdict)
    return verdict


def first(verdict: Verdict) -> tuple[Tampering, int]:
    assert verdict.first is not None, list(verdict.lines())
    return verdict.first.kind, verdict.first.position


def test_an_untouched_record_is_good(notes: LedgerForTests) -> None:
    verdict = checked(notes)
    assert verdict.good, list(verdict.lines())
    assert (verdict.entries, verdict.witnessed) == (ENTRIES, ENTRIES)


async def test_what_is_not_sealed_yet_is_told_and_no_fault(notes: LedgerForTests) -> None:
    await notes.note("just now")
    verdict = checked(notes)
    assert verdict.good
    assert any("1 entries are not sealed yet" in note for note in verdict.notes)


EDIT = f"UPDATE timeline_entry SET text = 'nothing happened' WHERE seq = ({FIFTH})"


def test_an_edited_entry(notes: LedgerForTests) -> None:
    tamper(notes, EDIT)
    verdict = checked(notes)
    assert first(verdict) == (Tampering.EDITED, 5)
    assert len(verdict.bad) == 1
    assert "timeline_entry" in verdict.bad[0].text


def test_an_edited_entry_with_its_hash_made_anew(notes: LedgerForTests) -> None:
    tamper(notes, EDIT)
    rehash(notes, f"seq = ({FIFTH})")
    assert first(checked(notes)) == (Tampering.EDITED, 5)


def test_the_last_entry_edited_with_its_hash(notes: LedgerForTests) -> None:
    last = FIFTH.replace("= 5", "= 8")
    tamper(notes, f"UPDATE timeline_entry SET actor = 'Mallory' WHERE seq = ({last})")
    rehash(notes, f"seq = ({last})")
    assert first(checked(notes)) == (Tampering.EDITED, 8)


LAST_THREE = FIFTH.replace("= 5", ">= 6")


def several_last(notes: LedgerForTests) -> None:
    tamper(notes, f"UPDATE timeline_entry SET actor = 'Mallory' WHERE seq IN ({LAST_THREE})")
    rehash(notes, f"seq IN ({LAST_THREE})")


def test_several_last_entries_edited_with_their_hashes(notes: LedgerForTests) -> None:
    """Their checkpoints are still the witnesses', so this is no other log."""
    several_last(notes)
    verdict = checked(notes)
    assert first(verdict) == (Tampering.EDITED, 6)
    assert len(verdict.bad) == 1


async def test_several_last_entries_edited_before_new_ones(notes: LedgerForTests) -> None:
    several_last(notes)
    await notes.note("no witness has seen this")
    assert first(checked(notes)) == (Tampering.EDITED, 6)


def test_several_last_entries_edited_and_the_tail_cut(notes: LedgerForTests) -> None:
    several_last(notes)
    last = FIFTH.replace("= 5", "= 8")
    tamper(
        notes,
        f"DELETE FROM timeline_entry WHERE seq = ({last})",
        "DELETE FROM leaf WHERE id = (SELECT leaf_id FROM sealed_leaf WHERE position = 8)",
        "DELETE FROM sealed_leaf WHERE position = 8",
    )
    verdict = checked(notes)
    assert first(verdict) == (Tampering.EDITED, 6)
    assert [(bad.kind, bad.position) for bad in verdict.bad] == [(Tampering.EDITED, 6), (Tampering.TRUNCATED, 8)]


def test_an_edited_leaf(notes: LedgerForTests) -> None:
    tamper(notes, "UPDATE leaf SET hash = sha256('x') WHERE id = (SELECT leaf_id FROM sealed_leaf WHERE position = 3)")
    assert first(checked(notes)) == (Tampering.EDITED, 3)


def test_two_entries_that_changed_places(notes: LedgerForTests) -> None:
    tamper(
        notes,
        "UPDATE sealed_leaf SET leaf_id = -1 WHERE position = 4",
        "UPDATE sealed_leaf SET leaf_id = (SELECT leaf_id FROM sealed_leaf WHERE position = 6) + 0 WHERE false",
        """
        WITH four AS (SELECT min(l.id) AS id FROM leaf l WHERE NOT EXISTS
            (SELECT FROM sealed_leaf s WHERE s.leaf_id = l.id)),
        six AS (SELECT leaf_id AS id FROM sealed_leaf WHERE position = 6)
        UPDATE sealed_leaf SET leaf_id = CASE position WHEN 4 THEN -2 ELSE (SELECT id FROM four) END
        WHERE position IN (4, 6)
        """,
        """
        UPDATE sealed_leaf SET leaf_id = (SELECT min(l.id) FROM leaf l WHERE NOT EXISTS
            (SELECT FROM sealed_leaf s WHERE s.leaf_id = l.id)) WHERE position = 4
        """,
    )
    assert first(checked(notes)) == (Tampering.REORDERED, 4)


DELETED = f"DELETE FROM timeline_entry WHERE seq = ({FIFTH})"
LEAF = "DELETE FROM leaf WHERE id = (SELECT leaf_id FROM sealed_leaf WHERE position = 5)"
PLACE = "DELETE FROM sealed_leaf WHERE position = 5"
CLOSE_UP = "UPDATE sealed_leaf SET position = position - 1 WHERE position > 5"


@pytest.mark.parametrize(
    "statements",
    [(DELETED,), (DELETED, LEAF), (DELETED, LEAF, PLACE), (DELETED, LEAF, PLACE, CLOSE_UP)],
    ids=["row", "leaf", "place", "numbers"],
)
def test_a_deleted_entry(notes: LedgerForTests, statements: tuple[str, ...]) -> None:
    tamper(notes, *statements)
    verdict = checked(notes)
    assert first(verdict) == (Tampering.DELETED, 5), list(verdict.lines())


OF_TAIL = "SELECT ref FROM leaf JOIN sealed_leaf ON leaf_id = id WHERE kind = 'timeline_entry' AND position >= 5"
TAIL = (
    f"DELETE FROM timeline_entry WHERE seq IN ({OF_TAIL})",
    "DELETE FROM leaf WHERE id IN (SELECT leaf_id FROM sealed_leaf WHERE position >= 5)",
    "DELETE FROM sealed_leaf WHERE position >= 5",
    "DELETE FROM checkpoint WHERE size > 5",
)


def test_a_truncated_tail(notes: LedgerForTests) -> None:
    tamper(notes, *TAIL)
    verdict = checked(notes)
    assert first(verdict) == (Tampering.TRUNCATED, 5)
    assert "3 more" in verdict.bad[0].text


def test_a_log_that_was_emptied(notes: LedgerForTests) -> None:
    tables = ("timeline_entry", "log_epoch", "leaf", "sealed_leaf", "checkpoint")
    tamper(notes, *(f"DELETE FROM {table}" for table in tables))
    assert first(checked(notes)) == (Tampering.TRUNCATED, 0)


async def test_a_tail_that_was_replaced(notes: LedgerForTests) -> None:
    tamper(notes, *TAIL)
    for number in range(4):
        await notes.note(f"another past {number}")
    await notes.sealer().seal()
    assert first(checked(notes)) == (Tampering.REBUILT, 5)


def test_a_rebuilt_log(notes: LedgerForTests) -> None:
    tamper(
        notes,
        "UPDATE timeline_entry SET actor = 'Mallory'",
        "UPDATE log_epoch SET person = 'mallory'",
        "DELETE FROM checkpoint",
    )
    rehash(notes)
    with superuser(notes) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        row = connection.execute(
            "SELECT jsonb_build_object('kind', 'log_epoch', 'row', to_jsonb(t))::text FROM log_epoch t"
        ).fetchone()
        assert row is not None
        made = hashlib.sha256(b"\x00" + row[0].encode()).digest()
        connection.execute("UPDATE leaf SET hash = %s WHERE kind = 'log_epoch'", [made])
    verdict = checked(notes)
    assert first(verdict) == (Tampering.REBUILT, 0)
    assert len(verdict.bad) == 1


async def test_an_inserted_entry(notes: LedgerForTests) -> None:
    await notes.note("it was planned long ago")
    tamper(
        notes,
        "UPDATE sealed_leaf SET position = -position - 1 WHERE position >= 5",
        "UPDATE sealed_leaf SET position = -position WHERE position < 0",
        "INSERT INTO sealed_leaf SELECT 5, leaf_id FROM unsealed_leaf",
        "DELETE FROM unsealed_leaf",
    )
    assert first(checked(notes)) == (Tampering.INSERTED, 5)


async def test_entries_of_two_incidents_exchanged(notes: LedgerForTests) -> None:
    await an_incident(notes)
    tamper(notes, "UPDATE timeline_entry SET incident_id = 'inc1' WHERE text LIKE 'note%'")
    assert first(checked(notes)) == (Tampering.EDITED, 1)


def test_a_checkpoint_of_another_key(notes: LedgerForTests) -> None:
    line = json.loads(notes.kept[0].lines[-1])
    line["body"] = line["body"].replace("size 9", "size 7")
    line["signature"] = base64.b64encode(Ed25519PrivateKey.generate().sign(line["body"].encode())).decode()
    notes.kept[0].lines.append(json.dumps(line))
    verdict = checked(notes)
    assert first(verdict) == (Tampering.FORGED, -1)
    assert "witness:5" in verdict.bad[0].text
    notes.kept[0].lines[-1] = "half of a li"
    verdict = checked(notes)
    assert verdict.good
    assert any("is no checkpoint" in note for note in verdict.notes)


async def test_two_pasts_signed_with_the_same_key(notes: LedgerForTests) -> None:
    shown = list(notes.kept[0].lines)
    tamper(notes, *TAIL)
    await notes.note("another past")
    await notes.sealer().seal()
    notes.kept[0].lines.clear()
    await notes.published(notes.sealer())
    notes.kept[0].lines += shown
    verdict = checked(notes)
    assert any(bad.kind is Tampering.FORGED and "two pasts" in bad.text for bad in verdict.bad)


def test_checkpoints_that_are_kept_back_are_told(notes: LedgerForTests) -> None:
    del notes.kept[0].lines[1]
    verdict = checked(notes)
    assert verdict.good
    assert any("missing here" in note for note in verdict.notes)
    tamper(notes, f"UPDATE timeline_entry SET text = 'no' WHERE seq = ({FIFTH.replace('= 5', '= 4')})")
    rehash(notes)
    assert first(checked(notes)) == (Tampering.REWRITTEN, 3)


def test_a_row_written_past_the_log(notes: LedgerForTests) -> None:
    tamper(
        notes,
        "INSERT INTO timeline_entry (kind, actor, occurred_at, text) VALUES ('note', 'Mallory', now(), 'approved')",
    )
    verdict = checked(notes)
    assert first(verdict) == (Tampering.MISSING, -1)
    assert "the log does not have it" in verdict.bad[0].text


async def test_a_leaf_taken_out_of_the_queue(notes: LedgerForTests) -> None:
    await notes.note("never to be sealed")
    tamper(notes, "DELETE FROM unsealed_leaf")
    assert first(checked(notes)) == (Tampering.MISSING, -1)


async def test_an_entry_edited_or_deleted_before_it_is_sealed(notes: LedgerForTests) -> None:
    await notes.note("in a moment")
    tamper(notes, "UPDATE timeline_entry SET text = 'never' WHERE text = 'in a moment'")
    assert first(checked(notes)) == (Tampering.EDITED, -1)
    tamper(notes, "DELETE FROM timeline_entry WHERE text = 'never'")
    assert first(checked(notes)) == (Tampering.DELETED, -1)


async def test_something_happened_and_the_timeline_does_not_say_so(notes: LedgerForTests) -> None:
    await a_plan(notes)  # rows of the states alone, as if the appends had been left out
    await notes.sealed()
    said = {bad.text for bad in checked(notes).bad if bad.kind is Tampering.MISSING}
    assert said == {
        "a run has started and the timeline does not say so: plan000001",
        "a signature is stored and the timeline does not say so: plan000001 by olivia",
    }


# ---------------------------------------------------------------- exports


async def an_incident(ledger: LedgerForTests) -> None:
    async with ledger.memory.session() as session:
        now = ledger.clock.now()
        session.add(
            Incident(
                id="inc1", title="Gone", severity="SEV1", commander="olivia", channel="C1", rto_s=60,
                impact_started_at=now, declared_at=now,
            )
        )  # fmt: skip


async def whole(ledger: LedgerForTests, path: Path) -> list[str]:
    lines: list[str] = []
    await write_log(ledger.memory, lines.append)
    path.write_text("".join(lines))  # noqa: ASYNC240
    return lines


def of_file(ledger: LedgerForTests, path: Path, *, witnesses: bool = True) -> Verdict:
    verdict = Verdict()
    key = checkpoints.public_key(ledger.public)
    lines = [("witness", line) for line in ledger.kept[1].lines] if witnesses else []
    export.verify(path, checkpoints.read(lines, [key], verdict), [key], verdict)
    return verdict


Change = Callable[[list[str]], list[str]]


def edited(lines: list[str]) -> list[str]:
    return [*lines[:5], lines[5].replace("note", "lie"), *lines[6:]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (edited, (Tampering.EDITED, 4)),
        (lambda lines: [*lines[:-3], *(line.replace("note", "lie") for line in lines[-3:])], (Tampering.EDITED, 6)),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], (Tampering.REORDERED, 3)),
        (lambda lines: [*lines[:4], *lines[5:]], (Tampering.DELETED, 3)),
        (lambda lines: lines[:-2], (Tampering.TRUNCATED, 7)),
        (lambda lines: [lines[0], *(line.replace("2026", "2025") for line in lines[1:])], (Tampering.REBUILT, 0)),
    ],
    ids=["edited", "the last edited", "reordered", "deleted", "truncated", "rebuilt"],
)
async def test_an_export_that_was_changed(
    notes: LedgerForTests, tmp_path: Path, change: Change, found: tuple[Tampering, int]
) -> None:
    path = tmp_path / "export.jsonl"
    lines = await whole(notes, path)
    assert of_file(notes, path).good
    path.write_text("".join(change(lines)))
    verdict = of_file(notes, path)
    assert first(verdict) == found, list(verdict.lines())


async def test_an_incident_is_proven_by_itself(notes: LedgerForTests, tmp_path: Path) -> None:
    await an_incident(notes)
    async with notes.memory.session() as session:
        for number in range(3):
            await timeline.add(
                session, incident_id="inc1", kind="note", actor="Olivia", occurred_at=notes.clock.now(),
                text=f"of the incident {number}",
            )  # fmt: skip
    await notes.sealed("of something else")
    async with notes.memory.session() as session:
        lines = json_lines(await prove(session, "inc1"), incident=1).splitlines(keepends=True)
    assert len(lines) == 4
    path = tmp_path / "incident.jsonl"
    path.write_text("".join(lines))
    assert of_file(notes, path).good
    assert of_file(notes, path, witnesses=False).good

    changed = [lines[0], lines[1], lines[2].replace("incident 1", "incident 9"), lines[3]]
    path.write_text("".join(changed))
    assert first(of_file(notes, path, witnesses=False)) == (Tampering.EDITED, 10)
    path.write_text("".join([lines[0], lines[2], lines[1], lines[3]]))
    assert first(of_file(notes, path)) == (Tampering.REORDERED, 9)
    path.write_text("".join(lines[:-1]))
    assert first(of_file(notes, path)) == (Tampering.TRUNCATED, -1)
    head = json.loads(lines[0])
    head["checkpoint"]["body"] = head["checkpoint"]["body"].replace("epoch 0", "epoch 1")
    path.write_text("".join([json.dumps(head) + "\n", *lines[1:]]))
    assert first(of_file(notes, path)) == (Tampering.FORGED, -1)


@pytest.mark.parametrize("more", [1, 700, 1023, 1024, 1025, 3070])
async def test_an_incident_is_proven_in_a_long_log(ledger: LedgerForTests, tmp_path: Path, more: int) -> None:
    await an_incident(ledger)
    columns = "incident_id, kind, actor, occurred_at, text"
    bulk = f"INSERT INTO timeline_entry ({columns}) SELECT %s, 'note', 'Olivia', now(), n::text"
    with psycopg.connect(ledger.memory.url, autocommit=True) as connection:
        connection.execute(f"{bulk} FROM generate_series(1, 750) n".encode(), [None])
        connection.execute(f"{bulk} FROM generate_series(1, 5) n".encode(), ["inc1"])
        connection.execute(f"{bulk} FROM generate_series(1, %s) n".encode(), [None, more])
        connection.execute(f"{bulk} FROM generate_series(1, 3) n".encode(), ["inc1"])
    await ledger.sealed()
    path = tmp_path / "incident.jsonl"
    async with ledger.memory.session() as session:
        path.write_text(json_lines(await prove(session, "inc1"), incident=1))
    verdict = of_file(ledger, path)
    assert verdict.good, list(verdict.lines())
    assert verdict.witnessed == 8


def test_what_is_no_export_is_said_to_be_none(notes: LedgerForTests, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    for text in (
        "",
        "[]\n",
        "not json\n",
        '{"form": "another"}\n',
        '{"form": "drbot record export 1", "scope": "log"}\n{}\n',
    ):
        path.write_text(text)
        with pytest.raises(export.NoExportError):
            of_file(notes, path)


def test_the_verifier_knows_every_table_of_the_record(notes: LedgerForTests) -> None:
    with psycopg.connect(notes.memory.url) as connection:
        rows = connection.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'leaf'").fetchall()
    assert {row[0] for row in rows} == set(database.KINDS)
    assert verifier.__doc__
