"""Base backups in two buckets: copied whole or not at all, read from whichever has them, lost with neither."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from actions.adapters.clock import SystemClock
from actions.backup.native_catalogue import BaseFolder
from actions.backup.native_records import BaseRecords
from actions.backup.physical import Expiry
from actions.backup.proofs import proofs_prefix
from actions.backup.sealed import SealedHeader, SealedKind, Sealer, What
from actions.backup.segments import Segment
from actions.backup.wal import WalArchive
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import ObjectStore, no_progress
from tests.contract.kit import Died, Fault, Fragile, Moment
from tests.dump_world import Keys
from tests.fakes.clock import START
from tests.fakes.s3 import MemoryObject
from tests.fakes.secrets import MemorySecrets
from tests.fakes.two_buckets import FAR, NEAR, SERVER, TwoBuckets

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> TwoBuckets:
    return TwoBuckets(tmp_path)


async def a_chain(world: TwoBuckets) -> None:
    await world.put("full", START - 3 * HOUR)
    await world.put("hour", START - 2 * HOUR, parent="full")
    await world.put("quarter", START - HOUR, parent="hour")


# ---------------------------------------------------------------- copying


async def test_a_backup_and_what_it_rests_on_are_brought_over_byte_for_byte(world: TwoBuckets) -> None:
    await a_chain(world)
    await world.put("older", START - DAY)
    engine = world.engine()
    assert tuple((await engine.uncopied(SERVER)).backups) == ("full", "hour", "quarter", "older")

    assert await engine.copy(SERVER, "quarter", no_progress) == ["full", "hour", "quarter", "older"]

    for backup in ("full", "hour", "quarter", "older"):
        assert world.bodies(FAR, backup) == world.bodies(NEAR, backup)
        assert len(world.bodies(FAR, backup)) == 3
    assert (await engine.uncopied(SERVER)).complete
    assert {entry.whole_in for entry in await engine.catalogue(SERVER)} == {(NEAR, FAR)}
    before = dict(world.objects.buckets[FAR])
    assert await engine.copy(SERVER, "quarter", no_progress) == []
    assert world.objects.buckets[FAR] == before


async def test_what_lies_in_the_second_bucket_alone_is_brought_into_the_first(world: TwoBuckets) -> None:
    await world.put("full", bucket=FAR)
    entry = await world.entry("full")
    assert (entry.problem, entry.whole_in, entry.behind, entry.bucket) == (None, (FAR,), (NEAR,), FAR)
    await world.engine().copy(SERVER, "full", no_progress)
    assert world.bodies(NEAR, "full") == world.bodies(FAR, "full")


async def test_after_its_time_no_older_backup_is_begun_with(world: TwoBuckets) -> None:
    await a_chain(world)
    for number in range(3):
        await world.put(f"older-{number}", START - DAY - number * HOUR)

    class Slow(Fragile):
        """Every upload takes a quarter of an hour."""

        def __getattr__(self, method: str) -> Any:
            if method == "put_stream":
                world.clock.advance(timedelta(minutes=8))
            return super().__getattr__(method)

    slow = cast(ObjectStore, Slow("objects", world.objects, Fault()))
    assert await world.engine(slow).copy(SERVER, "full", no_progress) == ["full", "hour", "quarter"]
    assert tuple((await world.engine().uncopied(SERVER)).backups) == ("older-0", "older-1", "older-2")
    assert await world.engine(slow).copy(SERVER, "quarter", no_progress) == ["older-0", "older-1"]


@pytest.mark.kill
@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("half", [False, True], ids=["anew", "half-there"])
async def test_dying_at_any_call_leaves_no_half_backup_and_a_rerun_ends_it(
    tmp_path: Path, moment: Moment, half: bool
) -> None:
    async def begun() -> TwoBuckets:
        world = TwoBuckets(tmp_path)
        await world.put("full", START - 2 * HOUR)
        await world.put("hour", START - HOUR, parent="full")
        await world.engine().pin(SERVER, "full", reason="case 4711")
        if half:
            folder = BaseFolder(world.policy, "full")
            world.objects.buckets[FAR][folder.base] = world.objects.buckets[NEAR][folder.base]
            await world.objects.put(FAR, folder.files, b"another try's")
        return world

    undisturbed = await begun()
    counting = Fault()
    await undisturbed.engine(through(undisturbed, counting)).copy(SERVER, "hour", no_progress)
    assert len(counting.calls) > 15
    for at in range(1, len(counting.calls) + 1):
        world = await begun()
        with pytest.raises(Died):
            await world.engine(through(world, Fault(at=at, moment=moment))).copy(SERVER, "hour", no_progress)
        for backup in ("full", "hour"):
            entry = await world.entry(backup)
            assert entry.problem is None, f"died {moment} call {at}"
            if FAR in entry.whole_in:
                assert world.bodies(FAR, backup) == world.bodies(NEAR, backup), f"died {moment} call {at}"
                assert backup == "hour" or FAR in (await world.entry("full")).whole_in
        await world.engine().copy(SERVER, "hour", no_progress)
        for backup in ("full", "hour"):
            assert world.bodies(FAR, backup) == world.bodies(NEAR, backup), f"died {moment} call {at}"
        assert (await world.engine().uncopied(SERVER)).complete
        world.objects.buckets[NEAR].clear()
        assert (await world.entry("full")).pinned == "case 4711"


def through(world: TwoBuckets, fault: Fault) -> ObjectStore:
    return cast(ObjectStore, Fragile("objects", world.objects, fault))


@pytest.mark.corruption
async def test_a_damaged_source_is_refused_and_named_and_nothing_of_it_is_stored(world: TwoBuckets) -> None:
    await world.put("full")
    world.flip(NEAR, world.base("full"))
    with pytest.raises(VerificationError, match="does not have the size") as refusal:
        await world.engine().copy(SERVER, "full", no_progress)
    assert f"`{world.base('full')}` in bucket `near` does not have the size and SHA-256" in str(refusal.value)
    assert world.bodies(FAR, "full") == {}
    # Nobody has to find it out anew.
    assert "it was changed, found when it was read" in str((await world.entry("full")).problem)
    assert (await world.engine().uncopied(SERVER)).backups == {}


@pytest.mark.corruption
async def test_what_was_replaced_there_is_left_as_it_is_until_people_remove_it(world: TwoBuckets) -> None:
    await world.put("full")
    await world.engine().copy(SERVER, "full", no_progress)
    folder = BaseFolder(world.policy, "full")
    world.objects.buckets[FAR][folder.base] = MemoryObject(b"cut off", START)
    entry = await world.entry("full")
    assert (entry.problem, entry.whole_in, entry.behind) == (None, (NEAR,), ())
    assert "in bucket `far` has 7 bytes" in entry.spoiled[FAR]
    await world.engine().copy(SERVER, "full", no_progress)
    assert world.bodies(FAR, "full")[folder.base] == b"cut off"

    del world.objects.buckets[FAR][folder.base]
    world.flip(FAR, folder.files)
    with pytest.raises(
        VerificationError, match=r"is whole in `near`.*files.zst` in bucket `far` is not what its signed"
    ):
        await world.engine().copy(SERVER, "full", no_progress)
    assert FAR in (await world.entry("full")).spoiled or FAR in (await world.entry("full")).behind
    del world.objects.buckets[FAR][folder.files]
    await world.engine().copy(SERVER, "full", no_progress)
    entry = await world.entry("full")
    assert (entry.whole_in, dict(entry.spoiled)) == ((NEAR, FAR), {})
    assert world.bodies(FAR, "full") == world.bodies(NEAR, "full")


async def test_half_uploads_of_earlier_copies_are_aborted(world: TwoBuckets) -> None:
    await world.put("full")
    now = SystemClock().now()  # that of the buckets
    mine, fresh, lost = (f"physical/base/main/{name}/base.age" for name in ("full", "other", "lost"))
    world.objects.uploads[FAR] = [(mine, now), (fresh, now), (lost, now - 2 * DAY)]
    await world.engine().copy(SERVER, "full", no_progress)
    assert [key for key, _ in world.objects.uploads[FAR]] == [fresh]


# ---------------------------------------------------------------- reading


async def test_a_bucket_that_is_away_hides_nothing_and_is_told(world: TwoBuckets) -> None:
    await a_chain(world)
    world.objects.away = {FAR}
    engine = world.engine()
    assert [entry.problem for entry in await engine.catalogue(SERVER)] == [None] * 3
    with pytest.raises(TemporaryError, match=r"`quarter` is whole in `near`, but not yet in every bucket.*`far`"):
        await engine.copy(SERVER, "quarter", no_progress)
    assert list((await engine.uncopied(SERVER)).silent) == [FAR]

    world.objects.away = set()
    await engine.copy(SERVER, "quarter", no_progress)
    world.objects.away = {NEAR}
    assert {entry.whole_in for entry in await engine.catalogue(SERVER)} == {(FAR,)}
    assert {entry.problem for entry in await engine.catalogue(SERVER)} == {None}
    world.objects.away = {NEAR, FAR}
    with pytest.raises(TemporaryError, match="`near` does not answer"):
        await engine.catalogue(SERVER)


@pytest.mark.parametrize("lost", ["emptied", "deleted"])
async def test_the_catalogue_outlives_the_first_bucket(world: TwoBuckets, lost: str) -> None:
    await a_chain(world)
    await world.engine().copy(SERVER, "quarter", no_progress)
    if lost == "emptied":
        world.objects.buckets[NEAR].clear()
    else:
        del world.objects.buckets[NEAR]
    entries = await world.engine().catalogue(SERVER)
    assert [entry.manifest.id for entry in entries] == ["quarter", "hour", "full"]
    assert {(entry.problem, entry.bucket) for entry in entries} == {(None, FAR)}


async def test_the_windows_outlive_the_bucket_of_the_open_segment(world: TwoBuckets) -> None:
    await a_chain(world)
    await world.engine().copy(SERVER, "quarter", no_progress)
    policy = world.policy.model_copy(update={"open_bucket": NEAR})
    world.site = world.site.model_copy(update={"physical": {SERVER: policy}})
    world.objects.away = {NEAR}
    far, near = await world.engine().windows(SERVER)
    assert (far.bucket, far.elsewhere, far.problem) == (FAR, (), "")
    assert (near.bucket, near.oldest) == (NEAR, None)
    assert "does not answer" in near.problem  # silent, which is not empty


async def test_a_gap_of_a_bucket_that_was_filled_later_is_shown_where_it_was(world: TwoBuckets) -> None:
    await world.put("full", START - 3 * HOUR)
    await world.engine().copy(SERVER, "full", no_progress)
    archive, sealer = WalArchive(world.objects, world.policy), Sealer(world.policy.recipients, world.keys.signing)
    for number in (3, 4, 7, 8):
        header, body = _sealed(sealer, number, START - 3 * HOUR + number * timedelta(minutes=10))
        for bucket in (NEAR, FAR):
            await archive.put(bucket, header, body)  # now, long after
    for window in await world.engine().windows(SERVER):
        [gap] = window.gaps
        assert (gap.first, gap.last, gap.loose) == (str(Segment(1, 5)), str(Segment(1, 6)), False)
        assert gap.after == START - 3 * HOUR + timedelta(minutes=40)
        assert gap.before == START - 3 * HOUR + timedelta(minutes=70)


@pytest.mark.corruption
async def test_what_somebody_puts_behind_the_newest_segment_hides_no_window(world: TwoBuckets) -> None:
    await world.put("full", START - 3 * HOUR)
    await world.engine().copy(SERVER, "full", no_progress)
    archive, sealer = WalArchive(world.objects, world.policy), Sealer(world.policy.recipients, world.keys.signing)
    for number in (3, 4):
        await archive.put(FAR, *_sealed(sealer, number, START - HOUR))
    for ahead in (Segment(1, 5), Segment(1, 9999)):
        await world.objects.put(FAR, archive.key(str(ahead)), b"forged")
    far, _ = await world.engine().windows(SERVER)
    assert (far.newest, far.newest_lsn, far.gaps) == (START - HOUR, str(Segment(1, 4).end), ())


def _sealed(sealer: Sealer, number: int, closed_at: datetime) -> tuple[SealedHeader, bytes]:
    segment = Segment(1, number)
    what = What(kind=SealedKind.SEGMENT, name=str(segment), system_id="7", timeline_id=1, segment_bytes=segment.size)
    return sealer.seal(what, io.BytesIO(bytes(segment.size)), closed_at)


async def test_where_no_bucket_answers_there_is_no_window_to_tell(world: TwoBuckets) -> None:
    await a_chain(world)
    world.objects.away = {NEAR, FAR}
    with pytest.raises(TemporaryError):
        await world.engine().windows(SERVER)


async def test_an_object_that_one_bucket_lost_is_taken_from_the_other_and_brought_back(world: TwoBuckets) -> None:
    await world.put("full")
    await world.engine().copy(SERVER, "full", no_progress)
    folder = BaseFolder(world.policy, "full")
    for key in (folder.base, folder.files, folder.manifest):
        stored = world.objects.buckets[NEAR].pop(key)
        entry = await world.entry("full")
        assert (entry.problem, entry.whole_in, entry.behind) == (None, (FAR,), (NEAR,))
        await world.engine().copy(SERVER, "full", no_progress)
        assert world.objects.buckets[NEAR][key].body == stored.body


@pytest.mark.corruption
async def test_two_manifests_that_differ_are_a_problem_and_both_buckets_are_named(world: TwoBuckets) -> None:
    await world.put("full", START - 2 * HOUR)
    await world.put("full", START - HOUR, bucket=FAR)
    entry = await world.entry("full")
    assert entry.whole_in == ()
    assert "`near` and `far` hold different manifests of base backup `full`" in str(entry.problem)
    with pytest.raises(VerificationError, match="different manifests"):
        await world.engine().copy(SERVER, "full", no_progress)


@pytest.mark.corruption
@pytest.mark.parametrize("forged", [NEAR, FAR])
async def test_a_forged_manifest_in_one_bucket_does_not_take_the_true_one_away(world: TwoBuckets, forged: str) -> None:
    true = FAR if forged == NEAR else NEAR
    await world.put("full", bucket=true)
    await world.put("full", START, bucket=forged, keys=Keys())
    entry = await world.entry("full")
    assert (entry.problem, entry.trusted, entry.whole_in, entry.behind) == (None, True, (true,), ())
    assert "a key the plan file does not trust" in entry.spoiled[forged]


# ---------------------------------------------------------------- records


async def test_a_pin_is_lost_with_neither_bucket(world: TwoBuckets) -> None:
    await world.put("full")
    await world.engine().copy(SERVER, "full", no_progress)
    world.objects.away = {FAR}
    await world.engine().pin(SERVER, "full", reason="case 4711")
    assert (await world.entry("full")).pinned == "case 4711"
    world.objects.away = set()
    assert (await world.engine().uncopied(SERVER)).backups == {"full": (FAR,)}
    await world.put("next", START)
    await world.engine().copy(SERVER, "next", no_progress)
    assert (await world.engine().uncopied(SERVER)).complete

    world.objects.buckets[NEAR].clear()
    assert (await world.entry("full")).pinned == "case 4711"
    await world.engine().pin(SERVER, "full", reason="")
    assert (await world.entry("full")).pinned == ""


async def test_who_may_only_read_leaves_it_at_having_said_so(
    world: TwoBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a restore test in a cluster, whose keys cannot write."""
    await world.put("full")
    records = BaseRecords(world.objects, MemorySecrets({"env:SIGNING": world.keys.pem}), world.clock)

    async def refused(bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        raise UserError(f"Bucket `{bucket}` did not store `{key}`: AccessDenied.")

    monkeypatch.setattr(world.objects, "put", refused)
    await records.damaged(world.policy, await world.entry("full"), NEAR, "it was changed.")
    assert (await world.entry("full")).problem is None
    monkeypatch.undo()
    await records.damaged(world.policy, await world.entry("full"), NEAR, "it was changed.")
    assert "it was changed" in str((await world.entry("full")).problem)


async def test_restore_tests_of_which_one_bucket_was_not_told_are_brought_there(world: TwoBuckets) -> None:
    await world.put("full")
    for bucket, key in ((NEAR, "one"), (FAR, "two")):
        await world.objects.put(bucket, f"{proofs_prefix(world.policy)}{key}.json", key.encode())
    await world.engine().copy(SERVER, "full", no_progress)
    for bucket in (NEAR, FAR):
        found = [item.body for key, item in sorted(world.objects.buckets[bucket].items()) if "/proofs/" in key]
        assert found == [b"one", b"two"]


@pytest.mark.parametrize("away", [NEAR, FAR])
async def test_what_is_written_beside_a_backup_is_in_every_bucket_that_answers(world: TwoBuckets, away: str) -> None:
    await world.put("full")
    await world.engine().copy(SERVER, "full", no_progress)
    await world.engine().pin(SERVER, "full", reason="case 4711")
    world.objects.away = {away}
    assert (await world.entry("full")).pinned == "case 4711"
    world.clock.advance(HOUR)
    await world.engine().pin(SERVER, "full", reason="case 4712")
    assert (await world.entry("full")).pinned == "case 4712"
    world.objects.away = set()
    assert (await world.entry("full")).pinned == "case 4712"
    world.objects.away = {NEAR, FAR} - {away}
    assert (await world.entry("full")).pinned == "case 4711"


# ---------------------------------------------------------------- retention


async def old_and_new(world: TwoBuckets) -> None:
    for number, days in enumerate((40, 39, 1, 0)):
        await world.put(f"full-{days}", START - days * DAY - HOUR, segment=3 + number)
    await world.engine().copy(SERVER, "full-0", no_progress)


async def expired(world: TwoBuckets) -> tuple[str, ...]:
    engine = world.engine()
    expiry = await engine.expiry(SERVER)
    await engine.expire(SERVER, expiry)
    return expiry.backups


async def test_what_is_old_goes_from_both_buckets(world: TwoBuckets) -> None:
    # Bring all of them over while they are young.
    world.clock.advance(-35 * DAY)
    await old_and_new(world)
    world.clock.advance(35 * DAY)
    assert await expired(world) == ("full-40",)  # WAL of seven days ago is replayed from the newest before that
    for bucket in (NEAR, FAR):
        left = {key.split("/")[3] for key in world.objects.buckets[bucket]}
        assert left == {"full-39", "full-1", "full-0"}
    assert (await world.engine().uncopied(SERVER)).complete


async def old_with_wal(world: TwoBuckets) -> Expiry:
    """What goes of four full backups in both buckets, and of ten segments."""
    world.clock.advance(-35 * DAY)
    await old_and_new(world)
    world.clock.advance(35 * DAY)
    archive = WalArchive(world.objects, world.policy)
    for bucket in (NEAR, FAR):
        for number in range(1, 11):
            await world.objects.put(bucket, archive.key(str(Segment(1, number))), b"wal")
    found = await world.engine().expiry(SERVER)
    assert (found.backups, found.segments) == (("full-40",), 3)
    return found


def archived(world: TwoBuckets) -> list[set[int]]:
    names = [{key for key in world.objects.buckets[bucket] if "/wal/" in f"/{key}"} for bucket in (NEAR, FAR)]
    return [{Segment.parse(key.split("/")[-1].removesuffix(".sealed")).number for key in keys} for keys in names]


async def test_nothing_goes_that_was_not_shown_however_much_later(world: TwoBuckets) -> None:
    shown = await old_with_wal(world)
    world.clock.advance(20 * DAY)
    assert (await world.engine().expiry(SERVER)).segments > shown.segments

    await world.engine().expire(SERVER, shown)

    assert archived(world) == [set(range(4, 11))] * 2
    assert {entry.manifest.id for entry in await world.engine().catalogue(SERVER)} == {"full-39", "full-1", "full-0"}


async def test_no_wal_goes_while_a_bucket_refuses_to_let_a_backup_go(
    world: TwoBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would rest on nothing: the backup is still there, and listed."""
    shown, delete = await old_with_wal(world), world.objects.delete

    async def locked(bucket: str, key: str) -> None:
        if "full-40" in key:
            raise UserError(f"Bucket `{bucket}` did not delete `{key}`: AccessDenied.")
        await delete(bucket, key)

    monkeypatch.setattr(world.objects, "delete", locked)
    with pytest.raises(PermanentError, match="refused to delete `full-40` of `main`"):
        await world.engine().expire(SERVER, shown)
    assert archived(world) == [set(range(1, 11))] * 2


async def test_what_only_the_policy_lets_go_is_not_copied_any_more(world: TwoBuckets) -> None:
    await old_and_new(world)
    assert world.bodies(FAR, "full-40") == {}
    assert world.bodies(FAR, "full-39") != {}
    assert (await world.engine().uncopied(SERVER)).complete


async def test_each_bucket_keeps_as_many_as_it_would_need_alone(world: TwoBuckets) -> None:
    """The copies of the last month have failed: what is old is all that the second bucket has."""
    for number, days in enumerate((41, 40, 1, 0)):
        await world.put(f"full-{days}", START - days * DAY - HOUR, segment=3 + number)
        if days >= 40:
            await world.put(f"full-{days}", START - days * DAY - HOUR, segment=3 + number, bucket=FAR)
    found = await world.engine().expiry(SERVER)
    assert found.backups == ()
    assert found.kept["full-41"] == "in `far`: one of the 2 newest full backups"
    with pytest.raises(UserError, match="has 2 usable full backups in `far`, and the plan file wants 2"):
        await world.engine().remove(SERVER, "full-41")


@pytest.mark.parametrize("away", [NEAR, FAR])
async def test_nothing_is_deleted_while_a_bucket_is_silent(world: TwoBuckets, away: str) -> None:
    await old_and_new(world)
    expiry = await world.engine().expiry(SERVER)
    assert expiry.backups
    world.objects.away = {away}
    before = {bucket: dict(world.objects.buckets[bucket]) for bucket in (NEAR, FAR)}
    engine = world.engine()
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: engine.expiry(SERVER),
        lambda: engine.expire(SERVER, expiry),
        lambda: engine.remove(SERVER, "full-1"),
    ]
    for attempt in attempts:
        with pytest.raises(TemporaryError, match=f"`{away}` cannot be looked at, so nothing .* is deleted"):
            await attempt()
    assert {bucket: dict(world.objects.buckets[bucket]) for bucket in (NEAR, FAR)} == before


async def test_a_bucket_that_refuses_leaves_the_other_one_whole(
    world: TwoBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (3, 2, 1, 0):
        await world.put(f"full-{days}", START - days * DAY - HOUR)
    await world.engine().copy(SERVER, "full-0", no_progress)
    delete = world.objects.delete

    async def locked(bucket: str, key: str) -> None:
        if bucket == FAR:
            raise PermanentError("AccessDenied: it is locked.")
        await delete(bucket, key)

    monkeypatch.setattr(world.objects, "delete", locked)
    with pytest.raises(PermanentError, match="`far` refused to delete `full-3`"):
        await world.engine().remove(SERVER, "full-3")
    assert (await world.entry("full-3")).whole_in == (NEAR, FAR)
    monkeypatch.undo()
    await world.engine().remove(SERVER, "full-3")
    assert "full-3" not in {entry.manifest.id for entry in await world.engine().catalogue(SERVER)}
    assert world.bodies(NEAR, "full-3") == world.bodies(FAR, "full-3") == {}
