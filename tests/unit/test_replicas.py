"""A bucket that the store replicates: believed for what is on the other side, not for its settings."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from actions import registry
from actions.catalog.buckets import BucketsParams
from actions.contract import Verdict
from actions.site import Bucket, BucketPosture
from actions.steps.alarms import alarms
from actions.steps.health import health
from actions.steps.replicas import LOOKED, Replica, chosen, replica, replica_findings, rpo_of
from bot.services.backup_watch import BackupWatch
from tests.fakes.physical_world import with_bases
from tests.fakes.world import START, World

HERE, THERE = "backups", "far"
MINUTE = timedelta(minutes=1)
SEGMENTS = [f"physical/wal/primary/0000000100000000000000{number:02X}.sealed" for number in range(6)]
BASE = "physical/base/primary/full/base.age"


def replicating() -> World:
    """Everything is on both sides, stored minute after minute until now."""
    world = with_bases()
    posture = BucketPosture(replicates_to=THERE, used=("physical/",))
    here = world.site.buckets[HERE].model_copy(update={"posture": posture})
    far = Bucket(name=THERE, access_key="env:S3_KEY", secret_key="env:S3_SECRET", region="eu-west-1")
    world = replace(
        world, site=world.site.model_copy(update={"buckets": {**world.site.buckets, HERE: here, THERE: far}})
    )
    world.objects.buckets[THERE] = {}
    world.objects.keep_versions(HERE, THERE)
    for number, key in enumerate([BASE, *SEGMENTS]):
        for bucket in (HERE, THERE):
            world.objects.arrange(bucket, key, key.encode(), at=START - (len(SEGMENTS) - number) * MINUTE)
    return world


async def found(world: World) -> Replica:
    return await replica(world, HERE, markers=True)


async def told(world: World) -> list[tuple[Verdict, str]]:
    return [(finding.verdict, finding.detail) for finding in replica_findings(world.site, await found(world))]


async def test_what_is_on_both_sides_is_fine() -> None:
    world = replicating()
    [(verdict, text)] = await told(world)
    assert verdict is Verdict.OK
    assert text == (
        "7 objects of `backups` compared with `far`: nothing is missing there, newest here 2026-11-23 10:12:00 UTC, "
        "newest of them there 2026-11-23 10:12:00 UTC"
    )
    assert (await found(world)).lag == timedelta(0)


async def test_what_is_missing_is_on_its_way_until_the_rpo_is_over() -> None:
    world = replicating()
    del world.objects.buckets[THERE][SEGMENTS[3]]
    world.objects.replication[HERE, SEGMENTS[3]] = "PENDING"
    rpo = rpo_of(world.site, HERE)

    assert (await found(world)).lag == 2 * MINUTE
    [(verdict, text)] = await told(world)
    assert (verdict, "1 on the way, for 2 min at most" in text) == (Verdict.OK, True)

    world.clock.advance(rpo - 2 * MINUTE)
    assert [verdict for verdict, _ in await told(world)] == [Verdict.OK]
    world.clock.advance(MINUTE)
    [(verdict, text)] = await told(world)
    assert verdict is Verdict.STOP
    assert "`far` lacks 1 object of `backups` that are older than the RPO of 15 min, the oldest for 16 min" in text
    assert f"`{SEGMENTS[3]}`" in text
    assert "the newest that is there was stored here at 2026-11-23 10:12:00 UTC" in text


async def test_what_the_store_gave_up_is_told_at_once_unless_somebody_has_copied_it() -> None:
    world = replicating()
    key = SEGMENTS[5]
    del world.objects.buckets[THERE][key]
    world.objects.replication[HERE, key] = "FAILED"
    [(verdict, text)] = await told(world)
    assert (verdict, text) == (Verdict.STOP, f"The store gave up to replicate 1 object of `backups` to `far`: `{key}`.")

    world.objects.arrange(THERE, key, key.encode(), at=START)
    assert [verdict for verdict, _ in await told(world)] == [Verdict.OK]


async def test_other_bytes_of_the_same_size_are_found() -> None:
    world = replicating()
    world.objects.arrange(THERE, BASE, bytes(len(BASE)), at=START)
    world.clock.advance(timedelta(hours=1))
    [(verdict, text)] = await told(world)
    assert (verdict, text) == (Verdict.STOP, f"`far` has other bytes than `backups` of 1 object: `{BASE}`.")


async def test_another_etag_is_no_other_object(monkeypatch: Any) -> None:
    """Of parts of another size, or encrypted with another key: the bytes decide, as long as they are not too many."""
    world, head, listing = replicating(), replicating().objects.head, replicating().objects.list
    world.clock.advance(timedelta(hours=1))
    head, listing = world.objects.head, world.objects.list

    def other(facts: Any, bucket: str) -> Any:
        return facts.model_copy(update={"etag": f"{facts.etag}-2"}) if facts is not None and bucket == THERE else facts

    async def other_head(bucket: str, key: str) -> Any:
        return other(await head(bucket, key), bucket)

    async def other_list(bucket: str, prefix: str) -> Any:
        return [other(facts, bucket) for facts in await listing(bucket, prefix)]

    monkeypatch.setattr(world.objects, "head", other_head)
    monkeypatch.setattr(world.objects, "list", other_list)
    assert [verdict for verdict, _ in await told(world)] == [Verdict.OK]
    for number in range(8):
        for bucket in (HERE, THERE):
            world.objects.arrange(bucket, f"physical/more-{number}", b"x", at=START)
    [(verdict, text)] = await told(world)
    assert verdict is Verdict.WARN
    assert "7 objects of `backups` and `far` cannot be compared by version or ETag" in text


async def test_what_is_deleted_here_and_not_there_is_counted() -> None:
    world = replicating()
    await world.objects.delete(HERE, SEGMENTS[0])
    await world.objects.delete(HERE, SEGMENTS[1])
    await world.objects.delete(THERE, SEGMENTS[1])
    [(verdict, text)] = await told(world)
    assert (verdict, text.startswith("1 deleted object of `backups` stand")) == (Verdict.WARN, True)


async def test_what_goes_while_it_is_looked_at_is_not_missing(monkeypatch: Any) -> None:
    world = replicating()
    world.clock.advance(timedelta(hours=1))
    listing = world.objects.list

    async def then_gone(bucket: str, prefix: str) -> Any:
        found = await listing(bucket, prefix)
        for each in (HERE, THERE):
            world.objects.buckets[each].pop(SEGMENTS[0], None)
        return found

    monkeypatch.setattr(world.objects, "list", then_gone)
    assert [verdict for verdict, _ in await told(world)] == [Verdict.OK]


async def test_a_side_that_does_not_answer_is_said_and_never_fine() -> None:
    world = replicating()
    del world.objects.buckets[THERE]
    [(verdict, text)] = await told(world)
    assert (verdict, text.startswith("Nobody can tell whether `far` has what `backups` has")) == (Verdict.WARN, True)


def test_segments_and_base_backups_are_asked_for_first() -> None:
    from actions.ports import ObjectFacts

    keys = [f"dumps/{number}" for number in range(100)] + [BASE, *SEGMENTS]
    objects = [ObjectFacts(key=key, bytes=1, modified_at=START - number * MINUTE) for number, key in enumerate(keys)]
    picked = [facts.key for facts in chosen(objects)]
    assert picked[:7] == [*SEGMENTS, BASE]
    assert (len(picked), len(set(picked))) == (LOOKED, LOOKED)
    assert picked[7] == "dumps/0"


async def test_it_is_alarmed_of_and_shown_with_the_buckets() -> None:
    world = replicating()
    del world.objects.buckets[THERE][SEGMENTS[3]]
    world.clock.advance(timedelta(hours=1))
    wrong = {alarm.key: alarm.text for alarm in alarms(await health(world))}
    assert "lacks 1 object" in wrong["replica/replica:backups"]
    assert "replica/replica:backups" not in {alarm.key for alarm in alarms(await health(world, replicas=False))}
    report = await registry.query("status.buckets").read(BucketsParams(), world)
    assert [finding.check for finding in report.findings if "lacks" in finding.detail] == ["replica of backups"]
    assert "1 on the way" in report.lines[0]


async def test_both_sides_are_listed_every_few_minutes() -> None:
    world = replicating()
    nothing: Any = None
    watch = BackupWatch(nothing, world, on_call="C0ONCALL")

    async def looked() -> bool:
        [copy] = [copy for copy in (await watch.look()).beside if copy.subject == "replica:backups"]
        return copy.looked

    assert await looked()
    world.clock.advance(timedelta(minutes=4))
    assert not await looked()
    world.clock.advance(timedelta(minutes=1))
    assert await looked()
