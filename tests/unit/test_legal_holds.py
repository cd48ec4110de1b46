"""A pin is kept by the store itself where that can: on the chain and the WAL it needs, in every bucket, as long as any
pin needs them."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from actions import registry
from actions.backup.native_catalogue import BaseFolder
from actions.backup.wal import WalArchive
from actions.catalog.record_retention import PinPointParams, UnpinPointParams
from actions.catalog.retention import PinParams, UnpinParams
from actions.contract import JournalState, Verdict
from actions.errors import TemporaryError, UserError
from actions.ports import Ports, no_progress
from actions.runner import Outcome
from actions.site import Frozen
from actions.steps.alarms import Alarm, alarms
from actions.steps.health import Health, health
from actions.steps.holds import hold_findings
from bot.services.backup_watch import over
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.clock import START
from tests.fakes.physical_world import with_bases
from tests.fakes.two_buckets import FAR, NEAR, SERVER, TwoBuckets
from tests.fakes.world import World

HOUR = timedelta(hours=1)
CASE = "case 4711"


@pytest.fixture
async def world(tmp_path: Path) -> TwoBuckets:
    """A chain of three in both buckets, with the WAL of the full one."""
    made = TwoBuckets(tmp_path)
    made.objects.lockable = {NEAR, FAR}
    await made.put("full", START - 3 * HOUR)
    await made.put("hour", START - 2 * HOUR, parent="full")
    await made.put("quarter", START - HOUR, parent="hour")
    for bucket in (NEAR, FAR):
        await made.objects.put(bucket, segment(made), b"sealed")
    await made.engine().copy(SERVER, "quarter", no_progress)
    return made


def segment(world: TwoBuckets) -> str:
    return WalArchive(world.objects, world.policy).key("000000010000000000000003")


def keys(world: TwoBuckets, *backups: str) -> set[str]:
    folders = [BaseFolder(world.policy, backup) for backup in backups]
    return {key for each in folders for key in (each.base, each.files, each.manifest)} | {segment(world)}


def both(found: set[str]) -> set[tuple[str, str]]:
    return {(bucket, key) for bucket in (NEAR, FAR) for key in found}


async def test_a_pin_holds_the_chain_and_its_wal_in_every_bucket(world: TwoBuckets) -> None:
    before = await world.engine().holds(SERVER, "hour")
    assert {(hold.bucket, hold.held, hold.lockable) for hold in before} == {(NEAR, 0, True), (FAR, 0, True)}

    await world.engine().pin(SERVER, "hour", reason=CASE)

    assert world.objects.legal_holds == both(keys(world, "full", "hour"))
    assert all(hold.held >= 7 for hold in await world.engine().holds(SERVER, "hour"))
    await world.engine().pin(SERVER, "hour", reason="")
    assert world.objects.legal_holds == set()


async def test_what_another_pin_needs_stays_held(world: TwoBuckets) -> None:
    await world.engine().pin(SERVER, "quarter", reason=CASE)
    await world.engine().pin(SERVER, "full", reason="migration")

    await world.engine().pin(SERVER, "quarter", reason="")

    assert world.objects.legal_holds == both(keys(world, "full"))


async def test_a_bucket_that_was_away_holds_with_the_next_copy_and_lets_go_with_another(world: TwoBuckets) -> None:
    world.objects.away = {FAR}
    await world.engine().pin(SERVER, "full", reason=CASE)
    assert {bucket for bucket, _ in world.objects.legal_holds} == {NEAR}
    world.objects.away = set()
    assert (await world.engine().uncopied(SERVER)).backups == {"full": (FAR,)}
    await world.engine().copy(SERVER, "full", no_progress)
    assert world.objects.legal_holds == both(keys(world, "full"))

    world.clock.advance(HOUR)
    world.objects.away = {FAR}
    await world.engine().pin(SERVER, "full", reason="")
    assert {bucket for bucket, _ in world.objects.legal_holds} == {FAR}
    world.objects.away = set()
    await world.engine().copy(SERVER, "full", no_progress)
    assert world.objects.legal_holds == set()
    assert (await world.entry("full")).pinned == ""


async def test_where_no_bucket_answers_nothing_is_pinned(world: TwoBuckets) -> None:
    world.objects.away = {NEAR, FAR}
    with pytest.raises(TemporaryError):
        await world.engine().pin(SERVER, "full", reason=CASE)


async def test_a_key_that_may_not_hold_sets_the_pin_and_does_not_take_it_off(
    world: TwoBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(bucket: str, key: str, *, on: bool) -> bool:
        raise UserError(f"Bucket `{bucket}` did not hold `{key}`: AccessDenied ({on}).")

    monkeypatch.setattr(world.objects, "hold", refused)
    await world.engine().pin(SERVER, "full", reason=CASE)
    assert (await world.entry("full")).pinned == CASE
    assert not any(hold.whole for hold in await world.engine().holds(SERVER, "full"))
    world.objects.legal_holds = both(keys(world, "full"))
    world.clock.advance(HOUR)
    with pytest.raises(UserError, match="AccessDenied"):
        await world.engine().pin(SERVER, "full", reason="")
    assert (await world.entry("full")).pinned == CASE


# ---------------------------------------------------------------- what people read


def able() -> World:
    world = with_bases()
    world.physical.lockable = world.backups.lockable = True
    return world


async def test_the_plan_says_what_the_store_does_about_it() -> None:
    for world, words, warns in (
        (able(), "set on 4 objects in `backups`", False),
        (with_bases(), "no legal hold", True),
    ):
        asked = PinParams(server="primary", backup="base-full", why=CASE)
        plan = await registry.action("backup.pin").plan(asked, world, PLAN_ID)
        seen = {each.name: each.value for each in plan.observations}["legal hold of the store"]
        assert words in seen
        assert [finding.verdict for finding in plan.findings] == ([Verdict.WARN] if warns else [])
        if warns:
            assert "`backups` has no Object Lock" in plan.findings[0].detail
        journal = MemoryJournal()
        assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
        [report] = [line.detail for line in await journal.entries() if line.state is JournalState.VERIFIED]
        assert ("under legal hold" in report) is not warns


async def test_a_hold_that_was_lost_is_told_and_set_again() -> None:
    world = able()
    asked = PinParams(server="primary", backup="base-full", why=CASE)
    plan = await registry.action("backup.pin").plan(asked, world, PLAN_ID)
    await run(plan, world, MemoryJournal())
    assert [finding.verdict for finding in await hold_findings(world)] == [Verdict.OK]
    world.physical.held.clear()

    [finding] = await hold_findings(world)
    assert "holds 0 of 4 objects" in finding.detail
    assert f"/dr-backup pin primary base-full {CASE}" in finding.hint
    again = await registry.action("backup.pin").plan(asked, world, PLAN_ID)
    assert (await run(again, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert [finding.verdict for finding in await hold_findings(world)] == [Verdict.OK]
    unpin = await registry.action("backup.unpin").plan(
        UnpinParams(server="primary", backup="base-full"), world, PLAN_ID
    )
    seen = {each.name: each.value for each in unpin.observations}["legal hold of the store"]
    assert seen == "taken off 4 objects in `backups`, but for what another pin needs"
    assert (await run(unpin, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert world.physical.held == set()


async def test_a_hold_that_was_lost_is_an_alarm_until_it_is_set_again() -> None:
    world, key = able(), "unheld-pin:base-full/pins:site"
    asked = PinParams(server="primary", backup="base-full", why=CASE)

    async def looked(*, beside: bool = True) -> tuple[dict[str, Alarm], Health]:
        seen = await health(world, beside=beside)
        return {alarm.key: alarm for alarm in alarms(seen)}, seen

    async def pinned() -> None:
        await run(await registry.action("backup.pin").plan(asked, world, PLAN_ID), world, MemoryJournal())

    await pinned()
    assert key not in (await looked())[0]
    world.physical.held.clear()
    told, _ = await looked()
    assert "is pinned. Bucket `backups` holds 0 of 4 objects" in told[key].text
    assert f"/dr-backup pin primary base-full {CASE}" in told[key].hint
    told, seen = await looked(beside=False)
    assert not over(key, set(told), seen)

    world.objects.down = True
    told, seen = await looked()
    assert "unreadable/pins:site" in told
    assert not over(key, set(told), seen)
    world.objects.down = False
    await pinned()
    told, seen = await looked()
    assert over(key, set(told), seen)


async def test_a_pinned_point_says_what_is_not_held() -> None:
    world = with_bases()
    await world.points.record("point-1")
    plan = await registry.action("point.pin").plan(PinPointParams(point="point-1", why=CASE), world, PLAN_ID)
    said = [finding.detail for finding in plan.findings if finding.check == "legal hold"]
    assert [each.partition(" no ")[0] for each in said] == ["`backups` has", "`uploads-copy` has"]


async def test_a_point_is_held_with_its_escrows_as_long_as_any_point_needs_them() -> None:
    world = able()
    world.objects.lockable = {"backups", "uploads-copy"}
    await world.escrow.make("main-1", "main")
    for name in ("point-1", "point-2"):
        await world.points.record(name)
        plan = await registry.action("point.pin").plan(PinPointParams(point=name, why=CASE), world, PLAN_ID)
        assert [finding for finding in plan.findings if finding.check == "legal hold"] == []
        assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
        world.clock.advance(HOUR)
    escrow = {("backups", f"escrow/main/main-1/{name}") for name in ("keys.age", "manifest.json")}
    points = {("uploads-copy", f"recovery-points/{name}.json") for name in ("point-1", "point-2")}
    assert world.objects.legal_holds == escrow | points
    assert [finding.verdict for finding in await hold_findings(world)] == [Verdict.OK]
    world.objects.legal_holds -= escrow
    assert {finding.check for finding in await hold_findings(world)} == {"pin of point-1", "pin of point-2"}
    world.objects.legal_holds |= escrow

    for name, left in (("point-1", {*escrow, ("uploads-copy", "recovery-points/point-2.json")}), ("point-2", set())):
        plan = await registry.action("point.unpin").plan(UnpinPointParams(point=name), world, PLAN_ID)
        assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
        assert world.objects.legal_holds == left
        world.clock.advance(HOUR)


async def test_a_point_stays_pinned_and_held_while_one_bucket_does_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    world = able()
    world.objects.lockable = {"backups", "uploads-copy"}
    await world.escrow.make("main-1", "main")
    await world.points.record("point-1")
    await world.points.pin("point-1", reason=CASE)
    held, whole = set(world.objects.legal_holds), world.objects.hold

    async def hold(bucket: str, key: str, *, on: bool) -> bool:
        if bucket == "backups" and not on:
            raise TemporaryError("Bucket `backups` does not answer.")
        return await whole(bucket, key, on=on)

    monkeypatch.setattr(world.objects, "hold", hold)
    world.clock.advance(HOUR)
    plan = await registry.action("point.unpin").plan(UnpinPointParams(point="point-1"), world, PLAN_ID)

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert "Bucket `backups` has not let go of recovery point `point-1`: 2 objects are still held." in result.message
    assert [entry.pinned for entry in await world.points.entries()] == [CASE]
    assert world.objects.legal_holds == held


@pytest.mark.corruption
async def test_an_escrow_that_a_damaged_pinned_point_may_need_stays_held() -> None:
    world = able()
    world.objects.lockable = {"backups", "uploads-copy"}
    await world.escrow.make("main-1", "main")
    for name in ("point-1", "point-2"):
        await world.points.record(name)
        await world.points.pin(name, reason=CASE)
        world.clock.advance(HOUR)
    await world.objects.put("uploads-copy", "recovery-points/point-1.json", b"{}")

    await world.points.pin("point-2", reason="")

    assert world.objects.legal_holds == {
        ("backups", f"escrow/main/main-1/{name}") for name in ("keys.age", "manifest.json")
    }


async def test_the_report_names_the_bucket_that_did_not_take_the_pin(world: TwoBuckets) -> None:
    memory = with_bases()
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    ports = Ports(**parts | {"site": world.site, "physical": world.engine(), "objects": world.objects})

    async def carried_out(action: str, params: Frozen) -> str:
        journal = MemoryJournal()
        plan = await registry.action(action).plan(params, ports, PLAN_ID)
        assert (await run(plan, ports, journal)).outcome is Outcome.SUCCEEDED
        [report] = [line.detail for line in await journal.entries() if line.state is JournalState.VERIFIED]
        return report

    world.objects.away = {FAR}
    report = await carried_out("backup.pin", PinParams(server=SERVER, backup="full", why=CASE))
    assert f"Bucket `{NEAR}` has 4 objects of it under legal hold." in report
    assert f"Bucket `{FAR}` did not take the pin: the next base backup brings it there" in report
    assert f"Whether bucket `{FAR}` holds it is not known" in report
    world.objects.away = set()
    await world.engine().copy(SERVER, "full", no_progress)
    world.clock.advance(HOUR)
    assert await carried_out("backup.unpin", UnpinParams(server=SERVER, backup="full")) == ""
    assert world.objects.legal_holds == set()
