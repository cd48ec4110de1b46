"""Evidence and its chain of custody. Rows K1 to K5 of docs/reference/attacks.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from actions.errors import UserError
from bot.ports import Who
from bot.router import Router
from bot.services.evidence_files import EvidenceFiles
from bot.verify.findings import Tampering
from tests.attack.stage import OLIVIA, STRANGER, Stage
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import CHANNEL
from tests.fixtures.waiting import eventually
from tests.integration.test_record_tampering import checked, first, tamper

pytestmark = [pytest.mark.attack, pytest.mark.integration]


async def opened(stage: Stage, *evidence: str) -> None:
    """An incident with these items."""

    async def there() -> bool:
        return bool(await stage.value("SELECT count(*) FROM incident"))

    assert (await say(stage, "/dr-incident", "open Orders are gone"))[0] == 200
    await eventually(there)  # Slack has its answer before that
    for words in evidence:
        assert (await say(stage, "/dr-evidence", words))[0] == 200


async def say(stage: Stage, slash: str, words: str, user: str = OLIVIA) -> tuple[int, str]:
    return await stage.send(stage.slack.slash(slash, words, user=user, channel=CHANNEL))


async def nothing_added(stage: Stage, events: int = 0) -> None:
    assert await stage.value("SELECT count(*) FROM custody_event") == events


async def test_k1_a_guest_of_the_roster_takes_up_no_evidence(stage: Stage) -> None:
    await opened(stage)
    stage.slack.users[OLIVIA]["is_restricted"] = True
    await say(stage, "/dr-evidence", "add Disk of web-1")
    await stage.refused("guest")
    await nothing_added(stage)


async def test_k1_a_stranger_takes_up_no_evidence(stage: Stage) -> None:
    await opened(stage)
    stage.slack.users[STRANGER] = dict(stage.slack.users[OLIVIA], id=STRANGER)
    await say(stage, "/dr-evidence", "add Disk of web-1", user=STRANGER)
    await stage.refused("not_on_roster")
    await nothing_added(stage)


async def test_k2_a_link_as_a_file_is_not_followed(stage: Stage, tmp_path: Path) -> None:
    """Whoever can write the folder would choose what the person at the terminal takes up."""
    await opened(stage)
    (tmp_path / "dump.log").symlink_to("/etc/shadow")
    office = stage.office
    files = EvidenceFiles(
        office.at_terminal, office.terminal, office.services(office.at_terminal)[2], None, office.clock
    )
    words = ["evidence", "add", "Log", "--file", str(tmp_path / "x" / ".." / "dump.log")]
    with pytest.raises(UserError, match="symbolic link"):
        await files.add(Who(source="cli", person="sam", channel=CHANNEL), Router().parse_argv(words))
    await stage.refused("unsafe_file")
    await nothing_added(stage)


async def test_k3_a_secret_in_a_title_is_neither_kept_nor_told(stage: Stage) -> None:
    await opened(stage)
    secret = "xoxb-000000000000-canary0canary0canary"
    await say(stage, "/dr-evidence", f"add Token {secret} of the intruder")
    await stage.refused("credential")
    await nothing_added(stage)
    rows = await stage.values("SELECT to_jsonb(t)::text FROM timeline_entry t UNION SELECT payload::text FROM inbox")
    assert secret not in json.dumps([rows, [str(call) for call in stage.slack.calls]])


async def test_k4_one_person_neither_releases_nor_destroys(stage: Stage) -> None:
    await opened(stage, "add Disk of web-1")
    await say(stage, "/dr-evidence", "record E-1 destroyed it was old")
    await stage.refused("no_rule")
    await nothing_added(stage, events=1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE custody_event SET holder = 'Mallory' WHERE seq = 2", Tampering.EDITED),
        ("DELETE FROM custody_event WHERE seq = 2", Tampering.DELETED),
        ("DELETE FROM custody_event WHERE seq = 3; DELETE FROM leaf WHERE kind = 'custody_event' AND ref = 3", None),
    ],
    ids=["edited", "deleted", "deleted with its leaf"],
)
async def test_k5_an_event_that_was_changed_or_taken_out_is_found(
    ledger: LedgerForTests, change: str, found: Tampering | None
) -> None:
    async with ledger.memory.session() as session:
        await session.execute(
            text(
                "INSERT INTO incident (id, title, severity, scenario, commander, channel, impact_started_at, "
                "declared_at, rto_s) VALUES ('inc1', 'gone', 'SEV1', '', 'olivia', 'C1', now(), now(), 60)"
            )
        )
        for seq, action in enumerate(("collected", "handed", "viewed"), start=1):
            await session.execute(
                text(
                    "INSERT INTO custody_event (item, seq, incident_id, action, actor, holder, occurred_at, reason, "
                    "location, sha256) VALUES (1, :seq, 'inc1', :action, 'Olivia', 'Sam', now(), '', '', '')"
                ),
                {"seq": seq, "action": action},
            )
            await session.execute(
                text(
                    "INSERT INTO timeline_entry (incident_id, kind, actor, occurred_at, text, data) VALUES "
                    "('inc1', 'evidence', 'Olivia', now(), '', jsonb_build_object('item', 1, 'seq', :seq))"
                ),
                {"seq": seq},
            )
    await ledger.sealed()
    assert checked(ledger).good, list(checked(ledger).lines())
    tamper(ledger, *change.split("; "))
    verdict = checked(ledger)
    assert verdict.first is not None
    if found is None:
        assert first(verdict)[0] is Tampering.DELETED
    else:
        assert verdict.first.kind is found
        assert "custody_event 2" in verdict.first.text
