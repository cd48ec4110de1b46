"""`drbot record adopt`, `drbot timeline export` and the sealer of `drbot run`, wired as they are started."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from actions.adapters.clock import SystemClock
from actions.adapters.secrets import SecretReferences
from actions.contract import Verdict
from actions.errors import UserError
from bot import bootstrap
from bot.doctor import Doctor
from bot.plan_file import DrPlan, dump
from bot.sealing import sealer_of, watch_of
from bot.services.record.health import health
from bot.services.statements import Proof
from bot.services.wake import Wake
from bot.settings import Settings
from storage.roles import DatabaseRole
from storage.session import Database
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import OfficeForTests, shipped_plan

pytestmark = pytest.mark.integration


def a_plan_with_a_witness(directory: Path, *, other_key: bool = False) -> DrPlan:
    """The shipped plan with a key and a witness that are files."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(pem)
    shown = Ed25519PrivateKey.generate() if other_key else key
    document = shipped_plan().model_dump(mode="json")
    document["record"] = {
        "signing_key": f"file:{directory}/key.pem",
        "public_keys": [base64.b64encode(shown.public_key().public_bytes_raw()).decode()],
        "witnesses": [{"name": "local", "file": str(directory / "witness" / "checkpoints.jsonl")}],
    }
    return DrPlan.model_validate(document)


async def test_the_sealer_is_made_from_the_plan_file(memory: Database, tmp_path: Path) -> None:
    plan = a_plan_with_a_witness(tmp_path)
    clock = memory.acting_as(DatabaseRole.CLOCK)
    sealer = await sealer_of(plan, clock, SecretReferences(), SystemClock(), Wake())
    watch = await watch_of(plan, clock, SecretReferences(), SystemClock())
    assert sealer is not None
    assert watch is not None
    task = asyncio.create_task(sealer.run())
    try:
        async with asyncio.timeout(20):
            while (await watch.look())[0].checkpoint is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        findings = await health(clock, watch, SystemClock())
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await clock.dispose()
    assert [item.verdict for item in findings] == [Verdict.OK, Verdict.OK]
    assert "holds checkpoint" in findings[1].detail
    assert (tmp_path / "witness" / "checkpoints.jsonl").exists()


async def test_a_key_that_nobody_trusts_is_refused_at_the_start(memory: Database, tmp_path: Path) -> None:
    plan = a_plan_with_a_witness(tmp_path, other_key=True)
    with pytest.raises(UserError, match=r"not among the plan's `record.public_keys`"):
        await sealer_of(plan, memory, SecretReferences(), SystemClock(), Wake())
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(UserError, match="holds no private key") as refused:
        await sealer_of(plan, memory, SecretReferences(), SystemClock(), Wake())
    assert "not a key" not in str(refused.value)


async def test_the_doctor_says_what_is_not_sealed_and_who_is_away(ledger: LedgerForTests) -> None:
    ledger.kept[0].away = True
    await ledger.sealed("one")
    findings = {item.check: item for item in await health(ledger.memory, ledger.watch(), ledger.clock)}
    assert findings["record"].verdict is Verdict.OK
    assert findings["witness vault"].verdict is Verdict.WARN
    assert findings["witness local"].verdict is Verdict.OK
    await ledger.note("nobody seals this")
    late = LedgerForTests(ledger.memory, SystemClock())  # leaves carry the server's time
    assert (await health(ledger.memory, ledger.watch(), late.clock))[0].verdict is Verdict.OK
    await late.as_clock.dispose()


async def test_the_doctor_warns_of_a_record_without_witnesses(office: OfficeForTests) -> None:
    [finding] = await Doctor(office.at_work, office.plan, office.policy, office.ports)._sealed()
    assert finding.verdict is Verdict.WARN


async def test_who_adopts_is_a_person_of_the_roster_and_has_a_cause(memory: Database, tmp_path: Path) -> None:
    path = tmp_path / "dr-plan.yml"
    path.write_text(dump(a_plan_with_a_witness(tmp_path)))
    settings = Settings.model_validate({"database_url": memory.url, "plan_file": path})

    async def never(words: str, said: object) -> Proof:
        raise AssertionError(words)

    with pytest.raises(UserError, match="`mallory` is not on the roster"):
        await bootstrap.adopt(settings, "mallory", "because", never)
    async with memory.session() as session:
        refused = await session.execute(text("SELECT account, code FROM refusal"))
        assert [tuple(row) for row in refused] == [("mallory", "not_on_roster")]
    with pytest.raises(UserError, match="nothing to adopt"):
        await bootstrap.adopt(settings, "olivia", "because", never)
