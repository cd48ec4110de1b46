"""Recovery points and escrows are kept and deleted: on the real engines, in memory and on a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from actions import registry
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.backup.escrow import Escrows
from actions.backup.points import RecoveryPoints
from actions.catalog.points import PointsParams
from actions.catalog.record_retention import (
    ExpireEscrowsParams,
    ExpirePointsParams,
    PinPointParams,
    UnpinPointParams,
)
from actions.catalog.retention import ExpireParams, UnpinParams
from actions.errors import UserError
from actions.ports import ObjectStore
from actions.runner import Outcome
from actions.site import Bucket, Site
from actions.steps.dump_expiry import dumps_due
from actions.steps.kept_backups import Sort, stays
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import with_old_records
from tests.fakes.manifests import an_entry
from tests.fakes.physical_world import with_old_backups
from tests.fakes.world import World, a_world
from tests.fixtures.shared_s3 import S3

BUCKET = "uploads-copy"
PINS = "recovery-point-pins/point-1/"


@dataclass
class Place:
    """A world whose points and escrows are in `bucket` of `store`."""

    world: World
    store: ObjectStore
    bucket: str


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    world = a_world()
    if request.param == "fake":
        yield Place(world, world.objects, BUCKET)
        return
    s3: S3 = request.getfixturevalue("s3")
    made = stored_in(world, s3, request.getfixturevalue("bucket"))
    yield made
    made.store.close()  # type: ignore[attr-defined]


def stored_in(world: World, s3: S3, bucket: str) -> Place:
    entry = Bucket(name=bucket, endpoint=s3.endpoint, access_key="env:A", secret_key="env:S")
    policies = {name: getattr(world.site, name).model_copy(update={"bucket": bucket}) for name in ("points", "escrow")}
    site: Site = world.site.model_copy(update={"buckets": {**world.site.buckets, bucket: entry}, **policies})
    store = S3Buckets(site, SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
    object.__setattr__(world, "site", site)
    escrow = Escrows(site, world.sealing, store, world.point_secrets, world.clock)
    world.points._parts._escrow = escrow
    points = RecoveryPoints(site, world.points._parts, world.secret_copies, store, world.point_secrets, world.clock)
    object.__setattr__(world, "points", points)
    object.__setattr__(world, "escrow", escrow)
    return Place(world, store, bucket)


async def planned(world: World, name: str, params: Any) -> Any:
    return await registry.action(name).plan(params, world, PLAN_ID)


async def carried_out(world: World, name: str, params: Any) -> str:
    """The message of the run; empty when it succeeded."""
    result = await run(await planned(world, name, params), world, MemoryJournal())
    return "" if result.outcome is Outcome.SUCCEEDED else result.message


async def points_of(world: World) -> dict[str, str]:
    return {entry.point.id: entry.pinned for entry in await world.points.entries()}


async def old(world: World, points: int, *, escrows: int = 0) -> None:
    """So many of 100 days and less ago, a day apart."""
    start = world.clock.now()
    world.clock.advance(timedelta(days=-100))
    for number in range(max(points, escrows)):
        if number < escrows:
            await world.escrow.make(f"escrow-{number}", "main")
        if number < points:
            await world.points.record(f"point-{number}")
        world.clock.advance(timedelta(days=1))
    world.clock.advance(start - world.clock.now())


async def test_a_pin_is_signed_holds_and_is_taken_off(place: Place) -> None:
    world = place.world
    await old(world, 4)
    await world.points.pin("point-1", reason="case 4711")

    assert (await points_of(world))["point-1"] == "case 4711"
    with pytest.raises(UserError, match=r"`point-1` is pinned: case 4711\. Take the pin off first"):
        await world.points.remove("point-1")
    assert "point-1" in await points_of(world)
    world.clock.advance(timedelta(seconds=1))
    await world.points.pin("point-1", reason="")
    assert (await points_of(world))["point-1"] == ""
    await world.points.remove("point-1")
    await world.points.remove("point-1")
    assert "point-1" not in await points_of(world)
    assert await place.store.list(place.bucket, PINS) == []
    with pytest.raises(UserError, match="no recovery point `point-1`"):
        await world.points.pin("point-1", reason="too late")


@pytest.mark.corruption
async def test_an_old_document_takes_no_pin_off_and_a_forged_one_sets_none(place: Place) -> None:
    world = place.world
    await old(world, 2)
    await world.points.pin("point-1", reason="")
    [off] = await place.store.list(place.bucket, PINS)
    world.clock.advance(timedelta(hours=1))
    await world.points.pin("point-1", reason="case 4711")
    body = await place.store.get(place.bucket, off.key)
    later = off.key.replace("pin-2026", "pin-2027")
    await place.store.put(place.bucket, later, body)
    await place.store.put(place.bucket, "recovery-point-pins/point-0/pin-20260101T000000000000Z.json", b"{}")

    assert await points_of(world) == {"point-1": "case 4711", "point-0": ""}


async def test_old_points_and_escrows_are_deleted_and_nothing_else(place: Place) -> None:
    world = place.world
    await old(world, 6, escrows=8)
    await world.points.pin("point-1", reason="case 4711")
    await world.points.record("point-now")
    before = {facts.key for facts in await place.store.list(place.bucket, "")}

    assert await carried_out(world, "point.expire", ExpirePointsParams()) == ""

    assert sorted(await points_of(world)) == ["point-1", "point-5", "point-now"]
    now = {facts.key for facts in await place.store.list(place.bucket, "")}
    assert before - now == {f"recovery-points/point-{number}.json" for number in (0, 2, 3, 4)}
    with pytest.raises(UserError, match="nothing to delete"):
        await planned(world, "point.expire", ExpirePointsParams())

    plan = await planned(world, "secrets.expire", ExpireEscrowsParams())
    assert plan.steps[0].old.kept == {
        "escrow-1": "recovery point `point-1` needs it",
        "escrow-5": "recovery point `point-5` needs it",
        "escrow-6": "one of the 2 newest that can be used",
        "escrow-7": "one of the 2 newest that can be used",
    }
    assert await carried_out(world, "secrets.expire", ExpireEscrowsParams()) == ""
    left = {entry.manifest.id: entry.problem for entry in await world.escrow.entries("main")}
    assert left == dict.fromkeys(["escrow-7", "escrow-6", "escrow-5", "escrow-1"])


@pytest.mark.integration
async def test_in_a_bucket_with_a_lock_what_went_is_gone_from_the_list_and_its_locked_version_stays(s3: S3) -> None:
    client, name = s3.client(), f"locked-{datetime.now().timestamp():.6f}".replace(".", "-")  # noqa: DTZ005 - a name
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention},  # type: ignore[typeddict-item]
    )
    place = stored_in(a_world(), s3, name)
    world = place.world
    await old(world, 4, escrows=4)

    assert await carried_out(world, "point.expire", ExpirePointsParams()) == ""
    assert await carried_out(world, "secrets.expire", ExpireEscrowsParams()) == ""

    assert sorted(await points_of(world)) == ["point-2", "point-3"]
    versions = client.list_object_versions(Bucket=name, Prefix="recovery-points/point-0.json")["Versions"]
    assert len(versions) == 1  # a delete marker hides it, and it comes back with that while it is locked
    place.store.close()  # type: ignore[attr-defined]


async def test_what_a_store_does_not_let_go_is_named_holds_nothing_up_and_goes_later() -> None:
    world = with_old_records(recorded=())
    whole, locked = world.objects.delete, {"escrow/main/escrow-2/keys.age"}

    async def delete(bucket: str, key: str) -> None:
        if key in locked:
            raise UserError(f"Bucket `{bucket}` did not delete `{key}`: AccessDenied.")
        await whole(bucket, key)

    world.objects.delete = delete  # type: ignore[method-assign]

    said = await carried_out(world, "secrets.expire", ExpireEscrowsParams())

    assert "1 of 5 escrows could not be deleted, the first of them `escrow-2`: Bucket `backups` did not delete" in said
    assert "goes at the first expiry after its end" in said
    left = {entry.manifest.id: entry.problem for entry in await world.escrow.entries("main")}
    assert left == dict.fromkeys(["escrow-7", "escrow-6", "escrow-2", "escrow-0"])  # whole, not half of it
    locked.clear()
    assert await carried_out(world, "secrets.expire", ExpireEscrowsParams()) == ""
    assert "escrow-2" not in {entry.manifest.id for entry in await world.escrow.entries("main")}


async def test_a_point_that_is_pinned_after_the_plan_was_made_stays() -> None:
    world = with_old_records()
    plan = await planned(world, "point.expire", ExpirePointsParams())
    assert set(plan.steps[0].old.gone) == {"point-0", "point-1", "point-2", "point-3"}
    await world.points.pin("point-2", reason="case 4711")

    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED

    assert sorted(await points_of(world)) == ["point-2", "point-4", "point-5"]


@pytest.mark.corruption
async def test_an_escrow_is_not_deleted_for_newer_ones_that_hold_other_bytes() -> None:
    """As large as they were, so no listing tells."""
    world = with_old_records(recorded=())
    before = {entry.manifest.id for entry in await world.escrow.entries("main")}
    plan = await planned(world, "secrets.expire", ExpireEscrowsParams())
    for name in before - {"escrow-2"}:
        key = f"escrow/main/{name}/keys.age"
        await world.objects.put("backups", key, bytes(len(await world.objects.get("backups", key))))

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert "`escrow-2` of `main` stays: 1 of its keys are in no other one" in result.message
    assert "escrow-2" in {entry.manifest.id for entry in await world.escrow.entries("main")}


async def test_an_escrow_that_a_point_came_to_need_stays() -> None:
    world = with_old_records(recorded=())
    plan = await planned(world, "secrets.expire", ExpireEscrowsParams())
    assert "escrow-5" in plan.steps[0].old.gone
    point = (await world.points.gather("point-9")).model_copy()
    needing = point.model_copy(
        update={"secrets": tuple(part.model_copy(update={"escrow": "escrow-5"}) for part in point.secrets)}
    )
    world.points.gather = lambda *_, **__: _answer(needing)  # type: ignore[method-assign]
    await world.points.record("point-9")

    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED

    assert "escrow-5" in {entry.manifest.id for entry in await world.escrow.entries("main")}


async def _answer(value: Any) -> Any:
    return value


async def test_a_pinned_point_holds_its_dump_and_gives_back_its_own_pin_alone() -> None:
    world = with_old_records()
    await world.backups.pin("shop", "b-old", reason="case 1")

    plan = await planned(world, "point.pin", PinPointParams(point="point-1", why="case 4711"))
    assert any("stay as long as the plan file keeps" in finding.detail for finding in plan.findings)
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    dump = world.backups.entries["shop", "b-new"]
    assert dump.pinned == "recovery point point-1: case 4711"
    assert (await points_of(world))["point-1"] == "case 4711"

    world.clock.advance(timedelta(minutes=1))
    assert await carried_out(world, "point.unpin", UnpinPointParams(point="point-1")) == ""
    assert world.backups.entries["shop", "b-new"].pinned == ""
    assert world.backups.entries["shop", "b-old"].pinned == "case 1"
    with pytest.raises(UserError, match="is not pinned"):
        await planned(world, "point.unpin", UnpinPointParams(point="point-1"))


async def test_a_dump_that_two_pinned_points_need_stays_until_both_have_let_it_go() -> None:
    world = with_old_records()
    [named] = [part.backup for part in (await world.points.record("point-9")).databases if part.database == "shop"]
    await world.backups.pin("shop", named, reason="")
    assert await carried_out(world, "point.pin", PinPointParams(point="point-1", why="case 4711")) == ""
    await world.points.pin("point-9", reason="audit")
    [also] = [each.point for each in await world.points.entries() if each.point.id == "point-1"]
    assert named in {part.backup for part in also.databases}

    world.clock.advance(timedelta(minutes=1))
    assert await carried_out(world, "point.unpin", UnpinPointParams(point="point-1")) == ""

    assert world.backups.entries["shop", named].pinned == "recovery point point-9: audit"
    with pytest.raises(UserError, match="pinned with a recovery point: recovery point point-9: audit"):
        await planned(world, "backup.unpin", UnpinParams(server="shop", backup=named))
    # Somebody has pinned it for a case of their own, which is over: the point goes on holding it.
    await world.backups.pin("shop", named, reason="case 1")
    world.clock.advance(timedelta(minutes=1))
    assert await carried_out(world, "backup.unpin", UnpinParams(server="shop", backup=named)) == ""
    assert world.backups.entries["shop", named].pinned == "recovery point point-9: audit"


async def test_a_dump_that_a_pinned_point_needs_stays_without_a_pin_of_its_own() -> None:
    """The point was pinned while another pin was on the dump, which has been taken off by an earlier version."""
    world = with_old_records()
    at = world.clock.now() - timedelta(days=60)
    world.backups.entries["shop", "b-older"] = an_entry(id="b-older", database="shop", snapshot_at=at, finished_at=at)
    assert "b-older" in (await dumps_due(world, "shop")).gone
    [entry] = [each for each in await world.points.entries() if each.point.id == "point-1"]
    parts = tuple(part.model_copy(update={"backup": "b-older"}) for part in entry.point.databases)
    needing = entry.point.model_copy(update={"id": "point-9", "databases": parts})
    world.points.gather = lambda *_, **__: _answer(needing)  # type: ignore[method-assign]
    await world.points.record("point-9")
    await world.points.pin("point-9", reason="audit")

    due = await dumps_due(world, "shop")

    assert "b-older" not in due.gone
    assert due.kept["b-older"] == "pinned: recovery point point-9: audit"
    assert "recovery point point-9: audit" in await stays(world, Sort.DUMP, "shop", "b-older")


async def test_a_pinned_point_is_listed_however_old_it_is() -> None:
    world = a_world()
    await old(world, 30)
    await world.points.pin("point-3", reason="case 4711")

    listed = await registry.query("status.points").read(PointsParams(), world)

    assert len(listed.rows) == 21
    assert (listed.rows[-1][0], listed.rows[-1][-1]) == ("point-3", "case 4711")
    assert listed.title == "30 recovery points"


async def test_dumps_that_a_store_does_not_let_go_hold_no_other_up() -> None:
    world = with_old_backups()
    for name, days in (("b-older", 50), ("b-oldest", 60)):
        at = world.clock.now() - timedelta(days=days)
        world.backups.entries["shop", name] = an_entry(id=name, database="shop", snapshot_at=at, finished_at=at)
    whole = world.backups.remove

    async def remove(database: str, backup: str) -> None:
        if backup == "b-oldest":
            raise UserError("Bucket `backups` did not delete it: AccessDenied.")
        await whole(database, backup)

    world.backups.remove = remove  # type: ignore[method-assign]

    said = await carried_out(world, "backup.expire", ExpireParams(server="shop"))

    assert "1 of 3 dumps could not be deleted, the first of them `b-oldest`" in said
    left = {name for _, name in world.backups.entries}
    assert "b-oldest" in left
    assert not left & {"b-older", "b-ancient"}


async def test_images_of_a_pinned_point_stay_on_the_list() -> None:
    world = a_world()
    await world.points.record("point-0")
    await world.points.pin("point-0", reason="case 4711")
    for workload in world.cluster.workloads.values():
        workload.images = ()
    world.clock.advance(timedelta(days=200))
    await world.points.record("point-1")
    assert (await world.objects.get(BUCKET, "images/kept.txt")).decode().startswith("mirror/app@sha256")

    world.clock.advance(timedelta(days=1))
    await world.points.pin("point-0", reason="")
    world.clock.advance(timedelta(days=200))
    await world.points.record("point-2")
    assert await world.objects.get(BUCKET, "images/kept.txt") == b""


async def test_a_point_of_which_the_dump_is_gone_can_still_be_pinned_and_says_so() -> None:
    world = with_old_records()
    world.backups.entries.clear()

    plan = await planned(world, "point.pin", PinPointParams(point="point-1", why="case 4711"))

    assert any("is gone: it cannot be brought back" in finding.detail for finding in plan.findings)
    assert [step.kind for step in plan.steps] == ["set_point_pin"]
    with pytest.raises(UserError, match="There is no recovery point `point-77`"):
        await planned(world, "point.pin", PinPointParams(point="point-77", why="x"))
